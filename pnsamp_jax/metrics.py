"""Metrics of predicted ratings: decoding of probabilities, accuracies, agreement and calibration.

Pure NumPy. Shapes: N nodules, K classes of one rating. `truth` (N,) int is 1..K, or 0 where the nodule lacks the
rating; `probabilities` (N, K) and `rating_counts` (N, K) hold class k at index k-1.

Missing ratings: the score of a nodule is NaN where its truth is 0, and means leave out NaN. The n of a metric is
therefore the number of scores that are not NaN. An undefined metric is NaN, without a warning.

`weights` (N,) holds how often each nodule counts, as in a bootstrap (see `intervals`), which avoids copying rows; a
weight of 0 leaves the nodule out.
"""

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax.data import cohort

TIE = 1e-6  # sums of three float32 probabilities that differ by less are equal up to rounding
NAN = float("nan")


def arg_max(probabilities: ArrayLike) -> np.ndarray:
    """Return the likeliest class, the smallest in a tie: (N, K) -> (N,) int."""
    return np.argmax(probabilities, axis=-1) + 1


def best_within_one(probabilities: ArrayLike) -> np.ndarray:
    """Return the class with the best chance of being within one of the truth: (N, K) -> (N,) int.

    This is argmax_k P(k-1) + P(k) + P(k+1) with P(0) = P(K+1) = 0, which maximises the expected off-by-one accuracy.
    Ties (sums that differ by at most `TIE`) go to the class with the largest P(k), then to the smallest class.
    Trailing zero columns for classes that do not exist are harmless: the last existing class wins against them.
    """
    own = np.asarray(probabilities, dtype=np.float64)
    padded = np.pad(own, ((0, 0), (1, 1)))
    within = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    best = within >= within.max(axis=-1, keepdims=True) - TIE
    return np.argmax(np.where(best, own, -1.0), axis=-1) + 1


def expected(probabilities: ArrayLike) -> np.ndarray:
    """Return the mean rating, sum_k k P(k): (N, K) -> (N,) float64."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return probabilities @ np.arange(1.0, probabilities.shape[-1] + 1)


def malignant_probability(probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of malignant rather than benign: P(4) + P(5) of malignancy, given that it is not 3.

    Args:
      probabilities: (..., K) of malignancy, K >= 5, class k at index k-1; columns beyond the fifth are 0.

    Returns:
      (...) in 0..1; 0 where all the probability is on class 3.
    """
    malignant, benign = probabilities[..., 3:].sum(axis=-1), probabilities[..., :2].sum(axis=-1)
    return malignant / np.maximum(malignant + benign, 1e-9)


def suspected(truth: np.ndarray) -> np.ndarray:
    """Return whether readers rate malignancy over 3: (N,) 1.0 or 0.0, and NaN where they rate it 3 or not at all.

    Args:
      truth: (N,) rating of malignancy, 0 where it is missing.
    """
    return np.where((truth > 0) & (truth != 3), truth > 3, np.nan)


def absolute_error(predicted: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Return |predicted - truth| in classes, (N,) float64, NaN where the truth is 0. `predicted` may be fractional."""
    truth = np.asarray(truth)
    return np.where(truth > 0, np.abs(np.asarray(predicted, dtype=np.float64) - truth), np.nan)


def off_by_one(predicted: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Return whether |predicted - truth| <= 1, both integers (Wu et al., ISBI 2018): (N,) 0.0, 1.0 or NaN."""
    error = absolute_error(predicted, truth)
    return np.where(np.isnan(error), np.nan, error <= 1)


def exact(predicted: ArrayLike, truth: ArrayLike) -> np.ndarray:
    """Return whether predicted = truth: (N,) 0.0, 1.0 or NaN."""
    error = absolute_error(predicted, truth)
    return np.where(np.isnan(error), np.nan, error == 0)


def mean_score(scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the weighted mean of the scores (N,) that are not NaN; NaN if their total weight is 0."""
    scores, weights = with_weights(scores, weights)
    valid = ~np.isnan(scores)
    mass = weights[valid].sum()
    return float(scores[valid] @ weights[valid] / mass) if mass > 0 else NAN


def macro_within_one(predicted: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the off-by-one accuracy within each true class, averaged over the classes.

    Unlike plain accuracy, it does not reward always predicting the commonest class. Classes of weight 0 are left out.
    """
    return _mean_over_classes(off_by_one(predicted, truth), truth, weights)


def balanced_accuracy(predicted: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the exact accuracy within each true class, averaged over the classes; see `macro_within_one`."""
    return _mean_over_classes(exact(predicted, truth), truth, weights)


def quadratic_kappa(predicted: ArrayLike, truth: ArrayLike, classes: int, weights: ArrayLike | None = None) -> float:
    """Compute Cohen's kappa with quadratic weights (Cohen 1968): 1 - sum_ij (i-j)^2 O_ij / sum_ij (i-j)^2 E_ij.

    Args:
      predicted: (N,) int, 1..classes.
      truth: (N,) int; nodules with 0 are left out.
      classes: K.
      weights: (N,) weight of each nodule, 1 by default.

    Returns:
      -1..1; NaN if the expected disagreement is zero (no nodule rated, or all true and predicted classes the same).
    """
    truth, weights = with_weights(truth, weights, dtype=np.int64)
    rated = truth > 0
    table = np.zeros((classes + 1, classes + 1))  # row and column 0 stay empty
    np.add.at(table, (truth[rated], np.asarray(predicted)[rated]), weights[rated])
    disagreement = np.subtract.outer(np.arange(classes + 1), np.arange(classes + 1)) ** 2
    by_chance = (disagreement * np.outer(table.sum(axis=1), table.sum(axis=0))).sum()
    if by_chance == 0:
        return NAN
    return float(1 - (disagreement * table).sum() * table.sum() / by_chance)


def auc(score: ArrayLike, positive: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Compute the area under the ROC curve: the share of (positive, negative) pairs in the right order.

    A pair with equal scores counts half.

    Args:
      score: (N,), higher for positive nodules.
      positive: (N,) bool.
      weights: (N,) weight of each nodule, 1 by default; 0 for a nodule that is neither positive nor negative.

    Returns:
      0..1; NaN if there are no positives or no negatives, or if the score of a nodule with weight is NaN.
    """
    score, weights = with_weights(score, weights)
    positive = np.asarray(positive, dtype=bool)
    if np.isnan(score[weights > 0]).any():
        return NAN
    rank = np.unique(score, return_inverse=True)[1]
    positives = np.bincount(rank, weights * positive)
    negatives = np.bincount(rank, weights * ~positive)
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2) / pairs) if pairs > 0 else NAN


def reliability_bins(
    probability: ArrayLike, outcome: ArrayLike, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute a reliability diagram: the observed rate of an event against its predicted probability, in bins.

    Args:
      probability: (N,) in 0..1.
      outcome: (N,) bool or 0/1; nodules with NaN are left out.
      bins: number of bins of equal width; a bin includes its lower edge, and the last one also includes 1.

    Returns:
      Mean probability, observed rate (both float, NaN in an empty bin) and count (int), (bins,) each.
    """
    probability, outcome = np.asarray(probability, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    known = ~np.isnan(outcome)
    index = np.clip((probability[known] * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    mean = np.bincount(index, probability[known], minlength=bins) / divisor
    rate = np.bincount(index, outcome[known], minlength=bins) / divisor
    return mean, rate, count


def expected_calibration_error(probability: ArrayLike, outcome: ArrayLike, bins: int = 10) -> float:
    """Return the mean of |mean probability - observed rate| over the `reliability_bins`, weighted by their counts."""
    mean, rate, count = reliability_bins(probability, outcome, bins)
    return mean_score(np.abs(mean - rate), count)


def best_constant(truth: ArrayLike, classes: int, nominal: bool = False) -> tuple[int, float]:
    """Return the class that has the best accuracy if predicted for every nodule, and that accuracy.

    The accuracy is off-by-one, or exact for a nominal rating. This is the baseline that a useful prediction has to
    beat. Ties go to the class that is exactly right most often, then to the smallest. Return (0, NaN) if no nodule is
    rated.
    """
    truth = np.asarray(truth, dtype=np.int64)
    count = np.bincount(truth[truth > 0], minlength=classes + 2)
    if not count.sum():
        return 0, NAN
    reach = 0 if nominal else 1
    right = {k: int(count[k - reach : k + reach + 1].sum()) for k in range(1, classes + 1)}
    best = max(right, key=lambda k: (right[k], count[k], -k))
    return best, right[best] / int(count.sum())


def one_reader_scores(rating_counts: ArrayLike) -> np.ndarray:
    """Return the share of each nodule's readers who are within one of the mean of the nodule's other readers.

    The mean of the other readers is rounded half up, as labels are. To score one reader, weight each nodule by its
    number of readers, `mean_score(scores, rating_counts.sum(axis=1))`: on all of LIDC-IDRI this gives 88.5 % for the
    nine ratings and 83.4 % for malignancy, where equal weights would give 87.9 % and 82.8 %.

    (N, K) readers per class -> (N,) in 0..1, NaN where fewer than two readers rated.
    """
    rating_counts = np.asarray(rating_counts, dtype=np.int64)
    classes = np.arange(1, rating_counts.shape[1] + 1)
    readers = rating_counts.sum(axis=1)
    # (N, K): for a reader who gave class k. Classes that no reader gave have a count of 0 in the sum below.
    sum_of_others = (rating_counts @ classes)[:, None] - classes
    mean_of_others = np.floor(sum_of_others / np.maximum(readers - 1, 1)[:, None] + 0.5)
    within = (rating_counts * (np.abs(classes - mean_of_others) <= 1)).sum(axis=1)
    return np.where(readers >= 2, within / np.maximum(readers, 1), np.nan)


def one_reader_agreement(rating_counts: ArrayLike, tie_rank: ArrayLike) -> np.ndarray:
    """Return the share of each nodule's readers who give the modal rating of the nodule's other readers.

    This is `one_reader_scores` for a nominal rating. `tie_rank` (K,) decides ties, as in `cohort.modal_rating`.

    (N, K) readers per class -> (N,) in 0..1, NaN where fewer than two readers rated.
    """
    rating_counts = np.asarray(rating_counts, dtype=np.int64)
    classes = np.arange(1, rating_counts.shape[1] + 1)
    readers = rating_counts.sum(axis=1)
    # (N, K, K): the others of a reader who gave class k. Where no reader gave it, the count below is 0.
    others = np.maximum(rating_counts[:, None, :] - np.eye(len(classes), dtype=np.int64), 0)
    agree = (rating_counts * (cohort.modal_rating(others, np.asarray(tie_rank)) == classes)).sum(axis=1)
    return np.where(readers >= 2, agree / np.maximum(readers, 1), np.nan)


def with_weights(
    values: ArrayLike, weights: ArrayLike | None, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays (N,); the weights are float64, and 1 by default."""
    array: np.ndarray = np.asarray(values, dtype=dtype)
    return array, np.ones(len(array)) if weights is None else np.asarray(weights, dtype=np.float64)


def _mean_over_classes(scores: np.ndarray, truth: ArrayLike, weights: ArrayLike | None) -> float:
    """Return the mean score within each true class, averaged over the classes that have weight."""
    scores, weights = with_weights(scores, weights)
    truth = np.asarray(truth)
    return mean_score(np.array([mean_score(scores[truth == k], weights[truth == k]) for k in np.unique(truth)]))
