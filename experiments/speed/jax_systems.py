"""This package in the benchmark, with its own convolution or with XLA's; and the limits of the machine."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.speed.worker import System, draw_batch, host_peak
from pnsamp_jax import steps, transforms
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.models import conv3d, layers
from pnsamp_jax.state import create_state

TRAINING = 3  # the gradients of a layer's kernel and of its input each cost as much as the layer
NAMES = {"jax": "this package, JAX", "training": "augmenting, JAX", "native": "native convolution, JAX"}


def forward_flops(model: nn.Module, patch_size: int, channels: int) -> int:
    """Count the operations of a forward pass of one patch by hand.

    Each output of a layer with a kernel takes a multiplication and an addition for every weight that leads to it, zero
    padding included. All other layers are a few per cent.
    """
    counts = []

    def note(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        kernel = context.module.variables.get("params", {}).get("kernel")
        if kernel is not None:
            counts.append(2 * output.size * kernel.size // kernel.shape[-1])
        return output

    patch = jax.ShapeDtypeStruct((1, *[patch_size] * 3, channels), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda patch: model.init(jax.random.key(0), patch), patch)
    return sum(counts)


class Program:
    """A function that is compiled by its first call, so that XLA can report the costs of a call."""

    def __init__(self, function: Callable, **options: Any) -> None:
        self.function = jax.jit(function, **options)
        self.compiled: jax.stages.Compiled | None = None

    def __call__(self, *args: Any) -> Any:
        """Return the result once it is computed."""
        if self.compiled is None:
            self.compiled = self.function.lower(*args).compile()
        return jax.block_until_ready(self.compiled(*args))

    def costs(self) -> dict[str, float]:
        """Return the operations and bytes of a call as XLA counts them; empty before the first call or if unknown."""
        counted = self.compiled.cost_analysis() if self.compiled else None
        return {"xla_flops": counted["flops"], "xla_bytes": counted["bytes accessed"]} if counted else {}


def peak() -> int:
    """Return the most bytes that any device has held; of the process if devices have no memory of their own."""
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [count for count in held if count is not None]
    return max(known) if len(known) == len(held) else host_peak()


def crop_only(key: jax.Array, image: jax.Array, mask: jax.Array, size: int, options: object) -> tuple:
    """Return the middle of a patch, in place of `transforms.augment`."""
    return transforms.crop(image, size), transforms.crop(mask, size)


def create(system: str, config: ConfigDict) -> System:
    """Create a system.

    Args:
      system: `training` takes the same step as training, on all devices; `jax` the same without augmentation, as the
        other toolkits do; `native` that with XLA's 3D convolution. Their parts are `train_step`; `forward`, the
        `steps.predict_step` of a batch; and `latency`, the same for one patch on each device, from the host and back.
        For `machine` see `rates`.
      config: of the network and its training.

    Raises:
      UserError: the config is not valid.
    """
    settings = read_settings(config)
    if system == "machine":
        return rates(config)
    if system != "training":
        transforms.augment = crop_only  # this process measures no other system
    if system == "native":
        conv3d.conv3d = layers.conv3d = conv3d.conv3d_native
        layers.conv3d_of_upsampled_concat = conv3d.conv3d_of_upsampled_concat_native
    task, channels = settings.task, len(settings.task.windows)
    state = steps.replicate(create_state(task.model, task.patch_size, channels, settings.seed))
    variables = jax.tree.map(jnp.copy, state.variables)  # a training step consumes the state
    batch, devices = jax.tree.map(jnp.asarray, draw_batch(config)), jax.local_device_count()
    patch = np.resize(batch[schema.IMAGE], (devices, *batch[schema.IMAGE].shape[1:]))
    train = steps.compile_train_step(task)
    step = Program(lambda *args: train(*args, settings.seed, settings.learning_rate), donate_argnums=0)
    predict = steps.compile_predict_step(task.model, task.patch_size, task.windows)
    uncalibrated = np.ones(len(schema.RATINGS), np.float32)
    forward, latency = (Program(partial(predict, variables, uncalibrated, 0.0)) for _ in range(2))

    def train_step() -> None:
        nonlocal state
        state, _ = step(state, batch)

    def costs() -> dict[str, dict[str, float]]:
        flops = settings.batch_size * forward_flops(task.model.clone(axis_name=None), task.patch_size, channels)
        counted = (("train_step", step, TRAINING * flops), ("forward", forward, flops))
        return {part: {"flops": by_hand} | program.costs() for part, program, by_hand in counted}

    parts: dict[str, Callable[[], object]] = {
        "train_step": train_step,
        "forward": lambda: forward(batch[schema.IMAGE]),
    }
    parts["latency"] = lambda: jax.device_get(latency(patch))
    device = f"{devices} x {jax.local_devices()[0].device_kind}"
    return System({"name": NAMES[system], "version": jax.__version__, "device": device}, parts, peak, costs)


def rates(config: ConfigDict) -> System:
    """Create the system `machine`: `matmul`, a product of square matrices in the config's precision, and `copy`."""
    size, length = (2048, 2**26) if jax.default_backend() == "cpu" else (8192, 2**29)  # too large for any cache
    square = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(config.model.dtype))
    many = jnp.ones(length, jnp.float32)
    multiply, copy = Program(jnp.matmul), Program(jnp.negative)
    costs: dict[str, dict[str, float]] = {
        "matmul": {"flops": 2 * size**3},
        "copy": {"bytes": 2 * many.nbytes},  # read once, written once
    }
    return System({}, {"matmul": lambda: multiply(square, square), "copy": lambda: copy(many)}, peak, lambda: costs)
