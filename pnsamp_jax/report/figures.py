"""Figures of an evaluation, drawn without a display."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pnsamp_jax import metrics
from pnsamp_jax.data import keys
from pnsamp_jax.data.prepare import atomic_path

BLUE, GREY = "#2166ac", "#8c8c8c"


def draw_evaluation(table: dict[str, np.ndarray], suspicion: np.ndarray, note: str, path: Path) -> bool:
    """Draws Dice by nodule, and the reliability and confusion of malignancy, side by side.

    Args:
      table: of one context, as `predictions.read_tables` gives it.
      suspicion: (N,) predicted probability of malignant against benign.
      note: what kind of voxels these are; stands above the panels.
      path: of the PNG file.

    Returns:
      Whether there was anything to draw.
    """
    panels = []
    if not np.isnan(table["dice"]).all():
        panels.append(_dice_panel)
    if table["arg_max"].any():
        panels += [_reliability_panel, _confusion_panel]
    if not panels:
        return False
    picture = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(f"{len(table['nodule_id'])} nodules ({note})", fontsize=10)
    for place, draw in enumerate(panels, start=1):
        draw(picture.add_subplot(1, len(panels), place), table, suspicion)
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120)
    return True


def _dice_panel(axes, table: dict[str, np.ndarray], suspicion: np.ndarray) -> None:
    axes.scatter(table["diameter_mm"], table["dice"], s=10, color=BLUE, alpha=0.5, linewidths=0)
    for name, color, style in (("dice", BLUE, "-"), ("reader_dice", GREY, "--")):
        value = metrics.mean_score(table[name])
        if not np.isnan(value):
            label = {"dice": "mean", "reader_dice": "one reader"}[name]
            axes.axhline(value, color=color, linestyle=style, label=f"{label} {100 * value:.1f} %")
    axes.set(xlabel="diameter of the readers' consensus (mm)", ylabel="Dice", ylim=(-0.02, 1.02), title="Segmentation")
    axes.legend(loc="lower right", fontsize=8)


def _reliability_panel(axes, table: dict[str, np.ndarray], suspicion: np.ndarray) -> None:
    truth = table["truth"][:, keys.MALIGNANCY]
    outcome = np.where((truth > 0) & (truth != 3), truth > 3, np.nan)
    mean, rate, count = metrics.calibration(suspicion, outcome)
    filled = count > 0
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect")
    axes.plot(mean[filled], rate[filled], color=BLUE)
    axes.scatter(mean[filled], rate[filled], s=10 + 200 * count[filled] / max(count.max(), 1), color=BLUE)
    axes.set(xlabel="predicted P(suspicious)", ylabel="share rated suspicious", title="Malignancy: reliability")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", fontsize=8)


def _confusion_panel(axes, table: dict[str, np.ndarray], suspicion: np.ndarray) -> None:
    classes = keys.RATINGS[keys.MALIGNANCY].classes
    truth, predicted = table["truth"][:, keys.MALIGNANCY], table["arg_max"][:, keys.MALIGNANCY]
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (truth[truth > 0] - 1, predicted[truth > 0] - 1), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    ticks = [str(k) for k in range(1, classes + 1)]
    axes.set_xticks(range(classes), ticks)
    axes.set_yticks(range(classes), ticks)
    axes.set(xlabel="predicted (arg max)", ylabel="readers' rounded mean", title="Malignancy: confusion")
