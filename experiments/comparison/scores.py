"""The figures of the comparison: accuracies and areas with their intervals, and paired differences.

A table holds what `predictions.read_tables` gives; scores are (N,) with NaN where a nodule has no such rating or the
system gives none. Differences are paired: both systems are scored on the same nodules of the same drawn patients.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.comparison import paired
from pnsamp_jax import metrics
from pnsamp_jax.data import schema
from pnsamp_jax.metrics import NAN
from pnsamp_jax.workdir.tables import Table


class Figure(NamedTuple):
    """A share with its 95 % interval by patients; `signed` for a difference, `note` is printed after it."""

    value: float = NAN
    interval: tuple[float, float] = (NAN, NAN)
    signed: bool = False
    note: str = ""

    def __str__(self) -> str:
        """Per cent; "-" where it is not defined."""
        if np.isnan(self.value):
            return "-"
        sign = "+z" if self.signed else ""  # z: no negative zero
        text = f"{100 * self.value:{sign}.1f}"
        if not np.isnan(self.interval).any():
            text += " [{:{sign}.1f}, {:{sign}.1f}]".format(*(100 * bound for bound in self.interval), sign=sign)
        return f"{text} {self.note}".strip()


def mean_figure(
    scores: np.ndarray, patients: np.ndarray, resamples: int, weights: np.ndarray | None = None, signed: bool = False
) -> Figure:
    """The mean of scores (N,), NaN left out. Of the differences of two systems' scores it is the paired one."""
    interval = metrics.mean_interval(scores, patients, resamples, weights=weights)
    return Figure(metrics.mean_score(scores, weights), interval, signed)


def hits(table: Table, decoding: str, place: int) -> np.ndarray:
    """Off-by-one of one rating: (N,) 0, 1 or NaN, which a blank answer (read as class 0) has too."""
    predicted = table[decoding][:, place]
    return np.where(predicted > 0, metrics.off_by_one(predicted, table["truth"][:, place]), np.nan)


def constant_hits(table: Table, place: int) -> tuple[int, np.ndarray]:
    """The best constant class of one rating on these very nodules, and its off-by-one (N,)."""
    truth = table["truth"][:, place]
    constant, _ = metrics.best_constant(truth, schema.RATINGS[place].classes)
    return constant, metrics.off_by_one(np.full(len(truth), constant), truth)


def reader_hits(table: Table, place: int) -> tuple[np.ndarray, np.ndarray]:
    """How often a nodule's readers are within one of the mean of its others (N,), and how many they are (N,)."""
    rating_counts = table["rating_counts"][:, place]
    return metrics.one_reader_scores(rating_counts), rating_counts.sum(axis=1).astype(float)


class Suspicion(NamedTuple):
    """What the AUC of malignancy rests on, (N,) each: nodules rated 3 or not at all have weight 0."""

    score: np.ndarray
    positive: np.ndarray
    weights: np.ndarray

    def auc(self, weights: np.ndarray) -> float:
        """The AUC where each nodule counts `weights` times."""
        return metrics.auc(self.score, self.positive, weights * self.weights)


def suspicion(table: Table) -> Suspicion:
    """The expected malignancy against what the readers suspect: over 3 against under 3."""
    truth = table["truth"][:, schema.MALIGNANCY]
    score = metrics.expected(table["probabilities"][:, schema.MALIGNANCY])
    return Suspicion(score, truth > 3, ((truth > 0) & (truth != 3)).astype(float))


def auc_figure(table: Table, resamples: int) -> Figure:
    """The AUC of malignancy."""
    its, patients = suspicion(table), table["patient_id"]
    interval = metrics.cluster_bootstrap(its.auc, patients, resamples)
    return Figure(its.auc(np.ones(len(patients))), interval)


def auc_difference(table: Table, reference: Table, resamples: int) -> tuple[Figure, str]:
    """The AUC of a system less that of the reference, and DeLong's p, which takes nodules as independent."""
    its, other = suspicion(table), suspicion(reference)
    counts = its.weights > 0
    test = paired.delong(its.score[counts], other.score[counts], its.positive[counts])
    interval = paired.paired_interval(its.auc, other.auc, table["patient_id"], resamples)
    return Figure(test.difference, interval, signed=True), "-" if np.isnan(test.p) else f"{test.p:.2g}"


def mean_of_ratings(scores: np.ndarray, masses: np.ndarray | None = None) -> Callable[[np.ndarray], float]:
    """The mean over the ratings of each one's mean, as a statistic of the nodules' weights.

    Args:
      scores: (N, R), NaN is left out.
      masses: (N, R) what each nodule counts within a rating's mean, by default 1.

    Returns:
      (N,) weights -> the mean; NaN where a rating has no score.
    """
    masses = np.where(np.isnan(scores), 0.0, 1.0 if masses is None else masses)
    filled = np.nan_to_num(scores) * masses

    def statistic(weights: np.ndarray) -> float:
        mass = weights @ masses
        return float(np.mean(weights @ filled / np.where(mass > 0, mass, np.nan)))

    return statistic


def mean_of_ratings_figure(
    scores: np.ndarray, patients: np.ndarray, resamples: int, masses: np.ndarray | None = None, signed: bool = False
) -> Figure:
    """`mean_of_ratings` with its interval; not defined where a rating has no score."""
    statistic = mean_of_ratings(scores, masses)
    value = statistic(np.ones(len(patients)))
    if np.isnan(value):
        return Figure()
    return Figure(value, metrics.cluster_bootstrap(statistic, patients, resamples), signed)
