"""The training, evaluation and prediction steps: pure functions, compiled once, data-parallel over the devices.

Training goes over the devices of all processes, the rest over those of this one. `jax.pmap` is used here and nowhere
else. The state stays unstacked (`in_axes=None`, `out_axes=None`), so it can be saved and restored as it is. That is
correct only because gradients and BatchNorm statistics are averaged over the devices before they touch the state.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pnsamp_jax import losses, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import Outputs, probabilities_of
from pnsamp_jax.state import ADAM, TrainState
from pnsamp_jax.task import AXIS, Task, Windows

Array = jax.Array
Batch = dict[str, Any]  # NumPy arrays from the host, or arrays on the device


def apply_model(model: nn.Module, variables: dict, inputs: Array) -> Outputs:
    """Return the outputs of a model in inference mode for windowed patches (B, D, H, W, windows)."""
    outputs = model.apply(variables, inputs, train=False)
    assert isinstance(outputs, Outputs)
    return outputs


def sample_keys(seed: Array, step: Array, positions: Array) -> Array:
    """Return one random key per position in the global batch, whatever the number of devices that share the batch."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, step_key))(positions)


def train_step(
    task: Task, state: TrainState, batch: Batch, seed: Array, learning_rate: Array
) -> tuple[TrainState, dict[str, Array]]:
    """Take one optimisation step on this device's share of the batch.

    Args:
      task: static settings.
      state: unstacked.
      batch: (B, ...) of `schema.IMAGE`, `schema.MASK` and `schema.RATING_COUNTS`.
      seed: () uint32, from which the random keys are derived together with `state.step`.
      learning_rate: () float32 of this step.

    Returns:
      The next state, and the mean loss, its terms and the norm of the gradient over the whole batch.
    """
    images, masks = batch[schema.IMAGE], batch[schema.MASK]
    positions = jax.lax.axis_index(AXIS) * len(images) + jnp.arange(len(images))
    sample_key = jax.vmap(jax.random.split)(sample_keys(seed, state.step, positions))
    images, masks, ratings_hold = task.augment(sample_key[:, 0], images, masks)
    targets = task.targets(batch[schema.RATING_COUNTS]) * ratings_hold[:, None, None]
    inputs = transforms.window(images, task.windows)
    mask = transforms.segmentation_target(masks)

    def loss_of(params: dict) -> tuple[Array, tuple[dict, dict[str, Array]]]:
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
    # Synchronised BatchNorm already makes the running statistics equal; the mean lets the compiler know it.
    batch_stats = jax.lax.pmean(batch_stats, AXIS)
    directions, opt_state = ADAM.update(gradients, state.opt_state, state.params)
    updates = jax.tree.map(lambda direction: -learning_rate * direction, directions)
    params = optax.apply_updates(state.params, updates)
    metrics = jax.lax.pmean({name: value.mean() for name, value in terms.items()}, AXIS)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    average = state.average
    if average is not None:
        average = moving_average(
            average, {"params": params, "batch_stats": batch_stats}, state.step, task.average_decay
        )
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics


def train_steps(
    task: Task, state: TrainState, records: Batch, indices: Array, seed: Array, learning_rates: Array
) -> tuple[TrainState, dict[str, Array]]:
    """Take K steps, each on nodules that this device gathers from the records by itself.

    Args:
      task: static settings.
      state: unstacked.
      records: all nodules, under the names of a batch.
      indices: (K, B) int32, of the nodules in this device's share of each batch.
      seed: () uint32.
      learning_rates: (K,) float32 of each step.

    Returns:
      The state after the last step, and the metrics of each step (K,), see `train_step`.
    """

    def take(state: TrainState, step: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
        nodules, learning_rate = step
        batch = {name: values[nodules] for name, values in records.items()}
        return train_step(task, state, batch, seed, learning_rate)

    return jax.lax.scan(take, state, (indices, learning_rates), unroll=len(indices) == 1)


def moving_average(average: dict, variables: dict, step: Array, decay: float) -> dict:
    """Move an exponential moving average of the variables one step on.

    The decay starts low and rises to its final value, as in TensorFlow's ExponentialMovingAverage, so that the average
    soon forgets the initial weights.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, value: kept * mean + (1 - kept) * value, average, variables)


def eval_step(task: Task, variables: dict, batch: Batch) -> dict[str, Array]:
    """Compute the loss and Dice on this device's share of the batch, without augmentation.

    Args:
      task: static settings.
      variables: `params` and `batch_stats`.
      batch: B nodules under the names of `schema`.

    Returns:
      (B,) per nodule: `loss`, its terms and, for a model that segments, `dice` of the mask thresholded at one half. A
      test reports the Dice of its central component instead, which a compiled step cannot find. Also for such a model
      `slices` (B, 3, H, W), the axial slice in the middle to look at: the CT in the first window, the mask's
      probability and the consensus.
    """
    crop = jax.vmap(partial(transforms.crop, size=task.patch_size))
    inputs = transforms.window(crop(batch[schema.IMAGE]), task.windows)
    outputs = apply_model(task.model, variables, inputs)
    mask = transforms.segmentation_target(crop(batch[schema.MASK]))
    targets = task.targets(batch[schema.RATING_COUNTS])
    loss, terms = losses.total(outputs, mask, targets, task.weights)
    scores = {"loss": loss, **terms}
    if outputs.mask is not None:
        probability = jax.nn.sigmoid(outputs.mask)
        scores["dice"] = dice(probability > 0.5, mask > 0)
        scores["slices"] = jnp.stack([inputs[..., 0], probability, mask], axis=1)[:, :, task.patch_size // 2]
    return scores


def dice(predicted: Array, mask: Array) -> Array:
    """Compute the Dice coefficient of each nodule, as `outlines.dice` does, inside a compiled step.

    Args:
      predicted: (B, D, H, W) bool.
      mask: (B, D, H, W) bool.

    Returns:
      (B,) float32; 1 where both masks are empty.
    """
    space = (1, 2, 3)
    total = predicted.sum(space) + mask.sum(space)
    return jnp.where(total > 0, 2 * (predicted & mask).sum(space) / jnp.maximum(total, 1), 1.0)


def predict_step(
    model: nn.Module,
    patch_size: int,
    windows: Windows,
    variables: dict,
    temperatures: Array,
    mask_shift: Array,
    images: Array,
) -> dict[str, Array]:
    """Predict the nodules of this device's share of a batch.

    Model, patch size and windows are static, see `Task`. The variables are `params` and `batch_stats`; `temperatures`
    (9,) are those of the ratings, and `mask_shift` () is added to the logits of the mask. The images (B, S, S, S) are
    HU, with S of at least the patch size.

    Returns:
      See `probabilities_of`.
    """
    inputs = transforms.window(jax.vmap(partial(transforms.crop, size=patch_size))(images), windows)
    return probabilities_of(apply_model(model, variables, inputs), temperatures, mask_shift)


def predict_flips_step(
    model: nn.Module,
    patch_size: int,
    windows: Windows,
    variables: dict,
    temperatures: Array,
    mask_shift: Array,
    flips: Array,
    images: Array,
) -> dict[str, Array]:
    """Predict flips of the nodules as `predict_step` does, one flip after the other.

    The arguments are those of `predict_step` and `flips`, (F, 3) bool: whether depth, height and width are flipped.

    Returns:
      `mask` (B, D, H, W), the sum over the flips, each flipped back; `probabilities` (B, F, 9, 6) and `features`
      (B, F, C).
    """

    def predict_flip(flip: Array) -> dict[str, Array]:
        flipped = transforms.flip(images, flip)
        outputs = predict_step(model, patch_size, windows, variables, temperatures, mask_shift, flipped)
        return outputs | ({"mask": transforms.flip(outputs["mask"], flip)} if "mask" in outputs else {})

    outputs = jax.lax.map(predict_flip, flips)
    summed = {"mask": outputs.pop("mask").sum(0)} if "mask" in outputs else {}
    return summed | {name: values.swapaxes(0, 1) for name, values in outputs.items()}


def shard(tree: Any) -> Any:
    """Reshape every array of a tree from (B, ...) to (devices, B / devices, ...), and give each device its share."""
    devices = jax.local_devices()
    shares = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    return jax.device_put(jax.tree.map(lambda value: value.reshape(len(devices), -1, *value.shape[1:]), tree), shares)


def unshard(tree: Any) -> Any:
    """Reshape every array of a tree from (devices, B / devices, ...) to (B, ...)."""
    return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:]), tree)


def replicate(state: TrainState) -> TrainState:
    """Put a state on all local devices as the steps return it, so that they compile for one placement only."""
    return _pmap_here(lambda _, state: state, in_axes=(0, None), out_axes=None)(
        jnp.zeros(jax.local_device_count()), state
    )


def _pmap_here(function: Callable, in_axes: tuple, out_axes: int | None = 0) -> Callable:
    """Map over the devices of this process alone, whatever other processes do."""
    return jax.pmap(function, AXIS, in_axes=in_axes, out_axes=out_axes, devices=jax.local_devices())


@cache  # the folds of a cross-validation share the compiled step
def compile_train_step(task: Task) -> Callable:
    """Compile (state, batch of (B, ...), seed, learning_rate) -> (state, metrics), which consumes its state."""
    in_axes = (None, 0, None, None)
    step = jax.pmap(partial(train_step, task), AXIS, in_axes=in_axes, out_axes=(None, None), donate_argnums=0)
    return lambda state, batch, seed, learning_rate: step(state, shard(batch), np.uint32(seed), learning_rate)


@cache
def compile_train_steps(task: Task) -> Callable:
    """Compile (state, records, indices of (K, B), seed, learning_rates of (K,)) -> (state, metrics of (K,)).

    It is compiled once for each K, and consumes its state. The records stay where they are, see
    `input_pipeline.to_device`.
    """
    in_axes = (None, None, 1, None, None)
    step = jax.pmap(partial(train_steps, task), AXIS, in_axes=in_axes, out_axes=(None, None), donate_argnums=0)

    def take(state: TrainState, records: Batch, indices: np.ndarray, seed: int, learning_rates: np.ndarray) -> tuple:
        shares = indices.reshape(len(indices), jax.local_device_count(), -1)
        return step(state, records, shares, np.uint32(seed), learning_rates)

    return take


@cache
def compile_eval_step(task: Task) -> Callable:
    """Compile (variables, batch of (B, ...)) -> the (B,) scores of `eval_step`."""
    step = _pmap_here(partial(eval_step, task), in_axes=(None, 0))
    return lambda variables, batch: unshard(step(variables, shard(batch)))


@cache
def compile_predict_step(model: nn.Module, patch_size: int, windows: Windows) -> Callable:
    """Compile (variables, temperatures, mask_shift, images of (B, S, S, S)) -> the (B, ...) results of `predict_step`.

    B has to be a multiple of the number of local devices.
    """
    step = _pmap_here(partial(predict_step, model, patch_size, windows), in_axes=(None, None, None, 0))
    return lambda variables, temperatures, mask_shift, images: unshard(
        step(variables, temperatures, np.float32(mask_shift), shard(images))
    )


@cache
def compile_predict_flips_step(model: nn.Module, patch_size: int, windows: Windows) -> Callable:
    """Compile (variables, temperatures, mask_shift, flips, images) -> the results of `predict_flips_step`."""
    step = _pmap_here(partial(predict_flips_step, model, patch_size, windows), in_axes=(None,) * 4 + (0,))
    return lambda variables, temperatures, mask_shift, flips, images: unshard(
        step(variables, temperatures, np.float32(mask_shift), np.asarray(flips), shard(images))
    )
