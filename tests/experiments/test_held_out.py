"""Testing a run on another folder's nodules: each by the networks that never saw its patient."""

import csv
import json

import numpy as np
import pytest

from experiments import export_weights, held_out
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import calibration
from pnsamp_jax.run import load_records
from pnsamp_jax.workdir import layout

pytestmark = pytest.mark.usefixtures("quick_compilation")


def write_folds(folder, *tested):
    """Write a folds.json whose folds test the given lists of patients."""
    folds = [{"test": {"patients": list(patients)}} for patients in tested]
    (folder / "folds.json").write_text(json.dumps({"folds": folds}))
    return folder / "folds.json"


def test_a_patient_belongs_to_the_fold_that_tests_it(tmp_path):
    assert layout.fold_of_patients(write_folds(tmp_path, "ab", "c")) == {"a": 0, "b": 0, "c": 1}


def test_a_split_by_nodules_is_refused(tmp_path):
    with pytest.raises(UserError, match="patient a is in the test sets of two folds"):
        layout.fold_of_patients(write_folds(tmp_path, "a", "ab"))


@pytest.mark.parametrize("content", ["{", "[]", '{"folds": [{"test": []}]}', '{"folds": 3}'])
def test_a_damaged_split_is_refused(tmp_path, content):
    (tmp_path / "folds.json").write_text(content)
    with pytest.raises(UserError, match="folds.json: damaged"):
        layout.fold_of_patients(tmp_path / "folds.json")


def test_networks_without_a_split_are_refused(tmp_path):
    with pytest.raises(UserError, match="nobody knows which patients each network saw"):
        layout.fold_of_patients(tmp_path / "folds.json")


def rename_patients(monkeypatch, renamed):
    """Let the nodules to test be the run's own, but of the patients that `renamed` makes of theirs."""

    def load(settings):
        own = load_records(settings)
        return {**own, schema.PATIENT_ID: renamed(own[schema.PATIENT_ID])}

    monkeypatch.setattr(held_out, "load_records", load)


def rows(folder):
    return {row["nodule_id"]: row for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines())}


@pytest.mark.parametrize("exported", [False, True], ids=["workdir", "exported"])
def test_each_nodule_is_tested_by_networks_that_never_saw_its_patient(tmp_path, tested_run, monkeypatch, exported):
    config, networks = tested_run
    inside = rows(networks)
    if exported:
        export_weights.export(networks, tmp_path / "weights")
        networks = tmp_path / "weights"
    stranger = next(iter(inside.values()))["patient_id"]
    rename_patients(monkeypatch, lambda patients: np.where(patients == stranger, "unknown", patients))
    held_out.test_elsewhere(config, networks, tmp_path / "out")
    outside = rows(tmp_path / "out")
    assert inside.keys() == outside.keys()
    answers = {"own": [], "run": []}
    for nodule, row in outside.items():
        if inside[nodule]["patient_id"] == stranger:
            assert row["fold"] == str(held_out.ALL_FOLDS)
        else:
            assert row["fold"] == inside[nodule]["fold"]
            fold = tested_run[1] / f"fold_{row['fold']}"
            temperatures = calibration.read(fold / "calibration.json").temperatures
            for name, source in (("own", row), ("run", inside[nodule])):
                answers[name].append([float(source[f"malignancy_p{k}"]) for k in range(1, 6)])
            answers["run"][-1] = calibration.scale(np.array(answers["run"][-1]), temperatures[schema.MALIGNANCY])
    # The same network and the same voxels: equal up to the digits of the table and the rounding of another batch.
    # Exported parameters keep 8 bits, which moves these probabilities by up to a hundredth.
    assert np.abs(np.array(answers["own"]) - np.array(answers["run"])).max() < (0.02 if exported else 1e-4)
    assert (tmp_path / "out" / "results.json").exists()


def test_nodules_that_no_network_can_test_are_refused(tmp_path, tested_run, monkeypatch):
    config, workdir = tested_run
    only = tmp_path / "only"
    only.mkdir()
    for name in ("config.json", "folds.json", "fold_0"):
        (only / name).symlink_to(workdir / name)
    rename_patients(monkeypatch, lambda patients: np.full(len(patients), "unknown"))
    with pytest.raises(UserError, match="none of the nodules' patients is in the test set of a fold that is trained"):
        held_out.test_elsewhere(config, only, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_grid_is_refused(tmp_path, tested_run):
    config, workdir = tested_run
    other = config.copy_and_resolve_references()
    other.spacing_mm = config.spacing_mm / 2
    with pytest.raises(UserError, match="use the config of the networks"):
        held_out.test_elsewhere(other, workdir, tmp_path / "out")
