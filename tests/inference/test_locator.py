"""The small view of the whole axial slice through a nodule's point."""

import numpy as np
import pytest

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.inference.locator import make_locator

POINT = np.array([30.0, -20.0, -100.0])
SPACING, ORIGIN = np.array([0.75, 0.75, 2.5]), np.array([-192.0, -180.0, -150.0])  # along x, y and z


def made_ct(shape=(40, 480, 512)):
    """Return a CT of lung with a block of 12 mm of soft tissue at the point, and fat in all other slices."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = SPACING[::-1]
    affine[:3, 3], affine[3, 3] = ORIGIN, 1
    hu = np.full(shape, -100, np.int16)
    hu[20] = -850  # z is -100 mm
    row, column = np.rint((POINT - ORIGIN) / SPACING)[1::-1].astype(int)
    hu[20, row - 8 : row + 9, column - 8 : column + 9] = 40
    return Volume(hu, affine)


def turned(ct, order, flips):
    """Return the same CT with other axes."""
    affine = ct.affine.copy()
    for axis in flips:
        affine[:, 3] += affine[:, axis] * (ct.array.shape[axis] - 1)
        affine[:, axis] *= -1
    return Volume(np.flip(ct.array, flips).transpose(order), affine[:, [*order, 3]])


def test_it_shows_the_whole_slice_and_the_point_at_its_place():
    place = make_locator(made_ct(), POINT)
    assert place.grey.dtype == np.uint8 and place.grey.shape == (120, 128) and place.pixel_mm == 3.0
    np.testing.assert_allclose(place.corner_mm, ORIGIN[:2] - SPACING[:2] / 2)
    lung, tissue = [round((hu + 1400) * 255 / 1600) for hu in (-850, 40)]
    x, y = (POINT[:2] - place.corner_mm) / place.pixel_mm
    assert abs(int(place.grey[int(y), int(x)]) - tissue) <= 1
    assert abs(int(np.median(place.grey)) - lung) <= 1  # the slice of the point, and no other
    rows, columns = np.nonzero(place.grey > (lung + tissue) / 2)
    assert abs(rows.mean() + 0.5 - y) < 0.5 and abs(columns.mean() + 0.5 - x) < 0.5


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (0,)), ((0, 1, 2), (1, 2)), ((2, 0, 1), ()), ((1, 2, 0), (0, 2))]
)
def test_it_is_the_same_however_the_file_stores_the_voxels(order, flips):
    ct = made_ct()
    place, other = make_locator(ct, POINT), make_locator(turned(ct, order, flips), POINT)
    np.testing.assert_allclose(place.grey.astype(int), other.grey, atol=1)
    np.testing.assert_allclose(other.corner_mm, place.corner_mm)


def test_a_small_ct_is_not_enlarged_and_no_size_exceeds_the_limit():
    assert make_locator(made_ct((40, 480, 60)), ORIGIN).grey.shape == (128, 16)
    small = made_ct()
    crop = Volume(small.array[:, :30, :40], small.affine)
    place = make_locator(crop, ORIGIN)
    assert place.grey.shape == (30, 40) and place.pixel_mm == 0.75
    assert max(make_locator(made_ct((21, 700, 701)), ORIGIN).grey.shape) == 128


def test_in_the_outer_half_of_the_last_slice_the_last_slice_is_shown():
    ct = made_ct((21, 480, 512))
    beyond = make_locator(ct, POINT + (0, 0, 1.2))
    np.testing.assert_array_equal(beyond.grey, make_locator(ct, POINT).grey)


def test_around_a_turned_ct_there_is_air():
    ct = made_ct()
    angle = np.deg2rad(30)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    place = make_locator(Volume(ct.array, turn @ ct.affine), (turn @ [*POINT, 1])[:3])
    air = round((-1024 + 1400) * 255 / 1600)
    assert {place.grey[0, 0], place.grey[-1, -1], place.grey[0, -1], place.grey[-1, 0]} == {air}
    x, y = ((turn @ [*POINT, 1])[:2] - place.corner_mm) / place.pixel_mm
    assert place.grey[int(y), int(x)] == round((40 + 1400) * 255 / 1600)
