"""The values of a mask with one bit per reader, and how they are told from labels, probabilities and votes."""

from pathlib import Path

import numpy as np

from pnsamp_jax.ct.volume import AIR
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.errors import UserError

MAX_COMBINATIONS = 15  # of four readers, the most that marked a nodule of LIDC-IDRI
MAX_VOTES = 8  # readers of one nodule, where no table says how many there were
MAX_TOGETHER = 0.2  # share of steps between voxels at which two outlines run together; LIDC-IDRI's largest is 0.17


def split_bits(path: Path, bits: np.ndarray, nodule: Nodule) -> list[np.ndarray]:
    """Return the masks of the readers.

    Args:
      path: of the mask.
      bits: (d, h, w) its values, bit r for reader r; or 0 and 255 for one reader.
      nodule: with its ratings, one row per reader, or none.

    Returns:
      (d, h, w) of 0 and 1 for each reader who marked a voxel.

    Raises:
      UserError: the values cannot be one bit per reader.
    """
    for value in (bits.min(), bits.max()):
        if not 0 <= value <= 255:
            shown = f"{value} or NaN" if value == AIR else value
            raise UserError(f"{path}: contains {shown}; a mask has 0/1, or 0..255 with one bit per reader")
    if np.isin(bits, (0, 255)).all():  # another way to write one mask, rather than eight readers who agree
        bits = bits > 0
    readers = [bits >> bit & 1 for bit in range(8) if (bits >> bit & 1).any()]
    values = [int(value) for value in np.unique(bits[bits > 0])]
    _require_bits(path, values, len(readers), nodule)
    if len(values) > 1:
        _require_no_votes(path, bits, values, len(nodule.ratings))
    return readers


def _require_bits(path: Path, values: list[int], readers: int, nodule: Nodule) -> None:
    """Raise UserError if the values of a mask cannot be one bit per reader, as those of a label map or interpolation.

    Args:
      path: of the mask.
      values: which values it has, except 0.
      readers: number of different bits in them.
      nodule: with its ratings, one row per reader, or none.
    """
    rated = len(nodule.ratings)
    # Two readers may agree in every voxel, as ten times in LIDC-IDRI; three never do there.
    alike = len(values) == 1 and readers > (2 if rated else 1)
    if not rated and len(values) > MAX_COMBINATIONS:
        raise UserError(
            f"{path}: has {len(values)} different values, as of probabilities rather than bits of readers; save 1 "
            "where the nodule is and 0 elsewhere"
        )
    if readers > rated > 0 or alike:
        raise UserError(
            f"{path}: its values ({_shown(values)}) would be the bits of {readers} readers"
            + (" who agree in every voxel" if alike else f", but ratings.csv has {rated} for '{nodule.nodule_id}'")
            + "; if they are labels, name the nodule's in a column mask_label of nodules.csv"
        )


def _require_no_votes(path: Path, bits: np.ndarray, values: list[int], rated: int) -> None:
    """Raise UserError if the values of a mask count the readers who agree at a voxel, or number its regions.

    Taken for bits, they would give readers who meet but share no voxel; in LIDC-IDRI, the only two who share none lie
    apart. Or they would give outlines that often run together, as where one reader more agrees and 1 becomes 2, and
    are seldom crossed alone, as where 1 becomes 3.

    Args:
      path: of the mask.
      bits: (d, h, w) its values.
      values: those that it has, except 0, in ascending order; two or more.
      rated: number of readers who rated the nodule, 0 if it is not known.
    """
    steps = _steps(bits)
    alone = {value for value in values if not value & (value - 1) and not any(value & o for o in values if o != value)}
    meet = any(low and {low, high} & alone for low, high in steps)
    together = sum(count for (low, high), count in steps.items() if high - low == 1 and (low ^ high).bit_count() > 1)
    crossed = sum(count for (low, high), count in steps.items() if high - low > 1 and (low ^ high).bit_count() == 1)
    may_count = values == list(range(1, values[-1] + 1)) and values[-1] <= (rated or MAX_VOTES)
    if meet or (may_count and together > MAX_TOGETHER * (together + crossed)):
        raise UserError(
            f"{path}: its values ({_shown(values)}) are labels or numbers of readers who agree, rather than bits; add "
            "1 where the first reader marked the voxel, 2 for the second, 4 for the third, and so on, or name the "
            "nodule's label in a column mask_label of nodules.csv"
        )


def _steps(bits: np.ndarray) -> dict[tuple[int, int], int]:
    """Return how many pairs of neighbouring voxels have two different values, by the lower and the higher value."""
    index = np.argwhere(bits)
    box = np.pad(bits[tuple(map(slice, index.min(axis=0), index.max(axis=0) + 1))].astype(int), 1)
    found: dict[tuple[int, int], int] = {}
    for axis in range(3):
        one, other = (np.delete(box, end, axis) for end in (0, -1))
        pairs = np.sort(np.stack([one, other], axis=-1)[one != other], axis=1)
        for (low, high), count in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
            found[int(low), int(high)] = found.get((int(low), int(high)), 0) + int(count)
    return found


def _shown(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
