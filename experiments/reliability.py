"""The effect of temperature scaling on a run's test predictions: likelihood and reliability, before and after.

    python -m experiments.reliability --workdir runs/tables/pn_samp_m

The temperatures are those fitted on each fold's validation nodules (fold_<k>/calibration.json). For each context,
prints and writes to reliability.json: the mean negative log likelihood of the readers' rounded rating, for malignancy
and for the mean of the nine ratings, the paired difference, and the expected calibration error of the probability of
malignant. Also draws the reliability diagram, figures/reliability_<context>.png, in the workdir.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.comparison.runs import select
from experiments.launch import launch
from pnsamp_jax import intervals, metrics
from pnsamp_jax.data import schema
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import atomic_path, write_text
from pnsamp_jax.inference import calibration
from pnsamp_jax.report.evaluation_figures import BLUE, GREY
from pnsamp_jax.workdir.tables import Table, read_tables


def scaled(table: Table, workdir: Path) -> Table:
    """Return the table with the probabilities scaled by the temperatures of each nodule's fold."""
    temperatures = np.ones(table["truth"].shape)
    for fold in np.unique(table["fold"]).astype(int):
        fitted = calibration.read(workdir / f"fold_{fold}" / "calibration.json")
        temperatures[table["fold"] == fold] = fitted.temperatures
    return table | {"probabilities": calibration.scale(table["probabilities"], temperatures)}


def log_losses(table: Table) -> np.ndarray:
    """Return -log P of the rounded ratings, at most -log 1e-6: (N, 9), NaN where there is no rating."""
    index = np.maximum(table["truth"], 1)[..., None] - 1
    p = np.take_along_axis(table["probabilities"], index, axis=2)[..., 0]
    return np.where(table["truth"] > 0, -np.log(np.maximum(p, 1e-6)), np.nan)


def malignancy_outcomes(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted probability of malignant (N,), and whether the readers rate malignant (N,).

    The latter is 0 or 1, and NaN for nodules that are rated 3 or not at all.
    """
    truth, p = table["truth"][:, schema.MALIGNANCY], table["probabilities"][:, schema.MALIGNANCY]
    return metrics.malignant_probability(p), metrics.suspected(truth)


def compare(before: Table, after: Table) -> dict:
    """Return all results of one context."""
    patients = before["patient_id"]
    results: dict[str, Any] = {"nodules": len(before["nodule_id"])}
    losses = [log_losses(table) for table in (before, after)]
    pairs = {"malignancy": [loss[:, schema.MALIGNANCY] for loss in losses]}
    pairs["mean_of_nine"] = [np.nanmean(loss, axis=1) for loss in losses]
    for name, (first, second) in pairs.items():
        change = {
            "value": metrics.mean_score(second - first),
            "interval": intervals.mean_interval(second - first, patients),
        }
        means = {"before": metrics.mean_score(first), "after": metrics.mean_score(second)}
        results[name] = {"negative_log_likelihood": means | {"change": change}}
    errors = [metrics.expected_calibration_error(*malignancy_outcomes(table)) for table in (before, after)]
    results["calibration_error"] = dict(zip(("before", "after"), errors, strict=True))
    return results


def draw(before: Table, after: Table, note: str, path: Path) -> None:
    """Draw the observed share of malignant nodules against the predicted one, before and after."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--")
    for table, label, color in ((before, "as trained", GREY), (after, "temperature scaled", BLUE)):
        mean, rate, count = metrics.reliability_bins(*malignancy_outcomes(table))
        axes.plot(mean[count > 0], rate[count > 0], marker="o", color=color, label=label)
    axes.set(xlabel="predicted probability of malignant", ylabel="share that the readers rate over 3", title=note)
    axes.title.set_fontsize(9)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def run(workdir: Path) -> dict:
    """Compare a run's predictions with the scaled ones, and write reliability.json and the figures.

    Returns:
      The results of `compare` by context.

    Raises:
      UserError: a table or a fold's calibration.json is missing or damaged.
    """
    table = read_tables(workdir)
    table_after, results = scaled(table, workdir), {}
    for context in sorted(set(table["context"])):
        chosen = table["context"] == context
        before, after = select(table, chosen), select(table_after, chosen)
        results[context] = compare(before, after)
        note = f"{len(before['nodule_id'])} nodules ({CONTEXT_NOTES[context]})"
        draw(before, after, note, workdir / "figures" / f"reliability_{context}.png")
    write_text(workdir / "reliability.json", json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    launch(run, workdir="Workdir of the run.")
