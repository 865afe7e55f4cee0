"""Masks from hand-made contours; `test_lidc_against_pylidc` compares real ones."""

import numpy as np
from made_annotations import annotation, dots, square

from pnsamp_jax.data.lidc_masks import reader_masks


def test_a_contours_points_are_outside_its_mask():
    masks, origin = reader_masks([annotation(1, square(2, 8, z_mm=1.0))], np.array([0.0, 1.0, 2.0]))
    expected = np.zeros((1, 1, 7, 7), bool)
    expected[..., 1:6, 1:6] = True
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, expected)
    assert origin.tolist() == [1, 2, 3]  # slice, row, column


def test_a_hole_removes_its_points_too_in_any_order_of_the_contours():
    hole, outside = square(4, 6, inclusion=False), square(2, 8)
    expected = np.zeros((7, 7), bool)
    expected[1:6, 1:6] = True
    expected[2:5, 2:5] = False
    for order in ((outside, hole), (hole, outside)):
        masks, _ = reader_masks([annotation(1, *order)], np.zeros(1))
        np.testing.assert_array_equal(masks[0, 0], expected)


def test_two_regions_on_one_slice():
    masks, origin = reader_masks([annotation(1, square(0, 4), square(10, 13))], np.zeros(1))
    expected = np.zeros((14, 14), bool)
    expected[1:4, 1:4] = True
    expected[11:13, 11:13] = True
    np.testing.assert_array_equal(masks[0, 0], expected)
    assert origin.tolist() == [0, 0, 1]


def test_all_readers_masks_are_in_one_box():
    first, second = annotation(1, square(0, 4, z_mm=0.0)), annotation(2, square(2, 8, z_mm=5.0))
    masks, origin = reader_masks([first, second], np.array([-2.5, 0.0, 2.5, 5.0]))
    assert masks.shape == (2, 3, 9, 9) and origin.tolist() == [1, 0, 1]
    assert masks.sum(axis=(2, 3)).tolist() == [[9, 0, 0], [0, 0, 25]]


def test_a_contour_belongs_to_the_nearest_slice_or_the_first_of_several():
    slice_z = np.array([0.0, 1.0, 1.0, 2.0])
    for z_mm, index in ((1.0, 1), (0.5, 0), (1.5, 1), (-9.0, 0), (1.51, 3)):
        assert reader_masks([annotation(1, square(0, 4, z_mm=z_mm))], slice_z)[1][0] == index


def test_a_single_point_covers_nothing():
    masks, origin = reader_masks(dots(7, row=3), np.zeros(1))
    assert masks.shape == (1, 1, 1, 1) and not masks.any() and origin.tolist() == [0, 3, 7]
