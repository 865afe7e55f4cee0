"""The compiled steps, lowered for CPU, GPU and TPU without such a device: what they are made of on each platform.

The numbers here are derived by hand from the architectures in the papers and from the voxels of a patch.
"""

from collections import Counter
from functools import cache
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax import steps
from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import pn_samp_m, pn_samp_plus
from pnsamp_jax.data import schema
from pnsamp_jax.state import state_shapes

pytestmark = pytest.mark.slow  # every step is traced and lowered for three platforms

BATCH, SIZE = 2, 16
NODULES, STEPS = 5, 3  # of the records, and in one call
CONFIGS = {"m": pn_samp_m, "plus": pn_samp_plus}
PLATFORMS = ("cpu", "cuda", "tpu")

# (share of the patch's side, input channels, features) of every 3x3x3 convolution. PN-SAMP has four down on two
# windows, four up (all but the first with a skip of as many channels as come from below) and four on the mask.
DOWN = [(1 / 2**level, channels, 16 * 2**level) for level, channels in enumerate((2, 16, 32, 64))]
UP = [(1 / 16, 128, 128), (1 / 8, 128 + 128, 64), (1 / 4, 64 + 64, 32), (1 / 2, 32 + 32, 16)]
MASK = [(1 / 2**level, channels, 8 * 2**level) for level, channels in enumerate((1, 8, 16, 32))]
LAYERS = {
    "m": [*DOWN, *UP, *MASK],
    # PN-SAMP Plus has a third input channel, for the point, and one more block up, at the full resolution.
    "plus": [(1, 3, 16), *DOWN[1:], *UP, (1, 16 + 16, 16), *MASK],
}


@cache
def traced(name, mode, rotate=0.0):
    """The step of a config in bfloat16, before it is lowered for a platform."""
    config = CONFIGS[name].get_config()
    config.patch_size, config.model.dtype, config.augment.rotate = SIZE, "bfloat16", rotate
    task = read_settings(config).task
    state, side = state_shapes(*task.shape), SIZE + 2 * config.data.margin
    shapes = {
        schema.IMAGE: ((BATCH, side, side, side), jnp.int16),
        schema.MASK: ((BATCH, side, side, side), jnp.uint8),
        schema.RATING_COUNTS: ((BATCH, *schema.CLASS_EXISTS.shape), jnp.uint8),
    }
    batch = {field: jax.ShapeDtypeStruct(*shape) for field, shape in shapes.items()}
    if mode == "train":
        step = steps.compile_train_step(task)
        return jax.jit(lambda state, batch: step(state, batch, 7, np.float32(1e-3))).trace(state, batch)
    if mode == "train steps":
        records = {field: jax.ShapeDtypeStruct((NODULES, *shape[1:]), kind) for field, (shape, kind) in shapes.items()}
        indices, several = jax.ShapeDtypeStruct((STEPS, BATCH), jnp.int32), steps.compile_train_steps(task)
        rates = np.full(STEPS, 1e-3, np.float32)
        call = jax.jit(lambda state, records, indices: several(state, records, indices, 7, rates))
        return call.trace(state, records, indices)
    if mode == "eval":
        return jax.jit(steps.compile_eval_step(task)).trace(state.variables, batch)
    step = steps.compile_predict_step(task.model, task.patch_size, task.windows)
    temperatures = jax.ShapeDtypeStruct((9,), jnp.float32)
    predict = jax.jit(lambda variables, temperatures, images: step(variables, temperatures, 0.0, images))
    return predict.trace(state.variables, temperatures, batch[schema.IMAGE])


@cache
def operations(name, mode, platform, rotate=0.0):
    """All operations of the step's StableHLO; those of a function as often as it is called."""
    module = traced(name, mode, rotate).lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {function.attributes["sym_name"].value: function.operation for function in module.body.operations}

    def inside(operation):
        for child in (child.operation for region in operation.regions for block in region for child in block):
            yield child
            yield from inside(functions[child.attributes["callee"].value] if child.name == "func.call" else child)

    return list(inside(functions["main"]))


def named(kind, *step):
    """The operations of one kind, such as "convolution", in a step."""
    return [operation for operation in operations(*step) if operation.name == f"stablehlo.{kind}"]


every_step = pytest.mark.parametrize("mode", ["train", "train steps", "eval", "predict"])
every_config = pytest.mark.parametrize("name", CONFIGS)
every_platform = pytest.mark.parametrize("platform", PLATFORMS)


@every_platform
@every_step
@every_config
def test_convolutions_of_a_step(name, mode, platform):
    # Training: forward, the gradient of each input but the patch, and the gradient of each kernel, which on CPU is a
    # matrix product. On CPU a convolution has two dimensions, elsewhere three, besides the nodule and the channel.
    layers = len(LAYERS[name])
    count = layers
    if mode.startswith("train"):  # the steps of a call are those of a loop
        count += layers - 1 + (layers if platform != "cpu" else 0)
    dimensions = 2 if platform == "cpu" else 3
    ranks = Counter(len(conv.results[0].type.shape) for conv in named("convolution", name, mode, platform))
    assert ranks == {dimensions + 2: count}


@every_platform
@every_step
@every_config
def test_every_convolution_is_in_bfloat16_if_the_config_says_so(name, mode, platform):
    convolutions = named("convolution", name, mode, platform)
    values = [value for conv in convolutions for value in (*conv.operands, *conv.results)]
    assert {str(value.type.element_type) for value in values} == {"bf16"}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(("mode", "passes"), [("train", 3), ("train steps", 3), ("eval", 1)])
@every_config
def test_bytes_that_the_convolutions_move(name, mode, platform, passes):
    # Forward, a convolution reads a map and a kernel and writes a map; each of its two gradients moves arrays of the
    # same three sizes. bfloat16 has two bytes.
    each = [2 * (BATCH * (SIZE * side) ** 3 * (c + f) + 27 * c * f) for side, c, f in LAYERS[name]]
    expected = passes * sum(each) - (each[0] if passes == 3 else 0)  # the patch needs no gradient
    convolutions = named("convolution", name, mode, platform)
    values = [value for conv in convolutions for value in (*conv.operands, *conv.results)]
    assert sum(2 * prod(value.type.shape) for value in values) == expected


def most_slices(*step):
    """The largest number of slices that a gather fetches."""
    gathers = named("gather", *step)
    return max(prod(op.results[0].type.shape) // prod(op.attributes["slice_sizes"]) for op in gathers)


# On TPU a patch is one slice without a rotation, and with one a slice for each block of 8 voxels on a side. The heads
# of PN-SAMP Plus fetch the extremes of their maps, which have up to 48 channels.
@pytest.mark.parametrize(
    ("name", "rotate", "for_each"), [("m", 0.0, 1), ("m", 10.0, (SIZE // 8) ** 3), ("plus", 0.0, 48)]
)
def test_voxels_are_fetched_one_by_one_on_no_tpu(name, rotate, for_each):
    assert most_slices(name, "train", "tpu", rotate) <= BATCH * for_each
    assert most_slices(name, "train", "cuda", rotate) == BATCH * SIZE**3  # where that is fast: the count finds them


@every_platform
@every_step
@every_config
def test_no_step_calls_the_host(name, mode, platform):
    targets = {call.attributes["call_target_name"].value for call in named("custom_call", name, mode, platform)}
    assert not [target for target in targets if "callback" in target]
    kinds = {operation.name for operation in operations(name, mode, platform)}
    assert not kinds & {f"stablehlo.{kind}" for kind in ("infeed", "outfeed", "send", "recv")}
