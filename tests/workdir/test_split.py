"""The split of a workdir: it is what the trained folds have seen, so it is never made again."""

import json

import numpy as np
import pytest

from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir import split

IDS = np.array([f"n{i:02d}" for i in range(40)])
PATIENTS = np.array([f"p{i // 2:02d}" for i in range(40)])
CLASSES = np.where(np.arange(40) % 4 < 2, -1, 1)


def load(path, patients=PATIENTS):
    settings = {"cohort": "all", "split": "patient", "seed": 0, "num_folds": 4, "validation_fraction": 0.2}
    return split.load_folds(path, IDS, patients, CLASSES, **settings)


def test_a_split_that_was_dealt_otherwise_is_read_as_it_is(tmp_path):
    path = tmp_path / "folds.json"
    made = load(path)
    content = json.loads(path.read_text())
    content["folds"] = content["folds"][1:] + content["folds"][:1]  # as an earlier version may have dealt them
    path.write_text(json.dumps(content))
    assert load(path) == made[1:] + made[:1] != made
    assert json.loads(path.read_text()) == content


def test_without_its_split_a_trained_fold_is_not_given_another(tmp_path):
    path = tmp_path / "folds.json"
    load(path)
    path.unlink()
    (tmp_path / "fold_2" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"folds\.json: missing, though fold_2 is trained; restore it"):
        load(path)
    assert not path.exists()


def test_the_patients_of_each_subset_are_named(tmp_path):
    load(tmp_path / "folds.json")
    patient_of = dict(zip(IDS, PATIENTS, strict=True))
    for fold in json.loads((tmp_path / "folds.json").read_text())["folds"]:
        for subset in fold.values():
            assert subset["patients"] == sorted({patient_of[i] for i in subset["nodules"]})


def test_a_split_that_was_made_for_other_patients_is_refused(tmp_path):
    path = tmp_path / "folds.json"
    made = load(path)
    first, second = (fold["test"][0] for fold in made[:2])
    patient_of = dict(zip(IDS, PATIENTS, strict=True))
    # Two ids of one patient are corrected: the patient's nodules are in the test sets of two folds.
    corrected = np.where(patient_of[second] == PATIENTS, patient_of[first], PATIENTS)
    with pytest.raises(UserError, match=f"other patients .*: {patient_of[second]} then.*choose another --workdir"):
        load(path, corrected)
    # Of one patient's two nodules, one turns out to be another's.
    parted = np.where(first == IDS, "q", PATIENTS)
    with pytest.raises(UserError, match="other patients .*: q now"):
        load(path, parted)


def test_another_spelling_of_the_patients_and_a_split_without_them_are_read(tmp_path):
    path = tmp_path / "folds.json"
    made = load(path)
    assert load(path, np.char.upper(PATIENTS)) == made
    content = json.loads(path.read_text())
    for fold in content["folds"]:
        for subset in fold.values():
            del subset["patients"]
    path.write_text(json.dumps(content))
    assert load(path, np.array([f"q{i}" for i in range(40)])) == made
