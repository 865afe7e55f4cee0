"""Slices and rows that do not belong together: of another scale or length, lost, or of two images in turns."""

import numpy as np
import pytest

from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.slice_jumps import why_rows_differ, why_slices_differ
from pnsamp_jax.ct.volume import AIR, Volume
from pnsamp_jax.errors import UserError

AXIAL = np.eye(4)[:, [2, 1, 0, 3]]


def chest(slices=12, seed=0):
    """HU of (slices, 60, 60): lung with an oblique vessel, and a wall of soft tissue and fat."""
    d, h, w = np.indices((slices, 60, 60))
    hu = np.where(w < 40, -850, np.where(w < 45, -100, 40))
    hu = np.where(np.hypot(h - 20 - d, w - 20) < 4, 40, hu)
    return (hu + np.random.default_rng(seed).normal(0, 20, hu.shape)).astype(np.int16)


def shifted(hu, chosen, offset):
    hu = hu.astype(np.int32)
    hu[chosen] += offset
    return np.maximum(hu, AIR).astype(np.int16)


@pytest.mark.parametrize(
    ("chosen", "offset", "expected"),
    [
        (5, 1024, "slice 6 lies about 102. above slice 5, "),
        (0, 1024, "slice 2 lies about 102. below slice 1, "),
        (slice(7, None), 1024, "slice 8 lies about 102. above slice 7, "),
        (5, -1024, "slice 6 lies about 102. below slice 5, "),
        (slice(None, None, 2), 1024, "slice 2 lies about 102. below slice 1, "),
    ],
)
def test_a_slice_whose_offset_was_lost_or_applied_twice_is_named(chosen, offset, expected):
    with pytest.raises(UserError, match=f"^ct: {expected}as if the RescaleIntercept"):
        check_chest("ct", Volume(shifted(chest(slices=40), chosen, offset), AXIAL))


def test_an_empty_slice_is_named_and_empty_ends_are_not():
    hu = chest()
    hu[[0, 1, -1]] = AIR  # as of an image on the grid of a larger one
    assert why_slices_differ(hu) is None
    hu[5] = AIR
    assert "slice 6 is empty between slices that are not" in why_slices_differ(hu)


@pytest.mark.parametrize("value", [AIR, -1000, 0])
@pytest.mark.parametrize(("first", "last"), [(5, 5), (5, 6), (3, 8)])
def test_lost_slices_are_named_whatever_fills_them_and_however_many_they_are(first, last, value):
    hu = chest()
    hu[first : last + 1] = value
    which = "slice 6 is" if first == last else f"slices {first + 1} to {last + 1} are"
    assert f"{which} empty between slices that are not" in why_slices_differ(hu)


@pytest.mark.parametrize("value", [AIR, 0])
def test_slices_whose_last_rows_were_lost_are_named(value):
    hu = chest()
    hu[4:7, 40:] = value
    assert "slices 5 to 7 are partly empty between slices that are not" in why_slices_differ(hu)


def test_rows_of_air_and_bars_of_padding_are_not_lost():
    hu = chest(slices=40)
    hu[:, :20] = AIR  # above the body, as far as it reaches in a few slices
    hu[-9:, :30] = AIR
    hu[12:15, 20:23] = AIR  # a few rows
    assert why_slices_differ(hu) is None


@pytest.mark.parametrize("sides", [(60, 50), (40, 60)])
def test_rows_of_another_length_are_refused(sides):
    hu = np.ascontiguousarray(chest(slices=40)[:, : sides[0], : sides[1]])
    check_chest("ct", Volume(hu, AXIAL))
    with pytest.raises(UserError, match=f"^ct: neighbouring rows of {sides[0]} voxels differ .* another length"):
        check_chest("ct", Volume(hu.reshape(40, *sides[::-1]), AXIAL))


def test_rows_of_a_real_scan_are_refused_once_their_length_is_wrong(scan):
    part = np.ascontiguousarray(scan.array[40:90, 100:400, 60:460])
    assert why_rows_differ(part, scan.spacing) is None
    assert why_rows_differ(part.transpose(1, 0, 2), scan.spacing[[1, 0, 2]]) is None  # thick slices along the rows
    for h, w in ((400, 300), (200, 600), (250, 480)):
        assert why_rows_differ(part.reshape(50, -1)[:, : h * w].reshape(50, h, w), scan.spacing)


def test_two_images_in_turns_are_refused():
    hu = chest(slices=24)
    hu[1::2] = np.roll(hu[::2], 5, axis=2)  # another breath
    assert "every second slice is of another image" in why_slices_differ(hu)


def test_a_short_volume_that_goes_on_mirrored_is_accepted():
    """Its copies may differ in places, as where a nodule is filled in."""
    hu = np.pad(chest(slices=2), ((8, 8), (0, 0), (0, 0)), "reflect")
    hu[:, 10:20, 10:20] = np.random.default_rng(1).normal(-850, 20, (18, 10, 10))
    assert why_slices_differ(hu) is None


def test_lung_may_end_within_a_slice():
    hu = chest()
    hu[6:, :, :36] = 40  # the diaphragm; the wall of the chest goes on
    assert why_slices_differ(hu) is None
    noise = np.random.default_rng(1).integers(-1000, 400, (12, 60, 60)).astype(np.int16)
    assert why_slices_differ(noise) is None


def test_real_scans_are_accepted_at_any_spacing(scan):
    for step in (1, 2, 4):
        assert why_slices_differ(scan.array[::step]) is None


def scaled_apart(hu, low, high):
    """Slices with a rib whose smallest value became `low` and whose largest one `high`, each on its own."""
    hu = hu.astype(np.float64)
    hu[:, 30:34, 48:52] += 500
    ends = hu.min(axis=(1, 2), keepdims=True), hu.max(axis=(1, 2), keepdims=True)
    return np.rint(low + (high - low) * (hu - ends[0]) / (ends[1] - ends[0])).astype(np.int16)


@pytest.mark.parametrize(("low", "high"), [(-1000, 400), (-1000, 600), (-1024, 250)])
def test_slices_that_were_scaled_each_on_its_own_are_refused(low, high):
    with pytest.raises(UserError, match=f"^ct: every slice ends at {high}, as if each was scaled on its own"):
        check_chest("ct", Volume(scaled_apart(chest(), low, high), AXIAL))


def test_slices_that_end_at_the_same_value_for_another_reason_are_accepted():
    cut_off = np.minimum(chest(), 80)  # many voxels of each slice
    copied = np.pad(scaled_apart(chest(slices=4), -1000, 400), ((8, 8), (0, 0), (0, 0)), "reflect")
    wire = chest()
    wire[:, 50, 50] = 3071
    for hu in (cut_off, copied, wire):
        assert why_slices_differ(hu) is None
