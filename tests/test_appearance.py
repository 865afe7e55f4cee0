"""Faded, enlarged, smeared and noisy patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.appearance import (
    Appearance,
    change_appearance,
    cleared,
    dilated,
    enlarging_matrix,
    fade,
    smoothing_matrix,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = 32


def ball(radius: float) -> np.ndarray:
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    return (np.stack(np.meshgrid(axis, axis, axis, indexing="ij")) ** 2).sum(axis=0) <= radius**2


@pytest.fixture
def solid() -> tuple[np.ndarray, np.ndarray]:
    """Return lung of -850 HU, with noise, and a solid ball of 20 HU in it; the ball is the mask."""
    nodule = ball(5)
    lung = np.random.default_rng(0).normal(-850, 25, (SIZE,) * 3)
    return np.where(nodule, 20.0, lung).astype(np.float32), nodule.astype(np.float32)


def test_a_cleared_nodule_looks_like_the_lung_around_it(solid):
    image, mask = solid
    background = np.asarray(cleared(jax.random.key(0), image, mask > 0))
    inside = background[mask > 0]
    # Some 500 voxels with noise of 25 HU: the mean is known to 1 HU. Smoothing takes a little off the noise.
    assert inside.mean() == pytest.approx(-850, abs=6)
    assert 15 < inside.std() < 30
    far = ~np.asarray(dilated(mask > 0, 2))
    np.testing.assert_array_equal(background[far], image[far])


def test_a_nodule_at_the_wall_is_cleared_to_lung(solid):
    image, mask = solid
    image = image.copy()
    image[:, :, :12] = 40  # the wall touches the ball, which begins at 11
    background = np.asarray(cleared(jax.random.key(0), image, mask > 0))
    assert np.median(background[mask > 0]) < -650


def test_fading_scales_the_contrast_and_keeps_the_surroundings(solid):
    image, mask = solid
    worth, faded = fade(jax.random.key(3), image, mask)
    faded = np.asarray(faded)
    assert bool(worth)
    contrast = faded[mask > 0].mean() + 850
    assert 80 < contrast < 460  # drawn from 90 to 450 HU, and the fill is right to some HU
    far = ~np.asarray(dilated(mask > 0, 2))
    np.testing.assert_allclose(faded[far], image[far], atol=1e-3)


def test_ground_glass_is_not_faded_further():
    nodule = ball(5)
    image = np.where(nodule, -790.0, -850.0).astype(np.float32)  # 60 HU: below the least contrast of a faded nodule
    worth, faded = fade(jax.random.key(0), image, nodule.astype(np.float32))
    assert not bool(worth)
    np.testing.assert_allclose(faded, image, atol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
def test_enlarging_scales_lengths_about_the_centre(factor):
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    ramp = np.asarray(enlarging_matrix(SIZE, jnp.float32(factor))) @ axis
    np.testing.assert_allclose(ramp, axis / factor, atol=1e-5)


def test_smoothing_keeps_constants_and_has_its_kernel():
    matrix = np.asarray(smoothing_matrix(6))
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(matrix[3], [0, 0, 0.25, 0.5, 0.25, 0])
    np.testing.assert_allclose(matrix[0], [0.75, 0.25, 0, 0, 0, 0])


def test_ratings_hold_unless_the_nodule_is_faded_or_enlarged(solid):
    image, mask = solid
    keys = jax.random.split(jax.random.key(1), 40)
    image, mask = image[8:24, 8:24, 8:24], mask[8:24, 8:24, 8:24]

    def hold(options: Appearance) -> np.ndarray:
        changed = jax.jit(jax.vmap(lambda key: change_appearance(key, image, mask, options)))(keys)
        return np.asarray(changed[2])

    assert hold(Appearance(noise=40, smear=1.0)).all()
    assert not hold(Appearance(fade=1.0)).any()
    assert not hold(Appearance(enlarge=1.0)).any()
    share = 1 - hold(Appearance(fade=0.5)).mean()
    assert 0.25 < share < 0.75  # 40 draws of probability 1/2: beyond 3 standard deviations


def test_noise_and_smearing_leave_the_mask_alone(solid):
    image, mask = solid
    changed, same, _ = change_appearance(jax.random.key(5), image, mask, Appearance(noise=40, smear=1.0))
    np.testing.assert_array_equal(same, mask)
    assert np.abs(np.asarray(changed) - image).max() > 1


def test_enlarging_moves_image_and_mask_together(solid):
    image, mask = solid
    larger, outline, _ = change_appearance(jax.random.key(2), image, mask, Appearance(enlarge=1.0))
    ratio = np.asarray(outline).sum() / mask.sum()
    assert 1.2**3 * 0.95 < ratio < 2**3 * 1.05
    inside = np.asarray(outline) > 0.99
    assert np.asarray(larger)[inside].mean() == pytest.approx(20, abs=5)
