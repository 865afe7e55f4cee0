"""Sets of classes that hold the readers' class in a stated share of nodules (conformal prediction).

A set grows from the likeliest class, one class after the other, until it is large enough. How large is decided on the
validation nodules of a fold, which the network was not trained on. An ordinal rating takes the likelier neighbour each
time, so that its set is a run of neighbouring classes (Lu, Angelopoulos and Pomerantz, "Improving trustworthiness of
AI disease severity rating in medical imaging with ordinal conformal prediction sets", MICCAI 2022); a nominal one
takes the likeliest class that is left (Romano, Sesia and Candès, "Classification with valid and adaptive coverage",
NeurIPS 2020).

Nodules of one patient are alike, so the patients are what is exchangeable: each counts once, however many nodules it
has (Lee, Barber and Willett, "Distribution-free inference with hierarchical data", JRSSB 2025).
"""

import numpy as np

from pnsamp_jax.data import schema

COVERAGES = (0.8, 0.9)
# Malignancy has a limit for each of these groups of classes, so that the coverage holds for nodules that the readers
# take for benign, for indeterminate and for suspicious ones alike. The other ratings have one limit for all classes.
MALIGNANCY_GROUPS = ((1, 2), (3,), (4, 5))


def mass_before(probabilities: np.ndarray, nominal: bool = False) -> np.ndarray:
    """Return the probability of the classes that enter a growing set before each class; 0 for the likeliest class.

    Args:
      probabilities: (N, K).
      nominal: whether the classes have no order.

    Returns:
      (N, K) in 0..1.
    """
    count, classes = probabilities.shape
    rows = np.arange(count)
    before, mass = np.zeros((count, classes)), probabilities.max(axis=1)
    if nominal:
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=1)
        np.put_along_axis(before, order, ordered.cumsum(axis=1) - ordered, axis=1)
        return before.clip(0, 1)
    lowest = highest = probabilities.argmax(axis=1)
    walled = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)  # class k - 1 at index k
    for _ in range(classes - 1):
        down = walled[rows, lowest] >= walled[rows, highest + 2]
        lowest, highest = np.where(down, lowest - 1, lowest), np.where(down, highest, highest + 1)
        entering = np.where(down, lowest, highest)
        before[rows, entering] = mass
        mass = mass + probabilities[rows, entering]
    return before.clip(0, 1)  # sums of float32 may exceed 1, and a class is in every set whose limit is 1


def patient_quantile(scores: np.ndarray, patients: np.ndarray, coverage: float) -> float:
    """Return the limit that a nodule of a new patient stays within, with at least this probability.

    Each of P patients has the weight 1 / (P + 1), shared by the patient's nodules, and so has the new one, whose score
    may be infinite. The limit is infinite where there are too few patients.

    Args:
      scores: (N,).
      patients: (N,) ids.
      coverage: between 0 and 1.
    """
    _, index, counts = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / counts[index][order]) / (len(counts) + 1)
    enough = reached >= coverage - 1e-12  # that sums of thirds and the like may miss by rounding
    return float(scores[order][enough.argmax()]) if enough.any() else float("inf")


def fit_limits(probabilities: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Find how much mass a class may have before it and still belong to the set.

    Args:
      probabilities: (N, 9, 6) of nodules that the network was not trained on.
      truth: (N, 9) int, 0 where there is no rating.
      patients: (N,) ids.

    Returns:
      (2, 9, 6): by `COVERAGES`, rating and class. 1 where there are too few patients, so that the class is in every
      set, and 0 for classes that do not exist.
    """
    limits = np.zeros((len(COVERAGES), *schema.CLASS_EXISTS.shape))
    for index, rating in enumerate(schema.RATINGS):
        before = mass_before(probabilities[:, index, : rating.classes], rating.nominal)
        for group in _groups(rating):
            chosen = np.isin(truth[:, index], group)
            scores = before[chosen, truth[chosen, index] - 1]
            for level, coverage in enumerate(COVERAGES):
                limit = patient_quantile(scores, patients[chosen], coverage) if chosen.any() else 1.0
                limits[level, index, np.array(group) - 1] = min(limit, 1.0)
    return limits


def class_sets(probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return which classes are in the sets.

    The classes of an ordinal rating that lie between two classes of a set belong to it too.

    Args:
      probabilities: (N, 9, 6).
      limits: (..., 9, 6), see `fit_limits`.

    Returns:
      (..., N, 9, 6) bool.
    """
    sets = np.zeros((*limits.shape[:-2], *probabilities.shape), bool)
    for index, rating in enumerate(schema.RATINGS):
        before = mass_before(probabilities[:, index, : rating.classes], rating.nominal)
        sets[..., index, : rating.classes] = before <= limits[..., None, index, : rating.classes]
    return _without_gaps(sets)


def merge(sets: np.ndarray) -> np.ndarray:
    """Merge the sets of several networks into one: the classes that are in at least half of them.

    This is a majority vote (Gasparin and Ramdas, "Merging uncertainty sets via majority vote", 2024). Where no class
    has half of the votes, those with the most are taken.

    Args:
      sets: (M, ..., 9, 6) bool.

    Returns:
      (..., 9, 6) bool.
    """
    votes = sets.sum(axis=0)
    needed = np.minimum((len(sets) + 1) // 2, votes.max(axis=-1, keepdims=True))
    return _without_gaps((votes >= needed) & (votes > 0))


def _groups(rating: schema.Rating) -> tuple[tuple[int, ...], ...]:
    if rating.name == schema.RATING_NAMES[schema.MALIGNANCY]:
        return MALIGNANCY_GROUPS
    return (tuple(range(1, rating.classes + 1)),)


def _without_gaps(sets: np.ndarray) -> np.ndarray:
    """Add to the sets (..., 9, 6) of ordinal ratings the classes between two of their classes."""
    from_below = np.logical_or.accumulate(sets, axis=-1)
    from_above = np.logical_or.accumulate(sets[..., ::-1], axis=-1)[..., ::-1]
    return np.where(schema.NOMINAL[:, None], sets, from_below & from_above)
