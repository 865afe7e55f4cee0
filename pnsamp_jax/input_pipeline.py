"""Batches of stored patches, each a pure function of (seed, step).

Training goes through an endless sequence of nodules, one random permutation of the training set after the other, and
step s takes the positions s B .. (s + 1) B of it. A run that resumes at step s therefore sees the same batches as an
uninterrupted one, with no iterator state to save. Batches hold int16 HU and uint8 masks only; windows and augmentation
are applied inside the compiled step.

The voxels are arrays in memory or on the device, or `ArraysOnDisk`, of which only a batch is in memory at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

PIPELINES = ("device", "tfdata")
BATCHES_AHEAD = 2  # that tf.data keeps ready, besides those that it is reading
FEATURES = (schema.IMAGE, schema.MASK, schema.RATING_COUNTS)  # of a batch

Arrays = dict[str, Any]  # NumPy arrays on the host, or JAX arrays on the device


def batch_indices(seed: int, step: int, num_nodules: int, batch_size: int) -> np.ndarray:
    """Return which nodules make up the batch of a step: (batch_size,) int64."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(positions, num_nodules)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_nodules) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position] for epoch, position in zip(epochs, within, strict=True)])


def call_indices(
    nodules: np.ndarray, seed: int, steps: range, batch_size: int, share: slice = slice(None)
) -> np.ndarray:
    """Return the indices in the records of the batches of several steps: (steps, batch_size) int32, or a share of it.

    Args:
      nodules: (n,) indices of the training nodules in the records.
      seed: decides the order.
      steps: of one call.
      batch_size: nodules in a batch.
      share: the part of each batch to return.
    """
    batches = [batch_indices(seed, step, len(nodules), batch_size)[share] for step in steps]
    return nodules[np.stack(batches)].astype(np.int32)


def to_device(records: Arrays) -> Arrays:
    """Return the records with their `FEATURES` on every device of this process instead of the host."""
    everywhere = NamedSharding(Mesh(np.array(jax.local_devices()), ("devices",)), PartitionSpec())
    return {**records, **jax.device_put({name: records[name] for name in FEATURES}, everywhere)}


def gather(records: Arrays, nodules: np.ndarray) -> Arrays:
    """Return the `FEATURES` of the nodules at the given indices, on the device if the records are there."""
    return {name: records[name][nodules] for name in FEATURES}


def train_batches(
    records: Arrays,
    nodules: np.ndarray,
    *,
    pipeline: str,
    seed: int,
    steps: range,
    batch_size: int,
    share: slice = slice(None),
) -> Iterator[Arrays]:
    """Yield the batches of the given steps, or a share of each, the same from either pipeline.

    Args:
      records: under the names of `schema`.
      nodules: (n,) indices of the training nodules in the records.
      pipeline: "device" gathers each batch where the records are; "tfdata" reads batches ahead, in threads.
      seed: decides the order.
      steps: a resumed run begins at the number of steps that it has taken.
      batch_size: nodules in a batch.
      share: the part of each batch to read.
    """

    def batch(step: int) -> Arrays:
        return gather(records, nodules[batch_indices(seed, step, len(nodules), batch_size)[share]])

    return _prefetched(batch, steps, records) if pipeline == "tfdata" else map(batch, steps)


def _prefetched(batch: Callable[[int], Arrays], steps: range, records: Arrays) -> Iterator[Arrays]:
    """Yield the batches from tf.data, which calls `batch` ahead of time in threads of its own.

    Raises:
      UserError: as `batch`.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX

    types = [records[name].dtype for name in FEATURES]
    failures: list[UserError] = []

    def read(step: np.ndarray) -> list[np.ndarray]:
        try:
            return [np.asarray(values) for values in batch(int(step)).values()]
        except UserError as error:  # which TensorFlow would print with a traceback
            failures.append(error)
            return [np.empty(0, dtype) for dtype in types]

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(read, [step], types, stateful=False)
        return dict(zip(FEATURES, arrays, strict=True))

    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    for arrays in dataset.prefetch(BATCHES_AHEAD).as_numpy_iterator():
        if failures:
            raise failures[0]
        yield arrays


def eval_batches(records: Arrays, nodules: np.ndarray, batch_size: int) -> Iterator[tuple[Arrays, int]]:
    """Yield (batch, number of real nodules in it) so that every nodule comes once, in order.

    The last batch is filled up with repeats of the last nodule.
    """
    for start in range(0, len(nodules), batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), len(nodules) - 1)
        yield gather(records, nodules[indices]), min(batch_size, len(nodules) - start)
