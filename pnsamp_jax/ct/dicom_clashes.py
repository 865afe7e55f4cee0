"""Why different images of a DICOM series may lie at one depth."""

from collections.abc import Sequence

import numpy as np

from pnsamp_jax.ct.dicom_agreement import SAME_MM
from pnsamp_jax.ct.dicom_slices import Slice
from pnsamp_jax.errors import UserError

LOCATION = "SliceLocation"  # which may tell slices apart whose positions were rounded
MAX_RESENT = 3  # images at the depths of others that are taken for slices which were sent twice, ...
SLICES_PER_RESENT = 4  # ... if there are this many slices for each


def clash(slices: Sequence[Slice], depths: np.ndarray, pairs: Sequence[tuple[Slice, Slice]]) -> UserError:
    """Return the error for different images at one depth, which names the likely cause.

    Args:
      slices: all of the series, in ascending order.
      depths: (n,) of theirs in mm.
      pairs: of different images at one depth.
    """
    first, other = pairs[0]
    what = f"{other.name}: has the same depth as {first.name} but is a different image"
    apart = any(abs(one.measures[LOCATION] - another.measures[LOCATION]) >= SAME_MM for one, another in pairs)
    if (apart or len(pairs) > MAX_RESENT) and _are_rounded(depths):
        return UserError(
            f"{what}, and all depths are whole numbers of mm, as if ImagePositionPatient was rounded although the "
            "slices lie closer; export the series again with its exact positions"
        )
    series = slices[0].shared["SeriesInstanceUID"]
    alike = not apart and all(one.marks == another.marks for one, another in pairs)
    if alike and len(pairs) <= MAX_RESENT and len(slices) >= SLICES_PER_RESENT * len(pairs):
        return UserError(
            f"{what}, as if it was sent twice and changed in between; keep one of the two in series {series}"
        )
    return UserError(f"{what}; keep only one phase or reconstruction of series {series}")


def _are_rounded(depths: np.ndarray) -> bool:
    """Return whether depths (n,) in mm are whole numbers without gaps, of which some occur more often than others.

    Those of two volumes occur equally often.
    """
    whole, counts = np.unique(np.rint(depths), return_counts=True)
    exact = np.abs(depths - np.rint(depths)).max() < SAME_MM
    return bool(exact and len(whole) > 1 and np.median(np.diff(whole)) == 1 and counts.min() < counts.max())
