"""Batches of stored patches: a pure function of (seed, step), through tf.data or from arrays on the device.

Training reads an endless stream of nodules, one random permutation of the training set after the other, and step s
takes the places s B .. (s + 1) B of it. A run that resumes at step s therefore sees what the uninterrupted run would
have seen, with no iterator state to save. Only int16 HU and uint8 masks travel; windows and augmentation are applied
inside the compiled step.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax.data import keys
from pnsamp_jax.errors import UserError

PIPELINES = ("device", "tfdata")
FEATURES = (keys.IMAGE, keys.MASK, keys.VOTES)


def batch_indices(seed: int, step: int, num_nodules: int, batch_size: int) -> np.ndarray:
    """Which nodules make up the batch of a step: (batch_size,) int64."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(places, num_nodules)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_nodules) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, within, strict=True)])


def to_device(records: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The features of a batch for all nodules, on the default device."""
    return {name: jnp.asarray(records[name]) for name in FEATURES}


@jax.jit
def take(arrays: dict[str, jax.Array], indices: jax.Array) -> dict[str, jax.Array]:
    """The batch of the nodules at `indices`."""
    return {name: values[indices] for name, values in arrays.items()}


def train_batches(
    records: dict[str, np.ndarray], *, pipeline: str, seed: int, first_step: int, last_step: int, batch_size: int
) -> Iterator[dict[str, jax.Array | np.ndarray]]:
    """Yields the batches of the steps first_step .. last_step - 1, the same from either pipeline.

    Args:
      records: the training nodules, under the names of `keys`.
      pipeline: "device" keeps all patches on the device; "tfdata" streams them from the host.
      seed: decides the order.
      first_step: where to start; a resumed run passes the steps it has taken.
      last_step: where to stop.
      batch_size: nodules a batch.
    """
    if pipeline not in PIPELINES:
        raise UserError(f"config.data.pipeline: '{pipeline}' is none of {', '.join(PIPELINES)}")
    if pipeline == "tfdata":
        yield from _tfdata_batches(records, seed, first_step, last_step, batch_size)
        return
    arrays = to_device(records)
    for step in range(first_step, last_step):
        yield take(arrays, batch_indices(seed, step, len(records[keys.VOTES]), batch_size))


def _tfdata_batches(records, seed, first_step, last_step, batch_size):
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError("config.data.pipeline: 'tfdata' needs TensorFlow; pip install 'pnsamp-jax[tf]'") from error

    tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX

    def gather(step: np.ndarray) -> list[np.ndarray]:
        indices = batch_indices(seed, int(step), len(records[keys.VOTES]), batch_size)
        return [records[name][indices] for name in FEATURES]

    def load(step: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(gather, [step], [records[name].dtype for name in FEATURES], stateful=False)
        return dict(zip(FEATURES, arrays, strict=True))

    steps = tf.data.Dataset.range(first_step, last_step)
    yield from steps.map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def eval_batches(records: dict[str, np.ndarray], batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yields every nodule once, in order, as (batch, how many of it are real); the last batch is padded by repeats."""
    total = len(records[keys.VOTES])
    for start in range(0, total, batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), total - 1)
        yield {name: records[name][indices] for name in FEATURES}, min(batch_size, total - start)
