"""Draw coordinates.png for concepts.md: one point in LPS mm, in RAS mm and as a voxel, from the header of the example.

python docs/coordinates.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, Rectangle

import pnsamp_jax

POINT_LPS = np.array([56.4, 86.3, -116.0])  # of examples/points.csv
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI headers are in RAS
BLUE, ORANGE = "#2166ac", "#d95f02"


def main() -> None:
    """Write docs/coordinates.png."""
    ct = nib.load(pnsamp_jax.EXAMPLE_CT)
    affine = TO_LPS @ ct.affine  # from the index i, j, k to LPS mm
    index = (np.linalg.inv(affine) @ [*POINT_LPS, 1])[:3]
    ends = np.array([affine @ [*corner, 1] for corner in ((-0.5, -0.5, 0), np.array(ct.shape[:2] + (1,)) - 0.5)])
    low, high = ends[:, :2].min(axis=0), ends[:, :2].max(axis=0)

    figure, (scanner, slice_) = plt.subplots(1, 2, figsize=(11, 5), layout="compressed")
    draw_scanner(scanner, low, high)
    values = np.asarray(ct.dataobj)[:, :, round(index[2])]
    # Rows of the picture run to posterior and columns to the left, as axial slices are shown.
    shown = values.T[:: int(np.sign(affine[1, 1])), :: int(np.sign(affine[0, 0]))]
    draw_slice(slice_, shown, (low[0], high[0], high[1], low[1]), index)
    figure.savefig(Path(__file__).with_name("coordinates.png"), dpi=110, bbox_inches="tight")


def draw_scanner(axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
    """Draw the patient from the feet, with both systems and the place of the example."""
    axes.add_patch(Ellipse((0, 60), 380, 270, facecolor="#eeeeee", edgecolor="#888888"))
    for x in (-85, 85):
        axes.add_patch(Ellipse((x, 55), 110, 170, facecolor="#cfd8dc", edgecolor="none"))
    axes.add_patch(Ellipse((0, 150), 46, 46, facecolor="#bdbdbd", edgecolor="none"))  # the spine is posterior
    axes.add_patch(Rectangle(low, *(high - low), fill=False, edgecolor="black", linewidth=1.5))
    axes.plot(*POINT_LPS[:2], "k+", markersize=9)
    axes.text((low[0] + high[0]) / 2, high[1] + 4, "the example CT", fontsize=9, ha="center", va="top")
    arrow = {"arrowstyle": "-|>", "linewidth": 2}
    for vector, where, name, colour in (
        ((90, 0), (20, -8), "x of LPS: to the left", BLUE),
        ((0, 90), (-6, 84), "y of LPS:\nto posterior", BLUE),
        ((-90, 0), (-152, -8), "x of RAS: to the right", ORANGE),
        ((0, -90), (6, -46), "y of RAS: to anterior", ORANGE),
    ):
        axes.annotate("", vector, (0, 0), arrowprops=arrow | {"color": colour})
        axes.text(*where, name, color=colour, fontsize=9, ha="right" if where[0] == -6 else "left")
    for x, y, name in ((0, -100, "anterior"), (0, 214, "posterior"), (-208, 60, "right"), (208, 60, "left")):
        axes.text(x, y, name, ha="center", va="center", rotation=0 if x == 0 else 90, color="#555555")
    axes.set(xlim=(-225, 225), ylim=(225, -110), aspect="equal", title="A patient (sketched), seen from the feet")
    axes.axis("off")


def draw_slice(axes: Axes, values: np.ndarray, extent: tuple[float, ...], index: np.ndarray) -> None:
    """Draw an axial slice with LPS below and at the left, RAS above and at the right, and the point in all three."""
    axes.imshow(values, cmap="gray", vmin=-1400, vmax=200, extent=extent, interpolation="nearest")
    axes.plot(*POINT_LPS[:2], "+", color="yellow", markersize=16, markeredgewidth=2)
    text = "\n".join(
        (
            "LPS mm  (" + ", ".join(f"{value:.1f}" for value in POINT_LPS) + ")",
            "RAS mm  (" + ", ".join(f"{value:.1f}" for value in POINT_LPS * (-1, -1, 1)) + ")",
            "voxel   (" + ", ".join(f"{value:.1f}" for value in index) + ")",
        )
    )
    axes.text(
        *(0.03, 0.97),
        text,
        transform=axes.transAxes,
        va="top",
        family="monospace",
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none"},
    )
    axes.set_title("The example CT: one point, three ways to say where", pad=12)
    axes.set_xlabel("x, LPS mm", color=BLUE)
    axes.set_ylabel("y, LPS mm", color=BLUE)
    axes.tick_params(colors=BLUE)
    for secondary, label in (
        (axes.secondary_xaxis("top", functions=(np.negative, np.negative)), "x, RAS mm"),
        (axes.secondary_yaxis("right", functions=(np.negative, np.negative)), "y, RAS mm"),
    ):
        secondary.tick_params(colors=ORANGE)
        (secondary.set_xlabel if label.startswith("x") else secondary.set_ylabel)(label, color=ORANGE)


if __name__ == "__main__":
    main()
