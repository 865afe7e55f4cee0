"""PN-SAMP against values worked out by hand: the mask that the sub-3DCNN reads, its first guess, and the dropout."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax import models
from pnsamp_jax.models.pn_samp import RatingHeads

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = 16


def small_model(**fields):
    return models.create("pn_samp", features=(2, 4), mask_features=(2,), **fields)


@pytest.fixture(scope="module")
def patch():
    return jnp.asarray(np.random.default_rng(0).random((2, SIZE, SIZE, SIZE, 2)), jnp.float32)


@pytest.fixture(scope="module")
def variables(patch):
    """Return the variables that a training starts from."""
    return jax.jit(small_model().init)(jax.random.key(0), patch)


def test_the_sub_network_reads_the_probabilities_of_the_mask(variables, patch):
    read = {}

    def note(call, arguments, keywords, context):
        if context.module.name == "mask_0" and context.method_name == "__call__":
            read["input"] = arguments[0]
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        outputs = small_model().apply(variables, patch)
    logits = np.asarray(outputs.mask, np.float64)
    assert read["input"].shape == (2, SIZE, SIZE, SIZE, 1)
    np.testing.assert_allclose(read["input"][..., 0], 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_a_training_starts_from_a_mask_as_small_as_a_nodule(variables, patch):
    mask = jax.nn.sigmoid(small_model().apply(variables, patch).mask)
    # A nodule fills about one voxel in a hundred; even odds would fill the patch.
    assert 0.002 < mask.mean() < 0.05


@pytest.fixture(scope="module")
def heads():
    """Return parameters of heads, and features of two nodules."""
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    return jax.jit(partial(RatingHeads().init, train=False))(jax.random.key(0), features)["params"], features


def test_dropout_sets_fused_features_to_zero_and_scales_up_the_others(heads):
    params, features = heads
    seen = []

    def note(call, arguments, keywords, context):
        output = call(*arguments, **keywords)
        if isinstance(context.module, nn.Dropout):
            seen.append((arguments[0], output))
        return output

    with nn.intercept_methods(note):
        for train in (True, False):
            module, rngs = RatingHeads(dropout=0.25), {"dropout": jax.random.key(1)}
            module.apply({"params": params}, features, train=train, rngs=rngs)
    (before, after), (same, unchanged) = (map(np.asarray, pair) for pair in seen)
    kept = after != 0
    # 2 x 192 draws: a share of 0.75 with a standard deviation of 0.022.
    assert kept.mean() == pytest.approx(0.75, abs=0.08)
    np.testing.assert_allclose(after[kept], before[kept] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(same, unchanged)


def test_the_networks_dropout_is_that_of_its_heads_in_training_alone(variables, patch):
    def ratings(model, train, key):
        rngs = {"dropout": jax.random.key(key)}
        outputs, _ = model.apply(variables, patch, train=train, rngs=rngs, mutable=["batch_stats"])
        return np.asarray(outputs.ratings)

    with_dropout, without = small_model(dropout=0.5), small_model()
    assert not np.array_equal(ratings(with_dropout, True, 0), ratings(with_dropout, True, 1))
    np.testing.assert_array_equal(ratings(with_dropout, False, 0), ratings(with_dropout, False, 1))
    np.testing.assert_array_equal(ratings(with_dropout, False, 0), ratings(without, False, 0))
    np.testing.assert_array_equal(ratings(without, True, 0), ratings(without, True, 1))
