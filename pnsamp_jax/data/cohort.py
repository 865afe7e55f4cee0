"""The label policy: how several readers' ratings become one label, and which nodules take part.

Written once, here. Facts of LIDC-IDRI that it rests on:

* A nodule's rating is the mean over the readers who marked it; its class is that mean rounded half *up*
  (`floor(mean + 0.5)`). `np.round` rounds half to even and would move 2.5 to 2.
* Calcification is nominal (6 = absent), yet the literature averages it like the others; so do we.
* One record gives internal structure as 5, a class that does not exist. It is taken as missing, and the
  reader's other ratings stand.
* Malignancy is the readers' suspicion, not a diagnosis. "benign" below means rated under 3, "malignant" over 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

CLASS_VALUES = np.arange(1, schema.MAX_CLASSES + 1)


@dataclass(frozen=True)
class Nodule:
    """One physical nodule and what its readers said of it.

    Attributes:
      nodule_id: unique name, `<patient_id>_n<index>`.
      patient_id: whom it belongs to; folds never divide a patient.
      ratings: (readers, 9) int array in the order of `schema.RATINGS`; 0 is a missing rating.
    """

    nodule_id: str
    patient_id: str
    ratings: np.ndarray

    @property
    def rating_counts(self) -> np.ndarray:
        """(9, 6) uint8, see `count_ratings`."""
        return count_ratings(self.ratings)


def count_ratings(ratings: np.ndarray) -> np.ndarray:
    """Counts the readers who gave each class.

    Args:
      ratings: (readers, 9) int array; values outside a rating's classes (0 among them) count for nobody.

    Returns:
      (9, 6) uint8.
    """
    chosen = np.asarray(ratings)[:, :, None] == CLASS_VALUES
    return (chosen & schema.CLASS_EXISTS).sum(axis=0).astype(np.uint8)


def mean_rating(rating_counts: np.ndarray) -> np.ndarray:
    """Mean rating of each row of rating_counts (..., 6) -> (...) float64, NaN where nobody rated."""
    counts = rating_counts.sum(axis=-1)
    total = (rating_counts * CLASS_VALUES).sum(axis=-1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def rounded_rating(rating_counts: np.ndarray) -> np.ndarray:
    """The class of each row of rating_counts (..., 6) -> (...) int64: the mean rounded half up, 0 where nobody rated."""
    return np.nan_to_num(np.floor(mean_rating(rating_counts) + 0.5)).astype(np.int64)


def median_rating(rating_counts: np.ndarray) -> np.ndarray:
    """Median rating of each row of rating_counts (..., 6) -> (...) float64, NaN where nobody rated."""
    counts = rating_counts.sum(axis=-1)
    below = np.cumsum(rating_counts, axis=-1)
    # The median is the mean of the two middle readers, the one middle reader counted twice when the count is odd.
    lower = 1 + (below <= ((counts - 1) // 2)[..., None]).sum(axis=-1)
    upper = 1 + (below <= (counts // 2)[..., None]).sum(axis=-1)
    return np.where(counts > 0, (lower + upper) / 2, np.nan)


# Each cohort leaves out the nodules whose malignancy, so summarised, is exactly 3.
SUMMARIES = {"rounded_ne_3": rounded_rating, "mean_ne_3": mean_rating, "median_ne_3": median_rating}
COHORTS = (*SUMMARIES, "all")


def suspicion(rating_counts: np.ndarray, cohort: str) -> np.ndarray:
    """Sorts nodules by the readers' suspicion of malignancy.

    Args:
      rating_counts: (nodules, 9, 6) rating_counts.
      cohort: one of `COHORTS`; "all" summarises as "rounded_ne_3" does.

    Returns:
      (nodules,) int: -1 benign, +1 malignant, 0 in between or not rated.

    Raises:
      UserError: there is no such cohort.
    """
    if cohort not in COHORTS:
        raise UserError(f"config.data.cohort: no cohort '{cohort}'; choose from {', '.join(COHORTS)}")
    malignancy = rating_counts[:, schema.MALIGNANCY]
    summary = SUMMARIES.get(cohort, rounded_rating)(malignancy)
    rated = malignancy.sum(axis=-1) > 0
    return np.where(rated, np.sign(np.nan_to_num(summary, nan=3.0) - 3), 0).astype(int)


def members(rating_counts: np.ndarray, cohort: str, min_readers: int = 1) -> np.ndarray:
    """Which nodules belong to a cohort: (nodules,) bool.

    Args:
      rating_counts: (nodules, 9, 6) rating_counts.
      cohort: one of `COHORTS`.
      min_readers: least number of readers who rated the malignancy.
    """
    enough = rating_counts[:, schema.MALIGNANCY].sum(axis=-1) >= min_readers
    return enough & ((cohort == "all") | (suspicion(rating_counts, cohort) != 0))


def counts(nodules: Iterable[Nodule], cohort: str, min_readers: int = 1) -> dict[str, int]:
    """The size of a cohort: {"benign": n, "malignant": n}."""
    rating_counts = np.stack([nodule.rating_counts for nodule in nodules])
    signs = suspicion(rating_counts, cohort)[members(rating_counts, cohort, min_readers)]
    return {"benign": int((signs < 0).sum()), "malignant": int((signs > 0).sum())}
