"""pnsamp_jax.outlines: overlap and surface distances by hand, on analytic shapes, and by brute force."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pnsamp_jax import outlines


def box(shape, *sides):
    """Return a mask of a shape that holds the voxels from `low` up to `high` along each axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in sides)] = True
    return mask


def ball(radius_mm, spacing_mm, size_mm=50.0, centre_mm=(0.0, 0.0, 0.0)):
    """Return a ball on a grid about the origin."""
    counts = [round(size_mm / spacing) for spacing in spacing_mm]
    along = [(np.arange(n) - (n - 1) / 2) * spacing for n, spacing in zip(counts, spacing_mm, strict=True)]
    grid = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.array(centre_mm), axis=-1) < radius_mm


# Dice


def test_dice_by_hand():
    a = np.zeros((4, 4, 4), bool)
    b = a.copy()
    a[0, 0, :3] = True
    b[0, 0, 2] = True
    assert outlines.dice(a, b) == outlines.dice(b, a) == 0.5
    assert outlines.dice(a, a) == 1.0
    assert outlines.dice(a, ~a) == 0.0


def test_dice_both_empty_is_one_and_one_empty_is_zero():
    empty = np.zeros((2, 2), bool)
    assert outlines.dice(empty, empty) == 1.0
    assert outlines.dice(empty, ~empty) == 0.0


# Surfaces


def test_two_single_voxels_two_mm_apart():
    """The case and the values are those of the tests of Google DeepMind's surface-distance."""
    mask, reference = box((9, 9, 9), (4, 5), (4, 5), (3, 4)), box((9, 9, 9), (4, 5), (4, 5), (5, 6))
    found = outlines.surface_distances(mask, reference, (3, 2, 1))
    assert sorted(found.from_a) == sorted(found.from_b) == [1] * 4 + [2] * 4
    assert outlines.hausdorff_95(mask, reference, (3, 2, 1)) == 2
    assert outlines.surface_dice(mask, reference, (3, 2, 1), tolerance_mm=1) == 0.5


def test_two_boxes_of_which_one_is_a_slice_thicker():
    """The case and the values are those of the tests of Google DeepMind's surface-distance, to their three digits."""
    mask, reference = np.zeros((2, 100, 100, 100), bool)
    mask[:50], reference[:51] = True, True  # both reach the border, where their surfaces coincide
    spacing = (2, 1, 1)
    found = outlines.surface_distances(mask, reference, spacing)
    assert np.average(found.from_a, weights=found.areas_a) == pytest.approx(0.322, abs=5e-4)
    assert np.average(found.from_b, weights=found.areas_b) == pytest.approx(0.339, abs=5e-4)
    assert found.areas_a[found.from_a <= 1].sum() / found.areas_a.sum() == pytest.approx(0.842, abs=5e-4)
    assert found.areas_b[found.from_b <= 1].sum() / found.areas_b.sum() == pytest.approx(0.830, abs=5e-4)
    assert outlines.surface_dice(mask, reference, spacing, tolerance_mm=1) == pytest.approx(0.836, abs=5e-4)
    assert outlines.hausdorff_95(mask, reference, spacing) == 2


def test_shifted_cubes():
    """Two of six faces lie apart by the shift, the other four side by side except at their ends."""
    mask = box((40, 40, 40), (5, 25), (10, 30), (10, 30))
    reference = box((40, 40, 40), (8, 28), (10, 30), (10, 30))
    assert outlines.hausdorff_95(mask, reference, (1, 1, 1)) == 3
    # Of a cube's 2400 mm2, these lie further than 1.5 mm from the other: one end (400), 3 mm away; the middle of the
    # end inside the other cube (17 x 17), whose rim is near the sides; and 1.5 of the 3 mm of the sides that stand out
    # (80 mm round). Elements lie at whole mm, so that 1.5 mm is between two of them.
    near = outlines.surface_dice(mask, reference, (1, 1, 1), tolerance_mm=1.5)
    assert near == pytest.approx(1 - (400 + 17 * 17 + 80 * 1.5) / 2400, abs=0.01)  # edges are cut, by 1 % of the area


@pytest.mark.parametrize("spacing", [(0.6, 0.6, 0.6), (1.2, 1.2, 1.2), (2.5, 0.7, 0.7)], ids=str)
def test_concentric_balls_lie_apart_by_the_difference_of_their_radii(spacing):
    inner, outer = ball(10, spacing), ball(14, spacing)
    voxel = max(spacing)
    assert outlines.hausdorff_95(inner, outer, spacing) == pytest.approx(4, abs=voxel)
    assert outlines.surface_dice(inner, outer, spacing, tolerance_mm=4 - voxel) < 0.15
    assert outlines.surface_dice(inner, outer, spacing, tolerance_mm=4 + voxel) == 1
    assert outlines.surface_dice(inner, inner, spacing) == 1 and outlines.hausdorff_95(inner, inner, spacing) == 0


@pytest.mark.parametrize(("spacing", "tolerance"), [((0.6, 0.6, 0.6), 0.08), ((2.5, 0.7, 0.7), 0.2)], ids=str)
def test_the_area_of_a_ball_is_nearly_its_own(spacing, tolerance):
    """A digital surface is a few per cent larger, most where voxels are long; plain voxel faces add 50 per cent."""
    mask = ball(12, spacing)
    areas = outlines.surface_distances(mask, mask, spacing).areas_a
    assert areas.sum() == pytest.approx(4 * np.pi * 12**2, rel=tolerance)


def test_the_area_of_a_box_is_that_of_its_faces():
    mask = box((60, 60, 60), (5, 55), (5, 55), (5, 55))
    areas = outlines.surface_distances(mask, mask, (2, 1, 0.5)).areas_a
    faces = 2 * (50 * 25 + 100 * 25 + 100 * 50)
    assert areas.sum() == pytest.approx(faces, rel=0.02)  # edges are cut


def test_random_masks_agree_with_brute_force():
    rng = np.random.default_rng(0)
    spacing = np.array([2.0, 0.7, 1.1])
    mask, reference = rng.random((2, 6, 7, 5)) < 0.4

    def surface(one):
        """Return the corners that voxels of both kinds share, and their areas, voxel by voxel."""
        padded, points, areas = np.pad(one, 1), [], []
        for corner in itertools.product(*(range(n + 1) for n in one.shape)):
            cube = padded[tuple(slice(at, at + 2) for at in corner)].astype(float)
            if 0 < cube.sum() < 8:
                steps = [np.diff(cube, axis=axis).mean() / spacing[axis] for axis in range(3)]
                points.append(corner * spacing)
                areas.append(np.linalg.norm(steps) * spacing.prod())
        return np.array(points), np.array(areas)

    (a, areas_a), (b, areas_b) = surface(mask), surface(reference)
    apart = cdist(a, b)
    ours = outlines.surface_distances(mask, reference, spacing)
    np.testing.assert_allclose(ours.from_a, apart.min(axis=1))
    np.testing.assert_allclose(ours.from_b, apart.min(axis=0))
    np.testing.assert_allclose(ours.areas_a, areas_a, atol=1e-12)
    near = areas_a[apart.min(axis=1) <= 1].sum() + areas_b[apart.min(axis=0) <= 1].sum()
    assert outlines.surface_dice(mask, reference, spacing, 1.0) == pytest.approx(
        near / (areas_a.sum() + areas_b.sum())
    )
    bounds = [
        min(d for d in distances if areas[distances <= d].sum() >= 0.95 * areas.sum())
        for distances, areas in ((apart.min(axis=1), areas_a), (apart.min(axis=0), areas_b))
    ]
    assert outlines.hausdorff_95(mask, reference, spacing) == pytest.approx(max(bounds))


def test_a_few_stray_voxels_do_not_move_the_95th_percentile():
    mask = box((60, 60, 60), (10, 40), (10, 40), (10, 40))
    strayed = mask.copy()
    strayed[55, 55, 55] = True
    assert outlines.hausdorff_95(strayed, mask, (1, 1, 1)) == 0
    assert outlines.surface_distances(strayed, mask, (1, 1, 1)).from_a.max() > 20


def test_a_distance_of_exactly_the_tolerance_is_within_it():
    mask, reference = box((20, 20, 20), (5, 10), (5, 10), (5, 10)), box((20, 20, 20), (5, 15), (5, 10), (5, 10))
    spacing = (0.1, 1, 1)  # five voxels of 0.1 mm are 0.5 only up to rounding
    assert outlines.surface_dice(mask, reference, spacing, tolerance_mm=0.5) == 1
    assert outlines.surface_dice(mask, reference, spacing, tolerance_mm=0.49) < 1


def test_empty_masks():
    empty, full = np.zeros((4, 5, 6), bool), box((4, 5, 6), (1, 3), (1, 3), (1, 3))
    spacing = (1.0, 2.0, 0.5)
    assert outlines.hausdorff_95(empty, empty, spacing) == 0 and outlines.surface_dice(empty, empty, spacing) == 1
    diagonal = np.sqrt(4**2 + 10**2 + 3**2)  # not infinite, so that it counts in a mean
    for pair in ((empty, full), (full, empty)):
        assert outlines.hausdorff_95(*pair, spacing) == pytest.approx(diagonal)
        assert outlines.surface_dice(*pair, spacing) == 0


def test_the_order_of_the_masks_does_not_matter():
    mask, reference = ball(8, (1, 1, 1)), ball(9, (1, 1, 1), centre_mm=(2, 1, 0))
    for score in (outlines.hausdorff_95, outlines.surface_dice):
        assert score(mask, reference, (1, 1, 1)) == pytest.approx(score(reference, mask, (1, 1, 1)))
