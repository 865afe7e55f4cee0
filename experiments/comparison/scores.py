"""The metrics of the comparison: accuracies and areas under the ROC curve with intervals, and paired differences.

Tables are those of `workdir.tables.read_tables`. Scores are (N,), with NaN where a nodule lacks the rating or the
system does not predict it. Differences are paired: both systems are scored on the same nodules of the same resampled
patients.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.comparison import paired
from pnsamp_jax import metrics
from pnsamp_jax.data import schema
from pnsamp_jax.metrics import NAN
from pnsamp_jax.workdir.tables import Table


class Estimate(NamedTuple):
    """A share, or a difference of shares, with its 95 % patient-clustered interval.

    Attributes:
      value: NaN if it is not defined.
      interval: (low, high); NaN if they are not defined.
      signed: whether to print a sign, as for a difference.
      note: text printed after the numbers.
    """

    value: float = NAN
    interval: tuple[float, float] = (NAN, NAN)
    signed: bool = False
    note: str = ""

    def __str__(self) -> str:
        """Format the estimate in per cent; "-" if it is not defined."""
        if np.isnan(self.value):
            return "-"
        sign = "+z" if self.signed else ""  # z: no negative zero
        text = f"{100 * self.value:{sign}.1f}"
        if not np.isnan(self.interval).any():
            text += " [{:{sign}.1f}, {:{sign}.1f}]".format(*(100 * bound for bound in self.interval), sign=sign)
        return f"{text} {self.note}".strip()


def mean_estimate(
    scores: np.ndarray, patients: np.ndarray, resamples: int, weights: np.ndarray | None = None, signed: bool = False
) -> Estimate:
    """Estimate the mean of scores (N,), leaving out NaN.

    For the difference of two systems' scores, this is the paired difference of their means.
    """
    interval = metrics.mean_interval(scores, patients, resamples, weights=weights)
    return Estimate(metrics.mean_score(scores, weights), interval, signed)


def hits(table: Table, decoding: str, index: int) -> np.ndarray:
    """Return the off-by-one accuracy of a rating for each nodule, (N,) 0, 1 or NaN.

    It is NaN for a blank prediction, which the table holds as class 0.
    """
    predicted = table[decoding][:, index]
    return np.where(predicted > 0, metrics.off_by_one(predicted, table["truth"][:, index]), np.nan)


def constant_hits(table: Table, index: int) -> tuple[int, np.ndarray]:
    """Return the constant class that is best for a rating on the table's own nodules, and its off-by-one (N,)."""
    truth = table["truth"][:, index]
    constant, _ = metrics.best_constant(truth, schema.RATINGS[index].classes)
    return constant, metrics.off_by_one(np.full(len(truth), constant), truth)


def reader_hits(table: Table, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for a rating, each nodule's `metrics.one_reader_scores` (N,) and its number of readers (N,)."""
    rating_counts = table["rating_counts"][:, index]
    return metrics.one_reader_scores(rating_counts), rating_counts.sum(axis=1).astype(float)


class AucInputs(NamedTuple):
    """The arguments of the AUC of malignancy, (N,) each; nodules rated 3 or not at all have weight 0."""

    score: np.ndarray
    positive: np.ndarray
    weights: np.ndarray

    def auc(self, weights: np.ndarray) -> float:
        """Compute the AUC if each nodule counts `weights` times."""
        return metrics.auc(self.score, self.positive, weights * self.weights)


def auc_inputs(table: Table) -> AucInputs:
    """Return the expected malignancy as the score, and as positive the nodules that the readers rate over 3."""
    truth = table["truth"][:, schema.MALIGNANCY]
    score = metrics.expected(table["probabilities"][:, schema.MALIGNANCY])
    return AucInputs(score, truth > 3, ((truth > 0) & (truth != 3)).astype(float))


def auc_estimate(table: Table, resamples: int) -> Estimate:
    """Estimate the AUC of malignancy."""
    inputs, patients = auc_inputs(table), table["patient_id"]
    interval = metrics.cluster_bootstrap(inputs.auc, patients, resamples)
    return Estimate(inputs.auc(np.ones(len(patients))), interval)


def auc_difference(table: Table, reference: Table, resamples: int) -> tuple[Estimate, str]:
    """Estimate a system's AUC minus the reference's; also return DeLong's p, which treats nodules as independent."""
    ours, theirs = auc_inputs(table), auc_inputs(reference)
    counted = ours.weights > 0
    test = paired.delong(ours.score[counted], theirs.score[counted], ours.positive[counted])
    interval = paired.paired_interval(ours.auc, theirs.auc, table["patient_id"], resamples)
    return Estimate(test.difference, interval, signed=True), "-" if np.isnan(test.p) else f"{test.p:.2g}"


def mean_of_ratings(scores: np.ndarray, masses: np.ndarray | None = None) -> Callable[[np.ndarray], float]:
    """Return the mean over the ratings of each rating's mean score, as a function of the nodules' weights.

    Args:
      scores: (N, R); NaN is left out.
      masses: (N, R) weight of each nodule within a rating's mean, 1 by default.

    Returns:
      (N,) weights -> the mean; NaN if a rating has no score.
    """
    masses = np.where(np.isnan(scores), 0.0, 1.0 if masses is None else masses)
    filled = np.nan_to_num(scores) * masses

    def statistic(weights: np.ndarray) -> float:
        mass = weights @ masses
        return float(np.mean(weights @ filled / np.where(mass > 0, mass, np.nan)))

    return statistic


def mean_of_ratings_estimate(
    scores: np.ndarray, patients: np.ndarray, resamples: int, masses: np.ndarray | None = None, signed: bool = False
) -> Estimate:
    """Estimate `mean_of_ratings`, which is not defined if a rating has no score."""
    statistic = mean_of_ratings(scores, masses)
    value = statistic(np.ones(len(patients)))
    if np.isnan(value):
        return Estimate()
    return Estimate(value, metrics.cluster_bootstrap(statistic, patients, resamples), signed)
