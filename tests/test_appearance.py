"""Faded, enlarged, smeared and noisy patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.appearance import (
    Appearance,
    change_appearance,
    cleared,
    density,
    dilated,
    enlarging_matrix,
    fade,
    interpolating_matrix,
    room,
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


@pytest.mark.parametrize("uneven", [0.0, 1.0])
def test_fading_scales_the_contrast_and_keeps_the_surroundings(solid, uneven):
    image, mask = solid
    worth, faded = fade(jax.random.key(3), image, mask, uneven)
    faded = np.asarray(faded)
    assert bool(worth)
    contrast = faded[mask > 0].mean() + 850
    assert 80 < contrast < 460  # drawn from 90 to 450 HU, and the fill is right to some HU
    far = ~np.asarray(dilated(mask > 0, 2))
    np.testing.assert_allclose(faded[far], image[far], atol=1e-3)


def test_an_unevenly_faded_nodule_has_denser_parts(solid):
    image, mask = solid
    image = np.where(mask > 0, 20.0, -850.0).astype(np.float32)  # without noise
    spread = {}
    for uneven in (0.0, 1.0):
        faded = [np.asarray(fade(jax.random.key(seed), image, mask, uneven)[1])[mask > 0] for seed in range(8)]
        spread[uneven] = [one.std() / (one.mean() + 850) for one in faded]
    assert max(spread[0.0]) < 0.05  # of the contrast: the ball is even, and the fill nearly
    assert max(spread[1.0]) > 0.3  # how uneven a nodule gets is drawn as well


def test_the_density_is_positive_and_smooth():
    field = np.asarray(density(jax.random.key(0), SIZE, 1.0))
    assert field.shape == (SIZE,) * 3 and field.min() > 0
    neighbours = np.log(field[1:]) - np.log(field[:-1])
    distant = np.log(field[8:]) - np.log(field[:-8])
    assert neighbours.std() < 0.6 * distant.std()  # between nodes 3 voxels apart it changes linearly


def test_interpolation_between_nodes_is_linear_and_reaches_both_ends():
    values = np.asarray(interpolating_matrix(np.linspace(0, 2, 7), 3)) @ [0.0, 3.0, -3.0]
    np.testing.assert_allclose(values, [0, 1, 2, 3, 1, -1, -3], atol=1e-6)


def test_a_nodule_is_enlarged_no_further_than_its_patch_has_room():
    assert float(room(ball(6))) == pytest.approx(0.75 * SIZE / 12, rel=0.02)  # the ball is made of voxels
    image, mask = np.zeros((SIZE,) * 3, np.float32), ball(9).astype(np.float32)  # room for a factor of 4/3
    for seed in range(8):
        _, outline, _ = change_appearance(jax.random.key(seed), image, mask, Appearance(enlarge=1.0, largest=3.0))
        assert 1.2**3 * 0.95 < np.asarray(outline).sum() / mask.sum() < (4 / 3) ** 3 * 1.05


def test_ground_glass_is_not_faded_further():
    nodule = ball(5)
    image = np.where(nodule, -790.0, -850.0).astype(np.float32)  # 60 HU: below the least contrast of a faded nodule
    worth, faded = fade(jax.random.key(0), image, nodule.astype(np.float32), 0.0)
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
    image, mask = image[6:26, 6:26, 6:26], mask[6:26, 6:26, 6:26]

    def hold(options: Appearance) -> np.ndarray:
        changed = jax.jit(jax.vmap(lambda key: change_appearance(key, image, mask, options)))(keys)
        return np.asarray(changed[2])

    assert hold(Appearance(noise=40, smear=1.0)).all()
    assert not hold(Appearance(fade=1.0)).any()
    assert not hold(Appearance(enlarge=1.0)).any()
    assert hold(Appearance(enlarge_faded=1.0)).all()  # none is faded
    share = 1 - hold(Appearance(fade=0.5)).mean()
    assert 0.25 < share < 0.75  # 40 draws of probability 1/2: beyond 3 standard deviations


def test_faded_nodules_are_enlarged_with_a_probability_of_their_own(solid):
    image, mask = solid
    options = Appearance(fade=1.0, enlarge_faded=1.0)
    _, outline, _ = change_appearance(jax.random.key(2), image, mask, options)
    assert np.asarray(outline).sum() > 1.5 * mask.sum()
    _, outline, _ = change_appearance(jax.random.key(2), image, mask, Appearance(fade=1.0, enlarge=1.0))
    np.testing.assert_array_equal(outline, mask)


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
