"""Taking the steps of a fold's training, several of them in one call of the device."""

from collections.abc import Iterator

import jax
import numpy as np

from pnsamp_jax import input_pipeline, processes, steps
from pnsamp_jax.run import Run
from pnsamp_jax.state import TrainState


def take_steps(
    run: Run, nodules: np.ndarray, state: TrainState, taken: range, every: int, seed: int, rates: np.ndarray
) -> Iterator[tuple[range, TrainState, dict[str, jax.Array]]]:
    """Yield the steps of each call, the state after them, and their metrics: (K,), or () from the pipeline "tfdata".

    Args:
      run: holds the records.
      nodules: (n,) indices of the training nodules in them.
      state: on the devices, see `steps.replicate`. The next call consumes it, as it does every state that is yielded.
      taken: the steps to take.
      every: no call goes beyond a step that is a multiple of this.
      seed: decides the order of the nodules and the augmentation.
      rates: the learning rate of every step of the training.
    """
    settings, share = run.settings, processes.share(run.settings.batch_size)
    if settings.pipeline == "device":
        train_steps = steps.compile_train_steps(settings.task)
        records = {name: run.records[name] for name in input_pipeline.FEATURES}
        for call in cut(taken, settings.steps_per_call, every):
            indices = input_pipeline.call_indices(nodules, seed, call, settings.batch_size, share)
            state, measured = train_steps(state, records, indices, seed, rates[call.start : call.stop])
            yield call, state, measured
        return
    train_step = steps.compile_train_step(settings.task)
    batches = input_pipeline.train_batches(
        run.records,
        nodules,
        pipeline=settings.pipeline,
        seed=seed,
        steps=taken,
        batch_size=settings.batch_size,
        share=share,
    )
    for step, batch in zip(taken, batches, strict=True):
        state, measured = train_step(state, batch, seed, rates[step])
        yield range(step, step + 1), state, measured


def cut(taken: range, most: int, every: int) -> Iterator[range]:
    """Cut steps into calls, none of which goes beyond a step that is a multiple of `every`.

    A call has `most` steps, or one where so many do not fit: every length is a program that has to be compiled.
    """
    most = min(most, every)
    first = taken.start
    while first < taken.stop:
        due = min(first - first % every + every, taken.stop)
        last = first + most if first + most <= due else first + 1
        yield range(first, last)
        first = last
