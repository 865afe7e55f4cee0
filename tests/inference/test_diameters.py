"""Diameters against geometry: balls, ellipsoids and other shapes of known axes, anywhere on the grid."""

import numpy as np
import pytest

from pnsamp_jax.inference.diameters import Diameters, axial_diameters


def signed_distance(axes_mm, turn, spacing_mm, centre_mm, shape):
    """Return about how far each voxel lies outside an ellipsoid: (D, H, W) mm, negative inside."""
    at = np.stack(
        np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing_mm, strict=True)), indexing="ij"), -1
    )
    local = (at - centre_mm) @ turn / axes_mm
    radius = np.linalg.norm(local, axis=-1)
    return radius * (radius - 1) / np.maximum(np.linalg.norm(local / axes_mm, axis=-1), 1e-9)


def smooth_field(axes_mm, turn, spacing_mm, random, softness_mm=0.4):
    """Return probabilities that fall off smoothly at the surface of an ellipsoid whose centre lies anywhere."""
    shape = [int(2 * max(axes_mm) / mm) + 7 for mm in spacing_mm]
    centre = (np.array(shape) / 2 + random.uniform(-0.5, 0.5, 3)) * spacing_mm
    return 1 / (1 + np.exp(signed_distance(axes_mm, turn, spacing_mm, centre, shape) / softness_mm)), centre


def share_field(axes_mm, spacing_mm, random, samples=6):
    """Return which share of each voxel lies inside an ellipsoid along the axes of the grid."""
    shape = [int(2 * axis / mm) + 5 for axis, mm in zip(axes_mm, spacing_mm, strict=True)]
    centre = (np.array(shape) / 2 + random.uniform(-0.5, 0.5, 3)) * spacing_mm
    fine = [(np.arange(n * samples) + 0.5) / samples - 0.5 for n in shape]
    squared = [((f * mm - c) / axis) ** 2 for f, mm, c, axis in zip(fine, spacing_mm, centre, axes_mm, strict=True)]
    inside = squared[0][:, None, None] + squared[1][:, None] + squared[2] <= 1
    blocks = [size for n in shape for size in (n, samples)]
    return inside.reshape(blocks).mean(axis=(1, 3, 5))


def measured(field, spacing_mm):
    return axial_diameters(field, field > 0.5, spacing_mm[1:])


SPACINGS = [(0.6, 0.6, 0.6), (0.5, 0.5, 0.5), (0.6, 0.75, 0.75)]


@pytest.mark.parametrize("radius_mm", [2.0, 3.7, 7.0, 15.0])
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("softness_mm", [0.2, 0.6])
def test_a_ball_is_measured_to_a_tenth_of_a_millimetre(radius_mm, spacing_mm, softness_mm):
    random = np.random.default_rng(0)
    for _ in range(3):
        field, _ = smooth_field((radius_mm,) * 3, np.eye(3), spacing_mm, random, softness_mm)
        assert tuple(measured(field, spacing_mm)) == pytest.approx((2 * radius_mm, 2 * radius_mm), abs=0.1)


@pytest.mark.parametrize("axes_mm", [(2.0, 2.0, 2.0), (4.0, 3.0, 4.0), (6.0, 5.0, 8.0), (12.0, 9.0, 15.0)])
def test_shares_of_voxels_are_measured_to_a_tenth_of_a_millimetre(axes_mm):
    spacing_mm, random = (0.6, 0.6, 0.6), np.random.default_rng(1)
    for _ in range(3):
        long_mm, short_mm = measured(share_field(axes_mm, spacing_mm, random), spacing_mm)
        assert long_mm == pytest.approx(2 * max(axes_mm[1:]), abs=0.1)
        assert short_mm == pytest.approx(2 * min(axes_mm[1:]), abs=0.1)


def central_section(axes_mm, turn):
    """Return the axes of the axial section through the centre of an ellipsoid."""
    form = turn @ np.diag(1 / np.square(axes_mm)) @ turn.T
    return 2 / np.sqrt(np.linalg.eigvalsh(form[1:, 1:]))


def test_ellipsoids_in_any_direction_are_measured_to_a_tenth_of_a_millimetre():
    spacing_mm, random = (0.6, 0.6, 0.6), np.random.default_rng(2)
    for _ in range(20):
        axes_mm = random.uniform(0.6, 1, 3) * random.uniform(4, 12)
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        field, _ = smooth_field(axes_mm, turn, spacing_mm, random)
        assert tuple(measured(field, spacing_mm)) == pytest.approx(tuple(central_section(axes_mm, turn)), abs=0.1)


def test_thick_slices_are_measured_in_their_plane():
    spacing_mm, random = (2.5, 0.7, 0.7), np.random.default_rng(3)
    axes_mm = np.array([8.0, 5.0, 6.5])
    for _ in range(8):
        field, centre = smooth_field(axes_mm, np.eye(3), spacing_mm, random)
        beside = np.abs(np.arange(len(field)) * spacing_mm[0] - centre[0]).min()  # from the nearest slice
        section = 2 * axes_mm[1:] * np.sqrt(1 - (beside / axes_mm[0]) ** 2)
        assert tuple(measured(field, spacing_mm)) == pytest.approx((section[1], section[0]), abs=0.1)


def test_pixels_may_be_oblong():
    spacing_mm, random = (1.0, 0.5, 0.9), np.random.default_rng(4)
    field, _ = smooth_field(np.array([6.0, 8.0, 5.0]), np.eye(3), spacing_mm, random)
    assert tuple(measured(field, spacing_mm)) == pytest.approx((16, 10), abs=0.1)


def test_a_bar_has_the_short_axis_of_its_longest_chord_across_the_diagonal():
    field = np.zeros((3, 30, 30))
    field[1, 5:15, 5:25] = 1.0  # 10 x 20 pixels, whose outline passes half a pixel further out, without its corners
    long_mm, short_mm = axial_diameters(field, field > 0.5, (1.0, 1.0))
    assert long_mm == pytest.approx(np.hypot(20, 9))
    # Perpendicular to the diagonal of a rectangle a x b the longest chord is b sqrt(1 + (b / a)^2).
    assert short_mm == pytest.approx(10 * np.hypot(1, 10 / 20), abs=0.3)


def test_separate_limbs_are_not_spanned():
    field = np.zeros((4, 30, 30))
    field[:, 3:7, 3:7] = field[:, 20:25, 20:25] = 1.0
    field[1, 3:25, 3:7] = field[1, 20:25, 3:25] = 1.0  # connected here, so that they are one nodule
    one = axial_diameters(field[2:3], field[2:3] > 0.5, (1.0, 1.0))
    assert one.long_mm == pytest.approx(np.hypot(5, 4))  # of the larger square alone
    field[1, 10:13] = 0.0
    assert axial_diameters(field, field > 0.5, (1.0, 1.0)).long_mm < 30


def test_only_the_mask_is_measured():
    field = np.zeros((3, 20, 20))
    field[1, 2:4, 2:4] = field[1, 8:18, 8:18] = 1.0
    mask = np.zeros(field.shape, bool)
    mask[1, 2:4, 2:4] = True
    assert axial_diameters(field, mask, (1.0, 1.0)).long_mm == pytest.approx(np.hypot(2, 1))


def test_nothing_has_no_diameter_and_a_single_voxel_has_one():
    empty = np.zeros((4, 4, 4))
    assert axial_diameters(empty, empty > 0.5, (0.6, 0.6)) == Diameters(0, 0)
    for certainty, expected in ((1.0, 0.6), (0.5 + 1e-7, 0)):  # the latter's outline is almost a point
        one = empty.copy()
        one[1, 1, 1] = certainty
        long_mm, short_mm = axial_diameters(one, one > 0.5, (0.6, 0.6))
        assert (long_mm, short_mm) == pytest.approx((expected, expected), abs=1e-6)


def test_a_flat_outline_at_the_border_is_measured():
    plane = np.zeros((1, 8, 8))
    plane[0, 0, :] = 1.0
    assert axial_diameters(plane, plane > 0.5, (1.0, 1.0)).long_mm == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize(
    ("long_mm", "short_mm", "fleischner", "lung_rads"),
    [
        (6.24, 4.75, 5, 5.5),  # mean 5.495: rounded from 6.2 and 4.8
        (6.0, 5.0, 6, 5.5),  # 5.5 is rounded up
        (8.04, 7.95, 8, 8.0),
        (0.0, 0.0, 0, 0.0),
        (12.25, 9.15, 11, 10.8),  # 12.3 and 9.2 have the mean 10.75
    ],
)
def test_mean_diameters_are_rounded_as_the_guidelines_ask(long_mm, short_mm, fleischner, lung_rads):
    diameters = Diameters(long_mm, short_mm)
    assert diameters.mean_mm == pytest.approx((long_mm + short_mm) / 2)
    assert (diameters.fleischner_mm, diameters.lung_rads_mm) == (fleischner, pytest.approx(lung_rads))
