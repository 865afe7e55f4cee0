"""Masks on other grids, where each axis differs from the others, by hand."""

import numpy as np
import pytest

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.inference.masks import central_component, marked_inside, onto_grid


def volume(shape, spacing=1.0, marked=()):
    """Return a mask along z, y, x from the origin, in which boxes (low, high) are marked."""
    affine = np.eye(4)[[2, 1, 0, 3]] * [spacing, spacing, spacing, 1]
    array = np.zeros(shape, bool)
    for low, high in marked:
        array[tuple(map(slice, low, high))] = True
    return Volume(array, affine)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_a_mask_far_from_the_diagonal_is_found(shift):
    mask = volume((40, 40, 40), marked=[((2, 15, 31), (5, 20, 33))])
    affine = mask.affine.copy()
    affine[:3, 3] -= shift
    moved = onto_grid(mask, (40, 40, 40), affine)
    np.testing.assert_array_equal(moved.array, mask.array)


@pytest.mark.parametrize("index", [(2, 3, 4), (0, 0, 0), (5, 6, 7)])
def test_a_voxel_on_a_finer_grid_keeps_its_volume_and_its_place(index):
    # Three small voxels along each edge; small voxel 2 has the centre of large voxel 0, 5 that of 1, and so on.
    mask = volume((6, 7, 8), spacing=0.6, marked=[(index, np.array(index) + 1)])
    fine = volume((22, 25, 28), spacing=0.2)
    fine.affine[:3, 3] = -0.4
    found = onto_grid(mask, fine.array.shape, fine.affine)
    assert found.array.sum() == 27
    # Rounding decides between equally large shares, which may move the centroid by a few hundredths of a voxel.
    np.testing.assert_allclose(np.argwhere(found.array).mean(axis=0), 3 * np.array(index) + 2, atol=0.25)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_voxels_beyond_either_end_of_a_grid_do_not_count(axis):
    # A bar of 20 voxels along one axis; the grid begins at its voxel 5 and has 8.
    low, high = np.full(3, 2), np.full(3, 3)
    low[axis], high[axis] = 0, 20
    mask = volume((20, 20, 20), marked=[(low, high)])
    shape, affine = np.full(3, 20), mask.affine.copy()
    shape[axis] = 8
    affine[2 - axis, 3] += 5
    assert marked_inside(mask, Volume(np.zeros(shape, bool), affine)) == 8
    assert onto_grid(mask, tuple(shape), affine).array.sum() == 8


def test_the_centre_of_an_even_patch_lies_between_voxels():
    # The middle of eight voxels is at 3.5: index 2 is 1.5 away, index 6 is 2.5 away although its component is larger.
    mask = np.zeros((8, 8, 8), bool)
    mask[2, 3:5, 3:5] = True
    mask[6:, 3:5, 3:5] = True
    expected = np.zeros_like(mask)
    expected[2, 3:5, 3:5] = True
    np.testing.assert_array_equal(central_component(mask), expected)
