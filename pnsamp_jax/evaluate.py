"""From the tables of a cross-validation to its results: every figure beside its baselines, with its interval.

Nodules in different contexts (whole CT, cube, slab, simulated voxels) are never mixed: each context has its own
figures and its own table. Accuracies are of radiologists' ratings, so beside each stands what the best constant
answer and what one more reader would score on the same nodules.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path, readable
from pnsamp_jax.report.figures import draw_evaluation
from pnsamp_jax.workdir.tables import Table, rated, read_tables

CONTEXT_NOTES = {
    "ct": "real CT",
    "cube": "real voxels, cubes with true context",
    "slab": "real voxels, slabs: Dice is optimistic, since the volume's end betrays the nodule's",
    "simulated": "SIMULATED VOXELS round real contours and ratings: no claim about real CT",
}

RESAMPLES = 500  # of the patients, where a statistic is no plain mean

# Wu et al., ISBI 2018, in per cent: Dice, off-by-one of malignancy, mean off-by-one of the nine ratings, by form.
PAPER = {
    "S1": {"dice": 74.05, "malignancy": 92.03},
    "S2": {"dice": 74.01, "malignancy": 95.30},
    "M": {"dice": 73.89, "malignancy": 97.58, "mean": 89.33},
    "Seg": {"dice": 70.23},
    "C": {"malignancy": 94.87},
}


def paper_form(model: dict) -> str | None:
    """Which form of the paper's a model's config is, None for another."""
    windows = [tuple(pair) for pair in model["windows"]]
    if model["name"] != "pn_samp":
        return None
    if not model["segment"]:
        return "C"
    if not model["rate"]:
        return "Seg"
    forms = {((1600, -600),): "S1", ((700, -600),): "S2", ((1600, -600), (700, -600)): "M"}
    return forms.get(tuple(windows))


def interval_of(statistic: Callable[[np.ndarray], float], patients: np.ndarray) -> dict:
    """A statistic of the nodules' weights, with its patient-clustered interval."""
    interval = metrics.cluster_bootstrap(statistic, patients, RESAMPLES)
    return {"value": statistic(np.ones(len(patients))), "interval": interval}


def figure(scores: np.ndarray, patients: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """A mean with its patient-clustered interval and its n: the scores that are not NaN."""
    interval = metrics.mean_interval(scores, patients, weights=weights)
    n = int((~np.isnan(scores)).sum())
    return {"value": metrics.mean_score(scores, weights), "interval": interval, "n": n}


def rating_figures(table: Table, place: int) -> dict:
    """All figures of one rating."""
    rating, patients = schema.RATINGS[place], table["patient_id"]
    truth, rating_counts = table["truth"][:, place], table["rating_counts"][:, place, : schema.RATINGS[place].classes]
    constant, rate = metrics.best_constant(truth, rating.classes)
    result = {
        "best_constant": {"class": constant, "value": rate},
        "one_reader": figure(metrics.one_reader_scores(rating_counts), patients, rating_counts.sum(axis=1)),
    }
    if not rated(table)[place]:
        return result
    for decoding in ("arg_max", "within_one"):
        predicted = table[decoding][:, place]

        def macro(weights: np.ndarray, predicted=predicted) -> float:
            return metrics.macro_within_one(predicted, truth, weights)

        def kappa(weights: np.ndarray, predicted=predicted) -> float:
            return metrics.quadratic_kappa(predicted, truth, rating.classes, weights)

        result[decoding] = {
            "off_by_one": figure(metrics.off_by_one(predicted, truth), patients),
            "exact": figure(metrics.exact(predicted, truth), patients),
            "macro_within_one": interval_of(macro, patients),
            "quadratic_kappa": interval_of(kappa, patients),
        }
    error = metrics.absolute_error(metrics.expected(table["probabilities"][:, place]), truth)
    result["mean_absolute_error"] = figure(error, patients)
    return result


def mean_figures(table: Table) -> dict:
    """The mean over the nine ratings of the off-by-one accuracies, and of their baselines."""
    places = range(len(schema.RATINGS))
    patients, truth, rating_counts = table["patient_id"], table["truth"], table["rating_counts"]

    def mean_of(scores: list[np.ndarray], masses: list[np.ndarray | None]) -> dict:
        def statistic(weights: np.ndarray) -> float:
            pairs = zip(scores, masses, strict=True)
            return float(np.mean([metrics.mean_score(s, weights if m is None else weights * m) for s, m in pairs]))

        return {**interval_of(statistic, patients), "n": len(patients)}

    readers = [metrics.one_reader_scores(rating_counts[:, place]) for place in places]
    constants = [metrics.best_constant(truth[:, place], schema.RATINGS[place].classes)[1] for place in places]
    result = {
        "best_constant": {"value": float(np.mean(constants))},
        "one_reader": {**mean_of(readers, list(rating_counts.sum(axis=2).T)), "n": int((~np.isnan(readers[0])).sum())},
    }
    if rated(table).all():
        for decoding in ("arg_max", "within_one"):
            scores = [metrics.off_by_one(table[decoding][:, place], truth[:, place]) for place in places]
            result[decoding] = {"off_by_one": mean_of(scores, [None] * len(scores))}
    return result


def malignancy_figures(table: Table) -> dict:
    """AUC of malignant (rated over 3) against benign (under 3), and how well the suspicion is calibrated.

    The score of the AUC is the expected rating; that of the calibration is P(4) + P(5) among the classes but 3.
    """
    truth, p = table["truth"][:, schema.MALIGNANCY], table["probabilities"][:, schema.MALIGNANCY]
    counts = (truth > 0) & (truth != 3)
    score, malignant = metrics.expected(p), truth > 3
    auc = interval_of(lambda weights: metrics.auc(score, malignant, weights * counts), table["patient_id"])
    suspicion, outcome = malignant_probability(table), np.where(counts, malignant, np.nan)
    return {
        "auc": {**auc, "n": int(counts.sum()), "malignant": int(malignant.sum())},
        "calibration_error": {"value": metrics.expected_calibration_error(suspicion, outcome)},
    }


def malignant_probability(table: Table) -> np.ndarray:
    """P(4) + P(5) given that the rating is not 3: (N,)."""
    p = table["probabilities"][:, schema.MALIGNANCY]
    above, below = p[:, 3:].sum(axis=1), p[:, :2].sum(axis=1)
    return above / np.maximum(above + below, 1e-9)


def fold_figures(table: Table) -> dict:
    """Mean and SEM over the folds, as the paper has it."""
    folds = [table["fold"] == fold for fold in np.unique(table["fold"])]
    scores = {"dice": table["dice"]}
    for decoding in ("arg_max", "within_one"):
        if rated(table)[schema.MALIGNANCY]:
            hits = metrics.off_by_one(table[decoding][:, schema.MALIGNANCY], table["truth"][:, schema.MALIGNANCY])
            scores[f"malignancy_off_by_one_{decoding}"] = hits
    result = {"folds": len(folds)}
    for name, values in scores.items():
        mean, sem = metrics.mean_and_sem([metrics.mean_score(values[fold]) for fold in folds])
        result[name] = {"mean": mean, "sem": sem}
    return result


def context_results(table: Table) -> dict:
    """Every figure of the nodules of one context."""
    results = {"n": len(table["nodule_id"]), "patients": len(np.unique(table["patient_id"]))}
    results["ratings"] = {rating.name: rating_figures(table, place) for place, rating in enumerate(schema.RATINGS)}
    results["mean_of_ratings"] = mean_figures(table)
    results["dice"] = figure(table["dice"], table["patient_id"])
    results["reader_dice"] = figure(table["reader_dice"], table["patient_id"])
    if rated(table)[schema.MALIGNANCY]:
        results["malignancy"] = malignancy_figures(table)
    results["over_folds"] = fold_figures(table)
    return results


def evaluate(workdir: Path) -> dict:
    """Computes the results of a workdir from its tables, writes results.json and the figures, and prints the table.

    Returns:
      What results.json holds: {"contexts": {context: figures}, "paper": the paper's figures of the same form}.
      An undefined figure is null.
    """
    config = json.loads((workdir / "config.json").read_text())
    table = read_tables(workdir)
    paper = PAPER.get(paper_form(config["model"]), {})
    results = {"source": config["data"]["source"], "model": config["model"]["name"], "paper": paper, "contexts": {}}
    pictures = []
    for context in sorted(set(table["context"])):
        part = {name: values[table["context"] == context] for name, values in table.items()}
        results["contexts"][context] = context_results(part)
        picture = workdir / "figures" / f"evaluation_{context}.png"
        if draw_evaluation(part, malignant_probability(part), CONTEXT_NOTES[context], picture):
            pictures.append(picture)
        print("\n" + format_table(results["contexts"][context], context, paper))
    with atomic_path(workdir / "results.json") as temporary:
        temporary.write_text(json.dumps(_null_for_nan(results), indent=1))
    tables = ", ".join(str(workdir / name) for name in ("predictions.csv", "readers.csv", "results.json"))
    for line in (f"\nTables: {tables}", *(f"Picture: {picture}" for picture in pictures)):
        print(readable(line))
    return results


def _null_for_nan(tree):
    if isinstance(tree, dict):
        return {name: _null_for_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_null_for_nan(value) for value in tree]
    return None if isinstance(tree, float) and np.isnan(tree) else tree


def _percent(result: dict | None) -> str:
    if result is None or np.isnan(result["value"]):
        return "-"
    text = f"{100 * result['value']:.1f}"
    if "interval" in result and not np.isnan(result["interval"][0]):
        text += " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in result["interval"]))
    return text


def format_table(results: dict, context: str, paper: dict) -> str:
    """The printed table of one context, all in per cent, 95 % intervals by patients in brackets."""
    heading = ["", "off-by-one, arg max", "off-by-one, best within one", "best constant", "one reader", "paper"]
    rows = [heading]
    named = {**results["ratings"], "mean of nine": results["mean_of_ratings"]}
    for name, figures in named.items():
        constant = _percent(figures["best_constant"])
        if "class" in figures["best_constant"]:
            constant += f" ({figures['best_constant']['class']})"
        reader = f"{_percent(figures['one_reader'])} (n = {figures['one_reader']['n']})"
        cells = [_percent(figures.get(decoding, {}).get("off_by_one")) for decoding in ("arg_max", "within_one")]
        published = paper.get({"mean of nine": "mean"}.get(name, name))
        rows.append([name.replace("_", " "), *cells, constant, reader, f"{published:.2f}" if published else "-"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, "-" * len(lines[1]))
    folds = results["over_folds"]["folds"]
    title = f"{results['n']} nodules of {results['patients']} patients, {folds} fold{'s' * (folds > 1)}"
    title += f" ({CONTEXT_NOTES[context]})"
    below = []
    if not np.isnan(results["dice"]["value"]):
        dice, readers = results["dice"], results["reader_dice"]
        below.append(f"Dice {_percent(dice)}, n = {dice['n']}; one reader against the others' consensus ")
        below[-1] += f"{_percent(readers)}, n = {readers['n']}; paper {paper.get('dice', '-')}"
    if "malignancy" in results:
        auc = results["malignancy"]["auc"]
        below.append(f"Malignancy AUC {_percent(auc)}, n = {auc['n']} of which {auc['malignant']} suspicious; ")
        below[-1] += f"calibration error {_percent(results['malignancy']['calibration_error'])}"
    for name, value in results["over_folds"].items():
        if name != "folds" and not np.isnan(value["sem"]):
            label = name.replace("_", " ")
            below.append(f"Over folds, {label}: {100 * value['mean']:.2f} ({100 * value['sem']:.2f})")
    return "\n".join([title, *lines, *below])
