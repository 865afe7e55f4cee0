"""Trained networks from which a run may start: none that has seen a patient who is to test a fold."""

import pytest
from ct_files import refusal
from tiny_run import made_up_run, tiny_config

from pnsamp_jax import train
from pnsamp_jax.data import schema
from pnsamp_jax.data.spellings import bare
from pnsamp_jax.run import open_run
from pnsamp_jax.starting import require_untested
from pnsamp_jax.workdir import layout

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def networks(tmp_path_factory, quick_compilation):
    """Three networks, random and never trained."""
    return made_up_run(tmp_path_factory.mktemp("networks"), range(3))


def open_tuning(networks, workdir):
    """Return a run that starts from the networks, and its patients by the fold that tests them."""
    run = open_run(tiny_config(init=str(networks)), workdir)
    return run, {
        patient: fold
        for fold in run.settings.folds
        for patient in run.records[schema.PATIENT_ID][run.indices(fold)["test"]].tolist()
    }


def spelt(patient):
    """The spellings of a patient that another table may have: LIDC-IDRI-0012."""
    return [patient, patient.lower(), patient.replace("-", "_"), patient + " ", patient.replace("-0", "-")]


def test_a_patient_whom_the_network_saw_under_another_spelling_is_noticed(networks, tmp_path):
    run, fold_of = open_tuning(networks, tmp_path)
    layout.write_fold_of_patients(networks / "folds.json", fold_of)
    require_untested(run)
    patient = next(name for name, fold in fold_of.items() if fold == 1)
    for spelling in spelt(patient):
        others = {name: fold for name, fold in fold_of.items() if bare(name) != bare(spelling)}
        layout.write_fold_of_patients(networks / "folds.json", {**others, spelling: 2})
        expected = "fold 1 would be tested on 1 of the patients that its network fold_1 was trained on, such as "
        assert f"{expected}{patient}" in refusal(require_untested, run)


def test_all_folds_are_checked_before_the_first_is_trained(networks, tmp_path, monkeypatch):
    _, fold_of = open_tuning(networks, tmp_path)
    last = next(name for name, fold in fold_of.items() if fold == 2)
    layout.write_fold_of_patients(networks / "folds.json", {**fold_of, last: 0})
    monkeypatch.setattr(train, "train_fold", lambda run, fold: pytest.fail(f"fold {fold} was trained"))
    config = tiny_config(init=str(networks))
    assert "fold 2 would be tested on 1 of the patients" in refusal(train.train_and_evaluate, config, tmp_path)
    # A fold that has begun goes on from its own checkpoint.
    (tmp_path / "fold_2" / "checkpoints" / "10").mkdir(parents=True)
    require_untested(open_run(config, tmp_path))
