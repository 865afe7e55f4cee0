"""Whether the slices of a volume belong together, as far as their values tell.

A slice whose scale differs from that of its neighbours, slices whose pixels were lost, rows of a wrong length, or two
images whose slices take turns look like HU in the distribution of all values, but not from one slice, or one row, to
the next. The order of slices is looked at by `slice_order`.
"""

import numpy as np

from pnsamp_jax.ct.slice_order import MAX_COPIED, WINDOW_HU, why_out_of_order
from pnsamp_jax.ct.volume import AIR

JUMP_HU = 500  # a missing RescaleIntercept shifts by about 1024; lung and tissue differ by about 900 ...
JUMP_SHARE = 0.95  # ... but never in nearly all voxels of two neighbouring slices
MIN_KNOWN = 0.02  # share of a slice that is no padding; less tells nothing
MIN_BODY = 0.1  # share of a slice that is no padding, between which no slice is empty
DENSE, MIN_DENSE = -500, 0.25  # HU, and share of a row that is denser, between which no row is empty ...
MIN_LOST = 0.1  # ... in this share of a slice's rows
MAX_ROWS = 4.0  # difference of neighbouring rows, relative to that of neighbouring columns; up to 2.7 in real CTs
LOOKED_AT = 16  # slices whose rows are compared, to save time
MIN_SLICES = 6  # of a volume whose slices may take turns
MAX_TURNS = 1.1  # difference of neighbours, relative to that of every second slice; below 0.7 in real CTs
# Voxels with the largest value of a slice that was scaled on its own, and share of those up to 50 HU below it; where a
# CT is cut off lie more.
MAX_AT_TOP, MAX_NEAR_TOP = 3, 0.005
SATURATED = 3000  # HU of metal, which may end many slices
SIDE = 128  # pixels in each direction that are looked at, to save time


def why_slices_differ(array: np.ndarray) -> str | None:
    """Return why the slices of a volume cannot be those of one CT, or None if they can be.

    Args:
      array: (d, h, w) int16 HU, in which padding and values below `AIR` are `AIR`.
    """
    step_h, step_w = (max(1, side // SIDE) for side in array.shape[1:])
    planes = array[:, ::step_h, ::step_w]
    for index in range(1, len(planes)):
        low, high = planes[index - 1], planes[index]
        known = (low > AIR) & (high > AIR)
        if known.mean() >= MIN_KNOWN:
            rise = high[known].astype(np.int32) - low[known]
            if max((rise > JUMP_HU).mean(), (rise < -JUMP_HU).mean()) > JUMP_SHARE:
                side = "above" if rise.mean() > 0 else "below"
                return (
                    f"slice {index + 1} lies about {abs(np.median(rise)):.0f} {side} slice {index}, as if the "
                    "RescaleIntercept of one of them was lost or applied twice"
                )
    lost = _why_lost(planes)
    if lost:
        return lost
    if _turns(planes) > MAX_TURNS:
        return "every second slice is of another image, as if two acquisitions or reconstructions were mixed"
    reason = why_out_of_order(array)
    if reason:
        return reason
    tops = array.max(axis=(1, 2))
    if AIR < tops[0] < SATURATED and (tops == tops[0]).all() and _few_at_top(array, tops[0]):
        return f"every slice ends at {tops[0]}, as if each was scaled on its own"
    return None


def why_rows_differ(array: np.ndarray, spacing: np.ndarray) -> str | None:
    """Return why the rows of a volume seem to have another length, or None if they do not.

    Where two numbers of a header are exchanged, or one is wrong, each row goes on where the last one ended, at another
    place of the body. Then neighbouring rows differ far more than neighbouring columns.

    Args:
      array: (d, h, w) int16 HU, in the order in which a file stores it.
      spacing: (3,) mm of its voxels, which are less alike the farther they are apart.
    """
    planes = array[np.unique(np.linspace(0, len(array) - 1, LOOKED_AT).astype(int))]
    known, hu = planes > AIR, np.clip(planes, *WINDOW_HU).astype(np.int32)
    pairs = known[:, 1:] & known[:, :-1], known[..., 1:] & known[..., :-1]
    if min(pair.mean() for pair in pairs) < MIN_KNOWN:
        return None
    rows, columns = (np.abs(np.diff(hu, axis=axis))[pair].mean() for axis, pair in zip((1, 2), pairs, strict=True))
    if rows > MAX_ROWS * max(1.0, spacing[1] / spacing[2]) * columns:
        return (
            f"neighbouring rows of {array.shape[2]} voxels differ {rows / max(columns, 1e-9):.0f} times as much as "
            "neighbouring columns, as if rows had another length"
        )
    return None


def _why_lost(planes: np.ndarray) -> str | None:
    """Return which slices are constant, or constant in some rows, between slices that hold a body there; or None."""
    constant = planes.min(axis=2) == planes.max(axis=2)  # (d, h), of each row
    empty = planes.min(axis=(1, 2)) == planes.max(axis=(1, 2))
    whole = _between(empty, (planes > AIR).mean(axis=(1, 2)) >= MIN_BODY)
    partly = _between(constant, (planes > DENSE).mean(axis=2) >= MIN_DENSE).mean(axis=1) > MIN_LOST
    for how, lost in (("", whole), ("partly ", partly)):
        if lost.any():
            first = int(lost.argmax())
            last = first + int((~lost[first:]).argmax() or len(lost) - first) - 1
            which = f"slice {first + 1} is" if first == last else f"slices {first + 1} to {last + 1} are"
            return f"{which} {how}empty between slices that are not, as if pixels were lost"
    return None


def _between(constant: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return what is constant in a run of slices between two that are full: (d, ...) bool each."""
    before = full & ~constant
    after = before.copy()
    for i in range(1, len(full)):
        before[i] |= constant[i] & before[i - 1]
        after[-1 - i] |= constant[-1 - i] & after[-i]
    return constant & before & after


def _few_at_top(array: np.ndarray, top: int) -> bool:
    """Return whether few voxels of each slice have the largest value, and at other places in other slices.

    In copies of a slice, with which a short volume was made longer, they lie at the same place.
    """
    at_top = [np.flatnonzero(plane == top) for plane in array]
    places = {int(found[0]) for found in at_top}
    if len(places) < MIN_SLICES or float(np.median([len(found) for found in at_top])) > MAX_AT_TOP:
        return False
    return float((array > top - 50).mean()) <= MAX_NEAR_TOP


def _turns(planes: np.ndarray) -> float:
    """Return how much neighbouring planes differ, relative to every second plane; 0 for too few.

    Copies do not count: where a short volume was mirrored to make it longer, every second plane is the same.
    """
    pairs = [
        (_difference(planes[i], planes[i + 1]), _difference(planes[i], planes[i + 2]))
        for i in range(len(planes) - 2)
        if (planes[i] != planes[i + 2]).mean() > MAX_COPIED
    ]
    near, far = np.mean(pairs, axis=0) if len(pairs) >= MIN_SLICES - 2 else (0.0, 1.0)
    return float(near / far) if far else 0.0


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(np.clip(one, *WINDOW_HU) - np.clip(other, *WINDOW_HU)).mean())
