"""Scores against diagnoses: on scores whose areas are known, and from random networks to the files."""

import csv
import shutil

import jax
import numpy as np
import pytest
from ct_files import refusal
from tiny_run import tiny_config

from experiments import diagnosis
from experiments.baselines import diagnosis_head
from experiments.comparison import by_diagnosis
from experiments.comparison.by_diagnosis import NETWORK, READERS, SENSITIVITY
from pnsamp_jax import metrics
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.inference import calibration
from pnsamp_jax.run import open_run
from pnsamp_jax.state import state_shapes
from pnsamp_jax.workdir import tables
from pnsamp_jax.workdir.checkpoint import Checkpoints

DIAGNOSIS = np.array(["benign"] * 4 + ["primary"] * 2 + ["metastatic"] * 2)
SCORES = {  # the readers let one of four benign patients through
    READERS: np.array([1, 2, 3, 4, 5, 3, 1, 4.0]),
    NETWORK: np.array([1, 2, 3, 4, 5, 5, 3.5, 3.5]),
    "ties": np.full(8, 2.0),
    "missing": np.full(8, np.nan),
}


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch):
    """Neither the intervals nor the choice of the regularisation are tested to the last digit."""
    monkeypatch.setattr(by_diagnosis, "RESAMPLES", 40)
    monkeypatch.setattr(diagnosis_head, "STRENGTHS", np.array([0.01, 1]))


@pytest.mark.parametrize(
    ("false_positives", "sensitivity"), [(0, 0.25), (0.5, 0.375), (1, 0.5), (2, 0.625), (3, 1), (4, 1)]
)
def test_sensitivity_at_a_mass_of_false_positives(false_positives, sensitivity):
    score = np.array([5, 4, 3, 2, 4, 3, 3, 1, 9.0])
    positive = np.array([True] * 4 + [False] * 5)
    weights = np.array([1] * 8 + [0])  # the last is left out
    # Over 4: one positive. At 4: one of each. At 3: a positive and two negatives. At 2: a positive.
    assert by_diagnosis.sensitivity_at(score, positive, weights, false_positives) == pytest.approx(sensitivity)


def test_the_best_of_the_cuts_with_as_many_false_positives_counts():
    score, positive = np.array([4, 3, 2, 1.0]), np.array([True, True, False, True])
    assert by_diagnosis.sensitivity_at(score, positive, np.ones(4), 0) == pytest.approx(2 / 3)


def test_every_contrast_has_its_areas_and_sensitivities():
    rows = {row["system"]: row for row in by_diagnosis.contrast_rows(SCORES, DIAGNOSIS, "malignant")}
    readers, network, ties, missing = (rows[name] for name in SCORES)
    assert readers["AUC"].value == pytest.approx((4 + 2.5 + 0.5 + 3.5) / 16)
    assert network["AUC"].value == pytest.approx((4 + 4 + 3 + 3) / 16)
    difference = readers["AUC, against the network"]
    assert difference.value == pytest.approx(-3.5 / 16) and difference.interval[0] <= difference.value <= 0.2
    assert readers[SENSITIVITY].value == 0.5  # 5 and 4, over 3
    assert network[SENSITIVITY].value == 1 and network["sensitivity, against the readers"].value == 0.5
    assert ties["AUC"].value == 0.5 and ties[SENSITIVITY].value == pytest.approx(0.25)
    assert str(missing["AUC"]) == str(missing[SENSITIVITY]) == "-"
    assert network["AUC, against the network"] == readers["sensitivity, against the readers"] == "-"
    primary = by_diagnosis.contrast_rows(SCORES, DIAGNOSIS, "primary")[0]
    assert primary["AUC"].value == pytest.approx((4 + 2.5) / 8) and primary[SENSITIVITY].value == 0.5


def test_an_interval_is_paired():
    """A score that is the network's in other units differs from it in no replicate."""
    scores = {**SCORES, "same": 10 * SCORES[NETWORK]}
    same = by_diagnosis.contrast_rows(scores, DIAGNOSIS, "malignant")[-1]["AUC, against the network"]
    assert same.value == 0 and same.interval == (0, 0)


def test_calibration_by_bins():
    rows = by_diagnosis.calibration_rows(np.array([0.1, 0.1, 0.9, 1.0]), np.array([False, True, True, True]))
    first, *empty, last, every = rows
    assert [row["patients"] for row in rows] == [2, 0, 0, 0, 2, 4]
    assert first["share diagnosed malignant"].value == 0.5
    assert first["share minus probability"].value == pytest.approx(0.4)
    assert last["mean of the probability"].value == pytest.approx(0.95)
    assert every["share diagnosed malignant"].value == 0.75
    assert all(str(row["share diagnosed malignant"]) == "-" for row in empty)


# The head

PATIENTS = 60
FOLD_OF = np.arange(PATIENTS) % 3
MALIGNANT = np.arange(PATIENTS) // 3 % 3 > 0  # two thirds, in every fold


def answers_of(fold, signal, seed=0):
    """Made-up answers about 60 patients: what tells is hidden in features of the fold's own kind."""
    random = np.random.default_rng(seed + fold)
    features = random.normal(size=(PATIENTS, 5))
    features[:, fold] += signal * MALIGNANT * (-1) ** fold
    ratings, facts = random.normal(size=(PATIENTS, 4)), random.normal(size=(PATIENTS, 3))
    facts[:, 1] += 0.7 * signal * MALIGNANT
    return diagnosis_head.Answers(ratings, features, facts)


def area(scores):
    return metrics.auc(scores, MALIGNANT)


def test_heads_read_what_their_network_says_and_find_what_tells():
    answers = {fold: answers_of(fold, signal=8) for fold in range(3)}
    read = diagnosis_head.inputs(answers, FOLD_OF)
    scores = {kind: diagnosis_head.head_scores(of, MALIGNANT, FOLD_OF, seed=0) for kind, of in read.items()}
    assert area(scores["deep features"]) > 0.97 and area(scores["patient facts"]) > 0.97
    assert area(scores["deep features and facts"]) > 0.97 and area(scores["ratings and facts"]) > 0.97
    assert 0.2 < area(scores["ratings"]) < 0.8  # noise: within 3 standard errors of one half
    # Each patient's ratings are those of the fold that tests it.
    for fold in range(3):
        np.testing.assert_array_equal(read["ratings"][0][FOLD_OF == fold], answers[fold].ratings[FOLD_OF == fold])


def test_a_head_never_learns_from_the_patients_it_scores():
    """With labels that are noise, no kind of input helps, however many there are."""
    random = np.random.default_rng(1)
    noise = random.normal(size=(PATIENTS, 100))
    areas = [
        metrics.auc(diagnosis_head.head_scores(dict.fromkeys(range(3), noise), labels, FOLD_OF, 0), labels)
        for labels in (random.permutation(MALIGNANT) for _ in range(3))
    ]
    assert 0.3 < np.mean(areas) < 0.7  # the mean of three has a standard error of about 0.05


def test_where_one_fold_is_tested_deep_features_have_a_head_and_ratings_have_none():
    read = diagnosis_head.inputs({1: answers_of(1, signal=6)}, FOLD_OF)
    deep = diagnosis_head.head_scores(read["deep features"], MALIGNANT, FOLD_OF, seed=0)
    assert np.isnan(deep[FOLD_OF != 1]).all() and metrics.auc(deep[FOLD_OF == 1], MALIGNANT[FOLD_OF == 1]) > 0.95
    assert np.isnan(diagnosis_head.head_scores(read["ratings"], MALIGNANT, FOLD_OF, seed=0)).all()


# From random networks to the files


def random_network(run, fold):
    """Write what the training and the test of a fold leave: a random network and its made-up predictions."""
    settings, task, random = run.settings, run.settings.task, np.random.default_rng(fold)
    like = state_shapes(task.model, task.patch_size, len(task.windows))
    state = jax.tree.map(lambda leaf: random.normal(0, 0.4, leaf.shape).astype(leaf.dtype), like)
    variances = jax.tree.map(lambda leaf: 0.5 + np.abs(leaf), state.batch_stats)
    with Checkpoints(run.fold_folder(fold) / "checkpoints") as checkpoints:
        checkpoints.save(state.replace(step=np.int32(1), batch_stats=variances), settings.fields, loss=1.0)
    probabilities = random.dirichlet(np.ones(6), (40, 9)) * schema.CLASS_EXISTS
    features = random.normal(size=(40, state.params["heads"]["fusion"]["kernel"].shape[0]))
    truth = random.integers(1, 5, (40, 9))
    temperatures = calibration.fit_temperatures(probabilities, truth)
    fitted = calibration.Calibration(temperatures, features.mean(axis=0), settings.checkpoint, step=1)
    calibration.write(run.fold_folder(fold) / "calibration.json", fitted, nodules=40)
    test = run.indices(fold)["test"]
    records = {name: np.asarray(values)[test] for name, values in run.records.items()}
    said = random.dirichlet(np.ones(6), (len(test), 9)) * schema.CLASS_EXISTS
    said /= said.sum(axis=-1, keepdims=True)
    tables.write_predictions(run.fold_folder(fold) / "predictions.csv", fold, records, settings.nominal, {}, said)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a config, the workdir of its tested run, and the patients' highest mean rating."""
    folder = tmp_path_factory.mktemp("diagnosis")
    config, workdir = tiny_config(**{"data.cohort": "all"}), folder / "run"
    run = open_run(config, workdir)
    for fold in range(config.num_folds):
        random_network(run, fold)
    tables.gather_predictions(workdir)
    patients = np.asarray(run.records[schema.PATIENT_ID])
    ratings = cohort.mean_rating(np.asarray(run.records[schema.RATING_COUNTS])[:, schema.MALIGNANCY])
    highest = {str(patient): ratings[patients == patient].max() for patient in np.unique(patients)}
    words = ["unknown", *["benign", "primary", "metastatic"] * len(highest)]
    lines = [f"{patient},{word},biopsy" for patient, word in zip(highest, words, strict=False)]
    config.data.diagnosis = str(folder / "diagnoses.csv")
    (folder / "diagnoses.csv").write_text("\n".join(["patient_id,diagnosis,method", *lines, "stranger,benign,biopsy"]))
    return config, workdir, highest


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("quick_compilation")
def test_from_random_networks_to_the_files(finished, tmp_path, capsys):
    config, workdir, highest = finished
    diagnosis.run(config, workdir, tmp_path / "out", forest=workdir)
    rows = rows_of(tmp_path / "out" / "patients.csv")
    assert [row["patient_id"] for row in rows] == list(highest)[1:]  # the first one's diagnosis is unknown
    for row in rows:
        assert float(row[READERS]) == pytest.approx(highest[row["patient_id"]], abs=1e-4)
    predictions = rows_of(workdir / "predictions.csv")
    one = [row for row in predictions if row["patient_id"] == rows[0]["patient_id"]]
    expected = max(sum(k * float(row[f"malignancy_p{k}"]) for k in range(1, 6)) for row in one)
    assert float(rows[0][NETWORK]) == pytest.approx(expected, abs=1e-4) and int(rows[0]["nodules"]) == len(one)
    heads = [name for name in rows[0] if name.startswith("head on")]
    assert len(heads) == 5 and all(row[name] for row in rows for name in heads)
    text = (tmp_path / "out" / "diagnosis.md").read_text()
    assert f"{len(rows)} patients with" in text and "in folds 0, 1, 2 of 3. Patients with" in text
    assert "not in these folds: 1. SIMULATED VOXELS" in text and "| radiomics forest, readers' outlines" in text
    assert text.split("![")[0] in capsys.readouterr().out
    of_readers = [row for row in rows_of(tmp_path / "out" / "diagnosis.csv") if row.get("system") == READERS]
    score, benign = (
        np.array([float(row[READERS]) for row in rows]),
        np.array([row["diagnosis"] == "benign" for row in rows]),
    )
    assert float(of_readers[0]["AUC"]) == pytest.approx(100 * metrics.auc(score, ~benign), rel=1e-4)
    assert (tmp_path / "out" / "disagreement.png").stat().st_size > 20_000


@pytest.mark.usefixtures("quick_compilation")
def test_folds_that_are_not_tested_yet_are_left_out_and_named(finished, tmp_path):
    config, workdir, _ = finished
    part = shutil.copytree(workdir, tmp_path / "part")
    for name in ("predictions.csv", "calibration.json"):
        (part / "fold_1" / name).unlink()
    tables.gather_predictions(part)
    diagnosis.run(config, part, tmp_path / "out", forest=None)
    folds = {row["fold"] for row in rows_of(tmp_path / "out" / "patients.csv")}
    assert folds <= {"0", "2"} and "tested in folds 0, 2 of 3" in (tmp_path / "out" / "diagnosis.md").read_text()
    assert "did not test nodule" in refusal(diagnosis.run, config, workdir, tmp_path / "other", forest=part)


def test_what_cannot_be_compared_is_refused(finished, tmp_path):
    config, workdir, _ = finished
    other = config.copy_and_resolve_references()
    other.data.diagnosis = ""
    assert "config.data.diagnosis: is empty" in refusal(diagnosis.run, other, workdir, tmp_path, forest=None)
    other.data.diagnosis = str(tmp_path / "strangers.csv")
    (tmp_path / "strangers.csv").write_text("patient_id,diagnosis,method\nstranger,benign,biopsy\n")
    message = refusal(diagnosis.run, other, workdir, tmp_path, forest=None)
    assert "has a known diagnosis there" in message and "'stranger' in the table" in message
