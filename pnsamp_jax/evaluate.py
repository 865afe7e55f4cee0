"""Evaluate a cross-validation: from its tables to results.json, with an interval and baselines for every metric.

Nodules of different contexts (whole CT, cube, slab, simulated voxels) are never mixed: each context has its own
results and its own printed table. The ratings are radiologists' opinions, so each accuracy is reported together with
the scores of the best constant answer and of one more reader on the same nodules.

The accuracy of the seven ordinal ratings is off-by-one, as in the paper. Internal structure and calcification are
nominal, so theirs is exact, against the modal rating of the readers. The mean over the seven is the main one; the
paper's, over all nine by their rounded means and off by one, is reported beside it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax import diagnosed, intervals, metrics
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.diagnosis import read_diagnoses
from pnsamp_jax.files import readable, user_path, write_text
from pnsamp_jax.report.evaluation_figures import draw_evaluation
from pnsamp_jax.report.evaluation_table import format_diagnosis, format_table
from pnsamp_jax.workdir.tables import OUTLINE_SCORES, Table, as_in_paper, nominal, rated, read_tables

CONTEXT_NOTES = {
    "ct": "real CT",
    "cube": "real voxels, cubes with true context",
    "slab": "real voxels, slabs: Dice, AUC and ratings are optimistic, since the volume ends where the nodule does",
    "simulated": "SIMULATED VOXELS around real contours and ratings: no claim about real CT",
}

RESAMPLES = 500  # bootstrap replicates for statistics that are not plain means

# Results of Wu et al., ISBI 2018, in per cent: Dice, off-by-one of malignancy and of the mean of the nine ratings.
PAPER = {
    "S1": {"dice": 74.05, "malignancy": 92.03},
    "S2": {"dice": 74.01, "malignancy": 95.30},
    "M": {"dice": 73.89, "malignancy": 97.58, "mean": 89.33},
    "Seg": {"dice": 70.23},
    "C": {"malignancy": 94.87},
}


def paper_variant(model: dict) -> str | None:
    """Return which variant of the paper the fields of config.model describe, or None."""
    windows = [tuple(pair) for pair in model["windows"]]
    if model["name"] != "pn_samp":
        return None
    if not model["segment"]:
        return "C"
    if not model["rate"]:
        return "Seg"
    variants = {((1600, -600),): "S1", ((700, -600),): "S2", ((1600, -600), (700, -600)): "M"}
    return variants.get(tuple(windows))


def with_interval(statistic: Callable[[np.ndarray], float], patients: np.ndarray) -> dict:
    """Return a statistic of the nodules' weights with its patient-clustered interval."""
    interval = intervals.cluster_bootstrap(statistic, patients, RESAMPLES)
    return {"value": statistic(np.ones(len(patients))), "interval": interval}


def mean_result(scores: np.ndarray, patients: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """Return the mean of scores (N,), NaN left out, with its patient-clustered interval and n."""
    interval = intervals.mean_interval(scores, patients, weights=weights)
    n = int((~np.isnan(scores)).sum())
    return {"value": metrics.mean_score(scores, weights), "interval": interval, "n": n}


def rating_scores(table: Table, decoding: str, index: int) -> np.ndarray:
    """Return the accuracy of the index-th rating for each nodule, (N,) 0, 1 or NaN: off-by-one, or exact if nominal.

    Args:
      table: see `read_tables`.
      decoding: "arg_max" or "within_one", which a nominal rating does not have: its best class is the arg max.
      index: in `schema.RATINGS`.
    """
    if nominal(table)[index]:
        return metrics.exact(table["arg_max"][:, index], table["truth"][:, index])
    return metrics.off_by_one(table[decoding][:, index], table["truth"][:, index])


def constant_score(table: Table, index: int) -> tuple[int, float]:
    """Return the class that is best for a rating if predicted for every nodule, and its accuracy."""
    truth, classes = table["truth"][:, index], schema.RATINGS[index].classes
    return metrics.best_constant(truth, classes, bool(nominal(table)[index]))


def reader_scores(table: Table, index: int) -> np.ndarray:
    """Return the accuracy of one reader against the others of a nodule: (N,), NaN below two readers."""
    rating_counts = table["rating_counts"][:, index]
    if nominal(table)[index]:
        return metrics.one_reader_agreement(rating_counts, cohort.TIE_RANK[index])
    return metrics.one_reader_scores(rating_counts)


def rating_results(table: Table, index: int) -> dict:
    """Return all results of one rating, the index-th of `schema.RATINGS`."""
    rating, patients, truth = schema.RATINGS[index], table["patient_id"], table["truth"][:, index]
    constant, rate = constant_score(table, index)
    readers = table["rating_counts"][:, index].sum(axis=1)
    result: dict[str, Any] = {
        "accuracy": "exact" if nominal(table)[index] else "off_by_one",
        "best_constant": {"class": constant, "value": rate},
        "one_reader": mean_result(reader_scores(table, index), patients, readers),
    }
    if not rated(table)[index]:
        return result
    if nominal(table)[index]:
        result["arg_max"] = {
            "exact": mean_result(rating_scores(table, "arg_max", index), patients),
            "balanced_accuracy": with_interval(
                lambda weights: metrics.balanced_accuracy(table["arg_max"][:, index], truth, weights), patients
            ),
        }
        return result
    for decoding in ("arg_max", "within_one"):
        predicted = table[decoding][:, index]

        def macro(weights: np.ndarray, predicted=predicted) -> float:
            return metrics.macro_within_one(predicted, truth, weights)

        def kappa(weights: np.ndarray, predicted=predicted) -> float:
            return metrics.quadratic_kappa(predicted, truth, rating.classes, weights)

        result[decoding] = {
            "off_by_one": mean_result(metrics.off_by_one(predicted, truth), patients),
            "exact": mean_result(metrics.exact(predicted, truth), patients),
            "macro_within_one": with_interval(macro, patients),
            "quadratic_kappa": with_interval(kappa, patients),
        }
    error = metrics.absolute_error(metrics.expected(table["probabilities"][:, index]), truth)
    result["mean_absolute_error"] = mean_result(error, patients)
    return result


def mean_of_ratings(table: Table, indices: Sequence[int] = range(len(schema.RATINGS))) -> dict:
    """Return the means over several ratings of the off-by-one accuracies and of their baselines.

    Args:
      table: see `read_tables`; none of the ratings is scored as nominal, as in `as_in_paper`.
      indices: of the ratings, all nine by default.
    """
    patients = table["patient_id"]

    def mean_of(scores: list[np.ndarray], masses: list[np.ndarray | None]) -> dict:
        def statistic(weights: np.ndarray) -> float:
            pairs = zip(scores, masses, strict=True)
            return float(np.mean([metrics.mean_score(s, weights if m is None else weights * m) for s, m in pairs]))

        return {**with_interval(statistic, patients), "n": len(patients)}

    readers = [reader_scores(table, index) for index in indices]
    masses: list[np.ndarray | None] = [table["rating_counts"][:, index].sum(axis=1) for index in indices]
    result = {
        "best_constant": {"value": float(np.mean([constant_score(table, index)[1] for index in indices]))},
        "one_reader": {**mean_of(readers, masses), "n": int((~np.isnan(readers[0])).sum())},
    }
    if rated(table)[list(indices)].all():
        for decoding in ("arg_max", "within_one"):
            scores = [rating_scores(table, decoding, index) for index in indices]
            result[decoding] = {"off_by_one": mean_of(scores, [None] * len(scores))}
    return result


def outline_results(table: Table) -> dict:
    """Return the scores of the mask, on all nodules and on those on which one reader can be scored too."""
    patients, three = table["patient_id"], ~np.isnan(table["reader_dice"])
    return {
        **{name: mean_result(table[name], patients) for name in OUTLINE_SCORES},
        "dice_three_readers": mean_result(np.where(three, table["dice"], np.nan), patients),
        "reader_dice": mean_result(table["reader_dice"], patients),
    }


def malignancy_results(table: Table) -> dict:
    """Return the AUC of malignant (rated over 3) against benign (under 3), and the expected calibration error.

    The AUC ranks nodules by their expected rating; the calibration error is that of `metrics.malignant_probability`.
    """
    truth, p = table["truth"][:, schema.MALIGNANCY], table["probabilities"][:, schema.MALIGNANCY]
    outcome = metrics.suspected(truth)
    counts, malignant, score = ~np.isnan(outcome), outcome == 1, metrics.expected(p)
    auc = with_interval(lambda weights: metrics.auc(score, malignant, weights * counts), table["patient_id"])
    return {
        "auc": {**auc, "n": int(counts.sum()), "malignant": int(malignant.sum())},
        "calibration_error": {"value": metrics.expected_calibration_error(metrics.malignant_probability(p), outcome)},
    }


def fold_results(table: Table) -> dict:
    """Return means over the folds with their standard errors, as the paper reports them."""
    folds = [table["fold"] == fold for fold in np.unique(table["fold"])]
    scores = {"dice": table["dice"]}
    for decoding in ("arg_max", "within_one"):
        if rated(table)[schema.MALIGNANCY]:
            hits = metrics.off_by_one(table[decoding][:, schema.MALIGNANCY], table["truth"][:, schema.MALIGNANCY])
            scores[f"malignancy_off_by_one_{decoding}"] = hits
    result: dict[str, Any] = {"folds": len(folds)}
    for name, values in scores.items():
        mean, sem = intervals.mean_and_sem([metrics.mean_score(values[fold]) for fold in folds])
        result[name] = {"mean": mean, "sem": sem}
    return result


def context_results(table: Table) -> dict:
    """Return all results of the nodules of one context."""
    results: dict[str, Any] = {"n": len(table["nodule_id"]), "patients": len(np.unique(table["patient_id"]))}
    results["ratings"] = {rating.name: rating_results(table, index) for index, rating in enumerate(schema.RATINGS)}
    results["mean_of_ordinal"] = mean_of_ratings(table, np.flatnonzero(~schema.NOMINAL).tolist())
    results["mean_of_nine"] = mean_of_ratings(as_in_paper(table))
    results |= outline_results(table)
    if rated(table)[schema.MALIGNANCY]:
        results["malignancy"] = malignancy_results(table)
    results["over_folds"] = fold_results(table)
    return results


def evaluate(workdir: Path) -> dict:
    """Compute the results of a workdir from its tables, write results.json and the figures, and print the table.

    Returns:
      The content of results.json, in which an undefined value is null: {"contexts": {context: results}, "paper": the
      paper's results for the same variant, ...}, and "diagnosis" where `config.data.diagnosis` names a table.
    """
    config = json.loads((workdir / "config.json").read_text())
    table = read_tables(workdir)
    paper = PAPER.get(paper_variant(config["model"]) or "", {})
    results = {"source": config["data"]["source"], "model": config["model"]["name"], "paper": paper, "contexts": {}}
    figures = []
    for context in sorted(set(table["context"])):
        part = {name: values[table["context"] == context] for name, values in table.items()}
        results["contexts"][context] = context_results(part)
        figure = workdir / "figures" / f"evaluation_{context}.png"
        probability = metrics.malignant_probability(part["probabilities"][:, schema.MALIGNANCY])
        if draw_evaluation(part, probability, CONTEXT_NOTES[context], figure):
            figures.append(figure)
        published = {} if context == "simulated" else paper  # the paper's nodules were real
        print("\n" + format_table(results["contexts"][context], CONTEXT_NOTES[context], published))
    if config["data"].get("diagnosis"):  # a run of an older version has no such field
        diagnoses = read_diagnoses(user_path(config["data"]["diagnosis"]))
        results["diagnosis"] = diagnosed.auc_results(table, diagnoses)
        print("\n" + format_diagnosis(results["diagnosis"]))
    write_text(workdir / "results.json", json.dumps(_null_for_nan(results), indent=1))
    tables = ", ".join(str(workdir / name) for name in ("predictions.csv", "readers.csv", "results.json"))
    for line in (f"\nTables: {tables}", *(f"Figure: {figure}" for figure in figures)):
        print(readable(line))
    return results


def _null_for_nan(tree):
    if isinstance(tree, dict):
        return {name: _null_for_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_null_for_nan(value) for value in tree]
    return None if isinstance(tree, float) and np.isnan(tree) else tree
