"""What temperature scaling does to a run's test predictions: likelihood and reliability, before and after.

    python -m experiments.reliability --workdir runs/tables/pn_samp_m

The temperatures are those of each fold's validation part (fold_<k>/calibration.json). For each context: the mean
negative log likelihood of the readers' rounded rating, for malignancy and for the mean of the nine, the paired
difference, and the calibration error of the suspicion; and a picture, reliability_<context>.png, in the workdir.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.comparison.runs import only
from pnsamp_jax import metrics
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES, malignant_probability
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference import temperature
from pnsamp_jax.report.figures import BLUE, GREY
from pnsamp_jax.workdir.tables import Table, read_tables


def scaled(table: Table, workdir: Path) -> Table:
    """The table with the probabilities that temperature scaling gives, each fold's with its own."""
    temperatures = np.ones(table["truth"].shape)
    for fold in np.unique(table["fold"]).astype(int):
        found = temperature.read(workdir / f"fold_{fold}" / "calibration.json")
        temperatures[table["fold"] == fold] = found.temperatures
    return table | {"probabilities": temperature.scale(table["probabilities"], temperatures)}


def log_losses(table: Table) -> np.ndarray:
    """(N, 9) -log P of the rounded rating, at most -log 1e-6; NaN where there is none."""
    place = np.maximum(table["truth"], 1)[..., None] - 1
    p = np.take_along_axis(table["probabilities"], place, axis=2)[..., 0]
    return np.where(table["truth"] > 0, -np.log(np.maximum(p, 1e-6)), np.nan)


def suspicion(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """The predicted suspicion of each nodule, and whether the readers share it; NaN where they rated 3 or nothing."""
    truth = table["truth"][:, schema.MALIGNANCY]
    return malignant_probability(table), np.where((truth > 0) & (truth != 3), truth > 3, np.nan)


def compare(before: Table, after: Table) -> dict:
    """All figures of one context."""
    patients, results = before["patient_id"], {"nodules": len(before["nodule_id"])}
    losses = [log_losses(table) for table in (before, after)]
    parts = {"malignancy": [loss[:, schema.MALIGNANCY] for loss in losses]}
    parts["mean_of_nine"] = [np.nanmean(loss, axis=1) for loss in losses]
    for name, (first, second) in parts.items():
        change = {
            "value": metrics.mean_score(second - first),
            "interval": metrics.mean_interval(second - first, patients),
        }
        means = {"before": metrics.mean_score(first), "after": metrics.mean_score(second)}
        results[name] = {"negative_log_likelihood": means | {"change": change}}
    errors = [metrics.expected_calibration_error(*suspicion(table)) for table in (before, after)]
    results["calibration_error"] = dict(zip(("before", "after"), errors, strict=True))
    return results


def draw(before: Table, after: Table, note: str, path: Path) -> None:
    """Draws the observed share of suspicious nodules against the predicted one, before and after."""
    picture = Figure(figsize=(4.6, 4.4), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--")
    for table, label, color in ((before, "as trained", GREY), (after, "temperature scaled", BLUE)):
        mean, rate, count = metrics.calibration(*suspicion(table))
        axes.plot(mean[count > 0], rate[count > 0], marker="o", color=color, label=label)
    axes.set(xlabel="predicted suspicion", ylabel="share that the readers rate over 3", title=note)
    axes.title.set_fontsize(9)
    axes.legend()
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120)


def run(workdir: Path) -> dict:
    """Compares a run's predictions with the scaled ones, and writes reliability.json and the pictures.

    Returns:
      What `compare` gives, by context.

    Raises:
      UserError: a table or a fold's calibration is missing or damaged.
    """
    table = read_tables(workdir)
    after, results = scaled(table, workdir), {}
    for context in sorted(set(table["context"])):
        parts = [only(part, table["context"] == context) for part in (table, after)]
        results[context] = compare(*parts)
        note = f"{len(parts[0]['nodule_id'])} nodules ({CONTEXT_NOTES[context]})"
        draw(*parts, note, workdir / "figures" / f"reliability_{context}.png")
    with atomic_path(workdir / "reliability.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1))
    return results


def launch() -> None:
    """The command line; a user's mistake becomes one line."""
    workdir = flags.DEFINE_string("workdir", None, "The run.", required=True)

    def main(argv: list[str]) -> None:
        del argv
        try:
            print(json.dumps(run(Path(workdir.value)), indent=1))
        except UserError as error:
            sys.exit(f"reliability: {error}")

    app.run(main)


if __name__ == "__main__":
    launch()
