"""Patches preserve sizes, positions and HU for any grid and orientation of the CT."""

import itertools

import numpy as np
import pytest

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import (
    Geometry,
    MarkedNodule,
    Unusable,
    ball_diameter_mm,
    consensus,
    consensus_centroid,
    make_record,
    patch_affine,
    reader_dice,
    require_usable,
    sample,
)
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")

CENTRE = np.array([-61.3, 42.7, -118.9])
RADIUS_MM = 10.0
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def axial(spacing):
    """Return the (3, 3) directions of the usual scan, whose axes run towards S, P and L; `spacing` is (d, h, w) mm."""
    return np.eye(3)[:, ::-1] * spacing


def oblique(spacing):
    """Return the (3, 3) directions of a scan with an arbitrary rotation."""
    return np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0] * spacing


def grid(directions, reach_mm=34.0, shift=(0.3, -0.2, 0.4)):
    """Return the shape and affine of a box around CENTRE, which is `shift` voxels away from the centre of a voxel."""
    shape = np.ceil(2 * reach_mm / np.linalg.norm(directions, axis=0)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = CENTRE - directions @ ((shape - 1) / 2 + shift)
    return tuple(shape), affine


def points_of(shape, affine):
    """Return the positions of all voxels in LPS mm: (d, h, w, 3)."""
    return Volume(None, affine).to_lps(np.moveaxis(np.indices(shape), 0, -1))


def soft_ball(directions, soft_mm=3.0):
    """Return a ball for linear interpolation: its values fall linearly across the surface, where they are 1/2."""
    shape, affine = grid(directions)
    beyond = np.linalg.norm(points_of(shape, affine) - CENTRE, axis=-1) - RADIUS_MM
    return Volume((0.5 - beyond / soft_mm).clip(0, 1).astype(np.float32), affine)


def marked_box(masks, directions=None, ct=None, **changes):
    """Return a MarkedNodule with (readers, d, h, w) masks in the middle of a CT around CENTRE."""
    shape, affine = grid(axial((1.0, 1.0, 1.0)) if directions is None else directions, shift=(0, 0, 0))
    ct = Volume(np.full(shape, -800, np.int16) if ct is None else ct, affine)
    own = affine.copy()
    own[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(masks.shape[1:]) - 1) / 2)
    ratings = np.tile([5, 1, 6, 3, 3, 3, 4, 5, 5], (len(masks), 1))
    return MarkedNodule(Nodule("p_n00", "p", ratings), ct, Volume(masks, own), "ct", **changes)


# Geometry


def test_patch_affine_puts_the_centre_in_the_middle_with_axes_towards_superior_posterior_left():
    volume = Volume(None, patch_affine(CENTRE, 80, 0.6))
    np.testing.assert_allclose(volume.to_lps([39.5] * 3), CENTRE)
    np.testing.assert_allclose(volume.to_lps([49.5, 39.5, 39.5]) - CENTRE, (0, 0, 6), atol=1e-9)
    np.testing.assert_allclose(volume.to_lps([39.5, 49.5, 39.5]) - CENTRE, (0, 6, 0), atol=1e-9)
    np.testing.assert_allclose(volume.to_lps([39.5, 39.5, 49.5]) - CENTRE, (6, 0, 0), atol=1e-9)
    assert Geometry(64, 8, 0.6).stored_size == 80 and Geometry(48, 8, 0.6).stored_size == 64
    assert (Geometry().patch_size, Geometry().spacing_mm) == (64, 0.6)  # the paper's


@pytest.mark.parametrize("spacing_mm", [0.6, 1.2])
@pytest.mark.parametrize(
    "directions",
    [axial((2.5, 0.7, 0.7)), oblique((0.8, 0.8, 0.8)), oblique((1.5, 0.7, 0.7))],
    ids=["anisotropic", "oblique", "oblique anisotropic"],
)
def test_a_ball_keeps_its_volume_and_position(directions, spacing_mm):
    size = round(48 / spacing_mm)
    patch = sample(soft_ball(directions), CENTRE, size, spacing_mm, outside="grid-constant")
    volume_mm3 = 4 / 3 * np.pi * RADIUS_MM**3
    # Linear interpolation replaces the round surface by chords, up to h^2 / 8R = 0.08 mm inside it for slices that are
    # h = 2.5 mm apart. If the chords were that deep everywhere, the volume would shrink by 3 * 0.08 / R = 2.4 %.
    cut = patch >= 0.5
    assert cut.sum() * spacing_mm**3 == pytest.approx(volume_mm3, rel=0.02)
    middle = Volume(None, patch_affine(CENTRE, size, spacing_mm)).to_lps(np.argwhere(cut).mean(axis=0))
    np.testing.assert_allclose(middle, CENTRE, atol=0.1)


def test_a_ball_off_the_centre_keeps_its_position():
    away = np.array([5.0, -7.0, 3.0])
    patch = sample(soft_ball(oblique((1.5, 0.7, 0.7))), CENTRE - away, 80, 0.6)
    middle = Volume(None, patch_affine(CENTRE - away, 80, 0.6)).to_lps(np.argwhere(patch >= 0.5).mean(axis=0))
    np.testing.assert_allclose(middle, CENTRE, atol=0.1)


# HU


@pytest.mark.parametrize("spacing_mm", [0.2, 0.6, 1.2])  # the finest voxels are point samples too
@pytest.mark.parametrize("directions", [axial((2.5, 0.7, 0.7)), oblique((2.5, 0.7, 0.7))], ids=["axial", "oblique"])
def test_a_linear_ramp_is_reproduced_exactly(directions, spacing_mm):
    shape, affine = grid(directions, reach_mm=48)  # contains the patch's corners, 42 mm away
    slope = np.array([3.0, -5.0, 7.0])  # HU per mm towards L, P, S
    hu = Volume((points_of(shape, affine) - CENTRE) @ slope - 100, affine)
    size = round(48 / spacing_mm)
    patch = sample(hu, CENTRE, size, spacing_mm)
    expected = (points_of((size,) * 3, patch_affine(CENTRE, size, spacing_mm)) - CENTRE) @ slope - 100
    np.testing.assert_allclose(patch, expected, atol=1e-3)  # float32 of values up to 500


def test_all_48_axis_orientations_of_the_same_data_give_the_same_patch():
    assert len(ORIENTATIONS) == 48
    shape, affine = grid(axial((2.5, 0.8, 0.7)), reach_mm=11)
    hu = np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)
    expected = sample(Volume(hu, affine), CENTRE, 40, 0.6)  # larger than the volume, to compare the edges too
    assert expected.std() > 100
    for axes, signs in ORIENTATIONS:
        turned = hu.transpose(axes)
        first = [0 if sign > 0 else length - 1 for sign, length in zip(signs, turned.shape, strict=True)]
        other = np.eye(4)
        other[:3, :3] = affine[:3, list(axes)] * signs
        other[:3, 3] = affine[:3, 3] + affine[:3, list(axes)] @ first
        stored = Volume(turned[tuple(slice(None, None, sign) for sign in signs)], other)
        # Coordinates differ only by rounding: 1e-12 voxels at 1e3 HU per voxel, then float32.
        np.testing.assert_allclose(sample(stored, CENTRE, 40, 0.6), expected, atol=1e-3, err_msg=f"{axes} {signs}")


@pytest.mark.parametrize("spacing_mm", [0.6, 1.2])
def test_the_volumes_edge_is_repeated_beyond_it(spacing_mm):
    shape, affine = grid(axial((2.0, 0.7, 0.7)))
    slab = Volume((np.arange(4.0)[:, None, None] * 100 + np.zeros(shape)[:4]), affine)
    slab.affine[2, 3] = CENTRE[2] - 3.0  # four slices, 2 mm apart
    size = round(48 / spacing_mm)
    patch = sample(slab, CENTRE, size, spacing_mm)
    splits = round(spacing_mm / 0.6)
    fine_z = 0.6 * (np.arange(size * splits) - (size * splits - 1) / 2)
    expected = (150 + 50 * fine_z).clip(0, 300).reshape(size, splits).mean(axis=1)
    np.testing.assert_allclose(patch, np.broadcast_to(expected[:, None, None], patch.shape), atol=1e-3)


def test_large_voxels_are_averages_of_small_ones():
    noise = Volume(np.random.default_rng(1).normal(0, 100, (40, 40, 40)), patch_affine(CENTRE, 40, 0.6))
    fine, coarse = sample(noise, CENTRE, 40, 0.6), sample(noise, CENTRE, 20, 1.2)
    np.testing.assert_allclose(coarse, fine.reshape(20, 2, 20, 2, 20, 2).mean(axis=(1, 3, 5)), atol=1e-3)
    assert coarse.std() < 0.5 * fine.std()  # expected ratio: 1/sqrt(8)


@pytest.mark.parametrize(("spacing_mm", "samples"), [(0.5, 1), (0.7, 1), (1.0, 2), (2.0, 3)])
def test_a_voxel_averages_as_many_samples_as_come_nearest_to_their_distance(spacing_mm, samples):
    # Samples 0.6 mm apart, or as near to it as a whole number of them comes: 1.0 / 0.6 is nearer to 2 than to 1.
    noise = Volume(np.random.default_rng(1).normal(0, 100, (60, 60, 60)), patch_affine(CENTRE, 60, 0.6))
    fine = sample(noise, CENTRE, 8 * samples, spacing_mm / samples)  # of which each is a single sample
    means = fine.reshape(8, samples, 8, samples, 8, samples).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(sample(noise, CENTRE, 8, spacing_mm), means, atol=1e-3)


# Masks


def test_the_mask_is_zero_outside_its_box():
    marked = marked_box(np.ones((1, 7, 9, 11), bool))
    mask = make_record(marked, Geometry(64, 8, 0.6))[schema.MASK]
    distance = np.abs(points_of(mask.shape, patch_affine(CENTRE, 80, 0.6)) - CENTRE)[..., ::-1]  # along d, h, w
    half = np.array([7, 9, 11]) / 2  # mm
    assert (mask[(distance <= half - 0.5).all(axis=-1)] == schema.MASK_UNIT).all()
    assert not mask[(distance >= half + 0.5).any(axis=-1)].any()


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
@pytest.mark.parametrize("slice_mm", [1.0, 3.0])
def test_the_consensus_keeps_the_volume_of_small_nodules(readers, slice_mm):
    """Also where half of the readers marked a voxel, and where a nodule is but a few slices thick."""
    random, spacing, shape = np.random.default_rng(readers), (slice_mm, 0.7, 0.7), (round(20 / slice_mm), 28, 28)
    points = (np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2) * spacing
    volumes, kept = [], []
    for _ in range(20):
        radii, centre = random.uniform(2.5, 4, 3), random.uniform(-1, 1, 3)
        ellipsoids = [points - centre - random.normal(0, 0.5, 3) for _ in range(readers)]  # readers agree but roughly
        masks = np.array([((one / radii) ** 2).sum(axis=-1) < 1 for one in ellipsoids])
        record = make_record(marked_box(masks, axial(spacing)), Geometry(32, 0, 1.2))
        volumes.append((2 * masks.sum(axis=0) >= readers).sum() * slice_mm * 0.7**2)
        kept.append((2 * record[schema.MASK].astype(int) >= schema.MASK_UNIT).sum() * 1.2**3)
    # A voxel is 1.7 mm^3, the nodules are of some 150. Voxels covered by more than one half would lose a fifth.
    assert np.mean(kept) == pytest.approx(np.mean(volumes), rel=0.05)


@pytest.mark.parametrize(("readers", "units"), [(1, 252), (2, 126), (3, 84), (4, 63)])
def test_one_readers_share_is_a_whole_number_of_units(readers, units):
    masks = np.zeros((readers, 9, 9, 9), bool)
    masks[-1] = True
    mask = make_record(marked_box(masks), Geometry(16, 0, 0.6))[schema.MASK]
    assert mask.dtype == np.uint8
    assert mask[8, 8, 8] == mask.max() == units
    assert np.unique(mask[4:12, 4:12, 4:12]).tolist() == [units]  # no rounding differences between voxels


def test_consensus_is_at_least_half_of_the_readers():
    counts = np.arange(5)  # voxel k is marked by k of the four readers
    masks = (counts > np.arange(4)[:, None]).reshape(4, 1, 1, 5)
    assert consensus(masks).ravel().tolist() == [False, False, True, True, True]
    assert consensus(masks[:3]).ravel().tolist() == [False, False, True, True, True]
    assert consensus(masks[:1]).ravel().tolist() == [False, True, True, True, True]


def test_the_centroid_is_of_the_consensus_or_of_all_marked_voxels_without_one():
    affine = patch_affine((0, 0, 0), 11, 2.0)
    masks = np.zeros((3, 11, 11, 11), bool)
    masks[:2, 3, 4, 5:8] = True
    masks[2, 9, 9, 9] = True
    np.testing.assert_allclose(consensus_centroid(Volume(masks, affine)), (2, -2, -4))
    alone = np.zeros((3, 11, 11, 11), bool)
    alone[0, 5, 5, 4] = alone[1, 5, 5, 8] = True
    np.testing.assert_allclose(consensus_centroid(Volume(alone, affine)), (2, 0, 0))
    with pytest.raises(UserError, match="marks no voxel"):
        consensus_centroid(Volume(np.zeros_like(masks), affine))


def test_reader_dice_by_hand():
    masks = np.zeros((3, 1, 1, 6), bool)
    masks[0, ..., :4] = masks[1, ..., 1:4] = masks[2, ..., 3:] = True
    # The consensus of two readers is what either marked. Reader 0: {0..3} against {1..5}, 2*3/9; reader 1: {1..3}
    # against {0..5}, 2*3/9; reader 2: {3..5} against {0..3}, 2*1/7.
    assert reader_dice(masks) == pytest.approx((2 / 3 + 2 / 3 + 2 / 7) / 3)
    assert reader_dice(np.ones((4, 2, 2, 2), bool)) == 1
    assert np.isnan(reader_dice(masks[:2]))
    assert reader_dice(np.zeros((3, 2, 2, 2), bool)) == 0


@pytest.mark.parametrize("directions", [axial((1.25, 0.7, 0.7)), oblique((1.25, 0.7, 0.7))], ids=["axial", "oblique"])
def test_ball_diameter(directions):
    ball = soft_ball(directions)
    # With about 7,000 voxels, the volume is accurate to well below 1 % and the diameter to 0.3 %.
    masks = np.stack([ball.array >= 0.5] * 2 + [ball.array > 2])
    assert ball_diameter_mm(Volume(masks, ball.affine)) == pytest.approx(2 * RADIUS_MM, rel=0.005)
    assert ball_diameter_mm(Volume(np.zeros((1, 2, 2, 2), bool), ball.affine)) == 0


# Records


def test_a_record_has_all_features():
    hu = np.random.default_rng(2).integers(-1024, 3000, (68, 68, 68)).astype(np.int16)
    record = make_record(marked_box(np.ones((4, 5, 5, 5), bool), ct=hu), Geometry(32, 4, 1.2))
    for name in (schema.IMAGE, schema.MASK):
        assert record[name].shape == (40, 40, 40)
    assert record[schema.IMAGE].dtype == np.int16 and record[schema.MASK].dtype == np.uint8
    assert record[schema.RATING_COUNTS].shape == (9, 6) and record[schema.RATING_COUNTS].dtype == np.uint8
    assert record[schema.RATING_COUNTS][schema.MALIGNANCY].tolist() == [0, 0, 0, 0, 4, 0]
    assert (record[schema.NODULE_ID], record[schema.PATIENT_ID], record[schema.CONTEXT]) == ("p_n00", "p", "ct")
    assert record[schema.READER_DICE] == 1 and record[schema.READER_DICE].dtype == np.float32
    assert record[schema.DIAMETER] == pytest.approx(np.cbrt(6 * 125 / np.pi))
    assert record[schema.DIAMETER].dtype == np.float32


def test_a_record_is_centred_on_the_point_or_else_on_the_consensus():
    masks = np.ones((1, 5, 5, 5), bool)
    middles = []
    for centre in (None, CENTRE, CENTRE + (0, 0, 6)):
        mask = make_record(marked_box(masks, centre_mm=centre), Geometry(64, 8, 0.6))[schema.MASK]
        middles.append(np.argwhere(mask >= schema.MASK_UNIT // 2).mean(axis=0))
    np.testing.assert_allclose(middles, [[39.5] * 3, [39.5] * 3, [29.5, 39.5, 39.5]], atol=0.1)


def test_extreme_hu_do_not_overflow():
    hu = np.full((68, 68, 68), 32767, np.int16)
    hu[::2] = -1024
    image = make_record(marked_box(np.ones((1, 3, 3, 3), bool), ct=hu), Geometry(16, 0, 0.6))[schema.IMAGE]
    assert -1024 <= image.min() < 0 and 30000 < image.max() <= 32767


def test_an_empty_mask_is_refused():
    with pytest.raises(UserError, match="marks no voxel"):
        make_record(marked_box(np.zeros((2, 4, 4, 4), bool)), Geometry(16, 0, 0.6))


def test_a_wanted_nodule_has_to_be_usable():
    ball = Volume(np.ones((1, 3, 3, 3), bool), np.eye(4))
    good = MarkedNodule(Nodule("good", "p", np.zeros((0, 9), int)), ball, ball, "ct")
    found = [good, Unusable("bad", "m.nii.gz: no such file")]
    assert require_usable(found, {"good", "other"}) == [good] and require_usable(found, {"other"}) == []
    with pytest.raises(UserError, match=r"^bad: m\.nii\.gz: no such file$"):
        require_usable(found, {"good", "bad"})
