"""Testing a run on another folder's nodules: each by the networks that never saw its patient."""

import csv

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments import held_out
from pnsamp_jax import train
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import load_records

pytestmark = pytest.mark.usefixtures("quick_compilation")


def records(*patients):
    ids = np.array([f"n{index}" for index in range(len(patients))])
    return {schema.NODULE_ID: ids, schema.PATIENT_ID: np.array(patients)}


def test_a_patient_belongs_to_the_fold_that_tests_it():
    folds = [
        {"train": ["n2"], "validation": [], "test": ["n0", "n1"]},
        {"train": ["n0"], "validation": [], "test": ["n2"]},
    ]
    assert held_out.fold_of_patients(records("a", "a", "b"), folds) == {"a": 0, "b": 1}


def test_a_split_by_nodules_is_refused():
    folds = [{"test": ["n0"]}, {"test": ["n1"]}]
    with pytest.raises(UserError, match="patient a is in the test sets of two folds"):
        held_out.fold_of_patients(records("a", "a"), folds)


def test_each_nodule_is_tested_by_networks_that_never_saw_its_patient(tmp_path, monkeypatch):
    config = tiny_config(num_epochs=1)
    train.train_and_evaluate(config, tmp_path / "run")
    own = load_records(train.read_settings(config))
    stranger = own[schema.PATIENT_ID] == own[schema.PATIENT_ID][0]

    def load(settings):
        """Return the run's own nodules; of another folder, the same with a patient whom the run does not know."""
        if settings.fields["data"]["root"]:
            renamed = np.where(stranger, "unknown", own[schema.PATIENT_ID])
            return {**own, schema.PATIENT_ID: renamed}
        return own

    monkeypatch.setattr(held_out, "load_records", load)
    held_out.test_elsewhere(config, tmp_path / "run", tmp_path, tmp_path / "out")
    inside, outside = (
        {
            row["nodule_id"]: row
            for row in csv.DictReader((tmp_path / name / "predictions.csv").read_text().splitlines())
        }
        for name in ("run", "out")
    )
    assert inside.keys() == outside.keys()
    unknown = set(own[schema.NODULE_ID][stranger])
    for nodule, row in outside.items():
        if nodule in unknown:
            assert row["fold"] == str(held_out.ALL_FOLDS)
        else:
            assert row["fold"] == inside[nodule]["fold"]
            # The same network and the same voxels give the same answer, up to the rounding of another batch.
            for column in (f"malignancy_p{k}" for k in range(1, 6)):
                assert float(row[column]) == pytest.approx(float(inside[nodule][column]), abs=1e-5)
    assert (tmp_path / "out" / "results.json").exists()


def test_a_folder_without_tested_patients_is_refused(tmp_path, monkeypatch):
    config = tiny_config(num_epochs=1, fold=0)
    train.train_and_evaluate(config, tmp_path / "run")
    own = load_records(train.read_settings(config))

    def load(settings):
        nobody = np.full(len(own[schema.PATIENT_ID]), "unknown")
        return {**own, schema.PATIENT_ID: nobody} if settings.fields["data"]["root"] else own

    monkeypatch.setattr(held_out, "load_records", load)
    with pytest.raises(UserError, match="none of its patients is in the test set of a fold that is trained"):
        held_out.test_elsewhere(config, tmp_path / "run", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
