"""The paper's Figure 2 for any nodules: three slices of each with its outlines, and its ratings beside them."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patheffects import withStroke

from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.report.figures import BLUE, GREY

ROWS_OF_PAGE, ROWS_OF_PNG, DPI = 6, 20, 200
READERS, PREDICTED, RED = "#ffd92f", "#4eb3ff", "#b2182b"  # outlines; a rating that is further off than one
MARKERS = {BLUE: "o", RED: "x", GREY: ""}  # the same said without colour
LOW, HIGH = -1400, 200  # HU: window 1600, centre -600
BAR_MM = 10
PLANES = {"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}  # what is at the top, bottom, left and right
# Fonts that come with matplotlib, so that every machine draws the same; embedded as TrueType, as publishers ask.
STYLE = {"font.family": "DejaVu Sans", "font.size": 6.5, "text.parse_math": False, "pdf.fonttype": 42}
MONO, MONO_SIZE = "DejaVu Sans Mono", 7
LETTER = np.ceil(0.602 * MONO_SIZE / 72 * DPI) / DPI  # its width in inches; a PNG's letters are whole pixels

# Inches. A page of six rows fits on A4 and on Letter.
WIDTH, MARGIN, SIDE, GAP, TITLE, HEAD = 7.0, 0.08, 1.5, 0.04, 0.25, 0.42
TABLE = MARGIN + 3 * SIDE + 2 * GAP + 0.14
PREDICTION_AT, TRUTH_AT, MARKER_AT = TABLE + 1.06, TABLE + 1.72, TABLE + 2.04  # columns of the table
LINE = SIDE / 11.6


class Cell(NamedTuple):
    """One line of the table of ratings, as it is written; the colour is that of both classes."""

    name: str
    prediction: str
    truth: str
    color: str


def draw_nodules(findings: list[Finding], path: Path) -> None:
    """Draws one row a nodule: axial, coronal and sagittal slice with the outlines, and the ratings beside them.

    A PDF takes all findings, six to a page; a PNG is one tall picture of the first 20, and says so if there are more.
    The same findings give the same bytes.

    Args:
      findings: in the order of the rows.
      path: of the file; ends in .png or .pdf.

    Raises:
      ValueError: there is no finding, or the path ends in something else.
    """
    if path.suffix not in (".png", ".pdf"):
        raise ValueError(f"{path}: draws .png or .pdf")
    if not findings:
        raise ValueError("no finding to draw")
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        if path.suffix == ".png":
            note = f"first {ROWS_OF_PNG} of {len(findings)} nodules" if len(findings) > ROWS_OF_PNG else ""
            _draw_page(findings[:ROWS_OF_PNG], note).savefig(temporary, dpi=DPI)
            return
        starts = range(0, len(findings), ROWS_OF_PAGE)
        with PdfPages(temporary, metadata={"CreationDate": None}) as pages:
            for number, start in enumerate(starts, start=1):
                note = f"page {number} of {len(starts)}" if len(starts) > 1 else ""
                pages.savefig(_draw_page(findings[start : start + ROWS_OF_PAGE], note), dpi=DPI)


def rating_cells(finding: Finding) -> list[Cell]:
    """The nine ratings: the likeliest class, then the best within one in brackets if that is another.

    Blue where the likeliest is within one of the truth, red where it is further off, grey where there is no truth.
    """
    truth = np.zeros(len(schema.RATINGS), int) if finding.truth is None else finding.truth
    cells = []
    for name, said, near, true in zip(schema.RATING_NAMES, finding.arg_max, finding.within_one, truth, strict=True):
        color = GREY if true == 0 else BLUE if abs(said - true) <= 1 else RED
        prediction = f"{said}" if said == near else f"{said} ({near})"
        cells.append(Cell(name.replace("_", " "), prediction, f"{true}" if true else "–", color))
    return cells


def summary(finding: Finding) -> list[str]:
    """What stands below the ratings: size, and expected malignancy ± its spread over the ensemble."""
    size = f"diameter {finding.diameter_mm:.1f} mm, volume {finding.volume_mm3:,.0f} mm³"
    malignancy = f"expected malignancy {finding.expected[schema.MALIGNANCY]:.2f}"
    if not np.isnan(finding.ensemble_spread):
        malignancy += f" ± {finding.ensemble_spread:.2f}"
    return [size if finding.mask.any() else "nothing segmented", malignancy]


def slice_indices(mask: np.ndarray) -> tuple[int, int, int]:
    """Along each axis, of the slices that the mask touches the one nearest to its centroid; the middle if empty."""
    if not mask.any():
        return tuple(size // 2 for size in mask.shape)
    chosen = []
    for axis in range(3):
        area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        marked = np.flatnonzero(area)  # the centroid of two separate parts may lie in neither
        centroid = np.average(marked, weights=area[marked])
        chosen.append(int(marked[np.argmin(abs(marked - centroid))]))
    return tuple(chosen)


def displayed(patch: np.ndarray, at: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The `PLANES` of an (S, P, L) patch through the voxel `at`: row 0 on top, column 0 on the viewer's left."""
    superior, posterior, left = at
    return {"axial": patch[superior], "coronal": patch[::-1, posterior], "sagittal": patch[::-1, :, left]}


def shortened(text: str, letters: int) -> str:
    """The text with its middle left out if it is too long, and "?" for what the font cannot show."""
    known = get_font(findfont(MONO)).get_charmap()
    text = "".join(letter if ord(letter) in known and letter.isprintable() else "?" for letter in text)
    return text if len(text) <= letters else text[: (letters - 1) // 2] + "…" + text[len(text) - letters // 2 :]


def _draw_page(findings: list[Finding], note: str) -> Figure:
    height = HEAD + len(findings) * (TITLE + SIDE) + MARGIN
    picture = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(picture)
    axes = picture.add_axes((0, 0, 1, 1), autoscale_on=False)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))  # so that all places are inches from the upper left corner
    axes.set_axis_off()
    _draw_head(axes, findings, note)
    for row, finding in enumerate(findings):
        top = HEAD + row * (TITLE + SIDE) + TITLE
        _draw_title(axes, finding, top - 0.05)
        at = slice_indices(finding.mask)
        for place, name in enumerate(PLANES):
            _draw_slice(axes, finding, name, at, MARGIN + place * (SIDE + GAP), top)
        _draw_table(axes, finding, top)
    return picture


def _draw_head(axes, findings: list[Finding], note: str) -> None:
    axes.plot([], [], color=PREDICTED, linewidth=1.5, label="predicted outline")
    if any(finding.readers_mask is not None for finding in findings):
        axes.plot([], [], color=READERS, linewidth=2.5, label="readers' outline")
    colors = {cell.color for finding in findings for cell in rating_cells(finding)}
    for color, label in ((BLUE, "likeliest class within one of the readers'"), (RED, "further off")):
        if color in colors:
            axes.plot([], [], color=color, marker=MARKERS[color], markersize=3.5, linestyle="none", label=label)
    place = {"loc": "center left", "bbox_to_anchor": (MARGIN, 0.1), "bbox_transform": axes.transData}
    axes.legend(**place, ncols=4, frameon=False, borderpad=0, borderaxespad=0, handlelength=1.6, columnspacing=1.6)
    axes.text(WIDTH - MARGIN, 0.1, note, ha="right", va="center", color=GREY)
    middles = [MARGIN + SIDE / 2 + place * (SIDE + GAP) for place in range(len(PLANES))]
    for x, name in zip([*middles, TRUTH_AT], [*PLANES, "readers"], strict=True):
        axes.text(x, HEAD, name, ha="center", color=GREY)
    axes.text(PREDICTION_AT, HEAD, "likeliest\n(best ±1)", color=GREY)


def _draw_title(axes, finding: Finding, y: float) -> None:
    room, style = int((WIDTH - 2 * MARGIN) / LETTER) - 2, {"family": MONO, "fontsize": MONO_SIZE}
    name = shortened(finding.nodule_id, room // 2)
    axes.text(MARGIN, y, name, weight="bold", **style)
    image = shortened(finding.image, room - len(name))
    axes.text(MARGIN + LETTER * (len(name) + 2), y, image, color=GREY, **style)


def _draw_slice(axes, finding: Finding, plane: str, at: tuple[int, int, int], left: float, top: float) -> None:
    """One plane through the voxel `at`, in a square with this upper left corner."""
    image = displayed(finding.hu, at)[plane]
    voxel, corners = SIDE / len(image), (left, left + SIDE, top + SIDE, top)
    axes.imshow(image, cmap="gray", vmin=LOW, vmax=HIGH, interpolation="bicubic", extent=corners)
    # The thinner line lies on top, so that both show where they are one.
    for mask, color, thickness in ((finding.readers_mask, READERS, 1.7), (finding.mask, PREDICTED, 0.9)):
        if mask is not None and displayed(mask, at)[plane].any():
            outline = np.pad(displayed(mask, at)[plane], 1)  # with a rim, it closes where the patch ends
            middles = (np.arange(len(outline)) - 0.5) * voxel
            axes.contour(left + middles, top + middles, outline, levels=[0.5], colors=color, linewidths=thickness)
    rim = [withStroke(linewidth=1.2, foreground="black")]
    style = {"color": "white", "ha": "center", "va": "center", "path_effects": rim}
    for letter, x, y in zip(PLANES[plane], (0.5, 0.5, 0.04, 0.96), (0.045, 0.955, 0.5, 0.5), strict=True):
        axes.text(left + x * SIDE, top + y * SIDE, letter, **style)
    if plane == "axial":
        ends, y = left + 0.08 + np.array([0, BAR_MM / finding.spacing_mm * voxel]), top + SIDE - 0.08
        rim = [withStroke(linewidth=2.7, foreground="black")]
        axes.plot(ends, [y, y], color="white", linewidth=1.5, solid_capstyle="butt", path_effects=rim)
        axes.text(ends.mean(), y - 0.08, f"{BAR_MM} mm", **style)


def _draw_table(axes, finding: Finding, top: float) -> None:
    y = top + LINE / 2
    for cell in rating_cells(finding):
        axes.text(TABLE, y, cell.name, va="center")
        axes.text(PREDICTION_AT, y, cell.prediction, va="center", color=cell.color)
        axes.text(TRUTH_AT, y, cell.truth, va="center", ha="center", color=cell.color)
        axes.plot(MARKER_AT, y, color=cell.color, marker=MARKERS[cell.color], markersize=3.5)
        y += LINE
    for place, line in enumerate(summary(finding)):
        axes.text(TABLE, y + (place + 0.4) * LINE, line, va="center")
