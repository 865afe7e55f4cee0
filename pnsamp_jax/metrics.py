"""What the predictions are worth: decoding, off-by-one and the other figures, and their intervals. Pure numpy.

Shapes: N nodules, K classes of one rating. `truth` (N,) int is 1..K, or 0 where the nodule has no such rating;
`probabilities` (N, K) and `rating_counts` (N, K) hold class k at index k-1; `clusters` (N,) says whose nodule it is.

Missing ratings: a per-nodule score is NaN where the truth is 0, and every mean leaves NaN out, so the n that
belongs to a figure is the number of scores that are not NaN. A figure that is not defined is NaN, without a warning.

Intervals: nodules of one patient are alike, so the bootstrap draws patients. `weights` (N,) is how often each
nodule was drawn, which saves copying rows; a weight of 0 leaves a nodule out.
"""

from collections.abc import Callable, Sequence

import numpy as np

# Sums of three float32 probabilities that differ by less are equal but for rounding.
TIE = 1e-6
NAN = float("nan")


def arg_max(probabilities: np.ndarray) -> np.ndarray:
    """The likeliest class: (N, K) -> (N,) int; of equals the smallest."""
    return np.argmax(probabilities, axis=-1) + 1


def best_within_one(probabilities: np.ndarray) -> np.ndarray:
    """The class that off-by-one rewards: argmax_k P(k-1) + P(k) + P(k+1), where P(0) = P(K+1) = 0.

    Classes whose sums are equal (to within `TIE`) are told apart by their own P(k), then the smallest is taken.
    Trailing columns for classes that do not exist do no harm: the last that exists has at least their sum.
    (N, K) -> (N,) int.
    """
    own = np.asarray(probabilities, dtype=np.float64)
    padded = np.pad(own, ((0, 0), (1, 1)))
    within = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    best = within >= within.max(axis=-1, keepdims=True) - TIE
    return np.argmax(np.where(best, own, -1.0), axis=-1) + 1


def expected(probabilities: np.ndarray) -> np.ndarray:
    """The mean rating, sum_k k P(k): (N, K) -> (N,) float64."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return probabilities @ np.arange(1.0, probabilities.shape[-1] + 1)


def absolute_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|predicted - truth| in classes, (N,) float64; `predicted` may be fractional. NaN where the truth is 0."""
    truth = np.asarray(truth)
    return np.where(truth > 0, np.abs(np.asarray(predicted, dtype=np.float64) - truth), np.nan)


def off_by_one(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether |predicted - truth| <= 1, both integers (Wu et al., ISBI 2018): (N,) 0.0, 1.0 or NaN."""
    error = absolute_error(predicted, truth)
    return np.where(np.isnan(error), np.nan, error <= 1)


def exact(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether predicted = truth: (N,) 0.0, 1.0 or NaN."""
    error = absolute_error(predicted, truth)
    return np.where(np.isnan(error), np.nan, error == 0)


def mean_score(scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Weighted mean of the scores (N,) that are not NaN; NaN where none has any weight."""
    scores, weights = _with_weights(scores, weights)
    valid = ~np.isnan(scores)
    mass = weights[valid].sum()
    return float(scores[valid] @ weights[valid] / mass) if mass > 0 else NAN


def macro_within_one(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean over the true classes present of the off-by-one rate among the nodules of that class.

    A constant cannot profit from the commonest class here. Classes without weight are not present.
    """
    scores, weights = _with_weights(off_by_one(predicted, truth), weights)
    truth = np.asarray(truth)
    return mean_score(np.array([mean_score(scores[truth == k], weights[truth == k]) for k in np.unique(truth)]))


def quadratic_kappa(
    predicted: np.ndarray, truth: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968): 1 - sum_ij (i-j)^2 O_ij / sum_ij (i-j)^2 E_ij.

    Args:
      predicted: (N,) int, 1..classes.
      truth: (N,) int, 0 is left out.
      classes: K.
      weights: (N,) weight of each nodule, by default 1.

    Returns:
      -1..1; NaN where the expected disagreement is zero (nothing rated, or one and the same class throughout).
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


def auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counted half.

    Args:
      score: (N,) higher is more suspicious.
      positive: (N,) bool.
      weights: (N,) weight of each nodule, by default 1; give 0 to a nodule that is neither.

    Returns:
      0..1; NaN with one class only, or where a score that counts is NaN.
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


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean arrays of one shape; 1 where both are empty."""
    mask, reference = np.asarray(mask, dtype=bool), np.asarray(reference, dtype=bool)
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0


def calibration(
    probability: np.ndarray, outcome: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether what is given p happens in a share p of the cases: a reliability diagram.

    Args:
      probability: (N,) in 0..1.
      outcome: (N,) bool or 0/1, NaN is left out.
      bins: number of bins of equal width; each holds its lower edge, the last holds 1 too.

    Returns:
      Mean probability, observed rate (both float, NaN in an empty bin) and count (int), (bins,) each.
    """
    outcome = np.asarray(outcome, dtype=np.float64)
    known = ~np.isnan(outcome)
    outcome, probability = outcome[known], np.asarray(probability, dtype=np.float64)[known]
    index = np.clip((probability * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    mean = np.bincount(index, probability, minlength=bins) / divisor
    rate = np.bincount(index, outcome, minlength=bins) / divisor
    return mean, rate, count


def expected_calibration_error(probability: np.ndarray, outcome: np.ndarray, bins: int = 10) -> float:
    """Mean of |mean probability - observed rate| over the bins of `calibration`, weighted by their counts."""
    mean, rate, count = calibration(probability, outcome, bins)
    return mean_score(np.abs(mean - rate), count)


def best_constant(truth: np.ndarray, classes: int) -> tuple[int, float]:
    """The one answer for all nodules that is off by at most one most often: what an accuracy has to beat.

    Of equals, the class that is exactly right most often, then the smallest. Gives the class and its off-by-one
    rate on these very nodules; (0, NaN) where none is rated.
    """
    truth = np.asarray(truth, dtype=np.int64)
    count = np.bincount(truth[truth > 0], minlength=classes + 2)
    if not count.sum():
        return 0, NAN
    within = {k: int(count[k - 1 : k + 2].sum()) for k in range(1, classes + 1)}
    best = max(within, key=lambda k: (within[k], count[k], -k))
    return best, within[best] / int(count.sum())


def one_reader_scores(rating_counts: np.ndarray) -> np.ndarray:
    """The share of a nodule's readers who are within one of the mean of its others, rounded half up like a label.

    (N, K) readers per class -> (N,) in 0..1, NaN where fewer than two readers rated.
    """
    rating_counts = np.asarray(rating_counts, dtype=np.int64)
    classes = np.arange(1, rating_counts.shape[1] + 1)
    readers = rating_counts.sum(axis=1)
    # (N, K): what the others' class is for a reader who gave class k. Classes that nobody gave have no weight.
    others = (rating_counts @ classes)[:, None] - classes
    others = np.floor(others / np.maximum(readers - 1, 1)[:, None] + 0.5)
    within = (rating_counts * (np.abs(classes - others) <= 1)).sum(axis=1)
    return np.where(readers >= 2, within / np.maximum(readers, 1), np.nan)


def one_reader(rating_counts: np.ndarray) -> tuple[float, int]:
    """How often one reader is within one of the others: what an accuracy may be held against.

    The mean is over *readings*: a nodule's score counts once for each of its readers. That gives the project's
    reader figures on the whole of LIDC-IDRI (nine ratings 88.5 %, malignancy 83.4 %); over nodules they would be
    87.9 and 82.8 %. For its interval: `mean_interval(one_reader_scores(rating_counts), clusters, weights=rating_counts.sum(axis=1))`.

    (N, K) readers per class -> the rate, and the number of nodules with at least two readers, on which it rests.
    """
    scores = one_reader_scores(rating_counts)
    return mean_score(scores, np.asarray(rating_counts).sum(axis=1)), int((~np.isnan(scores)).sum())


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic, patients drawn with replacement (Davison & Hinkley 1997, section 3.8).

    Args:
      statistic: from the nodules' weights (N,) float to a number; NaN replicates are ignored.
      clusters: (N,) patient ids of any type that sorts. The order of the nodules does not matter.
      resamples: number of replicates.
      seed: the same seed and patients give the same draws.
      level: coverage aimed at.

    Returns:
      (low, high); NaN both with fewer than two patients or where every replicate is NaN.
    """
    patient, draws = _draw_patients(clusters, resamples, seed)
    if draws.shape[1] < 2:
        return NAN, NAN
    return _percentiles(np.array([statistic(row[patient]) for row in draws], dtype=np.float64), level)


def mean_interval(
    scores: np.ndarray,
    clusters: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """`cluster_bootstrap` of `mean_score`, with the same draws, as two matrix products.

    `scores` (N,) may hold NaN, which is left out; `weights` (N,) is what each nodule counts within the mean, by
    default 1. (NaN, NaN) where fewer than two patients have a score, since one tells nothing of the spread.
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
    """Mean over the folds and its standard error sd / sqrt(folds), sd with ddof = 1, as the paper's tables have it.

    A NaN fold makes both NaN, rather than pass off four folds as five. The error is NaN with a single fold.
    """
    values = np.asarray(fold_values, dtype=np.float64)
    mean = float(values.mean()) if values.size else NAN
    return mean, float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else NAN


def _with_weights(values, weights: np.ndarray | None, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays (N,), the weights float64 and 1 by default."""
    values = np.asarray(values, dtype=dtype)
    return values, np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)


def _draw_patients(clusters: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each nodule's patient (N,), an index into the sorted ids, and how often each was drawn (resamples, patients)."""
    ids, patient = np.unique(np.asarray(clusters), return_inverse=True)
    if not ids.size:
        return patient, np.zeros((resamples, 0))
    draws = np.random.default_rng(seed).multinomial(ids.size, np.full(ids.size, 1 / ids.size), size=resamples)
    return patient, draws.astype(np.float64)


def _percentiles(replicates: np.ndarray, level: float) -> tuple[float, float]:
    """The middle `level` of the replicates that are not NaN."""
    replicates = replicates[~np.isnan(replicates)]
    if not replicates.size:
        return NAN, NAN
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
