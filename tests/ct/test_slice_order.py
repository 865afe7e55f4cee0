"""Slices in the wrong order and single ones that do not belong are found; motion and gaps are not taken for them."""

import numpy as np
import pytest

from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.slice_jumps import why_slices_differ
from pnsamp_jax.ct.slice_order import why_out_of_order
from pnsamp_jax.ct.volume import AIR, Volume
from pnsamp_jax.errors import UserError

AXIAL = np.eye(4)[:, [2, 1, 0, 3]]
N = 30


def chest(slices=N, noise=15):
    """HU of (slices, 64, 64): a lung that widens and moves from slice to slice, with a vessel, in soft tissue."""
    d, h, w = np.indices((slices, 64, 64))
    part = d / slices
    hu = np.where(np.hypot(h - 20 - 20 * part, w - 30) < 8 + 18 * part, -850, 40)
    hu = np.where(np.hypot(h - 24 - 16 * part, w - 40 + 18 * part) < 4, 40, hu)
    hu[:, :, -6:] = -1000
    return np.maximum(hu + np.random.default_rng(0).normal(0, noise, hu.shape), AIR).astype(np.int16)


def with_slice(hu, change, index=12):
    hu = hu.copy()
    hu[index] = change(hu)
    return hu


BY_NAME = sorted(range(N), key=lambda index: str(index + 1))  # 1, 10, 11, ..., 2, 20, ...
ORDERS = {
    "by name": BY_NAME,
    "at random": np.random.default_rng(1).permutation(N),
    "halves exchanged": np.roll(np.arange(N), N // 2),
    "a third moved": [*range(10), *range(20, N), *range(10, 20)],
    "one half reversed": [*range(N // 2), *range(N - 1, N // 2 - 1, -1)],
    "even ones before odd ones": [*range(0, N, 2), *range(1, N, 2)],
}
ALIEN = {
    "flipped": lambda hu: hu[12, ::-1],
    "mirrored": lambda hu: hu[12, :, ::-1],
    "turned": lambda hu: hu[12].T,
    "from elsewhere": lambda hu: hu[25],
    "scaled": lambda hu: (hu[12] + 1024.0) / 2 - 1024,
}


@pytest.mark.parametrize("order", ORDERS)
def test_slices_in_the_wrong_order_are_refused(order):
    with pytest.raises(UserError, match="^ct: .*fit.* as if .* stacked in the wrong order; export the CT again$"):
        check_chest("ct", Volume(chest()[ORDERS[order]], AXIAL))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_slices_lie_along_the_body_whatever_the_order_of_the_axes(axes):
    affine = np.eye(4)
    affine[:3, :3] = AXIAL[:3, list(axes)]
    sound = np.ascontiguousarray(chest().transpose(axes))
    check_chest("ct", Volume(sound, affine))
    with pytest.raises(UserError, match="stacked in the wrong order"):
        check_chest("ct", Volume(chest()[BY_NAME].transpose(axes), affine))


def test_two_slices_that_belong_together_are_named():
    assert "slices 15 and 30 fit each other" in why_out_of_order(chest()[ORDERS["one half reversed"]])


@pytest.mark.parametrize("change", ALIEN)
def test_a_single_slice_that_does_not_belong_is_named(change):
    found = why_slices_differ(with_slice(chest(), ALIEN[change]))
    assert found == "slice 13 fits neither 12 nor 14, as if flipped, scaled or of another image"


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("change", [lambda hu: hu + 300, lambda hu: (hu + 1400) / 1600 * 255])
def test_a_few_slices_that_do_not_belong_are_named(scan, count, change):
    hu = scan.array[40:90].astype(np.float32)
    hu[20 : 20 + count] = change(hu[20 : 20 + count])
    assert f"slices 21 to {20 + count} fit neither 20 nor {21 + count}" in why_slices_differ(hu.astype(np.int16))


TURNS = {
    "mirrored": lambda part: part[:, :, ::-1],
    "upside down": lambda part: part[:, ::-1],
    "turned by 180 degrees": lambda part: part[:, ::-1, ::-1],
    "turned by 270 degrees": lambda part: np.rot90(part, 1, (1, 2)),  # by which it fits again
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("part", [slice(25, None), slice(12, 25)])
def test_a_part_of_another_orientation_is_refused(scan, turn, part):
    hu = scan.array[40:90].copy()
    hu[part] = TURNS[turn](hu[part])
    first = part.start
    assert why_slices_differ(hu).startswith(f"slices {first} and {first + 1} fit once one is {turn}, as if")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hu: np.clip((hu + 1400) / 1600 * 255, 0, 255), "slices 26 to 50: the values, .* scaled to 0..255"),
        (lambda hu: hu - 250.0, "slices 26 to 50: the values, .* some hundred HU too high or too low"),
    ],
)
def test_a_part_of_another_scale_is_refused_though_the_whole_looks_like_a_chest(scan, change, reason):
    hu = scan.array[40:90].copy()
    check_chest("ct", Volume(hu, scan.affine))
    hu[25:] = np.maximum(change(hu[25:]), AIR)
    with pytest.raises(UserError, match=f"^ct, {reason}"):
        check_chest("ct", Volume(hu, scan.affine))


def interpolated(hu):
    """Slices as of a thinner spacing, interpolated."""
    between = (hu[:-1].astype(np.float32) + hu[1:]) / 2
    return np.stack([hu[:-1], between], axis=1).reshape(-1, *hu.shape[1:]).astype(np.int16)


SOUND = {
    "as it is": lambda hu: hu,
    "upside down": lambda hu: hu[::-1],
    "every third slice": lambda hu: chest(90)[::3],
    "motion": lambda hu: np.concatenate([hu[:14], np.roll(hu[14:], 4, axis=1)]),
    "motion there and back": lambda hu: np.concatenate([hu[:9], np.roll(hu[9:20], 4, axis=1), hu[20:]]),
    "three slices missing": lambda hu: np.delete(hu, [13, 14, 15], axis=0),
    "a lung that ends": lambda hu: np.concatenate([hu[:15], np.where(hu[15:] < -400, 40, hu[15:])]),
    "each slice twice": lambda hu: np.repeat(hu, 2, axis=0),
    "interpolated": interpolated,
    "smooth": lambda hu: chest(noise=0),
    "noisy": lambda hu: chest(noise=300),
    "empty ends": lambda hu: np.pad(hu, ((4, 5), (0, 0), (0, 0)), constant_values=AIR),
    "air at the ends": lambda hu: np.pad(hu, ((4, 5), (0, 0), (0, 0)), constant_values=-1000),
    "repeated ends": lambda hu: np.pad(hu, ((4, 5), (0, 0), (0, 0)), "edge"),
    "mirrored ends": lambda hu: np.pad(hu, ((9, 9), (0, 0), (0, 0)), "reflect"),
    "mirrored ends of few slices": lambda hu: np.pad(hu[:4], ((9, 9), (0, 0), (0, 0)), "symmetric"),
    "a slice repeated in place of a lost one": lambda hu: with_slice(hu, lambda hu: hu[11]),
    "nothing": lambda hu: np.full_like(hu, AIR),
    "nothing but noise": lambda hu: np.random.default_rng(1).integers(-1000, 400, hu.shape).astype(np.int16),
}


@pytest.mark.parametrize("change", SOUND)
def test_slices_in_order_are_accepted_with_their_steps(change):
    assert why_out_of_order(SOUND[change](chest())) is None


@pytest.mark.parametrize("slices", [1, 2, 3, 7])
def test_a_few_slices_tell_nothing(slices):
    assert why_out_of_order(chest(slices)[::-1]) is None
    assert why_out_of_order(chest(slices)[np.random.default_rng(0).permutation(slices)]) is None


@pytest.mark.data
def test_a_real_scan_is_accepted_in_order_only(scan):
    hu = scan.array[:, ::4, ::4]
    for step in (1, 2, 3, 5, 8):
        assert why_out_of_order(hu[::step]) is None, step
    for step in (1, 2, 4):
        part = hu[::step]
        by_name = sorted(range(len(part)), key=str)
        half = len(part) // 2
        assert why_out_of_order(part[by_name]) is not None
        assert why_out_of_order(part[np.random.default_rng(step).permutation(len(part))]) is not None
        assert why_out_of_order(np.roll(part, half, axis=0)) is not None
        assert why_out_of_order(np.concatenate([part[:half], part[half:][::-1]])) is not None
    flipped = with_slice(hu, lambda hu: hu[60, :, ::-1], index=60)
    assert why_out_of_order(flipped).startswith("slice 61 fits neither 60 nor 62")
