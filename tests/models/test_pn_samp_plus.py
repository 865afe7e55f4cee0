"""PN-SAMP Plus: heads that measure the predicted outline, and an additive malignancy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pnsamp_jax import models
from pnsamp_jax.inference.attribution import additive_contributions
from pnsamp_jax.models.pn_samp_plus import AdditiveHeads, regional_features, shape_features, soft_regions, with_point

pytestmark = pytest.mark.usefixtures("quick_compilation")


def ellipsoid(*radii: float) -> np.ndarray:
    axis = np.arange(32) - 15.5
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    return ((grid / np.array(radii)[:, None, None, None]) ** 2).sum(axis=0) <= 1


def test_regions_add_up_and_hold_the_shell():
    mask = ellipsoid(6, 6, 6)
    inside, shell, outside = (
        np.asarray(region)[0, ..., 0] for region in soft_regions(jnp.float32(mask)[None, ..., None])
    )
    np.testing.assert_allclose(inside + shell + outside, 1, atol=1e-6)
    wide = ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=2)
    np.testing.assert_array_equal(shell > 0.5, wide & ~mask)


def test_regional_features_are_means_spreads_and_extremes():
    rng = np.random.default_rng(0)
    maps, mask = rng.normal(size=(1, 32, 32, 32, 2)).astype(np.float32), ellipsoid(5, 7, 9)
    regions = [jnp.float32(mask)[None, ..., None], jnp.float32(~mask)[None, ..., None]]
    found = np.asarray(regional_features(maps, regions)).reshape(6, 2)
    inside, outside = maps[0][mask], maps[0][~mask]
    expected = [inside.mean(0), inside.std(0), outside.mean(0), outside.std(0), inside.max(0), inside.min(0)]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # the spread has a floor of 0.001


def test_shape_of_an_ellipsoid():
    a, b, c = 6.0, 8.0, 12.0
    volume, surface, compactness, longest, spread, mean = np.exp(
        np.asarray(shape_features(jnp.float32(ellipsoid(a, b, c))[None])[0])
    )
    assert volume == pytest.approx(4 / 3 * np.pi * a * b * c, rel=0.02)
    assert longest == pytest.approx(c / np.sqrt(5), rel=0.08)  # the others add a little to the power mean
    assert spread == pytest.approx(np.sqrt((a * a + b * b + c * c) / 5), rel=0.02)
    assert mean == pytest.approx((a * b * c) ** (1 / 3) / np.sqrt(5), rel=0.02)
    assert compactness == pytest.approx((36 * np.pi) ** (1 / 3) * volume ** (2 / 3) / surface, rel=1e-3)


def test_a_ball_is_more_compact_than_a_rod_and_gradients_are_finite():
    ball, rod = (jnp.float32(ellipsoid(*radii))[None] for radii in ((7, 7, 7), (3.5, 3.5, 14)))
    assert shape_features(ball)[0, 2] > shape_features(rod)[0, 2] + 0.1
    for mask in (ball, jnp.zeros_like(ball)):  # equal axes, and an empty mask
        gradient = jax.grad(lambda mask: shape_features(mask).sum())(mask)
        assert np.isfinite(np.asarray(gradient)).all()


def test_contributions_of_the_attributes_add_up():
    heads = AdditiveHeads()
    features = jax.random.normal(jax.random.key(0), (5, 30))
    params = heads.init(jax.random.key(1), features, train=False)["params"]
    average, temperature = jnp.zeros(30), jnp.float32(1.3)

    def expected(x):
        logits = heads.apply({"params": params}, x[None], train=False)[0, 8, :5]
        return float(jax.nn.softmax(logits / temperature) @ jnp.arange(1.0, 6.0))

    found = np.asarray(additive_contributions(params, features, average, temperature))
    assert found.shape == (5, 9)
    np.testing.assert_array_equal(found[:, 8], 0)  # nothing passes the attributes by
    change = [expected(x) - expected(average) for x in features]
    np.testing.assert_allclose(found.sum(axis=1), change, atol=2e-5)
    assert np.abs(found[:, :8]).max() > 0.01


def test_malignancy_depends_on_the_patch_only_through_the_attributes():
    heads = AdditiveHeads()
    features = jax.random.normal(jax.random.key(0), (2, 30))
    params = heads.init(jax.random.key(1), features, train=False)["params"]
    for name in list(params):
        if name.endswith("_features"):
            params[name] = jax.tree.map(jnp.zeros_like, params[name])
    logits = heads.apply({"params": params}, features, train=False)[:, 8, :5]
    np.testing.assert_array_equal(logits, np.broadcast_to(params["malignancy_bias"], (2, 5)))


def test_the_gradient_of_the_ratings_reaches_the_outline():
    model = models.create("pn_samp_plus", features=(2, 2), mask_features=(2,))
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 8, 2))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    def malignancy(params):
        outputs = model.apply({**variables, "params": params}, x)
        return outputs.ratings[:, 8, 4].sum(), outputs

    gradient, outputs = jax.jit(jax.grad(malignancy, has_aux=True))(variables["params"])
    assert outputs.mask.shape == (2, 8, 8, 8)
    assert outputs.ratings.shape == (2, 9, 6)
    assert float(jnp.abs(gradient["mask"]["kernel"]).max()) > 0


def test_the_point_is_marked_at_the_centre_alone():
    x = jnp.zeros((2, 16, 16, 16, 2)).at[..., 1].set(0.5)
    marked = np.asarray(with_point(x))
    assert marked.shape == (2, 16, 16, 16, 3)
    np.testing.assert_array_equal(marked[..., :2], x)
    nearness = marked[0, ..., 2]
    np.testing.assert_array_equal(nearness, marked[1, ..., 2])
    np.testing.assert_allclose(nearness, np.flip(nearness), rtol=1e-6)
    np.testing.assert_allclose(nearness, np.moveaxis(nearness, 0, 2), rtol=1e-6)
    # Half a voxel from the centre along each axis, and 7.5 along one of them; the standard deviation is 2 voxels.
    assert nearness[7, 7, 7] == pytest.approx(np.exp(-3 * 0.25**2 / 2), rel=1e-5)
    assert nearness[0, 7, 7] == pytest.approx(np.exp(-(3.75**2 + 2 * 0.25**2) / 2), rel=1e-4)
