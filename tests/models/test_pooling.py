"""pnsamp_jax.models.pooling: the values and gradients of Flax's pooling, and up-pooling that pooling undoes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.models.pooling import max_pool, up_pool

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
