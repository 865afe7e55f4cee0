"""The figure of the nodules: text and colour of the cells, orientation of the slices, and the files."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from findings import make_finding
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from pnsamp_jax.data import schema
from pnsamp_jax.inference.diameters import Diameters
from pnsamp_jax.report import nodule_figure
from pnsamp_jax.report.evaluation_figures import BLUE, GREY

SIZE = 16


def finding_of(*rows, **changes):
    """Return a finding whose first ratings have these probabilities; the other ratings are class 2 for certain."""
    probabilities = np.zeros((len(schema.RATINGS), schema.MAX_CLASSES))
    probabilities[len(rows) :, 1] = 1
    for index, row in enumerate(rows):
        probabilities[index, : len(row)] = row
    return make_finding(size=SIZE, probabilities=probabilities, **changes)


def pages(path):
    """Count the pages of a PDF."""
    data = path.read_bytes()
    return data.count(b"/Type /Page") - data.count(b"/Type /Pages")


def draw_page(findings, path):
    """Draw findings on one page, and return its matplotlib figure."""
    return draw_page_with([], findings, path)


def draw_page_with(failures, findings, path):
    """Draw findings and failures on one page, and return its matplotlib figure."""
    pages, save = [], Figure.savefig

    def savefig(page, *args, **options):
        pages.append(page)
        save(page, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        nodule_figure.draw_nodules(findings, path, failures)
    (page,) = pages
    return page


def texts(page):
    """Return the texts on a page with their colours."""
    return {text.get_text(): text.get_color() for text in page.axes[0].texts}


def test_a_cell_shows_both_decodings_and_the_truth_and_its_colour_shows_the_error():
    two_peaks = (0.0, 0.0, 0.3, 0.3, 0.4)  # likeliest 5, best within one 4
    rows = (two_peaks, two_peaks[1:], two_peaks, two_peaks)
    finding = finding_of(*rows, truth=np.array([4, 3, 5, 3, 4, 0, 2, 1, 5]))
    cells = nodule_figure.rating_cells(finding)
    assert [cell.name for cell in cells[:2]] == ["subtlety", "internal structure"]
    assert [cell[1:4] for cell in cells] == [
        ("5 (4)", "4", BLUE),
        ("4", "3", nodule_figure.RED),  # nominal: no class within one, and only the same class agrees
        ("5", "5", BLUE),
        ("5 (4)", "3", nodule_figure.RED),  # the likeliest class decides, although the class in brackets is within one
        ("2", "4", nodule_figure.RED),
        ("2", "–", GREY),  # the readers did not rate it
        ("2", "2", BLUE),
        ("2", "1", BLUE),
        ("2", "5", nodule_figure.RED),
    ]
    assert [cell.words for cell in cells[:3]] == ["obvious", "air", "central"]
    unknown = [cell[1:4] for cell in nodule_figure.rating_cells(finding_of(known=False))]
    assert unknown == [("2", "–", GREY)] * len(schema.RATINGS)


def empty_finding(**changes):
    return finding_of(mask=np.zeros((SIZE,) * 3, bool), volume_mm3=0.0, **changes)


def test_summary_leaves_out_unknown_values():
    finding = finding_of(diameters=Diameters(12.34, 10.26), volume_mm3=1234.5, ensemble_spread=0.215)
    size = ["diameter 11.3 mm (12.3 × 10.3)", "volume 1,234 mm³"]
    assert nodule_figure.summary(finding) == [*size, "expected malignancy 2.00 ± 0.21"]
    alone = dataclasses.replace(finding, ensemble_spread=float("nan"))
    assert nodule_figure.summary(alone) == [*size, "expected malignancy 2.00"]


def test_the_interval_of_the_volume_is_shown_if_it_is_known():
    known = make_finding(size=SIZE, volume_mm3=190.0, volume_range_mm3=(101.2, 1330.0))
    assert "volume 190 mm³ (101 to 1,330)" in nodule_figure.summary(known)
    unbounded = make_finding(size=SIZE, volume_mm3=190.0, volume_range_mm3=(0.0, np.inf))
    assert "volume 190 mm³" in nodule_figure.summary(unbounded)


def test_a_truncated_mask_has_lower_bounds_and_no_mask_no_ratings():
    cut = nodule_figure.summary(finding_of(diameters=Diameters(30.0, 20.0), volume_mm3=9000.0, truncated=True))
    assert cut[:2] == ["diameter ≥ 25.0 mm (30.0 × 20.0)", "volume ≥ 9,000 mm³"] and "lower" in " ".join(cut[3:])
    empty = empty_finding(truth=np.full(9, 4), hint="are these RAS coordinates?")
    told = " ".join(nodule_figure.summary(empty))
    assert told == "nothing is segmented at this point; are these RAS coordinates?"
    assert {cell[1:] for cell in nodule_figure.rating_cells(empty)} == {("–", "4", GREY, "")}


@pytest.mark.parametrize("k", range(1, 7))
def test_no_text_of_the_table_covers_another(tmp_path, k):
    probabilities = np.zeros((len(schema.RATINGS), schema.MAX_CLASSES))
    for row, rating in zip(probabilities, schema.RATINGS, strict=True):
        row[min(k, rating.classes) - 1] = 0.4  # with words of every length ...
        row[:2] += 0.3  # ... and "(2)" behind the class
    page = draw_page([make_finding(size=SIZE, probabilities=probabilities)], tmp_path / "words.png")
    page.set_dpi(nodule_figure.DPI)
    table = [text for text in page.axes[0].texts if text.get_text() and text.get_position()[0] >= nodule_figure.TABLE]
    boxes = [(text.get_text(), text.get_window_extent(page.canvas.get_renderer())) for text in table]
    assert len(boxes) > 4 * len(schema.RATINGS)
    assert [(one, other) for (one, box), (other, there) in combinations(boxes, 2) if box.overlaps(there)] == []
    assert all(box.x1 <= page.bbox.x1 for _, box in boxes)


@pytest.mark.parametrize(
    ("letter", "voxel", "edge_of"),
    [
        ("S", (8, 4, 5), {"coronal": "top", "sagittal": "top"}),
        ("I", (0, 4, 5), {"coronal": "bottom", "sagittal": "bottom"}),
        ("A", (3, 0, 5), {"axial": "top", "sagittal": "left"}),
        ("P", (3, 8, 5), {"axial": "bottom", "sagittal": "right"}),
        ("R", (3, 4, 0), {"axial": "left", "coronal": "left"}),
        ("L", (3, 4, 8), {"axial": "right", "coronal": "right"}),
    ],
)
def test_the_patients_sides_and_their_letters_are_where_radiologists_expect_them(letter, voxel, edge_of):
    patch = np.zeros((9, 9, 9))
    patch[voxel] = 1
    for name, plane in nodule_figure.displayed(patch, (3, 4, 5)).items():
        edges = {"top": plane[0], "bottom": plane[-1], "left": plane[:, 0], "right": plane[:, -1]}
        marked = [edge for edge, pixels in edges.items() if pixels.any()]
        assert marked == [edge_of[name]] if name in edge_of else not plane.any()
        edge_by_letter = dict(zip(nodule_figure.PLANES[name], edges, strict=True))
        assert edge_by_letter.get(letter) == edge_of.get(name)


def test_slices_go_through_the_centroid_of_the_mask():
    mask = np.zeros((9, 9, 9), bool)
    assert nodule_figure.slice_indices(mask) == (4, 4, 4)
    mask[1:4, 5:8, 8] = True
    assert nodule_figure.slice_indices(mask) == (2, 6, 8)
    mask[1:4] = False
    mask[[1, 7], [1, 7], [1, 6]] = True  # the centroid lies between two parts, but the slice must show a part
    assert all(index in {1, 6, 7} for index in nodule_figure.slice_indices(mask))


def test_long_names_are_shortened_and_unknown_letters_replaced():
    assert nodule_figure.shortened("nodule_1", 8) == "nodule_1"
    assert nodule_figure.shortened("nodule_12", 8) == "nod…e_12"
    assert nodule_figure.shortened("a\nb\u4e2d$", 8) == "a?b?$"


def test_names_are_not_parsed_as_formulas_and_stay_on_the_page(tmp_path):
    finding = finding_of(nodule_id="n$x_1$", image="W$\\bad{" + "W" * 300 + "end$.nii.gz")
    page = draw_page([finding, finding_of(nodule_id="M" * 200, image="i" * 200)], tmp_path / "names.png")
    assert "n$x_1$" in texts(page)
    (image,) = [text for text in texts(page) if text.startswith("W$")]
    assert image.endswith("end$.nii.gz") and "…" in image
    page.set_dpi(nodule_figure.DPI)  # a letter is a whole number of pixels wide
    for text in page.axes[0].texts:
        box = text.get_window_extent(page.canvas.get_renderer())
        assert 0 <= box.x0 and box.x1 <= page.bbox.x1 and 0 <= box.y0 and box.y1 <= page.bbox.y1, text


def test_a_page_shows_known_values_and_marks_unknown_ones(tmp_path):
    empty = empty_finding(known=False)
    full = finding_of(mask=np.ones((SIZE,) * 3, bool), truth=np.full(9, 4), readers_mask=None)
    page = draw_page([empty, full], tmp_path / "known.png")
    written = texts(page)
    assert "nothing is segmented at this point" in written and written["4"] == "#b2182b" and written["–"] == GREY
    assert {"A", "P", "S", "I", "R", "L", "10 mm"} <= set(written)
    markers = {line.get_marker(): line.get_color() for line in page.axes[0].lines}
    assert markers["x"] == nodule_figure.RED and "o" not in markers  # readable without colours
    outline = page.axes[0].collections[0].get_paths()[0].get_extents()  # of the second finding: the whole axial slice
    top = nodule_figure.HEAD + 2 * nodule_figure.TITLE + nodule_figure.SIDE
    np.testing.assert_allclose(outline.bounds, (nodule_figure.MARGIN, top, nodule_figure.SIDE, nodule_figure.SIDE))


def test_the_figure_has_the_slices_the_right_way_up_outlines_and_a_bar_of_10_mm(tmp_path):
    superior, posterior, left = np.indices((SIZE,) * 3)
    hu = np.select([superior > 12, posterior < 3, left < 3], [200, -600, -1000], -1400)  # white, half, quarter, black
    finding = finding_of(hu=hu.astype(np.int16), truth=np.full(9, 2))
    (axes,) = draw_page([finding], tmp_path / "one.png").axes
    image = imread(tmp_path / "one.png")[int((nodule_figure.HEAD + nodule_figure.TITLE) * nodule_figure.DPI) :, :, :3]
    shown, side = [], int(nodule_figure.SIDE * nodule_figure.DPI)
    for column in range(3):
        start = int((nodule_figure.MARGIN + column * (nodule_figure.SIDE + nodule_figure.GAP)) * nodule_figure.DPI)
        square = image[:side, start : start + side].mean(axis=2)
        edges = square[9], square[-9], square[:, 9], square[:, -9]  # top, bottom, left, right
        shown.append([edge[side // 3] for edge in edges])  # next to the letters, not on them
    np.testing.assert_allclose(shown, [[0.5, 0, 0.25, 0], [1, 0, 0.25, 0], [1, 0, 0.5, 0]], atol=0.02)
    for color in (nodule_figure.PREDICTED, nodule_figure.READERS):
        assert (abs(image - to_rgb(color)).max(axis=2) < 0.02).sum() > 30
    (bar,) = [line for line in axes.lines if line.get_color() == "white"]
    assert np.ptp(bar.get_xdata()) / nodule_figure.SIDE == pytest.approx(10 / (finding.spacing_mm * SIZE))


def test_a_pdf_shows_all_nodules_and_is_reproducible_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(nodule_figure, "ROWS_OF_PAGE", 1)
    for name in ("one.pdf", "two.pdf"):
        nodule_figure.draw_nodules([finding_of(), finding_of(known=False)], tmp_path / name)
    assert pages(tmp_path / "one.pdf") == 2 and b"CreationDate" not in (tmp_path / "one.pdf").read_bytes()
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("n.pdf", 6, [(0, 6, "")]),
        ("n.pdf", 13, [(0, 6, "page 1 of 3"), (6, 6, "page 2 of 3"), (12, 1, "page 3 of 3")]),
        ("n.png", 20, [(0, 20, "")]),
        ("n.png", 21, [(0, 20, "first 20 of 21 nodules")]),
    ],
)
def test_rows_are_split_into_pages_with_a_note_of_what_they_show(tmp_path, monkeypatch, name, count, expected):
    drawn = []

    def draw_page(findings, reasons, note):
        drawn.append((findings, note))
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(nodule_figure, "_draw_page", draw_page)
    findings = [finding_of(nodule_id=str(index)) for index in range(count)]
    nodule_figure.draw_nodules(findings, tmp_path / name)
    assert [(int(shown[0].nodule_id), len(shown), note) for shown, note in drawn] == expected
    assert pages(tmp_path / name) == (len(expected) if name.endswith("pdf") else 0)


def test_nodules_that_are_not_predicted_are_listed_with_their_reasons(tmp_path):
    failures = [("lost", "ct.nii", "no such file"), ("n" * 128, "i" * 200, "a long reason " * 40)]
    page = draw_page_with(failures, [finding_of()], tmp_path / "some.png")
    written = texts(page)
    assert "lost  ct.nii" in written and "    no such file" in written and "not predicted" in written
    page.set_dpi(nodule_figure.DPI)
    for text in page.axes[0].texts:
        box = text.get_window_extent(page.canvas.get_renderer())
        assert 0 <= box.x0 and box.x1 <= page.bbox.x1 and 0 <= box.y0 and box.y1 <= page.bbox.y1, text
    nodule_figure.draw_nodules([finding_of()], tmp_path / "some.pdf", failures * 20)
    assert pages(tmp_path / "some.pdf") == 4  # one of the nodule, and three of the 160 lines
    nodule_figure.draw_nodules([], tmp_path / "none.pdf", failures, "Only a test.")
    assert pages(tmp_path / "none.pdf") == 1


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_failure_leaves_no_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(nodule_figure, "ROWS_OF_PAGE", 1)  # the PDF fails at its second page
    drawn = [Figure(figsize=(1, 1))] if suffix == ".pdf" else []
    monkeypatch.setattr(nodule_figure, "_draw_page", lambda *_: drawn.pop())
    with pytest.raises(IndexError):
        nodule_figure.draw_nodules([finding_of()] * 2, tmp_path / f"nodules{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "suffix", "message"), [(0, ".png", "no finding"), (1, ".svg", r"end in \.png or")])
def test_no_finding_and_an_unknown_suffix_are_errors(tmp_path, count, suffix, message):
    with pytest.raises(ValueError, match=message):
        nodule_figure.draw_nodules([finding_of()] * count, tmp_path / f"nodules{suffix}")
    assert not list(tmp_path.iterdir())
