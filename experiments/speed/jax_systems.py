"""This package in the benchmark, with its own convolution or with XLA's; and what the machine itself can do."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.speed.worker import System, draw_batch, host_peak
from pnsamp_jax import config as settings
from pnsamp_jax import steps, transforms
from pnsamp_jax.models import layers
from pnsamp_jax.state import create_state
from pnsamp_jax.train import make_task

TRAINING = 3  # the gradients of a layer's kernel and of its input each cost as much as the layer
NAMES = {"jax": "this package, JAX", "training": "augmenting, JAX", "native": "native convolution, JAX"}


def forward_flops(model: nn.Module, patch_size: int, channels: int) -> int:
    """Operations of one patch forward, by hand: each output of a layer with a kernel takes a multiplication and an
    addition for every weight that leads to it, zero padding included. All other layers are a few per cent."""
    counts = []

    def note(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> object:
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
    """A function that its first call compiles, so that XLA can be asked what a call costs."""

    def __init__(self, function: Callable, **options) -> None:
        self.function, self.compiled = jax.jit(function, **options), None

    def __call__(self, *args: object) -> object:
        """The result, once it is there."""
        if self.compiled is None:
            self.compiled = self.function.lower(*args).compile()
        return jax.block_until_ready(self.compiled(*args))

    def costs(self) -> dict[str, float]:
        """Operations and bytes of a call as XLA counts them, where it does and the program has run."""
        counted = self.compiled and self.compiled.cost_analysis()
        return {"xla_flops": counted["flops"], "xla_bytes": counted["bytes accessed"]} if counted else {}


def peak() -> int:
    """Most bytes that any device has held; of the process where the devices have no memory of their own."""
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return host_peak() if None in held else max(held)


def crop_only(key: jax.Array, image: jax.Array, mask: jax.Array, size: int, options: object) -> tuple:
    """In place of `transforms.augment`: the middle of a patch."""
    return transforms.crop(image, size), transforms.crop(mask, size)


def create(system: str, config: ConfigDict) -> System:
    """`training` has the step that training takes, on all devices, `jax` the same without augmentation, as the other
    toolkits have it, and `native` that with XLA's 3D convolution; their parts are `train_step`, `forward` (what
    `steps.predict_step` says of a batch) and `latency` (of one patch a device, from the host and back). For `machine`
    see `rates`. UserError if the config cannot work."""
    settings.check(config)
    if system == "machine":
        return rates(config)
    if system != "training":
        transforms.augment = crop_only  # no one else lives in this process
    if system == "native":
        layers.conv3d, layers.conv3d_joined = layers.conv3d_native, layers.conv3d_joined_native
    task = make_task(config)
    state = steps.replicate(create_state(task.model, task.patch_size, len(task.windows), config.seed))
    variables = jax.tree.map(jnp.copy, (state.params, state.batch_stats))  # a step consumes the state
    batch, devices = jax.tree.map(jnp.asarray, draw_batch(config)), jax.local_device_count()
    patch = {name: np.resize(value, (devices, *value.shape[1:])) for name, value in batch.items()}
    train = steps.compile_train_step(task)
    step = Program(lambda *args: train(*args, config.seed, config.learning_rate), donate_argnums=0)
    forward, latency = (Program(partial(steps.compile_predict_step(task), *variables)) for _ in range(2))

    def train_step() -> None:
        nonlocal state
        state, _ = step(state, batch)

    def costs() -> dict[str, dict[str, float]]:
        flops = config.batch_size * forward_flops(task.model.clone(axis_name=None), task.patch_size, len(task.windows))
        counted = (("train_step", step, TRAINING * flops), ("forward", forward, flops))
        return {part: {"flops": by_hand} | program.costs() for part, program, by_hand in counted}

    parts = {"train_step": train_step, "forward": lambda: forward(batch)}
    parts["latency"] = lambda: jax.device_get(latency(patch))
    device = f"{devices} x {jax.local_devices()[0].device_kind}"
    return System({"name": NAMES[system], "version": jax.__version__, "device": device}, parts, peak, costs)


def rates(config: ConfigDict) -> System:
    """What the machine reaches: `matmul`, a product of square matrices in the config's precision, and `copy`."""
    size, length = (2048, 2**26) if jax.default_backend() == "cpu" else (8192, 2**29)  # no cache holds these
    square = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(config.model.dtype))
    many = jnp.ones(length, jnp.float32)
    multiply, copy = Program(jnp.matmul), Program(jnp.negative)
    costs = {"matmul": {"flops": 2 * size**3}, "copy": {"bytes": 2 * many.nbytes}}  # read once, written once
    return System({}, {"matmul": lambda: multiply(square, square), "copy": lambda: copy(many)}, peak, lambda: costs)
