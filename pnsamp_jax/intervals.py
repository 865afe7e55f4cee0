"""Confidence intervals: the bootstrap over patients, and the mean and standard error over folds.

Nodules of one patient resemble each other, so patients are resampled, not nodules. Pure NumPy. Shapes: N nodules;
`clusters` (N,) is the patient of each.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax.metrics import NAN, with_weights


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
    """Compute `cluster_bootstrap` of `metrics.mean_score`, with the same draws, as two matrix products: much faster.

    `scores` (N,) may contain NaN, which is left out; `weights` (N,) weight the nodules in the mean, 1 by default.
    Return (NaN, NaN) if fewer than two patients have a score.
    """
    scores, weights = with_weights(scores, weights)
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
