"""A page of nodules, one panel each: the middle axial slice with the readers' outline, and lines of text above it."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from pnsamp_jax.files import atomic_path
from pnsamp_jax.report.nodule_figure import BAR_MM, HIGH, LOW, READERS, STYLE

COLUMNS, SIDE, TEXT = 4, 1.8, 0.45  # panels in a row; size of a slice, and height of the text above it, in inches


class Case(NamedTuple):
    """A nodule to show.

    Attributes:
      image: (S, S, S) HU around the nodule.
      outline: (S, S, S) bool, the readers' consensus.
      spacing_mm: of the voxels.
      lines: of text, the first of which names the nodule.
    """

    image: np.ndarray
    outline: np.ndarray
    spacing_mm: float
    lines: tuple[str, ...]


def draw_cases(cases: list[Case], title: str, path: Path) -> None:
    """Draw the cases to a PNG file, row by row, under a title."""
    rows = -(-len(cases) // COLUMNS)
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        figure = Figure(figsize=(COLUMNS * SIDE, rows * (SIDE + TEXT)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{title}. Outline: the readers'; bar: {BAR_MM} mm", fontsize=7)
        for place, case in enumerate(cases, start=1):
            _draw_case(figure.add_subplot(rows, COLUMNS, place), case)
        figure.savefig(temporary, dpi=200, format="png")


def _draw_case(axes: Axes, case: Case) -> None:
    middle = len(case.image) // 2
    axes.imshow(case.image[middle], cmap="gray", vmin=LOW, vmax=HIGH, interpolation="bicubic")
    if case.outline[middle].any():
        axes.contour(case.outline[middle], levels=[0.5], colors=READERS, linewidths=0.8)
    left, bottom = 0.05 * len(case.image), 0.95 * len(case.image)
    rim = [withStroke(linewidth=2.7, foreground="black")]
    axes.plot(
        [left, left + BAR_MM / case.spacing_mm], [bottom, bottom], color="white", linewidth=1.5, path_effects=rim
    )
    axes.set_title("\n".join(case.lines), fontsize=6.5)
    axes.set_axis_off()
