"""Trials of robustness: a killed run ends as it would have without the kill, and the trials notice differences."""

import shutil
import threading
import time

import numpy as np
import pytest

from experiments.trials import damage, data_memory, interruptions, memory, small_run
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

CHANGES = damage.CHANGES


@pytest.fixture(scope="module")
def cache(cache_folder):
    """Return the cache that runs of the same size in other tests share."""
    return cache_folder / "pnsamp_jax"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache, quick_compilation):
    """Return a small run of one fold, trained in its own process."""
    folder = tmp_path_factory.mktemp("trials")
    assert small_run.start(folder / "undisturbed", cache, folder / "log.txt", **CHANGES).wait() == 0
    return folder / "undisturbed"


def wait_for(pattern, workdir, process):
    """Wait until the run has written a file that matches the pattern."""
    while not list(workdir.glob(pattern)):
        assert process.poll() is None, "the run ended before it wrote the file"
        time.sleep(0.01)


def test_a_run_killed_while_it_saves_ends_as_without_the_kill(undisturbed, cache, tmp_path):
    arguments = (tmp_path / "run", cache, tmp_path / "log.txt")
    process = small_run.start(*arguments, **CHANGES)
    wait_for("fold_0/checkpoints/*.orbax-checkpoint-tmp*", tmp_path / "run", process)
    process.kill()
    assert process.wait() < 0
    assert interruptions.stage(tmp_path / "run") in ("training fold 0", "saving a checkpoint")
    assert small_run.start(*arguments, **CHANGES).wait() == 0
    assert small_run.differences(tmp_path / "run", undisturbed) == []


def test_a_difference_of_one_digit_is_noticed(undisturbed, tmp_path):
    other = shutil.copytree(undisturbed, tmp_path / "run")
    damage.flip_a_bit(other / "fold_0" / "metrics.jsonl")
    assert small_run.differences(other, undisturbed) == ["fold_0/metrics.jsonl"]


def test_the_stage_of_a_run_follows_from_its_files(tmp_path):
    written = [
        ("start and preparation", "config.json"),
        ("between folds", "folds.json"),
        ("training fold 0", "fold_0/metrics.jsonl"),
        ("between folds", "fold_0/predictions.csv"),
        ("training fold 1", "fold_1/metrics.jsonl"),
        ("saving a checkpoint", "fold_1/checkpoints/5.orbax-checkpoint-tmp/state"),
    ]
    for stage, name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert interruptions.stage(tmp_path) == stage
    shutil.rmtree(tmp_path / "fold_1" / "checkpoints")
    (tmp_path / "fold_1" / "predictions.csv").touch()
    assert interruptions.stage(tmp_path) == "evaluation"


def test_a_refused_file_must_be_left_alone(undisturbed, cache, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    damage.cut(run / "folds.json")
    assert damage.train_again(run, cache, run / "folds.json", undisturbed) == "one line"


@pytest.mark.parametrize(("growth", "failures"), [(0.0, 0), (0.02, 0), (0.2, 1)])
def test_growing_memory_is_a_failure(growth, failures):
    step = np.arange(100)
    samples = np.stack([step, 1e9 * (1 + growth * step / 100), np.full(100, 5e8)], axis=1)
    result = memory.summarise(samples, steps=100)
    assert len(result["failures"]) == failures
    assert result["resident"]["ratio"] == pytest.approx((1 + 0.87 * growth) / (1 + 0.37 * growth), rel=0.01)
    with pytest.raises(UserError, match="--steps: 100 take too little time"):
        memory.summarise(samples[:60], steps=100)


@pytest.mark.parametrize(("last", "failures"), [(640.0, 0), (1500.0, 1)])
def test_memory_that_grows_with_the_data_is_a_failure(tmp_path, last, failures):
    peaks = {"device": [800.0, 1000.0, 2000.0], "tfdata": [600.0, 620.0, last]}
    results = {"nodules": [100, 300, 1000], "data_mb": [150.0, 450.0, 1500.0], "peak_mb": peaks}
    found = data_memory.summarise(results)
    assert len(found["failures"]) == failures and found["share_from_disk"] == pytest.approx((last - 600) / 1350)
    data_memory.draw(results, tmp_path / "data_memory.png")
    assert (tmp_path / "data_memory.png").read_bytes().startswith(b"\x89PNG")


def test_simulated_nodules_are_read_through_both_pipelines(tmp_path):
    files = data_memory.write_simulated(tmp_path / "data", 4)
    device, disk = (data_memory.READ[pipeline](files) for pipeline in ("device", "tfdata"))
    for name, values in device.items():
        np.testing.assert_array_equal(disk[name][np.arange(4)], values)
    assert device[schema.IMAGE].shape == (4, 80, 80, 80) and data_memory.read("device", files) > 1e7


def test_samples_follow_the_steps(tmp_path):
    metrics = tmp_path / "fold_0" / "metrics.jsonl"
    assert memory.last_step(metrics) == 0
    metrics.parent.mkdir()
    metrics.write_text('{"step": 3}\n{"step": 4}\n{"st')  # the last line is being written
    until = threading.Event()
    threading.Timer(1.2, until.set).start()
    samples = memory.sample(tmp_path, until)
    assert len(samples) == 2 and all(step == 4 and resident > 1e7 for step, resident, _ in samples)
