"""pnsamp_jax.models.layers: BatchNorm of separate maps is Flax's; a block is the paper's, with and without a skip."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.models import layers
from pnsamp_jax.models.conv3d import conv3d_native
from pnsamp_jax.models.pooling import up_pool

pytestmark = pytest.mark.usefixtures("quick_compilation")


def draw(shape, seed=0):
    """Return standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_conv3x3x3_adds_the_bias():
    x, layer = draw((1, 4, 4, 4, 2)), layers.Conv3x3x3(3)
    kernel, bias = draw((3, 3, 3, 2, 3)), jnp.array([1.0, -2.0, 3.0])
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, conv3d_native(x, kernel) + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_separate_maps_is_flaxs_of_the_concatenated_map(train):
    maps = 3 + 2 * draw((2, 3, 4, 5, 2)), draw((2, 3, 4, 5, 3), 1)
    ours = layers.BatchNorm()
    theirs = nn.BatchNorm(use_running_average=not train, momentum=ours.MOMENTUM, epsilon=ours.EPSILON)
    variables = theirs.init(jax.random.key(0), jnp.concatenate(maps, -1))
    our_variables = ours.init(jax.random.key(0), *maps, train=train)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, our_variables, variables))
    variables = jax.tree.map(lambda leaf: leaf + draw(leaf.shape) ** 2, variables)
    y, updated = ours.apply(variables, *maps, train=train, mutable=["batch_stats"])
    expected, expected_update = theirs.apply(variables, jnp.concatenate(maps, -1), mutable=["batch_stats"])
    concatenated = jnp.concatenate([x * scale + bias for x, scale, bias in y], -1)
    np.testing.assert_allclose(concatenated, expected, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(updated["batch_stats"][name], expected_update["batch_stats"][name], rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_adds_flaxs_default_epsilon_to_the_variance(train):
    # Half 0.001 and half -0.001: a variance of 1e-6, beside which an epsilon of 1e-5 is large and 1e-3 larger still.
    x = jnp.where(jnp.arange(64) % 2 == 0, 1e-3, -1e-3).reshape(1, 4, 4, 4, 1)
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.zeros(1), "var": jnp.full(1, 1e-6)},
    }
    [(y, _, _)], _ = layers.BatchNorm().apply(variables, x, train=train, mutable=["batch_stats"])
    np.testing.assert_allclose(np.abs(y), 1e-3 / np.sqrt(1.1e-5), rtol=1e-3)
    np.testing.assert_allclose(y, nn.BatchNorm(use_running_average=True).apply(variables, x), rtol=1e-3)


# Block


def test_block_is_norm_convolution_elu():
    x = 3 + 2 * draw((2, 4, 4, 4, 2))
    block = layers.Block(features=3)
    variables = block.init(jax.random.key(0), x, train=True)
    y, updated = block.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, variance = np.mean(x, (0, 1, 2, 3)), np.var(x, (0, 1, 2, 3))
    normed = (x - mean) / np.sqrt(variance + 1e-5)
    expected = nn.elu(conv3d_native(normed, variables["params"]["Conv3x3x3_0"]["kernel"]))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    running = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_block_keeps_float32_statistics_and_parameters_under_bfloat16():
    x = 100 + draw((2, 4, 4, 4, 2))  # bfloat16 statistics would lose the variance altogether
    block = layers.Block(features=3, dtype=jnp.bfloat16)
    variables = block.init(jax.random.key(0), x, train=True)
    y, updated = block.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, updated)))
    running = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * np.var(x, (0, 1, 2, 3)), rtol=0.01)


@pytest.mark.parametrize("train", [True, False])
def test_block_with_a_skip_is_the_block_of_the_concatenated_map(train):
    x, skip = 3 + 2 * draw((2, 2, 3, 1, 2)), draw((2, 4, 6, 2, 3), 1)
    concatenated = jnp.concatenate([up_pool(x), skip], -1)
    block = layers.Block(4)
    variables = block.init(jax.random.key(0), concatenated, train=train)
    variables = jax.tree.map(lambda leaf: leaf + 0.5 * draw(leaf.shape) ** 2, variables)
    apply = partial(block.apply, variables, train=train, mutable=["batch_stats"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), apply(x, skip), apply(concatenated))


@pytest.mark.parametrize(("fuse_affine", "convolutions"), [(False, 2), (True, 1)])
def test_block_with_fused_affine_has_the_same_gradients_without_that_of_its_input(fuse_affine, convolutions):
    x, dy = 3 + 2 * draw((2, 4, 4, 4, 2)), draw((2, 4, 4, 4, 3), 1)
    blocks = layers.Block(3, fuse_affine=fuse_affine), layers.Block(3)
    variables = blocks[0].init(jax.random.key(0), x, train=True)
    variables = jax.tree.map(lambda leaf: leaf + 0.5 * draw(leaf.shape) ** 2, variables)

    def gradients(block):
        def product(params):
            y, _ = block.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return (y * dy).sum()

        return jax.jit(jax.grad(product)).lower(variables["params"]).compile()

    ours, plain = (gradients(block) for block in blocks)
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(compare, ours(variables["params"]), plain(variables["params"]))
    if jax.default_backend() == "cpu":  # where the gradient of the kernel is not a convolution
        assert len(re.findall(r" convolution\(", ours.as_text())) == convolutions
