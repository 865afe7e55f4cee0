"""Whether voxels can be the HU of a chest CT, and what they are likely to be if not.

The rules look at the distribution of the values, not at their extremes, which padding and metal decide. They hold for
a whole scan as for a few centimetres around a nodule, with or without lung.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import AIR

MIN_TISSUE = 0.0001  # share from -200 HU on; at least 0.0008 in any crop around a nodule
MIN_RANGE = 350  # HU that hold the middle 99 % of a CT's values; at least 495 in any crop around a nodule
MIN_AIR_OR_FAT = 0.02  # share below -50 HU: lung, air or fat; at least 0.11 in any crop around a nodule
MAX_DENSE = 0.3  # share above 600 HU; a heart full of contrast agent lies below
MAX_BONE_WITHOUT_LUNG = 0.05  # share above 600 HU where less than MIN_LUNG is lung, as in an inverted image
MIN_LUNG = 0.06
MIN_KNOWN = 0.38  # share that is no padding, where there is little soft tissue
MAX_DENSE_FOR_TISSUE = 0.9  # values above 600 HU, relative to soft tissue; at most 0.67 in any crop around a nodule
# Values of -600 to -440 HU, relative to those of lung and of tissue; ground glass exceeds one of them at most.
MAX_BETWEEN_FOR_LUNG, MAX_BETWEEN_FOR_TISSUE = 1.0, 5.0
# Share of the most frequent value, also relative to the next one; at most 0.03 where it is over 3 times as frequent.
FILLED, FILLED_FOR_NEXT = 0.05, 4.0
DRAWN = 0.15  # share of the next value among the other ones, from which an image has no noise
FILLED_OUTSIDE = 0.3  # share of the value that may fill the corners outside of the scanner's field of view
MAX_AIR = -950  # HU
# Where values are cut off, many lie at the end, and some near it, unlike in an image of few values.
MAX_FLOOR, MIN_CEILING = -800, 100  # HU; a cut beyond them takes little of lung and tissue
CUT_OFF, NEAR_CUT = 0.02, 0.002  # share of the values at the end, and in the 50 HU next to it
SHIFTED_TISSUE = -920  # HU; soft tissue that is 1024 too low lies below, and at least half of a lung above
LUNG, THIN = (-1000, -720), (-720, -440)  # HU of lung, and of what is thicker but no soft tissue
SOFT, ENHANCED = (-150, 100), 150  # HU of fat, water and muscle, and of liver and spleen with contrast agent
# Soft tissue up to ENHANCED, relative to all that is as dense, where that is more than MUCH_DENSE of all; at least
# 0.26 in any crop.
MIN_SOFT, MUCH_DENSE = 0.1, 0.1
MIN_SOFT_FOR_THIN = 0.3  # soft tissue likewise, where more is thin than is lung; at least 0.5 in any crop
# Where neither lung nor tissue has a peak, its height over the higher valley beside it, at most 1.8 in any crop, and
# the share of the values within 50 HU of it.
PEAKS, MIN_PEAK, MIN_AT_PEAK = range(-440, -229, 10), 3.0, 0.05
DISPLACED = "as if they were some hundred HU too high or too low, or scaled"
NO_AIR = "none is that of lung, air or fat"
# What may have been done to an image without air, and how it is undone.
UNDONE: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("they were 1024 too high for want of the RescaleIntercept", lambda array: array - 1024),
    ("they were 1000 too high, without an offset", lambda array: array - 1000),
    ("negative values of 12 bits were read as unsigned", lambda array: np.where(array > 3071, array - 4096, array)),
)


def histogram(array: np.ndarray) -> np.ndarray:
    """Return the number of voxels of each value from `AIR` on, plane by plane, to save memory."""
    counts = np.zeros((1 << 15) - AIR, np.int64)
    for plane in array:
        counts += np.bincount(plane.ravel().astype(np.int32) - AIR, minlength=len(counts))
    return counts


def why_not_hounsfield(array: np.ndarray, counts: np.ndarray) -> str | None:
    """Return why voxels cannot be the HU of a chest, as their likely cause, or None if they can be.

    Args:
      array: (d, h, w) int16, in which padding and values below `AIR` are `AIR`.
      counts: its `histogram`.
    """
    reason = _why_not(array, counts)
    if reason != NO_AIR:
        return reason
    for cause, undo in UNDONE:
        undone = np.maximum(undo(array), np.int16(AIR))
        if _why_not(undone, histogram(undone)) is None:
            return f"{NO_AIR}, as if {cause}"
    return f"{NO_AIR}, as in another modality, a rescaled image, or one whose negative values were lost"


def why_displaced(counts: np.ndarray) -> str | None:
    """Return why lung or soft tissue seems to lie some hundred HU from where it is, or None if it does not.

    Args:
      counts: the `histogram` of voxels in which `why_not_hounsfield` found nothing.
    """
    known = _without_padding(counts)
    share = _share_in(known)
    dense = share(SOFT[0], 1 << 15)
    if share(*LUNG) < share(*THIN) and share(*SOFT) < MIN_SOFT_FOR_THIN * dense:
        return f"more are as dense as ground glass than as lung, and few are soft tissue, {DISPLACED}"
    if dense > MUCH_DENSE and share(SOFT[0], ENHANCED) < MIN_SOFT * dense:
        return f"nearly all tissue is denser than muscle, {DISPLACED}"
    return _why_peak(known / known.sum())


def _without_padding(counts: np.ndarray) -> np.ndarray:
    """Return a copy of a histogram without padding and the air outside of the body."""
    known = counts.copy()
    known[0] = 0
    return known


def _share_in(counts: np.ndarray) -> Callable[[int, int], float]:
    """Return the function that gives the share of the values in low..high - 1."""
    total = counts.sum()
    return lambda low, high: counts[max(low - AIR, 0) : max(high - AIR, 0)].sum() / total


def _why_not(array: np.ndarray, counts: np.ndarray) -> str | None:
    """Return why voxels cannot be HU, or just `NO_AIR` where more than one cause is likely."""
    counts = _without_padding(counts)
    empty = counts[: MAX_AIR - AIR].argmax()
    if counts[empty] > (1 - MIN_KNOWN) * array.size:
        counts[empty] = 0  # as well
    total = counts.sum()
    if total == 0:
        return "all voxels are padding"
    share, cumulative = _share_in(counts), np.cumsum(counts) / total
    low, middle, high = np.searchsorted(cumulative, [0.005, 0.5, 0.995]) + AIR
    not_padding = total / array.size
    if not_padding < 0.7 and share(-200, 300) < 0.25:
        # Padding within lung is that of an emphysema, whose other values are as low.
        of_lung, low_or_sparse = share(MAX_AIR, -600) > 0.5, not_padding < MIN_KNOWN or _peaks_at_bottom(share)
        if low_or_sparse and middle < SHIFTED_TISSUE:
            return "they are about 1024 too low, as if the RescaleIntercept was applied twice"
        if of_lung and (low_or_sparse or share(AIR, MAX_AIR) < 0.1):
            return "nearly all are those of lung or empty, as if what lies around the lung was cut away"
        if low_or_sparse:
            return "most are empty, and few others are those of lung or soft tissue, as if the image was rescaled"
    if high - low < MIN_RANGE:
        scale = "0..1" if -1 <= low and high <= 1 else "0..255" if low >= 0 and high <= 255 else ""
        likely = f"scaled to {scale}, or were the labels of a mask" if scale else "clipped to a window or scaled"
        return f"they differ by less than lung and tissue do, as if they were {likely}"
    if share(AIR, -50) < MIN_AIR_OR_FAT:
        if share(32767, 1 << 15) > CUT_OFF and share(4000, 32767) < NEAR_CUT:
            return f"{share(32767, 1 << 15):.0%} are above 32766, as if negative values were read as unsigned"
        return NO_AIR
    low, high = np.flatnonzero(counts)[[0, -1]] + AIR
    if low > MAX_FLOOR and share(low, low + 1) > CUT_OFF and share(low + 1, low + 50) > NEAR_CUT:
        return f"none is below {low}, where {share(low, low + 1):.0%} are, as if they were clipped to a window"
    if high < MIN_CEILING and share(high, high + 1) > CUT_OFF and share(high - 50, high) > NEAR_CUT:
        return f"none is above {high}, where {share(high, high + 1):.0%} are, as if they were clipped to a window"
    filled = _why_filled(array, counts)
    if filled:
        return filled
    if share(600, 1 << 15) > MAX_DENSE or (
        share(-1000, -600) < MIN_LUNG and share(600, 1 << 15) > MAX_BONE_WITHOUT_LUNG
    ):
        return "too many are as dense as bone, as if the image was inverted, or no CT"
    if share(600, 1 << 15) > MAX_DENSE_FOR_TISSUE * share(-200, 300):
        return "more are as dense as bone than as soft tissue, as if the RescaleSlope was lost or applied twice"
    between = share(-600, -440)
    if between > MAX_BETWEEN_FOR_LUNG * share(-800, -640) and between > MAX_BETWEEN_FOR_TISSUE * share(-200, 300):
        return "most tissue is as thin as ground glass, as if the RescaleSlope was lost or applied twice"
    if share(-200, 1 << 15) < MIN_TISSUE:
        return "none is that of soft tissue, as if what lies around the lung was cut away"
    return None


def _why_peak(shares: np.ndarray) -> str | None:
    """Return why many values lie between those of lung and of soft tissue, where a chest has few, or None.

    Args:
      shares: of each value from `AIR` on.
    """
    bins = shares[: (600 - AIR) // 10 * 10].reshape(-1, 10).sum(axis=1)  # of 10 HU
    smooth = ndimage.gaussian_filter1d(bins, 2.5)
    for value in PEAKS:
        at = (value - AIR) // 10
        valley = max(smooth[at - 20 : at].min(), smooth[at + 1 : at + 21].min())
        highest = smooth[at] >= smooth[at - 3 : at + 4].max()
        if highest and smooth[at] > MIN_PEAK * valley and bins[at - 5 : at + 6].sum() > MIN_AT_PEAK:
            return f"many lie around {value}, between lung and soft tissue, {DISPLACED}"
    return None


def _why_filled(array: np.ndarray, counts: np.ndarray) -> str | None:
    """Return why a part of the CT seems to be replaced by a constant, or None if it does not.

    Air around the body and the value at which a CT was cut off are not what a part is replaced by. In a drawn image,
    which has no noise, other values are frequent as well.

    Args:
      array: (d, h, w) int16.
      counts: of its values from `AIR` on, without padding.
    """
    top = np.flatnonzero(counts)[-1]
    cut_off = counts[top - 50 : top].sum() > NEAR_CUT * counts.sum()
    inner = counts[MAX_AIR - AIR : top if cut_off else top + 1] / counts.sum()
    if len(inner) < 2:
        return None
    second, first = np.sort(inner)[-2:]
    value = int(inner.argmax()) + MAX_AIR
    corners = array[len(array) // 2][[0, 0, -1, -1], [0, -1, 0, -1]]
    if first < FILLED or second > min(first / FILLED_FOR_NEXT, DRAWN * (1 - first)):
        return None
    if first < FILLED_OUTSIDE and (corners == value).all():
        return None
    if value == np.flatnonzero(counts)[0] + AIR and inner[value - MAX_AIR :][1:50].sum() > NEAR_CUT:
        return f"none is below {value}, where {first:.0%} are, as if they were clipped to a window"
    return f"{first:.0%} are exactly {value}, as if a part of the CT was cut out and filled"


def _peaks_at_bottom(share: Callable[[int, int], float]) -> bool:
    """Return whether soft tissue seems to lie at -1000 HU, unlike an emphysema, whose values rise towards -1024."""
    return share(-1010, -960) / 50 > 1.1 * share(-1023, -1010) / 13
