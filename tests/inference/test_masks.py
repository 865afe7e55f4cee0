"""Predicted masks: moving them to the grid of a CT and back, choosing a component, and measuring."""

import numpy as np
import pytest

from pnsamp_jax import outlines
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.patches import patch_affine, sample
from pnsamp_jax.inference import masks

CENTRE = np.array([12.3, -45.6, 78.9])


def ball(radius_mm, size=64, spacing_mm=0.6, offset_mm=(0, 0, 0)):
    """Return a ball as a predicted patch; the offset is (x, y, z)."""
    patch = Volume(np.zeros((size,) * 3, bool), patch_affine(CENTRE, size, spacing_mm))
    away = patch.to_lps(np.moveaxis(np.indices(patch.array.shape), 0, -1)) - CENTRE - offset_mm
    return Volume(np.linalg.norm(away, axis=-1) <= radius_mm, patch.affine)


def grid_affine(spacing, origin, axes=((0, 0, 1), (0, 1, 0), (1, 0, 0))):
    """Return the affine of a grid with this spacing along d, h, w."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes, float).T * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def around(affine, shape):
    """Return the affine moved so that `CENTRE` is near the middle of the grid, but not at the centre of a voxel."""
    moved = affine.copy()
    moved[:3, 3] += CENTRE - (affine @ [*(np.array(shape) / 2 - [0.3, 0.1, 0.4]), 1])[:3]
    return moved


TILTED = ((0, 0.2588, 0.9659), (0, 1, 0), (1, 0, 0))  # a gantry tilted by 15 degrees shears the grid
FLIPPED = ((0, 0, -1), (-1, 0, 0), (0, 1, 0))
GRIDS = {
    "thick slices": (grid_affine((2.5, 0.703, 0.703), (0, 0, 0)), (40, 90, 90)),
    "fine": (grid_affine((0.5, 0.4, 0.4), (0, 0, 0)), (90, 120, 120)),
    "other axes": (grid_affine((1.25, 0.8, 0.7), (0, 0, 0), FLIPPED), (60, 80, 80)),
    "tilted": (grid_affine((3.0, 0.8, 0.8), (0, 0, 0), TILTED), (40, 90, 90)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("radius_mm", [2.0, 5.0, 11.0])
def test_the_volume_changes_by_at_most_half_a_voxel(name, radius_mm):
    affine, shape = GRIDS[name]
    resampled = masks.onto_grid(ball(radius_mm), shape, around(affine, shape))
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
    assert abs(masks.volume_mm3(resampled) - masks.volume_mm3(ball(radius_mm))) <= voxel_mm3 / 2 + 1e-6


@pytest.mark.parametrize("name", GRIDS)
def test_the_mask_keeps_its_position(name):
    affine, shape = GRIDS[name]
    offset = np.array([4.0, -3.0, 2.0])
    resampled = masks.onto_grid(ball(6.0, offset_mm=offset), shape, around(affine, shape))
    centroid = resampled.to_lps(np.argwhere(resampled.array).mean(axis=0))
    # The centroid of a ball of some hundred whole voxels is off by a small fraction of a voxel.
    assert np.abs(centroid - CENTRE - offset).max() < 0.15 * resampled.spacing.max()


@pytest.mark.parametrize("name", GRIDS)
def test_resampling_there_and_back_restores_the_mask(name):
    affine, shape = GRIDS[name]
    patch = ball(8.0)
    resampled = masks.onto_grid(patch, shape, around(affine, shape))
    back = masks.onto_grid(resampled, patch.array.shape, patch.affine)
    overlap = outlines.dice(back.array, patch.array)
    # With slices of 3 mm, the poles of a ball of 8 mm are off by up to half a slice: a twentieth of the volume.
    assert overlap > (0.94 if resampled.spacing.max() > 2 else 0.97)


def test_resampling_onto_the_same_grid_changes_nothing():
    patch = ball(7.0)
    assert np.array_equal(masks.onto_grid(patch, patch.array.shape, patch.affine).array, patch.array)


def test_onto_grid_undoes_the_resampling_of_a_readers_mask():
    affine, shape = GRIDS["thick slices"]
    affine = around(affine, shape)
    native = masks.onto_grid(ball(8.0), shape, affine)
    share = sample(Volume(native.array.astype(np.float32), affine), CENTRE, 64, 0.6, outside="grid-constant")
    back = masks.onto_grid(Volume(share >= 0.5, ball(8.0).affine), shape, affine)
    overlap = outlines.dice(back.array, native.array)
    # At the poles, the half-way surface of linear interpolation lies inside the outermost marked voxels.
    assert overlap > 0.95


def test_a_mask_smaller_than_a_voxel_still_marks_one():
    tiny = Volume(np.zeros((16,) * 3, bool), patch_affine(CENTRE, 16, 0.6))
    tiny.array[8, 8, 8] = True
    affine = around(grid_affine((5.0, 2.0, 2.0), (0, 0, 0)), (10, 20, 20))
    resampled = masks.onto_grid(tiny, (10, 20, 20), affine)
    assert resampled.array.sum() == 1
    assert np.abs(resampled.to_lps(np.argwhere(resampled.array)[0]) - tiny.to_lps((8, 8, 8))).max() <= 2.5


def test_parts_of_the_mask_outside_the_grid_are_dropped():
    patch = ball(6.0)
    middle = grid_affine((1.0, 1.0, 1.0), CENTRE - [20, 20, -0.5])  # the border of the grid cuts the ball in half
    resampled = masks.onto_grid(patch, (30, 40, 40), middle)
    assert masks.volume_mm3(resampled) == pytest.approx(masks.volume_mm3(patch) / 2, rel=0.1)
    assert not masks.onto_grid(patch, (5, 5, 5), grid_affine((1, 1, 1), CENTRE + 100)).array.any()
    empty = Volume(np.zeros((8,) * 3, bool), patch.affine)
    assert not masks.onto_grid(empty, (30, 40, 40), middle).array.any()


def test_the_component_nearest_to_the_centre_is_kept():
    mask = np.zeros((9, 9, 9), bool)
    mask[3:5, 4, 4] = mask[6:9, 6:9, 6:9] = True
    mask[5, 5, 5] = True  # touches the larger component at a corner only, and is further away than the first
    kept = masks.central_component(mask)
    assert kept.sum() == 2 and kept[4, 4, 4]
    assert not masks.central_component(np.zeros((2, 2, 2), bool)).any()


def test_of_two_equally_near_components_the_larger_is_kept():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 1] = mask[4, 4, 7:9] = True
    assert np.argwhere(masks.central_component(mask)).tolist() == [[4, 4, 7], [4, 4, 8]]


@pytest.mark.parametrize(
    ("radius_mm", "offset_mm", "shape", "truncated"),
    [
        (9.0, 0.0, (80, 80, 80), False),
        (9.0, 9.4, (80, 80, 80), False),  # the patch ends 19.2 mm from its centre
        (9.0, 11.0, (80, 80, 80), True),
        (9.0, 0.0, (20, 80, 80), True),  # the image ends 8 mm from it
        (9.0, 0.0, (80, 80, 20), True),
        (6.0, 0.0, (20, 20, 20), False),
    ],
)
@pytest.mark.parametrize("axes", [((0, 0, 1), (0, 1, 0), (1, 0, 0)), FLIPPED], ids=["straight", "turned"])
def test_a_mask_at_the_border_of_the_patch_or_the_image_is_truncated(radius_mm, offset_mm, shape, truncated, axes):
    affine = around(grid_affine((0.8, 0.8, 0.8), (0, 0, 0), axes), shape)
    assert masks.is_truncated(ball(radius_mm, offset_mm=(offset_mm, 0, 0)), shape, affine) == truncated


def test_the_distance_of_a_mask_is_that_of_its_nearest_voxel():
    mask = np.zeros((8,) * 3, bool)
    assert masks.distance_mm(mask, 0.6) == 0
    mask[0, 4, 4] = True
    assert masks.distance_mm(mask, 0.6) == pytest.approx(0.6 * 3)
    assert masks.distance_mm(mask, 0.6, move=(2, 0, 0)) == pytest.approx(0.6 * 1)  # the point lies below the centre
    assert masks.distance_mm(mask, 0.6, move=(0, -4, 0)) == pytest.approx(0.6 * np.hypot(3, 3))
    mask[3, 3, 3] = True  # next to the centre, which lies between eight voxels
    assert masks.distance_mm(mask, 0.6) == 0


@pytest.mark.parametrize("name", GRIDS)
def test_with_the_probability_the_outline_runs_between_the_voxels(name):
    affine, shape = GRIDS[name]
    grid = Volume(np.zeros(shape, bool), around(affine, shape))
    distance = np.linalg.norm(grid.to_lps(np.moveaxis(np.indices(shape), 0, -1)) - CENTRE, axis=-1)
    patch = ball(0, size=32, spacing_mm=1.2)
    away = np.linalg.norm(patch.to_lps(np.moveaxis(np.indices(patch.array.shape), 0, -1)) - CENTRE, axis=-1)
    for radius in (3.1, 5.3, 7.7):
        probability = 1 / (1 + np.exp(away - radius))
        mask = Volume(probability > 0.5, patch.affine)
        blocky, smooth = (masks.onto_grid(mask, shape, grid.affine, p).array for p in (None, probability))
        assert blocky.sum() == smooth.sum()
        # A ball of the same volume on this grid is the best that any mask can be.
        best = np.zeros(shape, bool)
        best.flat[np.argsort(distance, axis=None)[: smooth.sum()]] = True
        assert outlines.dice(smooth, best) > max(0.95, outlines.dice(blocky, best))


def test_a_neighbour_as_probable_as_the_mask_is_not_marked():
    probability = np.zeros((16, 16, 16))
    probability[7:9, 7:9, 7:9] = 0.6
    probability[7:9, 7:9, 10:14] = 0.95  # another nodule, one voxel away
    probability[7:9, 7:9, 9] = 0.4
    patch = Volume(masks.central_component(probability > 0.5), patch_affine(CENTRE, 16, 1.2))
    affine, shape = patch_affine(CENTRE, 48, 0.4), (48, 48, 48)
    marked = masks.onto_grid(patch, shape, affine, probability).array
    assert marked.sum() == 8 * 27
    # The neighbour begins with voxel 10, which is voxel 30 of the fine grid.
    assert np.argwhere(marked).max(axis=0)[2] < 30


# Threshold


def test_a_network_that_is_sure_is_thresholded_at_one_half():
    probability = np.where(ball(6).array, 1.0, 0.0)
    assert masks.best_threshold(probability) == pytest.approx(0.5)
    np.testing.assert_array_equal(masks.at_one_half(probability), probability)


def test_a_nodule_of_which_a_network_is_in_doubt_is_outlined_whole():
    # n voxels of probability p and no others: the expected Dice of all is 2 n p / (n + n p), twice the threshold.
    nodule = ball(6).array
    probability = np.where(nodule, 0.2, 0.0)
    assert masks.best_threshold(probability) == pytest.approx(0.2 / 1.2)
    np.testing.assert_array_equal(masks.at_one_half(probability) > 0.5, nodule)


def test_the_threshold_gives_the_best_dice_with_truths_that_are_drawn_from_the_probabilities():
    random = np.random.default_rng(0)
    probability = np.concatenate([random.beta(*ab, n) for ab, n in (((5, 2), 300), ((2, 4), 400), ((1, 30), 3000))])
    truths = random.random((200, probability.size)) < probability

    def mean_dice(threshold):
        return np.mean([outlines.dice(probability > threshold, truth) for truth in truths])

    best = max(map(mean_dice, np.linspace(0.05, 0.95, 91)))
    found = masks.best_threshold(probability)
    assert 0.2 < found < 0.45  # one half would be wrong here
    assert mean_dice(found) == pytest.approx(best, abs=1e-3)  # the mean of 200 truths is off by about as much
    assert mean_dice(found) > mean_dice(0.5) + 0.01


def test_where_nothing_is_likely_nothing_is_segmented():
    probability = np.where(ball(6).array, 0.02, 0.0)
    assert not (masks.at_one_half(probability) > 0.5).any()


def test_shifting_the_threshold_keeps_the_order_of_the_voxels():
    probability = np.linspace(0, 1, 1001)
    shifted = masks.at_one_half(probability)
    assert (np.diff(shifted) > 0).all() and (shifted[0], shifted[-1]) == (0, 1)
    np.testing.assert_array_equal(shifted > 0.5, probability > masks.best_threshold(probability))


# Density and size


def logits(probability):
    return np.log(probability / (1 - probability))


def adapted(texture, volume_mm3=100.0, share=1.0):
    """Return by how much the logits rise of 200 voxels of probability one half that add up to a volume."""
    probability = np.full(200, 0.5)
    return logits(masks.adapted(probability, texture, (volume_mm3 / 100) ** (1 / 3), share)) - logits(probability)


def test_ground_glass_is_raised_and_a_solid_nodule_of_typical_size_is_not():
    np.testing.assert_allclose(adapted(4.6), 0, atol=1e-12)
    np.testing.assert_allclose(adapted(3.0), 0, atol=1e-12)
    np.testing.assert_allclose(adapted(2.0), 2.5)
    np.testing.assert_allclose(adapted(1.2), 4.5)
    np.testing.assert_allclose(adapted(2.0, share=0.5), 1.25)
    np.testing.assert_array_equal(adapted(2.0, share=0.0), 0)


def test_a_large_nodule_is_raised_and_a_small_one_lowered():
    np.testing.assert_allclose(adapted(5.0, volume_mm3=1000), 0.3 * np.log(10))
    np.testing.assert_allclose(adapted(5.0, volume_mm3=10), -0.3 * np.log(10))
    np.testing.assert_allclose(adapted(1.0, volume_mm3=1000), 5 + 0.3 * np.log(10))


def test_where_nothing_is_segmented_nothing_is_raised():
    nothing = np.where(ball(6).array, 0.04, 0.0)
    np.testing.assert_array_equal(masks.adapted(nothing, 1.0, 1.2, 1.0), nothing)
    assert not (masks.at_one_half(masks.adapted(nothing, 1.0, 1.2, 1.0)) > 0.5).any()
