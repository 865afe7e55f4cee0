"""Whether one system is better than another on the same nodules: paired differences. Pure numpy.

Two systems that are tested on the same nodules fail on much the same ones, so that their difference is known far
better than the intervals of either let suspect. Shapes and weights are as in `metrics`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.metrics import NAN


class DeLong(NamedTuple):
    """Two areas under the ROC curve compared; `difference` is a - b, `p` two-sided."""

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    p: float


def delong(score_a: np.ndarray, score_b: np.ndarray, positive: np.ndarray) -> DeLong:
    """Compares two correlated areas under the ROC curve (DeLong, DeLong & Clarke-Pearson, Biometrics 1988).

    The placements come from midranks, O(N log N) (Sun & Xu, IEEE Signal Processing Letters 2014). The test takes
    nodules as independent; those of one patient are alike, so that its p is somewhat too small. `paired_interval`
    is the one that knows of patients.

    Args:
      score_a: (N,) of one system, higher is more suspicious.
      score_b: (N,) of the other.
      positive: (N,) bool.

    Returns:
      The areas are those of `metrics.auc`. Error and p are NaN with fewer than two nodules of either class, all but
      the known areas are NaN where a score is NaN. Without a difference p is 1; without an error, but with a
      difference, p is NaN, since the normal approximation has nothing to stand on.
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
    )  # var(a - b) = var a + var b - 2 cov, of the positives and of the negatives
    error = math.sqrt(variance)
    if difference == 0:
        return DeLong(auc_a, auc_b, 0.0, error, 1.0)
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else NAN
    return DeLong(auc_a, auc_b, difference, error, p)


def _placements(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of negatives below each positive, and of positives above each negative, ties counted half."""
    ranks = _midranks(score)
    of_positives = (ranks[positive] - _midranks(score[positive])) / (~positive).sum()
    of_negatives = 1 - (ranks[~positive] - _midranks(score[~positive])) / positive.sum()
    return of_positives, of_negatives


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the mean of theirs: (N,) -> (N,)."""
    place, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def paired_interval(
    statistic_a: Callable[[np.ndarray], float],
    statistic_b: Callable[[np.ndarray], float],
    clusters: np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of the difference a - b of two statistics of the same nodules, both on the same drawn patients.

    The arguments and the result are those of `metrics.cluster_bootstrap`. For plain means of scores that are
    missing together, `metrics.mean_interval(scores_a - scores_b, clusters)` is the same and quicker.
    """
    return metrics.cluster_bootstrap(
        lambda weights: statistic_a(weights) - statistic_b(weights), clusters, resamples, seed, level
    )
