"""Figures of an evaluation: the panels of one run, and dot plots that compare systems. Drawn without a display."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pnsamp_jax import metrics
from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path

BLUE, GREY = "#2166ac", "#8c8c8c"
LINE_STYLES = {"--": "- -", ":": "···"}  # and what stands for them in a legend


class Dots(NamedTuple):
    """One panel of a dot plot: a metric of R systems in per cent, NaN where a system lacks it.

    Attributes:
      title: text above the panel.
      values: (R,) the dots.
      intervals: (R, 2) low and high.
      published: (R,) published values, drawn as hollow dots.
      lines: at most two reference values by name, drawn as vertical lines.
    """

    title: str
    values: np.ndarray
    intervals: np.ndarray
    published: np.ndarray
    lines: dict[str, float]


def draw_evaluation(table: dict[str, np.ndarray], malignant_probability: np.ndarray, note: str, path: Path) -> bool:
    """Draw Dice against diameter, and the reliability and confusion of malignancy, side by side.

    Args:
      table: the nodules of one context, as `workdir.tables.read_tables` returns them.
      malignant_probability: (N,) predicted probability of malignant rather than benign.
      note: the kind of voxels, written above the panels.
      path: of the PNG file.

    Returns:
      False if there was nothing to draw, and so no file was written.
    """
    panels: list[Callable[[Axes, dict[str, np.ndarray], np.ndarray], None]] = []
    if not np.isnan(table["dice"]).all():
        panels.append(_dice_panel)
    if table["arg_max"][:, schema.MALIGNANCY].any():
        panels += [_reliability_panel, _confusion_panel]
    if not panels:
        return False
    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{len(table['nodule_id'])} nodules ({note})", fontsize=10)
    for number, draw in enumerate(panels, start=1):
        draw(figure.add_subplot(1, len(panels), number), table, malignant_probability)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return True


def _dice_panel(axes: Axes, table: dict[str, np.ndarray], malignant_probability: np.ndarray) -> None:
    axes.scatter(table["diameter_mm"], table["dice"], s=10, color=BLUE, alpha=0.5, linewidths=0)
    three = np.where(np.isnan(table["reader_dice"]), np.nan, table["dice"])  # on the nodules of the line below it
    for values, color, style, label in (
        (table["dice"], BLUE, "-", "mean"),
        (three, BLUE, "--", "mean, at least 3 readers"),
        (table["reader_dice"], GREY, "--", "one reader there"),
    ):
        value = metrics.mean_score(values)
        if not np.isnan(value):
            axes.axhline(value, color=color, linestyle=style, label=f"{label} {100 * value:.1f} %")
    axes.set(xlabel="diameter of the readers' consensus (mm)", ylabel="Dice", ylim=(-0.02, 1.02), title="Segmentation")
    axes.legend(loc="lower right", fontsize=8)


def _reliability_panel(axes: Axes, table: dict[str, np.ndarray], malignant_probability: np.ndarray) -> None:
    outcome = metrics.suspected(table["truth"][:, schema.MALIGNANCY])
    mean, rate, count = metrics.reliability_bins(malignant_probability, outcome)
    filled = count > 0
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect")
    axes.plot(mean[filled], rate[filled], color=BLUE)
    axes.scatter(mean[filled], rate[filled], s=10 + 200 * count[filled] / max(count.max(), 1), color=BLUE)
    axes.set(xlabel="predicted P(suspicious)", ylabel="share rated suspicious", title="Malignancy: reliability")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", fontsize=8)


def _confusion_panel(axes: Axes, table: dict[str, np.ndarray], malignant_probability: np.ndarray) -> None:
    classes = schema.RATINGS[schema.MALIGNANCY].classes
    truth, predicted = table["truth"][:, schema.MALIGNANCY], table["arg_max"][:, schema.MALIGNANCY]
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


def draw_dots(names: list[str], panels: list[Dots], note: str, path: Path, columns: int = 5) -> None:
    """Draw a dot plot: the metrics of several systems, one system below the other, with their intervals.

    Args:
      names: of the R systems, from the top.
      panels: drawn side by side, in rows of `columns`; all have the same R systems.
      note: the kind of voxels, written above the panels.
      path: of the PNG file.
      columns: panels in a row.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = 2.5 + 2.9 * columns, 0.5 + rows * (1.4 + 0.26 * len(names))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    letters = int(14 * width)  # in a line of font size 9
    figure.suptitle("\n".join(textwrap.fill(line, letters) for line in note.splitlines()), fontsize=9)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        _dots_panel(axes, panel)
        axes.set_yticks(range(len(names)), names if index % columns == 0 else [""] * len(names), fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _dots_panel(axes: Axes, panel: Dots) -> None:
    rows, hollow, lines = np.arange(len(panel.values)), ~np.isnan(panel.published), []
    axes.hlines(rows, *panel.intervals.T, color=BLUE, linewidth=1.5, alpha=0.6)
    axes.scatter(panel.values, rows, s=22, color=BLUE, zorder=3)
    for (name, value), (style, symbol) in zip(panel.lines.items(), LINE_STYLES.items(), strict=False):
        if not np.isnan(value):
            axes.axvline(value, color=GREY, linestyle=style)
            lines.append(f"{symbol} {name} {value:.1f}")
    if hollow.any():
        axes.scatter(panel.published[hollow], rows[hollow], s=26, facecolors="none", edgecolors="black", zorder=4)
    axes.set_title(panel.title, fontsize=9)
    legend = ["    ".join(lines), *["○ published"] * bool(hollow.any())]
    axes.set_xlabel("\n".join(legend).strip(), fontsize=7)  # a legend inside the axes could cover dots
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
