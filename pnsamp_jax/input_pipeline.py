"""Batches of stored patches: a pure function of (seed, step), through tf.data or from arrays on the device.

Training reads an endless stream of nodules, one random permutation of the training set after the other, and step s
takes the places s B .. (s + 1) B of it. A run that resumes at step s therefore sees what the uninterrupted run would
have seen, with no iterator state to save. Only int16 HU and uint8 masks travel; windows and augmentation are applied
inside the compiled step.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax.data import schema

PIPELINES = ("device", "tfdata")
FEATURES = (schema.IMAGE, schema.MASK, schema.RATING_COUNTS)

Records = dict[str, np.ndarray | jax.Array]


def batch_indices(seed: int, step: int, num_nodules: int, batch_size: int) -> np.ndarray:
    """Which nodules make up the batch of a step: (batch_size,) int64."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(places, num_nodules)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_nodules) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, within, strict=True)])


def to_device(records: Records) -> Records:
    """The same records with what a step reads (`FEATURES`) on the default device instead of the host."""
    return {**records, **{name: jnp.asarray(records[name]) for name in FEATURES}}


def gather(records: Records, nodules: np.ndarray) -> Records:
    """The features of the nodules at the given places, on the device if the records are there."""
    return {name: records[name][nodules] for name in FEATURES}


def train_batches(
    records: Records, nodules: np.ndarray, *, pipeline: str, seed: int, steps: range, batch_size: int
) -> Iterator[Records]:
    """Yields the batches of the given steps, the same from either pipeline.

    Args:
      records: under the names of `schema`.
      nodules: (n,) places of the training nodules in the records.
      pipeline: "device" gathers where the records are; "tfdata" streams them from the host.
      seed: decides the order.
      steps: which ones; a resumed run begins at the steps it has taken.
      batch_size: nodules a batch.
    """

    def batch(step: int) -> Records:
        return gather(records, nodules[batch_indices(seed, step, len(nodules), batch_size)])

    return _stream(batch, steps, records) if pipeline == "tfdata" else map(batch, steps)


def _stream(batch: Callable[[int], Records], steps: range, records: Records) -> Iterator[Records]:
    """The batches through tf.data, made ahead while the device is busy."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [records[name].dtype for name in FEATURES]
        arrays = tf.numpy_function(lambda step: list(batch(int(step)).values()), [step], types, stateful=False)
        return dict(zip(FEATURES, arrays, strict=True))

    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def eval_batches(records: Records, nodules: np.ndarray, batch_size: int) -> Iterator[tuple[Records, int]]:
    """Yields every nodule once, in order, as (batch, how many of it are real); the last is padded by repeats."""
    for start in range(0, len(nodules), batch_size):
        places = np.minimum(np.arange(start, start + batch_size), len(nodules) - 1)
        yield gather(records, nodules[places]), min(batch_size, len(nodules) - start)
