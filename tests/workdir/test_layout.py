"""Whom a workdir belongs to: one config, or the same with more epochs at a constant learning rate."""

import json
import threading

import pytest
from ct_files import refusal
from tiny_run import tiny_config

from pnsamp_jax.workdir import layout


def fields_of(**changes):
    return json.loads(tiny_config(**changes).to_json())


@pytest.mark.parametrize(
    ("stored", "now", "reason"),
    [
        ({"num_epochs": 1}, {"num_epochs": 2}, None),
        ({"num_epochs": 2}, {"num_epochs": 2}, None),
        ({"num_epochs": 2}, {"num_epochs": 1}, "there config.num_epochs is 2, here 1"),
        (
            {"num_epochs": 1, "schedule": "cosine"},
            {"num_epochs": 2, "schedule": "cosine"},
            "config.num_epochs is 1, here 2, and the learning rate of config.schedule=cosine spans all epochs",
        ),
        (
            {"num_epochs": 1, "schedule": "cosine"},
            {"num_epochs": 2},
            "there config.schedule is 'cosine', here 'consta",
        ),
        ({"num_epochs": 1}, {"num_epochs": 2, "seed": 7}, "there config.seed is 0, here 7"),
    ],
)
def test_only_a_training_may_have_more_epochs_and_only_where_its_steps_so_far_stay_the_same(stored, now, reason):
    found = layout.difference(fields_of(**now), fields_of(**stored), longer=True)
    assert (found is None) if reason is None else reason in found
    strict = layout.difference(fields_of(**now), fields_of(**stored))
    assert (strict is None) == (stored == now)


@pytest.fixture
def shorter(tmp_path):
    """A workdir of one epoch with results of two folds."""
    layout.claim(tmp_path, fields_of(num_epochs=1))
    for name in (
        "results.json",
        "predictions.csv",
        "readers.csv",
        "fold_0/predictions.csv",
        "fold_0/calibration.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("fold_1/predictions.csv", "fold_1/metrics.jsonl", "figures/evaluation_ct.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_results_of_fewer_epochs_are_set_aside_when_a_training_goes_on(shorter, capsys):
    before = files_of(shorter)
    layout.claim(shorter, fields_of(num_epochs=2), longer=True)
    assert json.loads((shorter / "config.json").read_text())["num_epochs"] == 2
    assert (
        f"{shorter}: goes on after epoch 1; the results until then are now in {shorter}/num_epochs_1"
        in capsys.readouterr().out
    )
    after = files_of(shorter)
    stay = {"readers.csv", "fold_1/metrics.jsonl"}
    for name, text in before.items():
        if name != "config.json":
            assert after[name if name in stay else f"num_epochs_1/{name}"] == text
            assert (name in after) == (name in stay)
    # The second of two processes that train a fold each leaves the first one's results alone.
    (shorter / "fold_0" / "predictions.csv").write_text("of the longer training")
    layout.claim(shorter, fields_of(num_epochs=2, fold=1), longer=True)
    assert (shorter / "fold_0" / "predictions.csv").read_text() == "of the longer training"


@pytest.mark.parametrize(
    ("changes", "longer", "advice"),
    [
        ({"num_epochs": 2}, False, "train on with --mode train or use the same config"),
        ({"num_epochs": 2, "schedule": "cosine"}, True, "choose another --workdir or use the same config"),
        ({"num_epochs": 2, "seed": 3}, True, "choose another --workdir or use the same config"),
    ],
)
def test_a_refused_config_changes_nothing(shorter, changes, longer, advice):
    before = files_of(shorter)
    for call in (layout.check_config, layout.claim):
        message = refusal(call, shorter, fields_of(**changes), longer)
        assert f"{shorter} belongs to another config" in message and message.endswith(advice)
    assert {name: text for name, text in files_of(shorter).items() if name != "lock"} == before


def test_results_are_not_set_aside_under_a_process_that_is_at_work(shorter):
    release, held = threading.Event(), threading.Event()

    def work():
        # Another process; the lock of a thread is one of its own, since it is not a singleton.
        from filelock import FileLock

        with FileLock(shorter / "fold_1" / "lock"):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert held.wait(30)
        message = refusal(layout.claim, shorter, fields_of(num_epochs=2), True)
        assert "fold_1: another run is at work on it" in message
        assert json.loads((shorter / "config.json").read_text())["num_epochs"] == 1
        assert (shorter / "results.json").exists()
    finally:
        release.set()
        thread.join()


@pytest.mark.parametrize("field", ["log_every_steps", "steps_per_call", "data.pipeline", "test_flips", "num_epochs"])
def test_the_processes_of_a_run_agree_on_what_decides_when_they_exchange(field):
    assert not layout.is_own(field)


@pytest.mark.parametrize("field", ["distributed", "data.cache", "data.workers", "predict.image"])
def test_what_a_process_does_by_itself_may_differ(field):
    assert layout.is_own(field)


def test_a_run_that_was_killed_while_it_was_claimed_goes_on(tmp_path):
    (tmp_path / "folds.json").write_text("{}")  # which is written before config.json
    layout.check_config(tmp_path, fields_of())
    (tmp_path / "fold_1" / "checkpoints").mkdir(parents=True)
    assert "holds a run but no config.json" in refusal(layout.check_config, tmp_path, fields_of())
