"""pnsamp_jax.stepping: steps that are taken in one call are those taken one by one, and calls end where they should.

As a script it compares them on whatever devices there are: `python tests/test_stepping.py`.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_distributed import SIDE, Thin, make_batch, thin_task

from pnsamp_jax import input_pipeline, steps
from pnsamp_jax.state import create_state
from pnsamp_jax.stepping import cut

NODULES, BATCH, STEPS = 8, 4, 5


@pytest.mark.parametrize(
    ("taken", "most", "every", "lengths"),
    [
        (range(0, 12), 1, 6, [1] * 12),
        (range(0, 12), 3, 6, [3, 3, 3, 3]),
        (range(0, 12), 4, 6, [4, 1, 1, 4, 1, 1]),
        (range(0, 12), 100, 6, [6, 6]),  # a call is no longer than the way from one checkpoint to the next
        (range(2, 14), 4, 6, [4, 4, 1, 1, 1, 1]),  # resumed between two checkpoints, and stopped there
        (range(7, 12), 6, 6, [1] * 5),
        (range(4, 4), 3, 6, []),
    ],
)
def test_calls_have_two_lengths_and_cross_no_checkpoint(taken, most, every, lengths):
    calls = list(cut(taken, most, every))
    assert [len(call) for call in calls] == lengths
    assert [step for call in calls for step in call] == list(taken)
    assert all(call.start // every == (call.stop - 1) // every for call in calls)


def take(calls):
    """The state and the metrics of every step, as bytes, where the steps are taken in these calls."""
    task = thin_task()
    records = input_pipeline.to_device(make_batch(NODULES))
    indices = np.random.default_rng(1).permutation(BATCH * STEPS).reshape(STEPS, BATCH).astype(np.int32) % NODULES
    rates = np.linspace(1e-3, 2e-3, STEPS, dtype=np.float32)
    state, step = steps.replicate(create_state(Thin(), SIDE, 2, 0, average=True)), steps.compile_train_steps(task)
    history = []
    for call in calls:
        state, measured = step(state, records, indices[call.start : call.stop], 7, rates[call.start : call.stop])
        history += [{name: values[place] for name, values in measured.items()} for place in range(len(call))]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state, history))]


def compare():
    one_by_one = take(cut(range(STEPS), 1, STEPS))
    assert take([range(0, 2), range(2, 4), range(4, 5)]) == one_by_one
    assert take([range(0, 5)]) == one_by_one
    assert take([range(0, 1), range(1, 5)]) != take([range(0, 1)] * 5)  # the steps differ at all


def test_steps_in_one_call_are_those_taken_one_by_one():
    compare()


@pytest.mark.slow
def test_steps_in_one_call_are_those_taken_one_by_one_on_two_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "2 devices\n"


if __name__ == "__main__":
    compare()
    print(f"{jax.local_device_count()} devices")
