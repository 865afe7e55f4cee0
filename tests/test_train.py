"""The whole run, from config to results, on a handful of simulated nodules and a small patch."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from pnsamp_jax import outlines, starting, testing, train
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import calibration, ensemble
from pnsamp_jax.inference.masks import central_component
from pnsamp_jax.run import load_background, open_run, prepare_run
from pnsamp_jax.state import state_shapes
from pnsamp_jax.workdir import tables
from pnsamp_jax.workdir.checkpoint import Checkpoints
from pnsamp_jax.workdir.tables import prediction_columns, read_tables

pytestmark = pytest.mark.usefixtures("quick_compilation")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation):
    """An uninterrupted run of all folds: (workdir, results)."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.train_and_evaluate(tiny_config(), workdir)


def last_parameters(workdir: Path, fold: int):
    """All leaves of the last checkpoint of a fold."""
    task = read_settings(tiny_config()).task
    like = state_shapes(task.model, task.patch_size, len(task.windows))
    with Checkpoints(workdir / f"fold_{fold}" / "checkpoints") as checkpoints:
        return jax.tree.leaves(checkpoints.restore(like, "last"))


def test_a_run_leaves_what_the_contract_names(finished):
    workdir, results = finished
    assert json.loads((workdir / "results.json").read_text())["contexts"].keys() == {"simulated"}
    header = (workdir / "predictions.csv").read_text().splitlines()[0]
    assert header.split(",") == prediction_columns("modal")
    for fold in range(3):
        lines = [json.loads(line) for line in (workdir / f"fold_{fold}" / "metrics.jsonl").read_text().splitlines()]
        assert {line["part"] for line in lines} == {"train", "validation"}
        assert list((workdir / f"fold_{fold}" / "tensorboard").iterdir())
    assert (workdir / "figures" / "evaluation_simulated.png").stat().st_size > 10_000


def test_a_run_on_simulated_voxels_says_what_its_scores_mean_and_not_the_papers(tmp_path, capsys):
    train.train_and_evaluate(tiny_config(fold=0, num_epochs=1), tmp_path)
    printed = capsys.readouterr()
    assert "compiling" in printed.err  # beside the bar, which stands still meanwhile
    assert not printed.err.splitlines()[-1].endswith("CPU]")
    published = {"97.58", "89.33", "73.89"}  # the paper's malignancy, mean of nine and Dice of PN-SAMP M
    assert not published & set(printed.out.replace(",", " ").split())
    *_, command = printed.out.strip().splitlines()
    assert command.strip() == "pnsamp predict --example --out runs/example" and "best constant" in printed.out


def test_every_nodule_is_predicted_once_by_a_fold_that_never_saw_its_patient(finished):
    workdir, results = finished
    table = read_tables(workdir)
    folds = json.loads((workdir / "folds.json").read_text())["folds"]
    assert len(table["nodule_id"]) == len(set(table["nodule_id"])) == 24 == results["contexts"]["simulated"]["n"]
    for nodule, patient, fold in zip(table["nodule_id"], table["patient_id"], table["fold"], strict=True):
        assert nodule in folds[int(fold)]["test"]["nodules"]
        for part in ("train", "validation"):
            assert patient not in folds[int(fold)][part]["patients"]


def test_probabilities_are_distributions_and_decodings_follow_from_them(finished):
    table = read_tables(finished[0])
    np.testing.assert_allclose(table["probabilities"].sum(axis=2), 1, atol=1e-5)  # six digits are written
    assert (table["probabilities"][:, ~schema.CLASS_EXISTS] == 0).all()
    np.testing.assert_array_equal(table["arg_max"], table["probabilities"].argmax(axis=2) + 1)


def test_a_stopped_run_goes_on_to_the_same_parameters(finished, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    class StopsAfterThirdSave(Checkpoints):
        saves = 0

        def save(self, *arguments):
            super().save(*arguments)
            StopsAfterThirdSave.saves += 1
            if StopsAfterThirdSave.saves == 3:  # the first epoch of the second fold
                raise Stopped

    monkeypatch.setattr(train, "Checkpoints", StopsAfterThirdSave)
    with pytest.raises(Stopped):
        train.train_and_evaluate(tiny_config(), tmp_path)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(train, "Checkpoints", Checkpoints)
    train.train_and_evaluate(tiny_config(), tmp_path)

    workdir, _ = finished
    for fold in range(3):
        for ours, theirs in zip(last_parameters(tmp_path, fold), last_parameters(workdir, fold), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for name in ("predictions.csv", "readers.csv", "results.json", "folds.json", "fold_1/metrics.jsonl"):
        assert (tmp_path / name).read_text() == (workdir / name).read_text(), name


def test_running_again_changes_nothing_and_trains_nothing(finished, monkeypatch):
    workdir, _ = finished
    before = (workdir / "results.json").read_text()
    monkeypatch.setattr(train.steps, "compile_train_steps", None)  # calling it would fail
    train.train_and_evaluate(tiny_config(), workdir)
    assert (workdir / "results.json").read_text() == before


def test_one_fold_alone_equals_the_same_fold_of_all(finished, tmp_path):
    train.train_and_evaluate(tiny_config(fold=1), tmp_path)
    name = "fold_1/predictions.csv"
    assert (tmp_path / name).read_text() == (finished[0] / name).read_text()
    assert (tmp_path / "predictions.csv").read_text().count("\n") == (tmp_path / name).read_text().count("\n")


@pytest.mark.tf
def test_a_fold_through_tfdata_equals_the_one_on_the_device(finished, tmp_path):
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'pnsamp-jax[tf]'")
    train.train_and_evaluate(tiny_config(fold=1, **{"data.pipeline": "tfdata"}), tmp_path)
    name = "fold_1/predictions.csv"
    assert (tmp_path / name).read_text() == (finished[0] / name).read_text()


def test_reading_from_disk_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    line = "config.data.pipeline: 'tfdata' needs TensorFlow; pip install 'pnsamp-jax[tf]'"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        train.train_and_evaluate(tiny_config(**{"data.pipeline": "tfdata"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_evaluate_mode_can_test_the_last_checkpoint(finished, tmp_path):
    results = train.test_and_evaluate(tiny_config(checkpoint="last"), finished[0])
    assert results["contexts"]["simulated"]["n"] == 24
    found = calibration.read(finished[0] / "fold_1" / "calibration.json")
    with Checkpoints(finished[0] / "fold_1" / "checkpoints") as checkpoints:
        assert (found.checkpoint, found.step) == ("last", checkpoints.last_step)
    train.test_and_evaluate(tiny_config(), finished[0])  # leave the folder as it was
    assert calibration.read(finished[0] / "fold_1" / "calibration.json").checkpoint == "best"


def test_a_table_of_a_fold_that_lacks_nodules_is_not_evaluated(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    path = workdir / "fold_1" / "predictions.csv"
    whole = path.read_text()
    tested = [set(fold["test"]["nodules"]) for fold in json.loads((workdir / "folds.json").read_text())["folds"]]
    tables.require_whole_folds(workdir, tested)
    for content in ("\n".join(whole.splitlines()[:-1]), (workdir / "fold_0" / "predictions.csv").read_text()):
        path.write_text(content)
        with pytest.raises(UserError, match=r"does not hold the nodules that fold 1 of folds.json tests; remove it"):
            tables.require_whole_folds(workdir, tested)


def test_a_workdir_without_a_training_is_not_evaluated_nor_made(tmp_path):
    with pytest.raises(UserError, match="mistyped: holds no training; correct the path, or run --mode train first"):
        train.test_and_evaluate(tiny_config(), tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_evaluate_mode_adds_to_an_older_run_what_does_not_look_like_a_nodule(finished):
    """The points of a patient are for the fit only where the patient's nodules are."""
    workdir, _ = finished
    config = tiny_config(**{"data.background": 2})
    train.test_and_evaluate(config, workdir)
    run = open_run(config, workdir)
    points = {subset: set(run.background[schema.PATIENT_ID][run.beside(1, subset)]) for subset in run.indices(1)}
    assert not points["train"] & points["test"] and not points["train"] & points["validation"] and points["train"]
    table = read_tables(workdir)
    for fold in range(3):
        head = calibration.read(workdir / f"fold_{fold}" / "calibration.json").likeness
        assert len(head) == 1 + len(calibration.read(workdir / f"fold_{fold}" / "calibration.json").features)
    networks = ensemble.load(workdir).member(1)
    nodules = run.indices(1)["test"]
    scores = testing.predict_nodules(run, networks, nodules, flips=False)["nodule_like"]
    own = table["fold"] == 1
    np.testing.assert_allclose(table["nodule_like"][own], scores, rtol=1e-4)
    lost = testing.predict_nodules(run, networks, run.indices(1)["validation"], flips=False)["nodule_like"] < 0.5
    assert lost.sum() <= 0.02 * len(lost)
    train.test_and_evaluate(tiny_config(), workdir)  # leave the folder as it was
    assert np.isnan(read_tables(workdir)["nodule_like"]).all()


def test_a_wider_cohort_joins_the_training_part_but_no_patient_of_the_others(tmp_path):
    config = tiny_config(**{"data.train_cohort": "all"})
    run = open_run(config, tmp_path)
    records, folds = run.records, run.folds
    unsure = cohort.rounded_rating(records[schema.RATING_COUNTS])[:, schema.MALIGNANCY] == 3
    assert 0 < unsure.sum() < 24
    split = {nodule for part in folds[0].values() for nodule in part}
    assert split == set(records[schema.NODULE_ID][~unsure])  # tested and validated on the cohort alone
    joined = 0
    for number, fold in enumerate(folds):
        indices = run.indices(number)
        patients = {subset: set(records[schema.PATIENT_ID][indices[subset]]) for subset in indices}
        assert not patients["train"] & (patients["validation"] | patients["test"])
        assert not unsure[indices["validation"]].any() and not unsure[indices["test"]].any()
        assert set(fold["train"]) == set(records[schema.NODULE_ID][indices["train"]][~unsure[indices["train"]]])
        joined += unsure[indices["train"]].sum()
    assert joined > 0
    without = replace(run, records={name: values[~unsure] for name, values in records.items()})
    assert len(without.indices(0)["train"]) == len(folds[0]["train"])


def test_prepare_mode_needs_no_folds(tmp_path, capsys):
    prepare_run(tiny_config(**{"data.phantom_nodules": 2}), tmp_path)
    assert "Prepared 2 nodules of the cohort rounded_ne_3" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["readers.csv"]


def test_nan_stops_with_a_line_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(UserError, match="fold 0, step .*the loss is .*config.learning_rate"):
        train.train_and_evaluate(tiny_config(learning_rate=1e30, fold=0), tmp_path)
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 40}, "config.patch_size: 40 is not divisible by 16"),
        ({"data.source": "web"}, "config.data.source: 'web' is none of"),
        ({"data.source": "folder"}, "config.data.root: is empty"),
        ({"data.source": "folder", "data.root": "/no/such"}, "config.data.root: no such folder: /no/such"),
        ({"data.source": "lidc", "data.dicom_root": "/no/such"}, "config.data.dicom_root: no such folder"),
        ({"data.cohort": "some"}, "config.data.cohort: 'some' is none of"),
        ({"data.train_cohort": "some"}, "config.data.train_cohort: 'some' is none of '' (none), rounded_ne_3"),
        ({"loss.labels": "soft"}, "config.loss.labels: 'soft' is none of rounded, distribution"),
        ({"data.pipeline": "fast"}, "config.data.pipeline: 'fast' is none of"),
        ({"fold": 3}, "config.fold: 3 is not -1"),
        ({"num_folds": 30}, "config.num_folds: 30 must be at least 2"),
        ({"split": "scan"}, "config.split: 'scan'"),
        ({"data.min_readers": 9}, "min_readers 9"),
        ({"schedule": "steps"}, "config.schedule: 'steps'"),
        ({"model.name": "vgg"}, "config.model.name: no model 'vgg'"),
        ({"model.segment": False, "model.rate": False}, "nothing to learn"),
        ({"seed": -1}, "config.seed: -1 is not a number of 0 or more"),
        ({"batch_size": 0}, "config.batch_size: 0 is not a positive number"),
        (
            {"model.windows": (1600.0, -600.0)},
            "config.model.windows: (1600.0, -600.0): give one or more",
        ),
        ({"model.windows": ()}, "config.model.windows: (): give one or more"),
        ({"model.windows": ((1600.0, -600.0), (0.0, 40.0))}, "(width, centre) pairs"),
        ({"model.windows": ((1600.0, "lung"),)}, "(width, centre) pairs"),
        ({"augment.rotate": -5.0}, "config.augment.rotate: -5.0 is not a number of 0 or more"),
        ({"data.background": -1}, "config.data.background: -1 is not a number of 0 or more"),
        ({"appearance.fade": 1.5}, "config.appearance.fade: 1.5 is not a probability; give 0 to 1"),
        ({"appearance.noise": -1.0}, "config.appearance.noise: -1.0 is not a number of 0 or more"),
        ({"appearance.largest": 0.5}, "config.appearance.largest: 0.5 is below 1.2"),
        ({"average_decay": 1.0}, "config.average_decay: 1.0 is not 0"),
        ({"model.dropout": 1.0}, "config.model.dropout: 1.0 is not a share from 0 to below 1"),
        ({"loss.voxels": -1.0}, "config.loss.voxels: -1.0 is not a number of 0 or more"),
        ({"learning_rate": float("nan")}, "config.learning_rate: nan is not a positive number"),
    ],
)
def test_settings_that_cannot_work_get_one_line(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(tiny_config(**changes), tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("fold_*"))


def test_images_without_room_for_a_point_beside_their_nodules_leave_nodule_like_blank(capsys):
    settings = read_settings(tiny_config(**{"data.background": 1, "spacing_mm": 4.0, "data.phantom_nodules": 2}))
    assert load_background(settings) is None
    told = "no image has room for a patch of 64 mm 15 mm beside its nodules, so nodule_like stays blank"
    assert told in capsys.readouterr().out


def test_the_mask_that_is_scored_is_the_central_component_that_a_prediction_writes(finished, monkeypatch):
    """The readers' own outline at the centre, and a larger slab of nothing at one side, which is left out."""
    workdir, _ = finished
    run = open_run(tiny_config(), workdir)
    networks, _ = testing.load_fold(run, 0)
    nodules = run.indices(0)["test"]
    margin = run.settings.geometry.margin
    consensus = run.records[schema.MASK][:, margin:-margin, margin:-margin, margin:-margin] >= schema.MASK_UNIT / 2
    nodules = np.array([nodule for nodule in nodules if consensus[nodule, 6:10, 6:10, 6:10].any()])
    strayed = {int(nodule): consensus[nodule].copy() for nodule in nodules}
    for mask in strayed.values():
        mask[:3], mask[3] = True, False  # apart from what lies at the centre
    waiting = iter(np.array_split(nodules, range(2, len(nodules), 2)))  # batches of two

    def predict(networks, images, flips):
        chosen = next(waiting)
        return ensemble.Predictions(np.stack([strayed[int(n)] for n in np.resize(chosen, 2)]) * 0.9, None, None)

    monkeypatch.setattr(ensemble, "predict", predict)
    found = testing.predict_nodules(run, networks, nodules, flips=False, masks=True)
    expected = np.stack([central_component(strayed[int(nodule)]) for nodule in nodules])
    np.testing.assert_array_equal(found["mask"], expected)
    assert not found["mask"][:, :3].any()
    assert np.median(found["dice"]) > 0.9
    assert (found["dice"] > 0.6).all()  # of a nodule of three voxels, one may touch the others at an edge only
    pairs, spacing = list(zip(expected, consensus[nodules], strict=True)), (2.0, 2.0, 2.0)
    np.testing.assert_allclose(found["dice"], [outlines.dice(*pair) for pair in pairs], rtol=1e-6)
    np.testing.assert_allclose(found["hd95_mm"], [outlines.hausdorff_95(*pair, spacing) for pair in pairs], rtol=1e-6)
    np.testing.assert_allclose(found["nsd"], [outlines.surface_dice(*pair, spacing, 1.0) for pair in pairs], rtol=1e-6)


def test_the_rule_of_nominal_ratings_is_another_config(finished):
    workdir, _ = finished
    with pytest.raises(UserError, match="there config.data.nominal is 'modal', here 'mean'"):
        train.train_and_evaluate(tiny_config(**{"data.nominal": "mean"}), workdir)
    with pytest.raises(UserError, match="config.data.nominal: 'median' is none of modal, mean"):
        read_settings(tiny_config(**{"data.nominal": "median"}))


def test_a_workdir_of_another_config_is_refused_and_left_alone(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="there config.seed is 0, here 1"):
        train.train_and_evaluate(tiny_config(seed=1), workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before


def run_main(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pnsamp_jax.main", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--workdir", "x"], 2, "--config is missing"),
        (["--config", "configs/demo.py"], 2, "--workdir is missing"),
        (["--config", "configs/none.py", "--workdir", "x"], 2, "configs/none.py"),
        (["--config", "configs/demo.py", "--workdir", "x", "--config.bach_size=4"], 2, "bach_size"),
        (["--config", "configs/demo.py", "--workdir", "x", "--config.batch_size=many"], 2, "batch_size"),
        (["--config", "configs/demo.py", "--workdir", "x", "--mode", "fly"], 2, "fly"),
        (["--config", "configs/demo.py", "--workdir", "x", "--config.patch_size=20"], 1, "config.patch_size: 20"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, arguments, status, message):
    arguments = [str(tmp_path / "x") if argument == "x" else argument for argument in arguments]
    done = run_main(*arguments)
    assert done.returncode == status
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def first_state(run, fold, folder):
    with Checkpoints(folder / "empty") as none:
        return starting.first_state(run, fold, none)


def test_fine_tuning_starts_better_than_from_scratch(tmp_path, finished):
    config = tiny_config(average_decay=0.9)
    run = open_run(config, tmp_path)
    tuned = replace(run, settings=replace(run.settings, init=str(finished[0])))
    states = [first_state(each, 0, tmp_path) for each in (run, tuned)]
    from_scratch, fine_tuned = (
        train.validate(run, state, run.indices(0)["validation"])[0]["loss"] for state in states
    )
    assert fine_tuned < from_scratch
    network = ensemble.load(finished[0]).members["fold_0"].variables
    for mine, theirs in zip(jax.tree.leaves(states[1].average), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_fine_tuning_starts_from_the_network_of_the_same_fold_where_others_are_missing(tmp_path, finished):
    partly = tmp_path / "partly"
    shutil.copytree(finished[0], partly, ignore=shutil.ignore_patterns("fold_1"))
    run = open_run(tiny_config(init=str(partly)), tmp_path / "run")
    state = first_state(run, 2, tmp_path)
    network = ensemble.load(finished[0]).members["fold_2"].variables
    for mine, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(network["params"]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": 1.5}, "receives voxels of 2.0 mm, not 1.5 mm"),
        ({"model.features": (2, 2, 4, 8)}, "has other layers than config.model"),
        # Of two folds, each tests patients that the first of three networks has seen.
        (
            {"num_folds": 2},
            r"fold 0 would be tested on \d+ of the patients that its network fold_0 was trained on",
        ),
    ],
)
def test_networks_that_do_not_suit_the_run_are_refused(tmp_path, finished, changes, message):
    run = open_run(tiny_config(init=str(finished[0]), **changes), tmp_path)
    with pytest.raises(UserError, match=message):
        first_state(run, 0, tmp_path)
