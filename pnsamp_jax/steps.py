"""The training and evaluation steps: pure functions, compiled once, data-parallel over the local devices.

`jax.pmap` is used here and nowhere else. The state stays unstacked (`in_axes=None`, `out_axes=None`), so it can be
saved and read as it is; that is right only because gradients and BatchNorm statistics are averaged over the devices
before they touch it.
"""

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from pnsamp_jax import losses, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import Outputs, given
from pnsamp_jax.state import ADAM, TrainState

Array = jax.Array
Batch = dict[str, Array]

AXIS = "batch"


class Task(NamedTuple):
    """What a step needs to know besides state and batch; static.

    Attributes:
      model: of `models`, built with `axis_name=AXIS`.
      patch_size: voxels on a side that the network sees.
      windows: (width, centre) in HU of each channel.
      augmentation: of the training patches.
      labels: what the ratings are trained on, see `transforms.rating_targets`.
      weights: the trade-off of the loss.
      flips: whether predictions are averaged over the eight flips of the patch.
    """

    model: nn.Module
    patch_size: int
    windows: tuple[tuple[float, float], ...]
    augmentation: transforms.Augmentation
    labels: str
    weights: losses.Weights
    flips: bool = False


def sample_keys(seed: Array, step: Array, positions: Array) -> Array:
    """One random key for each place in the global batch, the same however many devices share the batch."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, step_key))(positions)


def train_step(
    task: Task, state: TrainState, batch: Batch, seed: Array, learning_rate: Array
) -> tuple[TrainState, dict[str, Array]]:
    """One step on this device's share of the batch.

    Args:
      task: static settings.
      state: unstacked.
      batch: `schema.IMAGE`, `schema.MASK` and `schema.RATING_COUNTS` with (B, ...) each.
      seed: () uint32, from which, with `state.step`, the random keys are derived.
      learning_rate: () float32, of this step.

    Returns:
      The next state, and the mean loss, its terms and the gradient's norm over the whole batch.
    """
    images, masks = batch[schema.IMAGE], batch[schema.MASK]
    positions = jax.lax.axis_index(AXIS) * len(images) + jnp.arange(len(images))
    sample_key = jax.vmap(jax.random.split)(sample_keys(seed, state.step, positions))
    move = partial(transforms.augment, size=task.patch_size, options=task.augmentation)
    images, masks = jax.vmap(move)(sample_key[:, 0], images, masks)
    inputs = transforms.window(images, task.windows)
    mask = transforms.segmentation_target(masks)
    targets = transforms.rating_targets(batch[schema.RATING_COUNTS], task.labels)

    def loss_of(params):
        outputs, updated = task.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": sample_key[0, 1]},
        )
        loss, terms = losses.total(outputs, mask, targets, task.weights)
        return loss.mean(), (updated["batch_stats"], {"loss": loss, **terms})

    gradients, (batch_stats, terms) = jax.grad(loss_of, has_aux=True)(state.params)
    gradients = jax.lax.pmean(gradients, AXIS)
    # Synchronised BatchNorm makes the running statistics equal already; the mean tells the compiler so.
    batch_stats = jax.lax.pmean(batch_stats, AXIS)
    directions, opt_state = ADAM.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda value, direction: value - learning_rate * direction, state.params, directions)
    metrics = jax.lax.pmean({name: value.mean() for name, value in terms.items()}, AXIS)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


def answers(outputs: Outputs) -> Batch:
    """Outputs as probabilities: `mask` (B, D, H, W), `probabilities` (B, 9, 6), `features` (B, F), if there are any.

    Probabilities of a rating that the model does not give are NaN.
    """
    results = {}
    if outputs.mask is not None:
        results["mask"] = jax.nn.sigmoid(outputs.mask)
    if outputs.ratings is not None:
        softmax = jax.nn.softmax(outputs.ratings)
        results["probabilities"] = jnp.where(given(outputs.ratings)[..., None], softmax, jnp.nan)
    if outputs.features is not None:
        results["features"] = outputs.features
    return results


def mirror(x: Array, flip: Array) -> Array:
    """Flips depth, height and width of (B, D, H, W, ...) where `flip` (3,) bool says so."""
    for axis in range(3):
        x = jnp.where(flip[axis], jnp.flip(x, axis + 1), x)
    return x


def apply_model(task: Task, params: dict, batch_stats: dict, images: Array) -> tuple[Outputs, Batch]:
    """What the model says of stored patches (B, S, S, S), in HU: its outputs, and `answers`.

    The answers, not the outputs, are averaged over the eight flips where the task has `flips`.
    """
    inputs = transforms.window(jax.vmap(partial(transforms.crop, size=task.patch_size))(images), task.windows)
    model = partial(task.model.apply, {"params": params, "batch_stats": batch_stats}, train=False)

    def answer_flipped(flip: Array) -> Batch:
        flipped = answers(model(mirror(inputs, flip)))
        return {name: mirror(value, flip) if name == "mask" else value for name, value in flipped.items()}

    outputs = model(inputs)
    if not task.flips:
        return outputs, answers(outputs)
    flips = jnp.array(list(itertools.product((False, True), repeat=3)))
    return outputs, jax.tree.map(lambda values: values.mean(axis=0), jax.lax.map(answer_flipped, flips))


def eval_step(task: Task, params: dict, batch_stats: dict, batch: Batch) -> dict[str, Array]:
    """How good the model is on this device's share of the batch, without augmentation.

    Returns:
      By nodule: `loss` and its terms (B,); where the model has them, `dice` (B,) of the mask cut at one half,
      `probabilities` (B, 9, 6) of the ratings and `features` (B, F).
    """
    outputs, results = apply_model(task, params, batch_stats, batch[schema.IMAGE])
    mask = transforms.segmentation_target(jax.vmap(partial(transforms.crop, size=task.patch_size))(batch[schema.MASK]))
    targets = transforms.rating_targets(batch[schema.RATING_COUNTS], task.labels)
    loss, terms = losses.total(outputs, mask, targets, task.weights)
    scores = {"loss": loss, **terms}
    if "mask" in results:
        scores["dice"] = dice(results["mask"] > 0.5, mask > 0)
    return scores | {name: results[name] for name in ("probabilities", "features") if name in results}


def predict_step(task: Task, params: dict, batch_stats: dict, batch: Batch) -> Batch:
    """What the model says of this device's share of the batch: `answers`, the mask cut at one half."""
    results = apply_model(task, params, batch_stats, batch[schema.IMAGE])[1]
    return {name: value > 0.5 if name == "mask" else value for name, value in results.items()}


def dice(predicted: Array, mask: Array) -> Array:
    """Dice of each nodule: (B, D, H, W) bool of both -> (B,); 1 where both are empty."""
    space = (1, 2, 3)
    both = predicted.sum(space) + mask.sum(space)
    return jnp.where(both > 0, 2 * (predicted & mask).sum(space) / jnp.maximum(both, 1), 1.0)


def shard(batch: Batch) -> Batch:
    """(B, ...) -> (devices, B / devices, ...) of every array."""
    devices = jax.local_device_count()
    return {name: value.reshape(devices, -1, *value.shape[1:]) for name, value in batch.items()}


def replicate(state: TrainState) -> TrainState:
    """Puts a state on all local devices, as the steps return it, so that they compile for one placement only."""
    return jax.pmap(lambda _, state: state, AXIS, in_axes=(0, None), out_axes=None)(
        jnp.zeros(jax.local_device_count()), state
    )


@cache  # the folds of a cross-validation share the compiled step
def compile_train_step(task: Task) -> Callable:
    """(state, batch of (B, ...), seed, learning_rate) -> (state, metrics); the given state is consumed."""
    in_axes = (None, 0, None, None)
    step = jax.pmap(partial(train_step, task), AXIS, in_axes=in_axes, out_axes=(None, None), donate_argnums=0)
    return lambda state, batch, seed, learning_rate: step(state, shard(batch), np.uint32(seed), learning_rate)


def compile_eval_step(task: Task) -> Callable:
    """(params, batch_stats, batch of (B, ...)) -> `eval_step`'s results of (B, ...), over all local devices."""
    return _compile_forward(eval_step, task)


def compile_predict_step(task: Task) -> Callable:
    """The same of `predict_step`."""
    return _compile_forward(predict_step, task)


@cache
def _compile_forward(step: Callable, task: Task) -> Callable:
    mapped = jax.pmap(partial(step, task), AXIS, in_axes=(None, None, 0))

    def run(params: dict, batch_stats: dict, batch: Batch) -> Batch:
        results = mapped(params, batch_stats, shard(batch))
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in results.items()}

    return run
