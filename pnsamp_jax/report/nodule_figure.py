"""The paper's Figure 2 for any nodules: three slices of each nodule with outlines, next to a table of its ratings."""

from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patheffects import withStroke

from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.locator import HIGH, LOW
from pnsamp_jax.report.evaluation_figures import BLUE, GREY

ROWS_OF_PAGE, ROWS_OF_PNG, DPI = 6, 20, 200
READERS, PREDICTED, RED = "#ffd92f", "#4eb3ff", "#b2182b"  # the outlines; ratings that are off by more than one
MARKERS = {BLUE: "o", RED: "x", GREY: ""}  # for those who cannot tell the colours apart
BAR_MM = 10
PLANES = {"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}  # what is at the top, bottom, left and right
# Fonts that come with matplotlib, so that every machine draws the same figure; publishers ask for TrueType in a PDF.
# `Any`, since matplotlib versions differ in how they type the names of these parameters.
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 6.5, "text.parse_math": False, "pdf.fonttype": 42}
MONO, MONO_SIZE = "DejaVu Sans Mono", 7
LETTER = np.ceil(0.602 * MONO_SIZE / 72 * DPI) / DPI  # width in inches; in a PNG it is a whole number of pixels

# Layout in inches. A page of six rows fits on A4 and on Letter.
WIDTH, MARGIN, SIDE, GAP, TITLE, HEAD = 7.4, 0.08, 1.5, 0.04, 0.25, 0.42
TABLE = MARGIN + 3 * SIDE + 2 * GAP + 0.14
# Columns of the table.
PREDICTION_AT, WORDS_AT, TRUTH_AT, MARKER_AT = TABLE + 0.9, TABLE + 1.17, TABLE + 2.25, TABLE + 2.44
WORDS_SIZE = 5.5
LINE = SIDE / 14.2  # nine ratings, three lines of summary and two of notes
NOTE_LETTERS = 46  # of a line of notes
REASON_LINE, REASON_LETTERS = 0.13, 110  # of the list of nodules that are not predicted, in inches and letters
REASONS_OF_PAGE = 70  # lines


class Cell(NamedTuple):
    """One line of the table of ratings as text; the colour is for both the prediction and the truth.

    The words say what the likeliest class means.
    """

    name: str
    prediction: str
    truth: str
    color: str
    words: str


def draw_nodules(
    findings: list[Finding], path: Path, failures: list[tuple[str, str, str]] | None = None, warning: str = ""
) -> None:
    """Draw one row for each nodule: axial, coronal and sagittal slices with the outlines, and a table of the ratings.

    A PDF shows all findings, six on a page, and then lists the nodules that are not predicted. A PNG is a single tall
    figure of the first 20 and the beginning of the list, with a note if there are more. The same findings always give
    the same bytes.

    Args:
      findings: in the order of the rows.
      path: of the file; ends in .png or .pdf.
      failures: nodules that are not predicted: id, image and reason.
      warning: written above the rows; "" for none.

    Raises:
      ValueError: there is nothing to draw, or `path` has another suffix.
    """
    if path.suffix not in (".png", ".pdf"):
        raise ValueError(f"{path}: must end in .png or .pdf")
    lines = [line for failure in failures or [] for line in failure_lines(*failure)]
    if not findings and not lines:
        raise ValueError("no finding to draw")
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        if path.suffix == ".png":
            note = f"first {ROWS_OF_PNG} of {len(findings)} nodules" if len(findings) > ROWS_OF_PNG else ""
            page = _draw_page(
                findings[:ROWS_OF_PNG], lines[:REASONS_OF_PAGE], " · ".join(filter(None, (warning, note)))
            )
            page.savefig(temporary, dpi=DPI)
            return
        pages: list[tuple[list[Finding], list[str]]]
        pages = [(findings[start : start + ROWS_OF_PAGE], []) for start in range(0, len(findings), ROWS_OF_PAGE)]
        pages += [([], lines[start : start + REASONS_OF_PAGE]) for start in range(0, len(lines), REASONS_OF_PAGE)]
        with PdfPages(temporary, metadata={"CreationDate": None}) as file:
            for number, (rows, reasons) in enumerate(pages, start=1):
                note = f"page {number} of {len(pages)}" if len(pages) > 1 else ""
                file.savefig(_draw_page(rows, reasons, " · ".join(filter(None, (warning, note)))), dpi=DPI)


def failure_lines(nodule_id: str, image: str, reason: str) -> list[str]:
    """Return the lines that say why a nodule is not predicted."""
    name = shortened(nodule_id, REASON_LETTERS // 2)
    first = f"{name}  {shortened(image, REASON_LETTERS - len(name) - 2)}"
    return [first, *(f"    {line}" for line in wrap(shortened(reason, 4 * REASON_LETTERS), REASON_LETTERS - 4))]


def rating_cells(finding: Finding) -> list[Cell]:
    """Return the nine lines of the table of ratings.

    The prediction is the likeliest class, followed by the best class within one in brackets if that is different. The
    colour is blue if the likeliest class is within one of the truth, red if it is not, grey if the truth is unknown.
    A nominal rating has only the likeliest class, which is blue if it is the truth. Where nothing is segmented there
    is no prediction.
    """
    truth = np.zeros(len(schema.RATINGS), int) if finding.truth is None else finding.truth
    cells = []
    classes = zip(schema.RATINGS, finding.arg_max, finding.within_one, truth, finding.words, strict=True)
    for rating, likeliest, best, true, meaning in classes:
        agrees = likeliest == true if rating.nominal else abs(likeliest - true) <= 1
        color = GREY if true == 0 or not finding.segmented else BLUE if agrees else RED
        prediction = f"{likeliest}" if rating.nominal or likeliest == best else f"{likeliest} ({best})"
        prediction, words = (prediction, meaning) if finding.segmented else ("–", "")
        cells.append(Cell(rating.name.replace("_", " "), prediction, f"{true}" if true else "–", color, words))
    return cells


def summary(finding: Finding) -> list[str]:
    """Return the lines below the ratings: size, expected malignancy ± its spread over the ensemble, and what to note.

    The mean diameter has one decimal, as Lung-RADS asks. The volume is followed by its interval, if that is known.
    """
    notes = wrap(finding.note, NOTE_LETTERS, max_lines=2, placeholder=" …")
    if not finding.segmented:
        return wrap(finding.note, NOTE_LETTERS, max_lines=5, placeholder=" …")
    axes, sign = finding.diameters, "≥ " if finding.truncated else ""
    malignancy = f"expected malignancy {finding.expected[schema.MALIGNANCY]:.2f}"
    if not np.isnan(finding.ensemble_spread):
        malignancy += f" ± {finding.ensemble_spread:.2f}"
    return [
        f"diameter {sign}{axes.lung_rads_mm:.1f} mm ({axes.long_mm:.1f} × {axes.short_mm:.1f})",
        f"volume {sign}{finding.volume_mm3:,.0f} mm³{_range(finding.volume_range_mm3)}",
        malignancy,
        *notes,
    ]


def _range(interval: tuple[float, float] | None) -> str:
    """Return an interval in brackets, "" if it is not known or not finite."""
    if interval is None or not np.isfinite(interval).all():
        return ""
    return f" ({interval[0]:,.0f} to {interval[1]:,.0f})"


def slice_indices(mask: np.ndarray) -> tuple[int, int, int]:
    """Return along each axis the index of the slice to show: the marked one nearest to the centroid of the mask.

    For an empty mask this is the middle slice.
    """
    if not mask.any():
        return mask.shape[0] // 2, mask.shape[1] // 2, mask.shape[2] // 2
    return _central_slice(mask, 0), _central_slice(mask, 1), _central_slice(mask, 2)


def _central_slice(mask: np.ndarray, axis: int) -> int:
    area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
    marked = np.flatnonzero(area)  # the slice at the centroid of two separate parts may show neither
    centroid = np.average(marked, weights=area[marked])
    return int(marked[np.argmin(abs(marked - centroid))])


def displayed(patch: np.ndarray, at: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return the `PLANES` of an (S, P, L) patch through the voxel `at`; row 0 is at the top, column 0 at the left."""
    superior, posterior, left = at
    return {"axial": patch[superior], "coronal": patch[::-1, posterior], "sagittal": patch[::-1, :, left]}


def shortened(text: str, letters: int) -> str:
    """Return the text with "?" for letters that the font lacks, and "…" in place of the middle if it is too long."""
    known = get_font(findfont(MONO)).get_charmap()
    text = "".join(letter if ord(letter) in known and letter.isprintable() else "?" for letter in text)
    return text if len(text) <= letters else text[: (letters - 1) // 2] + "…" + text[len(text) - letters // 2 :]


def _draw_page(findings: list[Finding], reasons: list[str], note: str) -> Figure:
    list_height = REASON_LINE * (len(reasons) + 2) if reasons else 0.0
    height = HEAD + len(findings) * (TITLE + SIDE) + list_height + MARGIN
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), autoscale_on=False)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))  # so that coordinates are inches from the upper left corner
    axes.set_axis_off()
    _draw_head(axes, findings, note)
    for row, finding in enumerate(findings):
        top = HEAD + row * (TITLE + SIDE) + TITLE
        _draw_title(axes, finding, top - 0.05)
        at = slice_indices(finding.mask)
        for column, name in enumerate(PLANES):
            _draw_slice(axes, finding, name, at, MARGIN + column * (SIDE + GAP), top)
        _draw_table(axes, finding, top)
    if reasons:
        y = height - MARGIN - list_height + REASON_LINE
        axes.text(MARGIN, y, "not predicted", color=GREY, va="center")
        for number, line in enumerate(reasons, start=1):
            style: dict[str, Any] = {"family": MONO, "fontsize": MONO_SIZE - 1, "va": "center"}
            axes.text(MARGIN, y + number * REASON_LINE, line, **style)
    return figure


def _draw_head(axes: Axes, findings: list[Finding], note: str) -> None:
    axes.plot([], [], color=PREDICTED, linewidth=1.5, label="predicted outline")
    if any(finding.readers_mask is not None for finding in findings):
        axes.plot([], [], color=READERS, linewidth=2.5, label="readers' outline")
    colors = {cell.color for finding in findings for cell in rating_cells(finding)}
    for color, label in (
        (BLUE, "likeliest class within one of the readers' (nominal: the same)"),
        (RED, "further off"),
    ):
        if color in colors:
            axes.plot([], [], color=color, marker=MARKERS[color], markersize=3.5, linestyle="none", label=label)
    position: dict[str, Any] = {"bbox_to_anchor": (MARGIN, 0.1), "bbox_transform": axes.transData}
    spacing = {"borderpad": 0, "borderaxespad": 0, "handlelength": 1.6, "columnspacing": 1.6}
    axes.legend(loc="center left", ncols=4, frameon=False, **position, **spacing)
    axes.text(WIDTH - MARGIN, 0.1, note, ha="right", va="center", color=GREY)
    middles = [MARGIN + SIDE / 2 + column * (SIDE + GAP) for column in range(len(PLANES))]
    for x, name in zip([*middles, TRUTH_AT], [*PLANES, "readers"], strict=True):
        axes.text(x, HEAD, name, ha="center", color=GREY)
    axes.text(PREDICTION_AT, HEAD, "likeliest\n(best ±1)", color=GREY)


def _draw_title(axes: Axes, finding: Finding, y: float) -> None:
    room = int((WIDTH - 2 * MARGIN) / LETTER) - 2
    style: dict[str, Any] = {"family": MONO, "fontsize": MONO_SIZE}
    name = shortened(finding.nodule_id, room // 2)
    axes.text(MARGIN, y, name, weight="bold", **style)
    image = shortened(finding.image, room - len(name))
    axes.text(MARGIN + LETTER * (len(name) + 2), y, image, color=GREY, **style)


def _draw_slice(axes: Axes, finding: Finding, plane: str, at: tuple[int, int, int], left: float, top: float) -> None:
    """Draw one plane through the voxel `at`, in a square with this upper left corner."""
    image = displayed(finding.hu, at)[plane]
    voxel, corners = SIDE / len(image), (left, left + SIDE, top + SIDE, top)
    axes.imshow(image, cmap="gray", vmin=LOW, vmax=HIGH, interpolation="bicubic", extent=corners)
    # The thinner line is drawn on top, so that both are visible where they coincide.
    for mask, color, thickness in ((finding.readers_mask, READERS, 1.7), (finding.mask, PREDICTED, 0.9)):
        if mask is not None and displayed(mask, at)[plane].any():
            outline = np.pad(displayed(mask, at)[plane], 1)  # closes the outline at the border of the patch
            middles = (np.arange(len(outline)) - 0.5) * voxel
            axes.contour(left + middles, top + middles, outline, levels=[0.5], colors=color, linewidths=thickness)
    rim = [withStroke(linewidth=1.2, foreground="black")]
    style: dict[str, Any] = {"color": "white", "ha": "center", "va": "center", "path_effects": rim}
    for letter, x, y in zip(PLANES[plane], (0.5, 0.5, 0.04, 0.96), (0.045, 0.955, 0.5, 0.5), strict=True):
        axes.text(left + x * SIDE, top + y * SIDE, letter, **style)
    if plane == "axial":
        ends, y = left + 0.08 + np.array([0, BAR_MM / finding.spacing_mm * voxel]), top + SIDE - 0.08
        rim = [withStroke(linewidth=2.7, foreground="black")]
        axes.plot(ends, [y, y], color="white", linewidth=1.5, solid_capstyle="butt", path_effects=rim)
        axes.text(ends.mean(), y - 0.08, f"{BAR_MM} mm", **style)


def _draw_table(axes: Axes, finding: Finding, top: float) -> None:
    y = top + LINE / 2
    for cell in rating_cells(finding):
        axes.text(TABLE, y, cell.name, va="center")
        axes.text(PREDICTION_AT, y, cell.prediction, va="center", color=cell.color)
        axes.text(WORDS_AT, y, cell.words, va="center", color=cell.color, fontsize=WORDS_SIZE)
        axes.text(TRUTH_AT, y, cell.truth, va="center", ha="center", color=cell.color)
        axes.plot(MARKER_AT, y, color=cell.color, marker=MARKERS[cell.color], markersize=3.5)
        y += LINE
    for index, line in enumerate(summary(finding)):
        axes.text(TABLE, y + (index + 0.4) * LINE, line, va="center")
