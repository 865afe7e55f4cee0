"""Metrics of predictions: decoding of probabilities, accuracies, agreement, calibration and confidence intervals.

Pure NumPy. Shapes: N nodules, K classes of one rating. `truth` (N,) int is 1..K, or 0 where the nodule lacks the
rating; `probabilities` (N, K) and `rating_counts` (N, K) hold class k at index k-1; `clusters` (N,) is the patient of
each nodule.

Missing ratings: the score of a nodule is NaN where its truth is 0, and means leave out NaN. The n of a metric is
therefore the number of scores that are not NaN. An undefined metric is NaN, without a warning.

Intervals: nodules of one patient resemble each other, so the bootstrap resamples patients. `weights` (N,) holds how
often each nodule was drawn, which avoids copying rows; a weight of 0 leaves the nodule out.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

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
    scores, weights = _with_weights(scores, weights)
    valid = ~np.isnan(scores)
    mass = weights[valid].sum()
    return float(scores[valid] @ weights[valid] / mass) if mass > 0 else NAN


def macro_within_one(predicted: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the off-by-one accuracy within each true class, averaged over the classes.

    Unlike plain accuracy, it does not reward always predicting the commonest class. Classes of weight 0 are left out.
    """
    scores, weights = _with_weights(off_by_one(predicted, truth), weights)
    truth = np.asarray(truth)
    return mean_score(np.array([mean_score(scores[truth == k], weights[truth == k]) for k in np.unique(truth)]))


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
    truth, weights = _with_weights(truth, weights, dtype=np.int64)
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
    score, weights = _with_weights(score, weights)
    positive = np.asarray(positive, dtype=bool)
    if np.isnan(score[weights > 0]).any():
        return NAN
    rank = np.unique(score, return_inverse=True)[1]
    positives = np.bincount(rank, weights * positive)
    negatives = np.bincount(rank, weights * ~positive)
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2) / pairs) if pairs > 0 else NAN


def dice(mask: ArrayLike, reference: ArrayLike) -> float:
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) of boolean arrays of one shape; 1 if both are empty."""
    mask, reference = np.asarray(mask, dtype=bool), np.asarray(reference, dtype=bool)
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0


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


def best_constant(truth: ArrayLike, classes: int) -> tuple[int, float]:
    """Return the class that has the best off-by-one accuracy if predicted for every nodule, and that accuracy.

    This is the baseline that a useful prediction has to beat. Ties go to the class that is exactly right most often,
    then to the smallest. Return (0, NaN) if no nodule is rated.
    """
    truth = np.asarray(truth, dtype=np.int64)
    count = np.bincount(truth[truth > 0], minlength=classes + 2)
    if not count.sum():
        return 0, NAN
    within = {k: int(count[k - 1 : k + 2].sum()) for k in range(1, classes + 1)}
    best = max(within, key=lambda k: (within[k], count[k], -k))
    return best, within[best] / int(count.sum())


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


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a statistic, resampling patients with replacement.

    See Davison & Hinkley 1997, section 3.8.

    Args:
      statistic: maps the nodules' weights (N,) float to a number; replicates that are NaN are ignored.
      clusters: (N,) patient ids of any type that can be sorted. The order of the nodules does not matter.
      resamples: number of replicates.
      seed: the same seed and patients give the same draws.
      level: nominal coverage.

    Returns:
      (low, high); both NaN if there are fewer than two patients or every replicate is NaN.
    """
    patient, draws = _draw_patients(clusters, resamples, seed)
    if draws.shape[1] < 2:
        return NAN, NAN
    return _percentiles(np.array([statistic(row[patient]) for row in draws], dtype=np.float64), level)


def mean_interval(
    scores: ArrayLike,
    clusters: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    weights: ArrayLike | None = None,
) -> tuple[float, float]:
    """Compute `cluster_bootstrap` of `mean_score`, with the same draws but much faster: as two matrix products.

    `scores` (N,) may contain NaN, which is left out; `weights` (N,) weight the nodules in the mean, 1 by default.
    Return (NaN, NaN) if fewer than two patients have a score.
    """
    scores, weights = _with_weights(scores, weights)
    patient, draws = _draw_patients(clusters, resamples, seed)
    weights = np.where(np.isnan(scores), 0.0, weights)
    mass = np.bincount(patient, weights, minlength=draws.shape[1])
    total = np.bincount(patient, weights * np.nan_to_num(scores), minlength=draws.shape[1])
    if (mass > 0).sum() < 2:
        return NAN, NAN
    drawn = draws @ mass
    return _percentiles(draws @ total / np.where(drawn > 0, drawn, np.nan), level)


def mean_and_sem(fold_values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over the folds and its standard error sd / sqrt(folds), sd with ddof = 1, as in the paper.

    If a fold is NaN, both are NaN: a mean of four folds must not pass for one of five. The error of one fold is NaN.
    """
    values = np.asarray(fold_values, dtype=np.float64)
    mean = float(values.mean()) if values.size else NAN
    return mean, float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else NAN


def _with_weights(
    values: ArrayLike, weights: ArrayLike | None, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays (N,); the weights are float64, and 1 by default."""
    array: np.ndarray = np.asarray(values, dtype=dtype)
    return array, np.ones(len(array)) if weights is None else np.asarray(weights, dtype=np.float64)


def _draw_patients(clusters: ArrayLike, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each nodule's patient (N,), an index into the sorted ids, and the draws of each (resamples, patients)."""
    ids, patient = np.unique(np.asarray(clusters), return_inverse=True)
    if not ids.size:
        return patient, np.zeros((resamples, 0))
    draws = np.random.default_rng(seed).multinomial(ids.size, np.full(ids.size, 1 / ids.size), size=resamples)
    return patient, draws.astype(np.float64)


def _percentiles(replicates: np.ndarray, level: float) -> tuple[float, float]:
    """Return the central interval that holds the share `level` of the replicates, leaving out NaN."""
    replicates = replicates[~np.isnan(replicates)]
    if not replicates.size:
        return NAN, NAN
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
