"""The label policy: how the ratings of several readers become one label, and which nodules take part.

It is defined only here, and rests on these facts about LIDC-IDRI:

* A nodule's rating is the mean over the readers who marked it; its class is that mean rounded half *up*
  (`floor(mean + 0.5)`). `np.round` rounds half to even and would turn 2.5 into 2.
* Internal structure and calcification are nominal: their classes are kinds without an order. The mean of "solid" (3)
  and "absent" (6) is not "central" (5), which no reader may have seen. Their class is therefore the modal rating, the
  class that most readers chose. Ties (8 and 55 of the archive's 2,651 nodules) go to the class that LIDC-IDRI's
  readers chose most often (`TIE_ORDER`): with equal votes it is the likeliest beforehand, and the order is the same
  for every data set. The literature rounds the mean of these two as well, which `config.data.nominal=mean` does.
* One record gives internal structure as 5, a class that does not exist. That rating is treated as missing; the
  reader's other ratings are kept.
* Malignancy is the readers' suspicion, not a diagnosis. "benign" below means rated under 3, "malignant" over 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

CLASS_VALUES = np.arange(1, schema.MAX_CLASSES + 1)

NOMINAL_RULES = ("modal", "mean")  # how readers' nominal ratings become one class

# The classes of the nominal ratings by how often they were chosen in LIDC-IDRI's 6,859 annotations, which decides
# ties: internal structure 6819, 27, 11 and 1 times; calcification 6017, 709, 75, 42, 12 and 4 times.
TIE_ORDER = {"internal_structure": (1, 4, 2, 3), "calcification": (6, 3, 5, 4, 2, 1)}

# (9, 6) int: the same as a number for each class, the larger the earlier in the order; 0 for ordinal ratings.
TIE_RANK = np.array(
    [
        [len(order) - order.index(k) if k in order else 0 for k in CLASS_VALUES]
        for order in (TIE_ORDER.get(name, ()) for name in schema.RATING_NAMES)
    ]
)


@dataclass(frozen=True)
class Nodule:
    """A nodule and its readers' ratings.

    Attributes:
      nodule_id: unique name, `<patient_id>_n<index>`.
      patient_id: the patient whose nodule it is.
      ratings: (readers, 9) int array in the order of `schema.RATINGS`; 0 is a missing rating.
    """

    nodule_id: str
    patient_id: str
    ratings: np.ndarray

    @property
    def rating_counts(self) -> np.ndarray:
        """Return how many readers chose each class: (9, 6) uint8, see `count_ratings`."""
        return count_ratings(self.ratings)


def count_ratings(ratings: np.ndarray) -> np.ndarray:
    """Count how many readers chose each class.

    Args:
      ratings: (readers, 9) int array; values that are not a class of the rating, such as 0, are ignored.

    Returns:
      (9, 6) uint8.
    """
    chosen = np.asarray(ratings)[:, :, None] == CLASS_VALUES
    return (chosen & schema.CLASS_EXISTS).sum(axis=0).astype(np.uint8)


def mean_rating(rating_counts: np.ndarray) -> np.ndarray:
    """Return the mean rating of each row of (..., 6) rating counts: (...) float64, NaN without ratings."""
    counts = rating_counts.sum(axis=-1)
    total = (rating_counts * CLASS_VALUES).sum(axis=-1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def rounded_rating(rating_counts: np.ndarray) -> np.ndarray:
    """Return the mean rating rounded half up of each row of (..., 6) rating counts: (...) int64, 0 without ratings."""
    return np.nan_to_num(np.floor(mean_rating(rating_counts) + 0.5)).astype(np.int64)


def modal_rating(rating_counts: np.ndarray, tie_rank: np.ndarray) -> np.ndarray:
    """Return the class that most readers chose, of each row of (..., K) rating counts: (...) int64, 0 without ratings.

    A tie goes to the class with the largest `tie_rank`, (..., K) as in `TIE_RANK`.
    """
    # A rank is at most MAX_CLASSES, so it never outweighs a reader.
    score = rating_counts.astype(np.int64) * (schema.MAX_CLASSES + 1) + tie_rank
    return np.where(rating_counts.sum(axis=-1) > 0, np.argmax(score, axis=-1) + 1, 0)


def labels(rating_counts: np.ndarray, nominal: str) -> np.ndarray:
    """Return the class that each of the nine ratings counts as: (..., 9, 6) -> (..., 9) int64, 0 without ratings.

    That is the rounded mean. For the nominal ratings it is the modal rating instead, unless `nominal`, one of
    `NOMINAL_RULES`, is "mean".
    """
    result = rounded_rating(rating_counts)
    if nominal == "modal":
        of_nominal = rating_counts[..., schema.NOMINAL, :]
        result[..., schema.NOMINAL] = modal_rating(of_nominal, TIE_RANK[schema.NOMINAL])
    return result


def median_rating(rating_counts: np.ndarray) -> np.ndarray:
    """Return the median rating of each row of (..., 6) rating counts: (...) float64, NaN without ratings."""
    counts = rating_counts.sum(axis=-1)
    below = np.cumsum(rating_counts, axis=-1)
    # The median is the mean of the two middle readers; with an odd count both are the same reader.
    lower = 1 + (below <= ((counts - 1) // 2)[..., None]).sum(axis=-1)
    upper = 1 + (below <= (counts // 2)[..., None]).sum(axis=-1)
    return np.where(counts > 0, (lower + upper) / 2, np.nan)


# Each cohort excludes the nodules whose malignancy, summarised by this function, is exactly 3.
SUMMARIES = {"rounded_ne_3": rounded_rating, "mean_ne_3": mean_rating, "median_ne_3": median_rating}
COHORTS = (*SUMMARIES, "all")


def malignancy_sign(rating_counts: np.ndarray, cohort: str) -> np.ndarray:
    """Return on which side of 3 the readers rate the malignancy.

    Args:
      rating_counts: (nodules, 9, 6) readers per class.
      cohort: one of `COHORTS`; "all" summarises malignancy in the same way as "rounded_ne_3".

    Returns:
      (nodules,) int: -1 benign, +1 malignant, 0 exactly 3 or not rated.

    Raises:
      UserError: the cohort is unknown.
    """
    if cohort not in COHORTS:
        raise UserError(f"config.data.cohort: no cohort '{cohort}'; choose from {', '.join(COHORTS)}")
    malignancy = rating_counts[:, schema.MALIGNANCY]
    summary = SUMMARIES.get(cohort, rounded_rating)(malignancy)
    rated = malignancy.sum(axis=-1) > 0
    return np.where(rated, np.sign(np.nan_to_num(summary, nan=3.0) - 3), 0).astype(int)


def members(rating_counts: np.ndarray, cohort: str, min_readers: int = 1) -> np.ndarray:
    """Return which nodules belong to a cohort: (nodules,) bool.

    Args:
      rating_counts: (nodules, 9, 6) readers per class.
      cohort: one of `COHORTS`.
      min_readers: least number of readers who rated the malignancy.

    Raises:
      UserError: the cohort is unknown.
    """
    enough = rating_counts[:, schema.MALIGNANCY].sum(axis=-1) >= min_readers
    return enough & ((cohort == "all") | (malignancy_sign(rating_counts, cohort) != 0))


def counts(nodules: Iterable[Nodule], cohort: str, min_readers: int = 1) -> dict[str, int]:
    """Count the nodules of a cohort: {"benign": n, "malignant": n}."""
    rating_counts = np.stack([nodule.rating_counts for nodule in nodules])
    signs = malignancy_sign(rating_counts, cohort)[members(rating_counts, cohort, min_readers)]
    return {"benign": int((signs < 0).sum()), "malignant": int((signs > 0).sum())}
