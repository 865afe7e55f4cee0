"""Slices at depths that may be uneven, stacked into a volume with an even spacing."""

import numpy as np

from pnsamp_jax.ct.dicom_slices import Slice
from pnsamp_jax.errors import UserError

MAX_GAP = 2.5  # times the median slice spacing: one missing slice is interpolated, two in a row are an error
MISSING = 1.5  # times the median slice spacing, from which on a gap lacks a slice
MAX_SHIFT_MM = 0.1  # largest distance of a slice from its position in an evenly spaced series


def usual_spacing(depths: np.ndarray) -> float:
    """Return the lower middle value of the spacings (mm) of increasing depths: a spacing that occurs in the series."""
    gaps = np.diff(depths)
    return float(np.sort(gaps)[(len(gaps) - 1) // 2])


def is_even(depths: np.ndarray) -> bool:
    """Return whether increasing depths (mm) differ by one spacing, within 1 % or 0.01 mm, and do not drift."""
    median = usual_spacing(depths)
    drift = np.abs(depths - np.linspace(0, depths[-1], len(depths))).max()
    # Depths that are not finite are called even, and `check_geometry` refuses them.
    return not (np.abs(np.diff(depths) - median).max() > max(0.01 * median, 0.01) or drift > MAX_SHIFT_MM)


def count_missing(depths: np.ndarray) -> int:
    """Return the number of gaps between increasing depths (mm) that lack a slice."""
    return int((np.diff(depths) > MISSING * usual_spacing(depths)).sum())


def stack_evenly(slices: list[Slice], depths: np.ndarray) -> np.ndarray:
    """Stack slices at increasing depths (mm) from 0 into (d, h, w) HU, interpolated where their spacing is uneven.

    Raises:
      UserError: a gap is wider than `MAX_GAP` times the median spacing.
    """
    array = np.stack([item.hu for item in slices])
    if is_even(depths):
        return array
    gaps, median = np.diff(depths), usual_spacing(depths)
    widest = gaps.argmax()
    if gaps[widest] > MAX_GAP * median:
        raise UserError(
            f"{slices[widest].name}: {gaps[widest]:.2f} mm to the next slice {slices[widest + 1].name}, but the usual "
            f"spacing of series {slices[0].shared['SeriesInstanceUID']} is {median:.2f} mm; add the missing slices or "
            "leave out those on one side of the gap"
        )
    return _resample_depth(array, depths, round(depths[-1] / median) + 1)


def _resample_depth(array: np.ndarray, depths: np.ndarray, count: int) -> np.ndarray:
    """Interpolate slices at increasing `depths` (mm) onto `count` even depths from the first to the last."""
    result = np.empty((count, *array.shape[1:]), np.int16)
    for i, depth in enumerate(np.linspace(depths[0], depths[-1], count)):
        below = min(np.searchsorted(depths, depth, side="right") - 1, len(depths) - 2)
        weight = np.float32((depth - depths[below]) / (depths[below + 1] - depths[below]))
        result[i] = np.rint(array[below] * (1 - weight) + array[below + 1] * weight)
    return result
