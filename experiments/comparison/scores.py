"""The metrics of the comparison: accuracies and areas under the ROC curve with intervals, and paired differences.

Tables are those of `workdir.tables.read_tables`. Scores are (N,), with NaN where a nodule lacks the rating or the
system does not predict it. Differences are paired: both systems are scored on the same nodules of the same resampled
patients.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.comparison import paired
from pnsamp_jax import evaluate, intervals, metrics
from pnsamp_jax.data import schema
from pnsamp_jax.metrics import NAN
from pnsamp_jax.workdir.tables import Table, nominal


class Estimate(NamedTuple):
    """A number such as a share, or a difference of two, with its 95 % patient-clustered interval.

    Attributes:
      value: NaN if it is not defined.
      interval: (low, high); NaN if they are not defined.
      signed: whether to print a sign, as for a difference.
      note: text printed after the numbers.
      factor: of the printed numbers, 100 for per cent.
    """

    value: float = NAN
    interval: tuple[float, float] = (NAN, NAN)
    signed: bool = False
    note: str = ""
    factor: float = 100

    def __str__(self) -> str:
        """Format the estimate, a share in per cent; "-" if it is not defined."""
        if np.isnan(self.value):
            return "-"
        sign = "+z" if self.signed else ""  # z: no negative zero
        text = f"{self.factor * self.value:{sign}.1f}"
        if not np.isnan(self.interval).any():
            text += " [{:{sign}.1f}, {:{sign}.1f}]".format(
                *(self.factor * bound for bound in self.interval), sign=sign
            )
        return f"{text} {self.note}".strip()


def mean_estimate(
    scores: np.ndarray, patients: np.ndarray, resamples: int, weights: np.ndarray | None = None, signed: bool = False
) -> Estimate:
    """Estimate the mean of scores (N,), leaving out NaN.

    For the difference of two systems' scores, this is the paired difference of their means.
    """
    interval = intervals.mean_interval(scores, patients, resamples, weights=weights)
    return Estimate(metrics.mean_score(scores, weights), interval, signed)


def hits(table: Table, decoding: str, index: int) -> np.ndarray:
    """Return the accuracy of a rating for each nodule, (N,) 0, 1 or NaN; see `evaluate.rating_scores`.

    It is NaN for a blank prediction, which the table holds as class 0.
    """
    predicted = table["arg_max" if nominal(table)[index] else decoding][:, index]
    return np.where(predicted > 0, evaluate.rating_scores(table, decoding, index), np.nan)


def constant_hits(table: Table, index: int) -> tuple[int, np.ndarray]:
    """Return the constant class that is best for a rating on the table's own nodules, and its accuracy (N,)."""
    truth, (constant, _) = table["truth"][:, index], evaluate.constant_score(table, index)
    score = metrics.exact if nominal(table)[index] else metrics.off_by_one
    return constant, score(np.full(len(truth), constant), truth)


def reader_hits(table: Table, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for a rating, each nodule's `evaluate.reader_scores` (N,) and its number of readers (N,)."""
    return evaluate.reader_scores(table, index), table["rating_counts"][:, index].sum(axis=1).astype(float)


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
    suspected = metrics.suspected(table["truth"][:, schema.MALIGNANCY])
    score = metrics.expected(table["probabilities"][:, schema.MALIGNANCY])
    return AucInputs(score, suspected == 1, (~np.isnan(suspected)).astype(float))


def auc_estimate(table: Table, resamples: int) -> Estimate:
    """Estimate the AUC of malignancy."""
    inputs, patients = auc_inputs(table), table["patient_id"]
    interval = intervals.cluster_bootstrap(inputs.auc, patients, resamples)
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
    return Estimate(value, intervals.cluster_bootstrap(statistic, patients, resamples), signed)
