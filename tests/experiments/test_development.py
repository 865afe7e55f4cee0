"""Development data: the validation nodules of a fold, and the change from other networks."""

import re

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments import development
from pnsamp_jax import train
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import open_run
from pnsamp_jax.workdir.tables import read_tables

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the config and the workdir of a run of which one fold is trained."""
    config, workdir = tiny_config(num_epochs=1, fold=1), tmp_path_factory.mktemp("development") / "run"
    train.train_and_evaluate(config, workdir)
    return config, workdir


def test_the_validation_nodules_of_the_trained_folds_are_scored(trained, tmp_path):
    config, workdir = trained
    everything = tiny_config(num_epochs=1)
    text = development.score(everything, workdir, tmp_path / "out", networks=None, against=None)
    table, run = read_tables(tmp_path / "out"), open_run(config, workdir)
    wanted = run.records[schema.NODULE_ID][run.indices(1)["validation"]].tolist()
    assert table["nodule_id"].tolist() == wanted and set(table["fold"]) == {1}
    mean = float(re.search(r"\| all \| \d+ \| ([\d.]+)", text)[1])
    assert mean == pytest.approx(100 * table["dice"].mean(), abs=0.05)  # printed with one decimal
    assert (tmp_path / "out" / "development.md").read_text() == text + "\n"


def test_the_same_networks_do_not_differ(trained, tmp_path):
    config, workdir = trained
    first, second = tmp_path / "first", tmp_path / "second"
    development.score(config, workdir, first, networks=None, against=None)
    text = development.score(config, workdir, second, networks=workdir, against=first)
    assert "| +0.0 [+0.0, +0.0] |" in text.splitlines()[2]


def made_up(dice, fold=0.0):
    counts = np.zeros((3, 9, 6), int)
    counts[:, schema.RATING_NAMES.index("texture"), :] = np.eye(6, dtype=int)[[0, 4, 4]]
    return {
        "nodule_id": np.array(["a", "b", "c"]),
        "patient_id": np.array(["a", "b", "c"]),
        "fold": np.full(3, fold),
        "dice": np.array(dice),
        "diameter_mm": np.array([12.0, 5.0, 8.0]),
        "rating_counts": counts,
    }


def test_changes_are_those_of_the_same_nodules():
    lines = list(development.dice_lines(made_up([0.3, 0.8, 0.7]), made_up([0.2, 0.6, 0.7])))
    rows = {line.split(" | ")[0]: line.split(" | ") for line in lines[2:]}
    assert rows["| all"][2].startswith("60.0 [") and rows["| all"][4].startswith("+10.0 [")
    glass = rows["| texture up to 2.5 (ground glass)"]
    assert glass[1:4] == ["1", "30.0", "1"] and glass[4] == "+10.0 |"


def test_nodules_that_the_other_folder_lacks_are_named():
    with pytest.raises(UserError, match="has no nodule 'a' of fold 0; score the same folds"):
        list(development.dice_lines(made_up([1.0, 1.0, 1.0]), made_up([1.0, 1.0, 1.0], fold=1.0)))


def test_an_output_folder_is_not_overwritten(trained, tmp_path):
    config, workdir = trained
    with pytest.raises(UserError, match="exists already"):
        development.score(config, workdir, tmp_path, networks=None, against=None)


def test_a_run_without_a_trained_fold_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="none of its folds is trained"):
        development.score(tiny_config(num_epochs=1), tmp_path / "run", tmp_path / "out", networks=None, against=None)
