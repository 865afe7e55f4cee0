"""The figure of some nodules with their neighbours."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path
from pnsamp_jax.report.nodule_figure import HIGH, LOW, READERS

NAMED = ("malignancy", "spiculation", "margin", "texture")  # ratings below each picture
SIDE = 1.75  # of a picture in inches


def draw_neighbours(
    test: Subset, pool: Subset, nearest: np.ndarray, shown: int, diagnoses: dict[str, str], path: Path
) -> None:
    """Draw one row for each of some nodules: the nodule, then its neighbours, in their central axial slices.

    Args:
      test: N nodules, of which some are drawn, spread evenly over the readers' malignancy.
      pool: the nodules among which the neighbours are.
      nearest: (N, K) indices in the pool.
      shown: how many nodules to draw.
      diagnoses: by patient id, as far as they are known.
      path: of the PNG file.
    """
    by_malignancy = np.argsort(test.means[:, schema.MALIGNANCY], kind="stable")
    chosen = by_malignancy[np.unique(np.linspace(0, len(by_malignancy) - 1, shown).round().astype(int))]
    count = nearest.shape[1]
    figure = Figure(figsize=(SIDE * (1 + count), 1.42 * SIDE * len(chosen)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, index in enumerate(chosen):
        cells = [(test, int(index)), *((pool, int(other)) for other in nearest[index])]
        for column, (subset, i) in enumerate(cells):
            axes = figure.add_subplot(len(chosen), 1 + count, 1 + row * (1 + count) + column)
            _draw_nodule(axes, subset, i, diagnoses)
            if row == 0:
                axes.set_title("nodule" if column == 0 else f"neighbour {column}", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_nodule(axes: Axes, subset: Subset, index: int, diagnoses: dict[str, str]) -> None:
    image, mask = subset.records[schema.IMAGE][index], subset.masks[index]
    middle = len(image) // 2
    shown: Any = {"cmap": "gray", "vmin": LOW, "vmax": HIGH, "interpolation": "bicubic"}
    axes.imshow(image[middle], **shown)
    if mask[middle].any():
        axes.contour(mask[middle], levels=[0.5], colors=READERS, linewidths=0.9)
    axes.set(xticks=[], yticks=[])
    means = subset.means[index]
    lines = [f"{name} {means[schema.RATING_NAMES.index(name)]:.1f}" for name in NAMED]
    diagnosis = diagnoses.get(str(subset.records[schema.PATIENT_ID][index]))
    axes.set_xlabel("\n".join([*lines, f"patient: {diagnosis}" if diagnosis else ""]), fontsize=6.5)
