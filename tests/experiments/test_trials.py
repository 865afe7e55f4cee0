"""experiments.trials: a killed run ends as it would have, and the trials themselves would notice if it did not."""

import shutil
import threading
import time

import numpy as np
import pytest

from experiments.trials import damage, interruptions, memory, small_run
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHANGES = damage.CHANGES


@pytest.fixture(scope="module")
def cache(cache_folder):
    """Where the other tests' runs of the same size have left what they prepared and compiled, or will find it."""
    return cache_folder / "pnsamp_jax"


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory, cache, quick_compilation):
    """A small run of one fold, in a process of its own."""
    folder = tmp_path_factory.mktemp("trials")
    assert small_run.start(folder / "in_peace", cache, folder / "log.txt", **CHANGES).wait() == 0
    return folder / "in_peace"


def wait_for(pattern, workdir, process):
    """Waits until the run has written a file of this pattern."""
    while not list(workdir.glob(pattern)):
        assert process.poll() is None, "the run ended before"
        time.sleep(0.01)


def test_a_run_killed_while_it_saves_ends_as_it_would_have(peaceful, cache, tmp_path):
    arguments = (tmp_path / "run", cache, tmp_path / "log.txt")
    process = small_run.start(*arguments, **CHANGES)
    wait_for("fold_0/checkpoints/*.orbax-checkpoint-tmp*", tmp_path / "run", process)
    process.kill()
    assert process.wait() < 0
    assert interruptions.stage(tmp_path / "run") in ("training fold 0", "saving a checkpoint")
    assert small_run.start(*arguments, **CHANGES).wait() == 0
    assert small_run.differences(tmp_path / "run", peaceful) == []


def test_a_difference_of_one_digit_is_noticed(peaceful, tmp_path):
    other = shutil.copytree(peaceful, tmp_path / "run")
    damage.flip_a_bit(other / "fold_0" / "metrics.jsonl")
    assert small_run.differences(other, peaceful) == ["fold_0/metrics.jsonl"]


def test_a_stage_is_told_from_what_is_on_the_disk(tmp_path):
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


def test_a_refused_file_must_be_left_alone(peaceful, cache, tmp_path):
    run = shutil.copytree(peaceful, tmp_path / "run")
    damage.cut(run / "folds.json")
    assert damage.train_again(run, cache, run / "folds.json", peaceful) == "one line"


@pytest.mark.parametrize(("growth", "failures"), [(0.0, 0), (0.02, 0), (0.2, 1)])
def test_growing_memory_is_a_failure(growth, failures):
    step = np.arange(100)
    samples = np.stack([step, 1e9 * (1 + growth * step / 100), np.full(100, 5e8)], axis=1)
    result = memory.figures(samples, steps=100)
    assert len(result["failures"]) == failures
    assert result["resident"]["ratio"] == pytest.approx((1 + 0.87 * growth) / (1 + 0.37 * growth), rel=0.01)
    with pytest.raises(UserError, match="--steps: 100 go by too fast"):
        memory.figures(samples[:60], steps=100)


def test_samples_follow_the_steps(tmp_path):
    metrics = tmp_path / "fold_0" / "metrics.jsonl"
    assert memory.last_step(metrics) == 0
    metrics.parent.mkdir()
    metrics.write_text('{"step": 3}\n{"step": 4}\n{"st')  # the last line is being written
    until = threading.Event()
    threading.Timer(1.2, until.set).start()
    samples = memory.sample(tmp_path, until)
    assert len(samples) == 2 and all(step == 4 and resident > 1e7 for step, resident, _ in samples)
