"""Spherical harmonics of a nodule's surface: analytic shapes, rotation, and masks that are too small."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from experiments.baselines import second_stage, shc_dcnn
from experiments.baselines.subsets import Subset
from pnsamp_jax import metrics
from pnsamp_jax.data import schema


def solid(inside, size=40):
    """Return (size, size, size) bool from a function of the offsets from the middle, in voxels."""
    return inside(*(np.indices((size, size, size)) - (size - 1) / 2))


def ellipsoid(axes, rotation=None):
    """Return the mask of an ellipsoid with the given half-axes, turned by a rotation."""

    def inside(*offsets):
        points = np.stack(offsets, axis=-1) @ (np.eye(3) if rotation is None else rotation.as_matrix())
        return ((points / axes) ** 2).sum(axis=-1) <= 1

    return solid(inside)


def test_the_harmonics_are_orthonormal_and_real():
    directions = shc_dcnn.fibonacci_directions(4000)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    basis = shc_dcnn.harmonics(directions, 4)
    assert basis.shape == (4000, 25) and basis.dtype == float
    np.testing.assert_allclose(basis.T @ basis * 4 * np.pi / 4000, np.eye(25), atol=2e-3)


def test_degree_one_is_the_direction_itself():
    z, y, x = shc_dcnn.fibonacci_directions(50).T
    expected = np.sqrt(3 / (4 * np.pi)) * np.stack([y, z, x], axis=-1)  # orders -1, 0, 1
    np.testing.assert_allclose(shc_dcnn.harmonics(shc_dcnn.fibonacci_directions(50), 1)[:, 1:], expected, atol=1e-12)


def test_a_known_surface_comes_back():
    values = np.random.default_rng(0).normal(size=(shc_dcnn.DEGREE + 1) ** 2)
    radii = shc_dcnn.harmonics(shc_dcnn.fibonacci_directions(shc_dcnn.DIRECTIONS), shc_dcnn.DEGREE) @ values
    np.testing.assert_allclose(shc_dcnn.coefficients(radii), values, atol=1e-9)


def test_a_ball_has_only_degree_zero():
    mask = ellipsoid((10.0, 10.0, 10.0))
    values = shc_dcnn.shape_features(mask, mask, 0.6)
    energies = values[-(shc_dcnn.DEGREE + 1) :]
    assert len(values) == 56
    assert energies[0] == pytest.approx(6.0 * np.sqrt(4 * np.pi), rel=0.01)  # 10 voxels of 0.6 mm
    assert (energies[1:] < 0.02 * energies[0]).all()


def test_radii_of_an_ellipsoid():
    axes = np.array([6.0, 9.0, 13.0])
    expected = 1 / np.linalg.norm(shc_dcnn.fibonacci_directions(shc_dcnn.DIRECTIONS) / axes, axis=1)
    np.testing.assert_allclose(shc_dcnn.radii(ellipsoid(axes)), expected, atol=0.7)  # within one voxel
    error = shc_dcnn.radii(ellipsoid(axes)) - expected
    assert abs(error.mean()) < 0.1 and error.std() < 0.25


def test_a_rotation_turns_the_coefficients_and_leaves_the_energies():
    axes, turn = (6.0, 9.0, 13.0), Rotation.from_rotvec([0.5, -0.8, 0.3])
    first, second = (shc_dcnn.shape_features(m, m, 1.0) for m in (ellipsoid(axes), ellipsoid(axes, turn)))
    energies = slice(-(shc_dcnn.DEGREE + 1), None)
    np.testing.assert_allclose(first[energies][[0, 2]], second[energies][[0, 2]], rtol=0.03)
    np.testing.assert_allclose(first[energies], second[energies], atol=0.35)
    assert np.abs(first[4:9] - second[4:9]).max() > 2  # mm, of degree 2


def test_only_the_largest_component_counts_wherever_it_lies():
    ball = solid(lambda z, y, x: z**2 + y**2 + x**2 <= 36)
    moved = np.roll(ball, (9, -8, 10), axis=(0, 1, 2))  # to the edge
    moved[1:3, 1:3, 1:3] = True
    np.testing.assert_allclose(
        shc_dcnn.shape_features(moved, moved, 1.0), shc_dcnn.shape_features(ball, ball, 1.0), atol=1e-9
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 3, 3)])
def test_a_thin_nodule_has_a_surface(shape):
    mask = np.zeros((16, 16, 16), bool)
    mask[tuple(slice(4, 4 + length) for length in shape)] = True
    values = shc_dcnn.shape_features(mask, mask, 1.0)
    assert np.isfinite(values).all() and values[-7] > 0.5


@pytest.mark.parametrize("voxels", [0, 1, 7])
def test_fewer_than_eight_voxels_have_no_shape(voxels):
    mask = np.zeros((16, 16, 16), bool)
    mask[8, 8, :voxels] = True
    mask[2, 2, 2:6] = True  # another component
    values = shc_dcnn.shape_features(mask, mask, 1.0)
    assert values.shape == (56,) and not values.any()


def made_up_subset(rng, count, too_small):
    """Return nodules whose class follows from the first network feature alone; some are single voxels."""
    features = rng.normal(size=(count, 3)).astype(np.float32)
    malignancy = np.where(features[:, 0] > 0, 4, 2)
    rating_counts = (np.arange(1, 7) == malignancy[:, None, None]).astype(np.uint8).repeat(9, axis=1)
    balls = {True: np.zeros((16, 16, 16), bool), False: solid(lambda z, y, x: z**2 + y**2 + x**2 <= 9, 16)}
    balls[True][8, 8, 8] = True
    masks = np.stack([balls[index < too_small] for index in range(count)])
    ids = np.array([f"n{rng.integers(1 << 60)}" for _ in range(count)])
    images = np.zeros(masks.shape, np.int16)
    records = {schema.RATING_COUNTS: rating_counts, schema.NODULE_ID: ids, schema.IMAGE: images}
    return Subset(records, features, masks)


def test_a_nodule_without_a_surface_is_rated_by_its_appearance(monkeypatch):
    monkeypatch.setattr(second_stage, "TREES", 40)
    kept = {}
    monkeypatch.setattr(second_stage, "cross_validate", lambda *a, **k: kept.update(predict=a[2]) or {})
    shc_dcnn.run(ConfigDict({"spacing_mm": 1.0}), Path("unused"))
    rng = np.random.default_rng(0)
    train, test = made_up_subset(rng, 80, too_small=20), made_up_subset(rng, 40, too_small=20)
    probabilities = kept["predict"](train, test, 0)
    assert np.isfinite(probabilities).all()
    for tiny in (slice(20), slice(20, None)):  # those without and those with a surface
        predicted = metrics.arg_max(probabilities[tiny, schema.MALIGNANCY])
        assert (predicted == test.labels[tiny, schema.MALIGNANCY]).mean() > 0.8  # a constant: about 0.5


def test_without_any_surface_every_nodule_is_rated(monkeypatch):
    monkeypatch.setattr(second_stage, "TREES", 5)
    x = np.hstack([np.arange(8.0)[:, None], np.zeros((8, 56))])
    p = second_stage.forest_ratings(x, np.repeat([[2], [4]] * 4, 9, axis=1), x, 0)
    np.testing.assert_allclose(p.sum(axis=-1), 1)
