"""pnsamp_jax.models.pooling: the values and gradients of Flax's pooling, and up-pooling that pooling undoes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.models.pooling import global_pool, max_pool, up_pool

pytestmark = pytest.mark.usefixtures("quick_compilation")


def draw(shape, seed=0):
    """Return standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_max_pool_is_flax_max_pool():
    x = draw((2, 4, 6, 8, 3))
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2, 2), (2, 2, 2)))


def test_max_pool_gives_the_gradient_to_the_largest():
    x, dy = draw((1, 4, 4, 4, 2)), draw((1, 2, 2, 2, 2), 1)
    ours = jax.vjp(max_pool, x)[1](dy)[0]
    theirs = jax.vjp(lambda x: nn.max_pool(x, (2, 2, 2), (2, 2, 2)), x)[1](dy)[0]
    np.testing.assert_array_equal(ours, theirs)


def test_max_pool_never_multiplies_the_gradient_on_ties():
    x, dy = jnp.ones((1, 4, 4, 4, 2)), draw((1, 2, 2, 2, 2))
    dx = np.asarray(jax.vjp(max_pool, x)[1](dy)[0])
    cells = dx.reshape(1, 2, 2, 2, 2, 2, 2, 2).sum((2, 4, 6))  # (1, D, 2, H, 2, W, 2, C)
    np.testing.assert_allclose(cells, dy, rtol=1e-6)


def test_up_pool_is_nearest():
    x = draw((1, 2, 3, 4, 2))
    np.testing.assert_array_equal(up_pool(x), np.asarray(x).repeat(2, 1).repeat(2, 2).repeat(2, 3))


def test_pooling_undoes_up_pooling():
    x = draw((2, 2, 3, 4, 5))
    np.testing.assert_array_equal(max_pool(up_pool(x)), x)


def test_global_pool_is_the_mean_and_the_maximum_of_each_channel():
    x = np.zeros((1, 2, 2, 2, 2), np.float32)
    x[0, ..., 0] = np.arange(8).reshape(2, 2, 2)  # mean 3.5
    x[0, 1, 0, 1, 1] = -8.0  # mean -1, maximum 0
    np.testing.assert_array_equal(global_pool(jnp.asarray(x)), [[3.5, -1.0, 7.0, 0.0]])


def test_global_pool_returns_float32_of_bfloat16():
    x = jnp.full((1, 16, 16, 16, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0, 0].set(2.0)
    np.testing.assert_allclose(global_pool(x), [[1 + 1 / 4096, 2.0]], rtol=1e-6)
