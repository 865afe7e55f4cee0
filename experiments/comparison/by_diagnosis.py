"""Scores of patients against their diagnosis: areas under the ROC curve, sensitivity and calibration, as a table.

Scores are (P,), one for each patient, with NaN for every patient where a system gives none. Differences are paired:
both systems are scored on the same resampled patients.
"""

from collections.abc import Callable, Mapping

import numpy as np

from experiments.comparison import tables
from experiments.comparison.paired import paired_interval
from experiments.comparison.scores import Estimate, mean_estimate
from pnsamp_jax import diagnosed, intervals, metrics
from pnsamp_jax.metrics import NAN

RESAMPLES = 2000  # of the patients
READERS, NETWORK = "readers, mean rating", "network"
READERS_CUT = 3.0  # a mean rating above it counts as malignant
BINS = 5  # of the calibration

SENSITIVITY = "sensitivity at the readers' specificity"
COLUMNS = ["system", "AUC", "AUC, against the network", SENSITIVITY, "sensitivity, against the readers"]
NOTES = [
    "The table of diagnoses does not say which nodule was diagnosed, so each patient counts by the highest nodule, "
    "which need not be that one.",
    "The patients are not a sample: a diagnosis is known of those whom somebody had reason to follow, biopsy or "
    "operate. Shares that depend on how many are malignant, as calibration does, hold for these patients only.",
    "The methods differ by diagnosis, see above. What looked harmless was followed, what looked suspicious was taken "
    "out, so part of the agreement is between a look at the image and a method chosen by such a look.",
    "Patients with metastases have another cancer, which was known before. Their diagnosis rests on it as well, and "
    "no image of the lung shows it.",
    f"Sensitivity: the readers' cut is a mean rating over {READERS_CUT:g}. Every other score has the cut at which its "
    "specificity on these very patients is the readers'; between two cuts it is interpolated.",
    "Heads are logistic regressions in nested folds; there is none where too few folds are tested to fit one.",
    "No number is corrected for the number of comparisons.",
]

Statistic = Callable[[np.ndarray], float]  # of the patients' weights (P,)


def sensitivity_at(score: np.ndarray, positive: np.ndarray, weights: np.ndarray, false_positives: float) -> float:
    """Return the sensitivity of the cut of a score that lets through a given mass of negatives.

    Args:
      score: (P,), higher for positive patients.
      positive: (P,) bool.
      weights: (P,) weight of each patient; 0 leaves the patient out.
      false_positives: the sum of the weights of the negatives over the cut. Between two cuts, as within a tie, the
        sensitivity is interpolated.

    Returns:
      0..1; NaN if there are no positives, or if a score is NaN.
    """
    if np.isnan(score[weights > 0]).any() or not weights[positive].sum():
        return NAN
    rank = np.unique(-score, return_inverse=True)[1]
    negatives = np.append(0, np.cumsum(np.bincount(rank, weights * ~positive)))
    positives = np.append(0, np.cumsum(np.bincount(rank, weights * positive)))
    # Of the cuts with as many false positives, `interp` takes the last one, which has the highest sensitivity.
    return float(np.interp(false_positives, negatives, positives) / positives[-1])


def statistics(
    score: np.ndarray, readers: np.ndarray, diagnosis: np.ndarray, contrast: str
) -> tuple[Statistic, Statistic]:
    """Return the AUC of a score and its sensitivity at the readers' specificity, as functions of the weights (P,).

    Args:
      score: (P,); the readers' own is recognised, since their cut is given.
      readers: (P,) the readers' mean rating.
      diagnosis: (P,).
      contrast: one of `diagnosed.CONTRASTS`.
    """
    positive, counted = diagnosed.contrasted(diagnosis, contrast)
    over = readers > READERS_CUT

    def auc(weights: np.ndarray) -> float:
        return metrics.auc(score, positive, weights * counted)

    def sensitivity(weights: np.ndarray) -> float:
        if score is readers:
            return metrics.mean_score(over[positive], weights[positive])
        false_positives = float((weights * counted)[over & ~positive].sum())
        return sensitivity_at(score, positive, weights * counted, false_positives)

    return auc, sensitivity


def contrast_rows(scores: Mapping[str, np.ndarray], diagnosis: np.ndarray, contrast: str) -> list[tables.Row]:
    """Return a row for each score, one of which is `READERS` and one `NETWORK`: (P,) each."""
    patients, readers = np.arange(len(diagnosis)), scores[READERS]
    of = {name: statistics(score, readers, diagnosis, contrast) for name, score in scores.items()}

    def estimate(statistic: Statistic) -> Estimate:
        value = statistic(np.ones(len(patients)))
        return Estimate(value, intervals.cluster_bootstrap(statistic, patients, RESAMPLES))

    def difference(ours: Statistic, theirs: Statistic) -> Estimate:
        value = ours(np.ones(len(patients))) - theirs(np.ones(len(patients)))
        return Estimate(value, paired_interval(ours, theirs, patients, RESAMPLES), signed=True)

    rows: list[tables.Row] = []
    for name, (auc, sensitivity) in of.items():
        rows.append({"system": name, "AUC": estimate(auc), SENSITIVITY: estimate(sensitivity)})
        if name != NETWORK:
            rows[-1]["AUC, against the network"] = difference(auc, of[NETWORK][0])
        if name != READERS:
            rows[-1]["sensitivity, against the readers"] = difference(sensitivity, of[READERS][1])
    return tables.fill(rows, COLUMNS)


def calibration_rows(probability: np.ndarray, malignant: np.ndarray) -> list[tables.Row]:
    """Return what the network's probability of malignant is worth: a row for each bin of it, and one for all.

    Args:
      probability: (P,) see `metrics.malignant_probability`.
      malignant: (P,) bool, the diagnosis.
    """
    patients, edges = np.arange(len(malignant)), np.linspace(0, 1, BINS + 1)
    bins = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    parts = {f"{100 * edges[k]:.0f} to {100 * edges[k + 1]:.0f}": bins == k for k in range(BINS)}
    parts["all"] = np.full(len(malignant), True)
    rows: list[tables.Row] = []
    for name, chosen in parts.items():
        predicted, outcome = probability[chosen], malignant[chosen].astype(float)
        rows.append({"predicted probability": name, "patients": int(chosen.sum())})
        rows[-1]["mean of the probability"] = Estimate(metrics.mean_score(predicted))
        rows[-1]["share diagnosed malignant"] = mean_estimate(outcome, patients[chosen], RESAMPLES)
        rows[-1]["share minus probability"] = mean_estimate(
            outcome - predicted, patients[chosen], RESAMPLES, signed=True
        )
    return rows


def method_rows(diagnosis: np.ndarray, method: np.ndarray) -> list[tables.Row]:
    """Return how many patients have each diagnosis, by the method of the diagnosis: (P,) str each."""
    rows: list[tables.Row] = []
    for name in ("benign", "primary", "metastatic"):
        own = diagnosis == name
        counts = {one.replace("_", " "): int((own & (method == one)).sum()) for one in sorted(set(method.tolist()))}
        rows.append({"diagnosis": name, "patients": int(own.sum()), **counts})
    return rows


def build(
    scores: Mapping[str, np.ndarray], probability: np.ndarray, diagnosis: np.ndarray, method: np.ndarray
) -> tables.Page:
    """Build the page.

    Args:
      scores: (P,) by the name of the system, with `READERS` and `NETWORK`.
      probability: (P,) the network's calibrated probability of malignant.
      diagnosis: (P,), none unknown.
      method: (P,) how the diagnosis was made.
    """
    blocks = {"Patients, by how the diagnosis was made": method_rows(diagnosis, method)}
    for contrast in diagnosed.CONTRASTS:
        positive, counted = diagnosed.contrasted(diagnosis, contrast)
        title = f"Benign against {contrast}: {counted.sum()} patients, {positive.sum()} of them {contrast}"
        blocks[title] = contrast_rows(scores, diagnosis, contrast)
    malignant, counted = diagnosed.contrasted(diagnosis, "malignant")
    blocks["Calibration of the network's suspicion against the diagnosis"] = calibration_rows(probability, malignant)
    error = 100 * metrics.expected_calibration_error(probability, malignant, BINS)
    benign, over = counted & ~malignant, scores[READERS] > READERS_CUT
    specificity = f"{(benign & ~over).sum()} of {benign.sum()} benign patients"
    notes = [
        f"The readers' specificity: {specificity}. Calibration error of the network in {BINS} bins: {error:.1f}.",
        *NOTES,
    ]
    return tables.Page("Suspicion against diagnosis", blocks, notes, [], [])
