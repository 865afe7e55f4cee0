"""Patients by their diagnosis: the highest nodule of each, and areas under the ROC curve that are known."""

import numpy as np
import pytest
from ct_files import refusal
from tiny_run import tiny_config

from pnsamp_jax import diagnosed, metrics
from pnsamp_jax.data.diagnosis import Diagnosis, read_diagnoses
from pnsamp_jax.data.folder_tables import read_rows
from pnsamp_jax.run import open_run

SUSPICION = {"a": [1, 2], "b": [2], "c": [2, 5, 1], "d": [3], "e": [5]}  # of the network, by patient
READERS = {"a": [3, 1], "b": [2], "c": [4, 1, 1], "d": [1], "e": [5]}
DIAGNOSES = {
    "a": Diagnosis("benign", "biopsy"),
    "b": Diagnosis("benign", "two_years_stable"),
    "c": Diagnosis("primary", "resection"),
    "d": Diagnosis("metastatic", "biopsy"),
    "e": Diagnosis("unknown", "unknown"),
    "z": Diagnosis("benign", "biopsy"),
}


def made_up_table():
    """A table of the nodules above, those of the patients mixed, rated by one reader each."""
    nodules = [
        (patient, *pair) for patient in SUSPICION for pair in zip(SUSPICION[patient], READERS[patient], strict=True)
    ]
    nodules = nodules[::2] + nodules[1::2]
    patients, network, readers = (np.array(column) for column in zip(*nodules, strict=True))
    probabilities, counts = np.zeros((len(nodules), 9, 6)), np.zeros((len(nodules), 9, 6), int)
    probabilities[np.arange(len(nodules)), 8, network - 1] = 1
    counts[np.arange(len(nodules)), 8, readers - 1] = 1
    context = np.where(patients == "d", "cube", "slab")
    return {"patient_id": patients, "context": context, "probabilities": probabilities, "rating_counts": counts}


def test_the_highest_nodule_of_each_patient():
    patients, scores = np.array(list("babac")), np.array([1.0, 3, 2, np.nan, np.nan])
    assert diagnosed.highest_nodules(scores, patients).tolist() == [1, 2, 4]
    assert not len(diagnosed.highest_nodules(np.zeros(0), np.zeros(0, str)))


def test_only_known_diagnoses_count_and_by_the_highest_nodule():
    results = diagnosed.auc_results(made_up_table(), DIAGNOSES)
    assert results["patients"] == 4 and results["of_patients"] == 5 and results["nodules"] == {"cube": 1, "slab": 6}
    # By patient: network 2 and 2 benign, 5 primary, 3 metastatic; readers 3 and 2, 4, 1.
    found = results["against_benign"]
    assert {name: (one["n"], one["positive"]) for name, one in found.items()} == {
        "malignant": (4, 2),
        "primary": (3, 1),
        "metastatic": (3, 1),
    }
    assert [one["network"]["value"] for one in found.values()] == [1, 1, 1]
    assert [one["readers"]["value"] for one in found.values()] == [0.5, 1, 0]
    low, high = found["malignant"]["readers"]["interval"]
    assert 0 <= low < 0.5 < high <= 1


def test_a_run_without_diagnosed_patients_has_no_area():
    results = diagnosed.auc_results(made_up_table(), {"z": DIAGNOSES["z"]})
    assert results["patients"] == 0 and results["nodules"] == {}
    assert np.isnan(results["against_benign"]["malignant"]["network"]["value"])


def test_the_table_may_spell_the_patients_otherwise():
    table = made_up_table()
    named = {name: f"P_{number:02d}" for number, name in enumerate(DIAGNOSES)}
    spelt = {f"p{number}": diagnosis for number, diagnosis in enumerate(DIAGNOSES.values())}
    renamed = table | {"patient_id": np.array([named[patient] for patient in table["patient_id"]])}
    assert diagnosed.auc_results(renamed, spelt) == diagnosed.auc_results(table, DIAGNOSES)


def test_a_table_of_other_patients_is_refused_before_the_training(tmp_path):
    (tmp_path / "t.csv").write_text("patient_id,diagnosis,method\nanna,1,1\n")
    config = tiny_config(**{"data.diagnosis": str(tmp_path / "t.csv")})
    message = refusal(open_run, config, tmp_path / "run")
    assert f"{tmp_path}/t.csv: names none of the run's" in message and "(the table has 'anna')" in message
    assert not (tmp_path / "run").exists()
    records = open_run(tiny_config(), tmp_path / "other").records
    own = str(records["patient_id"][0])
    (tmp_path / "t.csv").write_text(f"patient_id,diagnosis,method\nanna,1,1\n{own.lower()},1,1\n")
    open_run(config, tmp_path / "run")


def test_a_training_reads_the_table_before_it_begins(tmp_path):
    (tmp_path / "t.csv").write_text("patient_id,diagnosis,method\na,5,1\n")
    config = tiny_config(**{"data.diagnosis": str(tmp_path / "t.csv")})
    assert "line 2, column diagnosis: '5' is none of" in refusal(open_run, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_readers_on_the_real_nodules(lidc_subset, diagnosis_files):
    nodules = [row.nodule for rows in read_rows(str(lidc_subset)).values() for row in rows]
    table = {
        "patient_id": np.array([nodule.patient_id for nodule in nodules]),
        "context": np.full(len(nodules), "slab"),
        "probabilities": np.zeros((len(nodules), 9, 6)),
        "rating_counts": np.stack([nodule.rating_counts for nodule in nodules]).astype(int),
    }
    diagnoses = read_diagnoses(diagnosis_files[0])
    results = diagnosed.auc_results(table, diagnoses)
    assert results["patients"] == 107
    numbers = {name: (one["n"], one["positive"]) for name, one in results["against_benign"].items()}
    assert numbers == {"malignant": (107, 77), "primary": (66, 36), "metastatic": (71, 41)}
    readers = results["against_benign"]["malignant"]["readers"]
    assert readers["value"] == pytest.approx(0.771, abs=5e-4)
    # The same number was published with this project as 0.771 [0.676, 0.857], from patients drawn one by one.
    table = diagnosed.with_diagnosis(table, diagnoses)
    chosen = diagnosed.highest_nodules(diagnosed.reader_scores(table), table["patient_id"])
    score, malignant = diagnosed.reader_scores(table)[chosen], table["diagnosis"][chosen] != "benign"
    random = np.random.default_rng(0)
    draws = [random.integers(0, 107, 107) for _ in range(2000)]
    drawn = np.quantile([metrics.auc(score[draw], malignant[draw]) for draw in draws], [0.025, 0.975])
    np.testing.assert_allclose(drawn, [0.676, 0.857], atol=5e-4)
    # 2,000 replicates leave both ends uncertain by a few thousandths (0.666 to 0.681 and 0.853 to 0.865 over seeds).
    np.testing.assert_allclose(readers["interval"], drawn, atol=0.015)
