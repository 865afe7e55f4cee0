"""pnsamp_jax.models.layers: the fast convolution is the same convolution, and pooling adds nothing up."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.models import layers

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOLUME_CONVOLUTION = r"stablehlo\.convolution\(.*0, 1, 2"  # one over three dimensions, as StableHLO writes it


def draw(shape, seed=0, dtype=jnp.float32):
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(conv, x, kernel, dy):
    """The output, and what the gradient dy of the output gives for x and the kernel."""
    y, backward = jax.vjp(conv, x, kernel)
    return y, *backward(dy)


def difference(a, b):
    """Largest difference relative to the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


# Convolution


@pytest.mark.parametrize(("channels", "features"), [(2, 5), (4, 4), (5, 2), (1, 8), (3, 18)])
@pytest.mark.parametrize(
    "shape",
    # Widths that no run of voxels divides, and some that runs of 4, 8 and 16 do.
    [(1, 1, 3, 5), (2, 2, 5, 3), (1, 5, 4, 7), (3, 4, 1, 2), (1, 2, 3, 12), (2, 1, 2, 16)],
)
def test_folded_convolution_is_the_native_one(shape, channels, features):
    x, kernel, dy = draw((*shape, channels)), draw((3, 3, 3, channels, features), 1), draw((*shape, features), 2)
    with jax.default_matmul_precision("highest"):  # no TF32 on GPU
        folded = value_and_gradients(layers.conv3d_folded, x, kernel, dy)
        native = value_and_gradients(layers.conv3d_native, x, kernel, dy)
    for ours, theirs in zip(folded, native, strict=True):
        assert ours.dtype == jnp.float32
        assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 3, 2, 4, 2), (2, 3, 1, 4, 2, 5), (1, 4, 4, 4, 3, 3)])
def test_folded_convolution_of_an_up_pooled_map_is_the_native_one(shape):
    *cells, features = shape
    batch, depth, height, width, channels = cells
    x, kernel = draw(cells), draw((3, 3, 3, channels, features), 1)
    dy = draw((batch, 2 * depth, 2 * height, 2 * width, features), 2)
    with jax.default_matmul_precision("highest"):
        folded = value_and_gradients(layers.conv3d_up_folded, x, kernel, dy)
        native = value_and_gradients(lambda x, kernel: layers.conv3d_native(layers.up_pool(x), kernel), x, kernel, dy)
    for ours, theirs in zip(folded, native, strict=True):
        assert difference(ours, theirs) < 1e-5


def scaled_and_gradients(conv, dtype, shape=(2, 3, 4, 5), channels=2, features=3):
    """A convolution of a scaled map: its value, and the gradients of the map, scale, bias and kernel."""
    arrays = draw((*shape, channels)), 1 + draw((channels,), 1), draw((channels,), 2)
    kernel, dy = draw((3, 3, 3, channels, features), 3, dtype), draw((*shape, features), 4, dtype)
    with jax.default_matmul_precision("highest"):
        y, backward = jax.vjp(conv, *arrays, kernel)
        return y, *backward(dy)


def scaled_before(x, scale, bias, kernel):
    """What `conv3d_scaled` is, as written down."""
    return layers.conv3d_native((x * scale + bias).astype(kernel.dtype), kernel)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 1, 6)])
def test_convolution_of_a_scaled_map_is_the_native_one(shape):
    ours, theirs = (scaled_and_gradients(it, jnp.float32, shape) for it in (layers.conv3d_scaled, scaled_before))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == jnp.float32
        assert difference(our, their) < 1e-5


def test_convolution_of_a_scaled_map_without_any_scale():
    x, zero, dy = draw((1, 2, 3, 4, 2)), jnp.zeros(2), draw((1, 2, 3, 4, 3))
    kernel = draw((3, 3, 3, 2, 3))
    gradients = [jax.vjp(conv, x, zero, zero, kernel)[1](dy) for conv in (layers.conv3d_scaled, scaled_before)]
    for our, their in zip(*gradients, strict=True):  # no division by the scale on the way
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4)


def test_convolution_of_a_scaled_map_in_bfloat16():
    ours, exact = (scaled_and_gradients(layers.conv3d_scaled, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert [array.dtype.name for array in ours] == ["bfloat16", "float32", "float32", "float32", "bfloat16"]
    for our, their in zip(ours, exact, strict=True):
        assert difference(our, their) < 0.03  # bfloat16 keeps 8 bits, of kernel, map and gradient each


def test_folded_convolution_of_an_up_pooled_map_in_bfloat16():
    x, kernel = draw((2, 2, 3, 4, 5), 0, jnp.bfloat16), draw((3, 3, 3, 5, 2), 1, jnp.bfloat16)
    folded = layers.conv3d_up_folded(x, kernel)
    assert folded.dtype == jnp.bfloat16
    exact = layers.conv3d_native(layers.up_pool(x).astype(jnp.float32), kernel.astype(jnp.float32))
    assert difference(folded, exact) < 0.02  # bfloat16 keeps 8 bits, and the sums of weights are rounded once more


@pytest.mark.parametrize(("channels", "features"), [(2, 5), (5, 2)])
def test_folded_convolution_in_bfloat16(channels, features):
    shape = (2, 4, 5, 6)
    arrays = draw((*shape, channels)), draw((3, 3, 3, channels, features), 1), draw((*shape, features), 2)
    halves = [array.astype(jnp.bfloat16) for array in arrays]
    exact = value_and_gradients(layers.conv3d_native, *[half.astype(jnp.float32) for half in halves])
    for ours, theirs in zip(value_and_gradients(layers.conv3d_folded, *halves), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert difference(ours, theirs) < 0.02


def test_convolution_by_hand():
    image = jnp.zeros((1, 3, 3, 3, 1)).at[0, 1, 1, 1, 0].set(1.0)
    kernel = draw((3, 3, 3, 1, 1))
    seen = layers.conv3d(image, kernel)[0, ..., 0]
    # Each voxel sees the one that is set through the opposite place of its kernel.
    np.testing.assert_allclose(seen, kernel[::-1, ::-1, ::-1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(2, 5), (5, 2)])
def test_conv3d_takes_the_folded_form_on_cpu_only(channels, features):
    x, kernel, dy = draw((1, 4, 4, 4, channels)), draw((3, 3, 3, channels, features)), draw((1, 4, 4, 4, features))

    def program(conv, platform):
        return value_and_gradients.trace(conv, x, kernel, dy).lower(lowering_platforms=(platform,)).as_text()

    on_cpu = program(layers.conv3d, "cpu")
    assert "stablehlo.convolution" in on_cpu and not re.search(VOLUME_CONVOLUTION, on_cpu)
    # Elsewhere the value and both gradients are native ones, so the search does find them.
    assert len(re.findall(VOLUME_CONVOLUTION, program(layers.conv3d, "cuda"))) == 3


def test_conv3x3x3_adds_the_bias():
    x, layer = draw((1, 4, 4, 4, 2)), layers.Conv3x3x3(3)
    kernel, bias = draw((3, 3, 3, 2, 3)), jnp.array([1.0, -2.0, 3.0])
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, layers.conv3d_native(x, kernel) + bias, rtol=1e-4, atol=1e-4)


# Pooling


def test_max_pool_is_flax_max_pool():
    x = draw((2, 4, 6, 8, 3))
    np.testing.assert_array_equal(layers.max_pool(x), nn.max_pool(x, (2, 2, 2), (2, 2, 2)))


def test_max_pool_gives_the_gradient_to_the_largest():
    x, dy = draw((1, 4, 4, 4, 2)), draw((1, 2, 2, 2, 2), 1)
    ours = jax.vjp(layers.max_pool, x)[1](dy)[0]
    theirs = jax.vjp(lambda x: nn.max_pool(x, (2, 2, 2), (2, 2, 2)), x)[1](dy)[0]
    np.testing.assert_array_equal(ours, theirs)


def test_max_pool_never_multiplies_the_gradient_on_ties():
    x, dy = jnp.ones((1, 4, 4, 4, 2)), draw((1, 2, 2, 2, 2))
    dx = np.asarray(jax.vjp(layers.max_pool, x)[1](dy)[0])
    cells = dx.reshape(1, 2, 2, 2, 2, 2, 2, 2).sum((2, 4, 6))  # (1, D, 2, H, 2, W, 2, C)
    np.testing.assert_allclose(cells, dy, rtol=1e-6)


def test_up_pool_is_nearest():
    x = draw((1, 2, 3, 4, 2))
    np.testing.assert_array_equal(layers.up_pool(x), np.asarray(x).repeat(2, 1).repeat(2, 2).repeat(2, 3))


def test_pooling_undoes_up_pooling():
    x = draw((2, 2, 3, 4, 5))
    np.testing.assert_array_equal(layers.max_pool(layers.up_pool(x)), x)


# Block


def test_block_is_norm_convolution_elu():
    x = 3 + 2 * draw((2, 4, 4, 4, 2))
    block = layers.Block(features=3, train=True)
    variables = block.init(jax.random.key(0), x)
    y, updated = block.apply(variables, x, mutable=["batch_stats"])
    mean, variance = np.mean(x, (0, 1, 2, 3)), np.var(x, (0, 1, 2, 3))
    normed = (x - mean) / np.sqrt(variance + 1e-5)
    expected = nn.elu(layers.conv3d_native(normed, variables["params"]["Conv3x3x3_0"]["kernel"]))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    running = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_block_keeps_float32_statistics_and_parameters_under_bfloat16():
    x = 100 + draw((2, 4, 4, 4, 2))  # bfloat16 statistics would lose the variance altogether
    block = layers.Block(features=3, train=True, dtype=jnp.bfloat16)
    variables = block.init(jax.random.key(0), x)
    y, updated = block.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, updated)))
    running = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * np.var(x, (0, 1, 2, 3)), rtol=0.01)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_maps_apart_is_flax_s_of_the_joined_map(train):
    maps = 3 + 2 * draw((2, 3, 4, 5, 2)), draw((2, 3, 4, 5, 3), 1)
    ours = layers.BatchNorm(train)
    theirs = nn.BatchNorm(use_running_average=not train, momentum=ours.MOMENTUM, epsilon=ours.EPSILON)
    variables = theirs.init(jax.random.key(0), jnp.concatenate(maps, -1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours.init(jax.random.key(0), *maps), variables))
    variables = jax.tree.map(lambda leaf: leaf + draw(leaf.shape) ** 2, variables)
    y, updated = ours.apply(variables, *maps, mutable=["batch_stats"])
    expected, as_expected = theirs.apply(variables, jnp.concatenate(maps, -1), mutable=["batch_stats"])
    scaled = jnp.concatenate([x * scale + bias for x, scale, bias in y], -1)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(updated["batch_stats"][name], as_expected["batch_stats"][name], rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_block_with_a_skip_is_that_of_the_joined_map(train):
    x, skip = 3 + 2 * draw((2, 2, 3, 1, 2)), draw((2, 4, 6, 2, 3), 1)
    joined = jnp.concatenate([layers.up_pool(x), skip], -1)
    block = layers.Block(4, train)
    variables = block.init(jax.random.key(0), joined)
    variables = jax.tree.map(lambda leaf: leaf + 0.5 * draw(leaf.shape) ** 2, variables)
    apart, together = (block.apply(variables, *it, mutable=["batch_stats"]) for it in ((x, skip), (joined,)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), apart, together)


@pytest.mark.parametrize(("of_data", "convolutions"), [(False, 2), (True, 1)])
def test_block_of_data_has_the_same_gradients_without_the_map_s(of_data, convolutions):
    x, dy = 3 + 2 * draw((2, 4, 4, 4, 2)), draw((2, 4, 4, 4, 3), 1)
    blocks = [layers.Block(3, True, of_data=it) for it in (of_data, False)]
    variables = blocks[0].init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.5 * draw(leaf.shape) ** 2, variables)

    def gradients(block):
        def product(params):
            y, _ = block.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return (y * dy).sum()

        return jax.jit(jax.grad(product)).lower(variables["params"]).compile()

    ours, plain = (gradients(block) for block in blocks)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *(it(variables["params"]) for it in (ours, plain))
    )
    if jax.default_backend() == "cpu":  # where the kernel's gradient is no convolution
        assert len(re.findall(r" convolution\(", ours.as_text())) == convolutions
