"""Steps over several processes, as on machines that share a batch, do what one process does with the whole batch."""

import json
import os
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from pnsamp_jax import steps
from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.data import schema
from pnsamp_jax.models.layers import BatchNorm
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.state import create_state

BATCH, SIDE, MARGIN, STEPS = 4, 8, 2, 3


class Thin(nn.Module):
    """A segmentation that compiles at once, with statistics over the batch."""

    dtype: type = np.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        [(x, scale, bias)] = BatchNorm(self.axis_name)(x, train=train)
        return Outputs(nn.Dense(1)(nn.elu(nn.Dense(3)(scale * x + bias)))[..., 0] - 2, None)


def make_batch(count):
    """Noise of this many nodules, with a margin around each."""
    random, side = np.random.default_rng(0), SIDE + 2 * MARGIN
    return {
        schema.IMAGE: random.integers(-1400, 200, (count, side, side, side), np.int16),
        schema.MASK: random.integers(0, 2, (count, side, side, side), np.uint8) * np.uint8(255),
        schema.RATING_COUNTS: np.ones((count, 9, 6), np.uint8),
    }


def thin_task():
    """The task of the configs with a network that compiles at once."""
    task = read_settings(base.get_config()).task
    return task._replace(model=Thin(axis_name=steps.AXIS), patch_size=SIDE, average_decay=0.9)


def run_some_steps(first: int, last: int) -> dict[str, list[float]]:
    """Steps on the nodules from `first` to `last` of the batch: metrics of each, and the parameters at the end."""
    batch = {name: values[first:last] for name, values in make_batch(BATCH).items()}
    state = steps.replicate(create_state(Thin(), SIDE, 2, seed=0, average=True))
    step = steps.compile_train_step(thin_task())
    found = {"metrics": []}
    for _ in range(STEPS):
        state, metrics = step(state, batch, 0, 1e-3)
        found["metrics"] += [float(values.addressable_data(0)) for _, values in sorted(metrics.items())]
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    found["state"] = np.concatenate([np.ravel(leaf.addressable_data(0)) for leaf in leaves]).tolist()
    return found


def join(count: int, place: int, port: int) -> None:
    """Runs the steps on this process's share of the batch and prints what came out."""
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, place)
    share = BATCH // count
    print(json.dumps(run_some_steps(place * share, (place + 1) * share)))


def run_processes(count: int) -> list[dict]:
    """What each of so many processes printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, __file__, str(count), str(place), str(port)] for place in range(count)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for command in commands]
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(text.splitlines()[-1]) for text in printed]


@pytest.mark.slow
def test_two_processes_do_what_one_does():
    (alone,) = run_processes(1)
    one, other = run_processes(2)
    assert one == other
    for name, values in alone.items():
        # Sums in another order; Adam divides a gradient by its size, so that rounding shows as part of a step of 1e-3.
        np.testing.assert_allclose(one[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


if __name__ == "__main__":
    join(*map(int, sys.argv[1:]))
