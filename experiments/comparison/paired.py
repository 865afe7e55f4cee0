"""Statistics that tell whether one system is better than another on the same nodules. Pure NumPy.

Two systems tested on the same nodules fail on much the same ones, so their difference is known far better than the
interval of either suggests. Shapes and weights are as in `metrics`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax import intervals, metrics
from pnsamp_jax.metrics import NAN


class DeLong(NamedTuple):
    """A comparison of two areas under the ROC curve; `difference` is a - b, and `p` is two-sided."""

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    p: float


def delong(score_a: ArrayLike, score_b: ArrayLike, positive: ArrayLike) -> DeLong:
    """Compare two correlated areas under the ROC curve (DeLong, DeLong & Clarke-Pearson, Biometrics 1988).

    The placements are computed from midranks in O(N log N) (Sun & Xu, IEEE Signal Processing Letters 2014). The test
    treats nodules as independent; nodules of one patient resemble each other, so p is somewhat too small.
    `paired_interval` takes patients into account.

    Args:
      score_a: (N,) scores of one system, higher for positive nodules.
      score_b: (N,) scores of the other system.
      positive: (N,) bool.

    Returns:
      The areas equal those of `metrics.auc`. If a score is NaN, all values but the defined areas are NaN; if there
      are fewer than two positives or negatives, the error and p are NaN. If the difference is 0, p is 1; if only the
      standard error is 0, p is NaN, since the normal approximation does not apply.
    """
    scores = np.array([score_a, score_b], dtype=np.float64)
    positive = np.asarray(positive, dtype=bool)
    auc_a, auc_b = (metrics.auc(score, positive) for score in scores)
    difference = auc_a - auc_b
    if np.isnan(difference) or min(positive.sum(), (~positive).sum()) < 2:
        return DeLong(auc_a, auc_b, difference, NAN, NAN)
    placements = [_placements(score, positive) for score in scores]
    variance = sum(
        np.var(of_a - of_b, ddof=1) / len(of_a) for of_a, of_b in zip(*placements, strict=True)
    )  # var(a - b) = var a + var b - 2 cov, for the positives and for the negatives
    error = math.sqrt(variance)
    if difference == 0:
        return DeLong(auc_a, auc_b, 0.0, error, 1.0)
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else NAN
    return DeLong(auc_a, auc_b, difference, error, p)


def _placements(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of negatives below each positive, and of positives above each negative; ties count half."""
    ranks = _midranks(score)
    of_positives = (ranks[positive] - _midranks(score[positive])) / (~positive).sum()
    of_negatives = 1 - (ranks[~positive] - _midranks(score[~positive])) / positive.sum()
    return of_positives, of_negatives


def _midranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value from 1, tied values sharing their mean rank: (N,) -> (N,)."""
    rank, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
    return (np.cumsum(counts) - (counts - 1) / 2)[rank]


def paired_interval(
    statistic_a: Callable[[np.ndarray], float],
    statistic_b: Callable[[np.ndarray], float],
    clusters: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute the interval of the difference a - b of two statistics of the same nodules.

    Both statistics are computed on the same resampled patients. The arguments and the result are those of
    `intervals.cluster_bootstrap`. For plain means of scores that are missing for the same nodules,
    `intervals.mean_interval(scores_a - scores_b, clusters)` gives the same interval faster.
    """
    return intervals.cluster_bootstrap(
        lambda weights: statistic_a(weights) - statistic_b(weights), clusters, resamples, seed, level
    )
