"""Whether the slices of a volume follow one another, as far as their values tell.

Slices that were stacked by name (1, 10, 11, 2), or of which one is flipped or of another image, are each a good slice.
But where they are in order, a slice differs from the next one about as much as the slices around do from theirs, and
less than from any other. Motion, a missing slice or the end of the lung make a step as well. But then no other slice
fits better.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SIDE = 32  # pixels in each direction that are compared, to save time
ROWS = 64  # slices that are compared with all others
WINDOW_HU = -1000, 300  # beyond which differences are those of air and metal
NOISE_HU = 5  # smallest difference of two slices that are no copies
MAX_COPIED = 0.5  # share of the voxels that may differ between a slice and its copy
MIN_SLICES = 10  # fewer tell nothing
AROUND = 3  # differences to either side with whose median one is compared
# Differences relative to those around. In real CTs, a step is below 2.6, and a slice that differs from both its
# neighbours below 1.8.
STEP, ALIEN = 2.0, 3.0
FITS = 1.4  # of two slices that belong together; those after a gap or motion differ by 1.7 or more
MAX_ALIEN = 4  # slices beside each other that are of another image; of more, the values tell
APART = 3  # slices between which others do not belong, at least
TURNED: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # how the slices of a part may have been changed
    "mirrored": np.fliplr,
    "upside down": np.flipud,
    "turned by 180 degrees": lambda plane: plane[::-1, ::-1],
    "turned by 90 degrees": np.rot90,
    "turned by 270 degrees": lambda plane: np.rot90(plane, 3),
}
# Median of the difference of a slice from its neighbours relative to that from any other: below 1 in real CTs.
MAX_FROM_NEIGHBOUR = 1.25


class _Slices(NamedTuple):
    """Slices that are compared.

    Attributes:
      number: (n,) of each in the volume, from 1.
      values: (n, pixels) int16, within `WINDOW_HU`.
      near: (n - 1,) difference of each from the next one.
      around: (n - 1,) median of those differences around each.
    """

    number: np.ndarray
    values: np.ndarray
    near: np.ndarray
    around: np.ndarray


def why_out_of_order(array: np.ndarray) -> str | None:
    """Return why the slices of a volume do not follow one another, or None if they do or are too few to tell.

    Args:
      array: (d, h, w) int16 HU.
    """
    slices = _compared(array)
    if slices is None:
        return None
    if _from_neighbour(slices.values) > MAX_FROM_NEIGHBOUR:
        return "most slices fit others better than those beside them, as if they were stacked in the wrong order"
    return _why_rearranged(slices) or _why_alien(slices) or _why_turned(array, slices)


def parts(array: np.ndarray) -> list[tuple[int, int]]:
    """Return the ranges of slices (first, last + 1) into which steps cut a volume; none if there is no step.

    Args:
      array: (d, h, w) int16 HU.
    """
    slices = _compared(array)
    if slices is None:
        return []
    begins = slices.number[_steps(slices) + 1] - 1
    return list(pairwise([0, *begins.tolist(), len(array)])) if len(begins) else []


def _compared(array: np.ndarray) -> _Slices | None:
    """Return the slices without empty ones and copies of the one before; None for too few, or a mirrored volume."""
    step_h, step_w = (max(1, side // SIDE) for side in array.shape[1:])
    values = np.clip(array[:, ::step_h, ::step_w], *WINDOW_HU).reshape(len(array), -1)
    number = np.flatnonzero(values.min(axis=1) < values.max(axis=1))
    fresh = [True, *(not _copied(*values[number[[i - 1, i]]]) for i in range(1, len(number)))]
    number = number[np.array(fresh[: len(number)], bool)]
    values = values[number]
    if len(number) < MIN_SLICES or any(map(_copied, values, values[2:])):
        return None
    near = np.array([_difference(*pair) for pair in zip(values, values[1:], strict=False)])
    around = [np.median([*near[max(0, i - AROUND) : i], *near[i + 1 : i + 1 + AROUND]]) for i in range(len(near))]
    return _Slices(number + 1, values, near, np.maximum(around, NOISE_HU))


def _from_neighbour(values: np.ndarray) -> float:
    """Return how much a slice differs from the more similar neighbour, relative to the most similar other slice."""
    ratios = []
    for row in np.unique(np.linspace(1, len(values) - 2, ROWS).astype(int)):
        differences = np.maximum(np.abs(values - values[row]).mean(axis=1), NOISE_HU)
        others = np.delete(differences, [row - 1, row, row + 1])
        ratios.append(differences[[row - 1, row + 1]].min() / others.min())
    return float(np.median(ratios))


def _why_alien(slices: _Slices) -> str | None:
    """Return which slice, or few slices, differ from those beside them far more than these do from each other."""
    steps = np.flatnonzero(slices.near > ALIEN * slices.around)
    for i, j in ((i, j) for i in steps for j in steps if i < j <= i + MAX_ALIEN):
        if _difference(*slices.values[[i, j + 1]]) < min(slices.near[[i, j]]):
            before, first, last, after = slices.number[[i, i + 1, j, j + 1]]
            which = f"slice {first} fits" if first == last else f"slices {first} to {last} fit"
            return f"{which} neither {before} nor {after}, as if flipped, scaled or of another image"
    return None


def _steps(slices: _Slices) -> np.ndarray:
    """Return the indices of the slices after which there is a step."""
    return np.flatnonzero(slices.near > STEP * slices.around)


def _why_turned(array: np.ndarray, slices: _Slices) -> str | None:
    """Return after which slice the others fit once they are flipped or turned."""
    step_h, step_w = (max(1, side // SIDE) for side in array.shape[1:])
    for i in _steps(slices):
        before, after = slices.number[i], slices.number[i + 1]
        low, high = np.clip(array[[before - 1, after - 1]], *WINDOW_HU)
        for name, turn in TURNED.items():
            turned = turn(high)
            if turned.shape != low.shape:
                continue
            if _difference(low[::step_h, ::step_w], turned[::step_h, ::step_w]) < FITS * slices.around[i]:
                return f"slices {before} and {after} fit once one is {name}, as if these were of two orientations"
    return None


def _why_rearranged(slices: _Slices) -> str | None:
    """Return which two slices that are apart fit, where the volume is cut into parts at its steps."""
    steps = _steps(slices)
    last = len(slices.values) - 1
    if not len(steps):
        return None
    # The ends of the parts, in order: the first part begins at 0 and ends at the first step.
    ends = np.array([0, *np.stack([steps, steps + 1], axis=1).ravel(), last])
    around = slices.around[[0, *np.repeat(steps, 2), last - 1]]
    part = np.arange(len(ends)) // 2
    for one in range(len(ends)):
        differences = np.abs(slices.values[ends] - slices.values[ends[one]]).mean(axis=1)
        fits = (differences < FITS * np.maximum(around, around[one])) & (differences > NOISE_HU)
        fits &= (part > part[one]) & (ends - ends[one] > APART)
        if fits.any():
            first, second = slices.number[ends[one]], slices.number[ends[fits.argmax()]]
            return f"slices {first} and {second} fit each other, as if the slices were stacked in the wrong order"
    return None


def _copied(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether one slice is a copy of another, but for some voxels, where these are not air in both."""
    known = np.maximum(one, other) > WINDOW_HU[0]
    return bool((one != other)[known].mean() <= MAX_COPIED) if known.any() else True


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())
