"""Whole trainings by several processes, as by the machines of a cluster, and by several devices of one process.

The network is one that compiles at once.
As a script it is one of these processes: `python tests/test_processes.py WORKDIR DISTRIBUTED CHANGES`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_distributed import Thin
from tiny_run import tiny_config

from pnsamp_jax import models, processes, train
from pnsamp_jax.errors import UsageError, UserError, reported

EPOCHS, EPOCH = 12, 2  # of so many steps; time enough to stop the training on its way
CHANGES = {"fold": 0, "batch_size": 4, "num_epochs": EPOCHS}
SECONDS = 900  # until a process that hangs is given up


def start(workdir, count, devices=1, **changes):
    """Begins a training by so many processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    places = [f"localhost:{port},{rank},{count}" for rank in range(count)] if count > 1 else [""]
    settings = json.dumps(CHANGES | changes)
    commands = [[sys.executable, __file__, str(workdir), place, settings] for place in places]
    return [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]


def end(running):
    """Waits for processes: the status, output and errors of each."""
    try:
        written = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(running, written, strict=True)]


def run(workdir, count, devices=1, **changes):
    """A whole training, which has to succeed."""
    ended = end(start(workdir, count, devices, **changes))
    assert [status for status, *_ in ended] == [0] * count, ended
    printed = [[line for line in output.splitlines() if not line.startswith("[Gloo]")] for _, output, _ in ended]
    assert printed[0] and not any(printed[1:])  # process 0 alone prints
    return workdir


def wait_for_step(workdir, step):
    """Waits until the log has a line of this step."""
    path = workdir / "fold_0" / "metrics.jsonl"
    for _ in range(SECONDS * 20):
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the training did not get so far")


def losses(workdir):
    """(step, part) -> loss of every line of the log."""
    lines = map(json.loads, (workdir / "fold_0" / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], line["part"]): line["loss"] for line in lines}


def assert_same_losses(workdir, other):
    # Gradients and statistics of a batch are summed in another order, which float32 rounds at 6e-8; over these few
    # steps the difference grows, since Adam divides a gradient by its size.
    ours, theirs = losses(workdir), losses(other)
    assert ours.keys() == theirs.keys() and len(ours) == EPOCHS * (EPOCH + 1)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A training by one process that nothing disturbed."""
    return run(tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same by two processes."""
    return run(tmp_path_factory.mktemp("pair") / "run", 2)


@pytest.mark.parametrize("place", ["node1", "node1:1234", "node1:1234,2,2", "node1:1234,-1,2", ":1234,0,2", "a:b,0,1"])
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(UsageError, match=r"config.distributed: .* names no process; give 'auto' on SLURM"):
        processes.read_place(place)


def test_a_process_on_its_own_needs_no_connection():
    assert processes.share(6) == slice(0, 6) and processes.is_primary()
    assert processes.on_primary(lambda: 3) == 3 and processes.from_primary([1]) == [1]
    assert processes.any_of(True) and not processes.any_of(False)


def test_a_process_that_has_used_its_devices_cannot_connect(tmp_path):
    jax.devices()
    with pytest.raises(UserError, match=r"'localhost:1,0,2': processes do not connect \(.*before"):
        train.train_and_evaluate(tiny_config(distributed="localhost:1,0,2"), tmp_path)


@pytest.mark.slow
def test_two_processes_do_what_one_does(alone, pair):
    assert_same_losses(pair, alone)
    for name in ("folds.json", "readers.csv"):
        assert (pair / name).read_bytes() == (alone / name).read_bytes()
    files = {path.relative_to(folder) for folder in (pair, alone) for path in folder.rglob("*.json*")}
    assert all((folder / name).exists() for folder in (pair, alone) for name in files)


@pytest.mark.slow
def test_four_processes_do_what_one_does(alone, tmp_path):
    assert_same_losses(run(tmp_path / "run", 4, steps_per_call=2), alone)


@pytest.mark.slow
def test_killed_processes_go_on_to_the_same_end(pair, tmp_path):
    running = start(tmp_path, 2)
    wait_for_step(tmp_path, EPOCH + 2)
    for process in running:
        process.kill()
    end(running)
    assert losses(run(tmp_path, 2)) == losses(pair)


@pytest.mark.slow
def test_sigterm_at_one_process_ends_both_and_one_goes_on(alone, pair, tmp_path):
    running = start(tmp_path, 2)
    wait_for_step(tmp_path, EPOCH + 1)
    running[1].send_signal(signal.SIGTERM)
    ended = end(running)
    assert [status for status, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert all("told to stop (SIGTERM)" in errors for *_, errors in ended)
    assert_same_losses(run(tmp_path, 1), alone)


@pytest.mark.slow
def test_devices_and_processes_take_turns_on_a_checkpoint(alone, tmp_path):
    for epochs, count, devices in ((4, 1, 2), (8, 2, 1), (EPOCHS, 1, 4)):
        run(tmp_path, count, devices, num_epochs=epochs)
    assert_same_losses(tmp_path, alone)


@pytest.mark.slow
def test_an_infinite_loss_ends_all(tmp_path):
    ended = end(start(tmp_path, 2, learning_rate=1e30))
    assert [status for status, *_ in ended] == [1, 1]
    assert all("the loss is" in errors.splitlines()[-1] for *_, errors in ended)


@pytest.mark.slow
def test_what_process_0_refuses_ends_all(pair):
    ended = end(start(pair, 2, seed=1))
    assert [status for status, *_ in ended] == [1, 1]
    assert "process 0 stopped: " in ended[1][2] and "there config.seed is 0, here 1" in ended[1][2]
    ended = end(start(pair, 2, batch_size=3))
    assert [status for status, *_ in ended] == [1, 1]
    assert all("config.batch_size: 3 is not divisible by the number of devices, 2" in errors for *_, errors in ended)


if __name__ == "__main__":
    models.MODELS["thin"] = Thin
    config = tiny_config(distributed=sys.argv[2], **json.loads(sys.argv[3]))
    config.model = ConfigDict({"name": "thin", "windows": config.model.windows, "dtype": "float32"})
    with reported():
        train.train_and_evaluate(config, Path(sys.argv[1]))
