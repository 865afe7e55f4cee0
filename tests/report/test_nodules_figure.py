"""pnsamp_jax.report.nodules: what the cells say, which way up the slices are, and the files that come out."""

import dataclasses

import numpy as np
import pytest
from findings import make_finding
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from pnsamp_jax.data import schema
from pnsamp_jax.report import nodules
from pnsamp_jax.report.figures import BLUE, GREY

SIZE = 16


def finding_of(*rows, **changes):
    """A finding whose first ratings have these probabilities; the others are sure of class 2."""
    probabilities = np.zeros((len(schema.RATINGS), schema.MAX_CLASSES))
    probabilities[len(rows) :, 1] = 1
    for place, row in enumerate(rows):
        probabilities[place, : len(row)] = row
    return make_finding(size=SIZE, probabilities=probabilities, **changes)


def pages(path):
    """How many pages a PDF has."""
    data = path.read_bytes()
    return data.count(b"/Type /Page") - data.count(b"/Type /Pages")


def draw_page(findings, path):
    """Draws, and gives the page itself."""
    kept, save = [], Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda page, *args, **more: (kept.append(page), save(page, *args, **more)))
        nodules.draw_nodules(findings, path)
    (page,) = kept
    return page


def texts(page):
    """All that is written on a page, with its colour."""
    return {text.get_text(): text.get_color() for text in page.axes[0].texts}


def test_a_cell_says_both_decodings_the_truth_and_by_its_colour_how_far_off():
    two_peaks = (0.0, 0.0, 0.3, 0.3, 0.4)  # likeliest 5, best within one 4
    finding = finding_of(two_peaks, two_peaks[1:], two_peaks, truth=np.array([4, 2, 3, 3, 4, 0, 2, 1, 5]))
    cells = nodules.rating_cells(finding)
    assert [cell.name for cell in cells[:2]] == ["subtlety", "internal structure"]
    assert [cell[1:] for cell in cells] == [
        ("5 (4)", "4", BLUE),
        ("4 (3)", "2", nodules.RED),
        ("5 (4)", "3", nodules.RED),  # the likeliest class decides, although the one in brackets is within one
        ("2", "3", BLUE),
        ("2", "4", nodules.RED),
        ("2", "–", GREY),  # the readers did not rate it
        ("2", "2", BLUE),
        ("2", "1", BLUE),
        ("2", "5", nodules.RED),
    ]
    unknown = [cell[1:] for cell in nodules.rating_cells(finding_of(known=False))]
    assert unknown == [("2", "–", GREY)] * len(schema.RATINGS)


def test_summary_leaves_out_what_is_not_known():
    finding = finding_of(diameter_mm=12.34, volume_mm3=1234.5, ensemble_spread=0.215)
    assert nodules.summary(finding) == ["diameter 12.3 mm, volume 1,234 mm³", "expected malignancy 2.00 ± 0.21"]
    alone = dataclasses.replace(finding, ensemble_spread=float("nan"), mask=np.zeros_like(finding.mask))
    assert nodules.summary(alone) == ["nothing segmented", "expected malignancy 2.00"]


@pytest.mark.parametrize(
    ("letter", "voxel", "places"),
    [
        ("S", (8, 4, 5), {"coronal": "top", "sagittal": "top"}),
        ("I", (0, 4, 5), {"coronal": "bottom", "sagittal": "bottom"}),
        ("A", (3, 0, 5), {"axial": "top", "sagittal": "left"}),
        ("P", (3, 8, 5), {"axial": "bottom", "sagittal": "right"}),
        ("R", (3, 4, 0), {"axial": "left", "coronal": "left"}),
        ("L", (3, 4, 8), {"axial": "right", "coronal": "right"}),
    ],
)
def test_the_ends_of_the_body_are_where_radiologists_expect_them_and_so_are_their_letters(letter, voxel, places):
    patch = np.zeros((9, 9, 9))
    patch[voxel] = 1
    for name, plane in nodules.displayed(patch, (3, 4, 5)).items():
        edges = {"top": plane[0], "bottom": plane[-1], "left": plane[:, 0], "right": plane[:, -1]}
        found = [place for place, edge in edges.items() if edge.any()]
        assert found == [places[name]] if name in places else not plane.any()
        lettered = dict(zip(nodules.PLANES[name], edges, strict=True))
        assert lettered.get(letter) == places.get(name)


def test_slices_go_through_the_centroid_of_the_mask():
    mask = np.zeros((9, 9, 9), bool)
    assert nodules.slice_indices(mask) == (4, 4, 4)
    mask[1:4, 5:8, 8] = True
    assert nodules.slice_indices(mask) == (2, 6, 8)
    mask[1:4] = False
    mask[[1, 7], [1, 7], [1, 6]] = True  # the centroid lies between two parts; a slice shows one of them
    assert all(index in {1, 6, 7} for index in nodules.slice_indices(mask))


def test_long_and_odd_names_fit():
    assert nodules.shortened("nodule_1", 8) == "nodule_1"
    assert nodules.shortened("nodule_12", 8) == "nod…e_12"
    assert nodules.shortened("a\nb\u4e2d$", 8) == "a?b?$"


def test_names_are_written_as_they_are_and_stay_on_the_page(tmp_path):
    finding = finding_of(nodule_id="n$x_1$", image="W$\\bad{" + "W" * 300 + "end$.nii.gz")
    page = draw_page([finding, finding_of(nodule_id="M" * 200, image="i" * 200)], tmp_path / "names.png")
    assert "n$x_1$" in texts(page)
    (image,) = [text for text in texts(page) if text.startswith("W$")]
    assert image.endswith("end$.nii.gz") and "…" in image
    page.set_dpi(nodules.DPI)  # letters are whole pixels
    for text in page.axes[0].texts:
        box = text.get_window_extent(page.canvas.get_renderer())
        assert 0 <= box.x0 and box.x1 <= page.bbox.x1 and 0 <= box.y0 and box.y1 <= page.bbox.y1, text


def test_a_page_says_what_is_known(tmp_path):
    empty = finding_of(known=False, mask=np.zeros((SIZE,) * 3, bool))
    full = finding_of(mask=np.ones((SIZE,) * 3, bool), truth=np.full(9, 4), readers_mask=None)
    page = draw_page([empty, full], tmp_path / "known.png")
    written = texts(page)
    assert "nothing segmented" in written and written["4"] == nodules.RED and written["–"] == GREY
    assert {"A", "P", "S", "I", "R", "L", "10 mm"} <= set(written)
    markers = {line.get_marker(): line.get_color() for line in page.axes[0].lines}
    assert markers["x"] == nodules.RED and "o" not in markers  # said without colour, too
    outline = page.axes[0].collections[0].get_paths()[0].get_extents()  # of the second: the whole axial slice
    top = nodules.HEAD + 2 * nodules.TITLE + nodules.SIDE
    np.testing.assert_allclose(outline.bounds, (nodules.MARGIN, top, nodules.SIDE, nodules.SIDE))


def test_the_picture_has_the_slices_the_right_way_up_outlines_and_a_bar_of_10_mm(tmp_path):
    superior, posterior, left = np.indices((SIZE,) * 3)
    hu = np.select([superior > 12, posterior < 3, left < 3], [200, -600, -1000], -1400)  # white, half, quarter, black
    finding = finding_of(hu=hu.astype(np.int16), truth=np.full(9, 2))
    (axes,) = draw_page([finding], tmp_path / "one.png").axes
    picture = imread(tmp_path / "one.png")[int((nodules.HEAD + nodules.TITLE) * nodules.DPI) :, :, :3]
    shown, side = [], int(nodules.SIDE * nodules.DPI)
    for place in range(3):
        start = int((nodules.MARGIN + place * (nodules.SIDE + nodules.GAP)) * nodules.DPI)
        square = picture[:side, start : start + side].mean(axis=2)
        edges = square[9], square[-9], square[:, 9], square[:, -9]  # top, bottom, left, right
        shown.append([edge[side // 3] for edge in edges])  # beside the letters
    np.testing.assert_allclose(shown, [[0.5, 0, 0.25, 0], [1, 0, 0.25, 0], [1, 0, 0.5, 0]], atol=0.02)
    for color in (nodules.PREDICTED, nodules.READERS):
        assert (abs(picture - to_rgb(color)).max(axis=2) < 0.02).sum() > 30
    (bar,) = [line for line in axes.lines if line.get_color() == "white"]
    assert np.ptp(bar.get_xdata()) / nodules.SIDE == pytest.approx(10 / (finding.spacing_mm * SIZE))


def test_a_pdf_has_all_nodules_on_pages_and_the_same_bytes_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(nodules, "ROWS_OF_PAGE", 1)
    for name in ("one.pdf", "two.pdf"):
        nodules.draw_nodules([finding_of(), finding_of(known=False)], tmp_path / name)
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
def test_rows_are_dealt_to_pages_which_say_what_they_show(tmp_path, monkeypatch, name, count, expected):
    drawn = []
    monkeypatch.setattr(nodules, "_draw_page", lambda *page: drawn.append(page) or Figure(figsize=(1, 1)))
    nodules.draw_nodules(list(range(count)), tmp_path / name)
    assert [(shown[0], len(shown), note) for shown, note in drawn] == expected
    assert pages(tmp_path / name) == (len(expected) if name.endswith("pdf") else 0)


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_failure_leaves_no_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(nodules, "ROWS_OF_PAGE", 1)  # the PDF fails at its second page
    monkeypatch.setattr(nodules, "_draw_page", lambda shown, note: [Figure(figsize=(1, 1))][shown[-1]])
    with pytest.raises(IndexError):
        nodules.draw_nodules([0, 1], tmp_path / f"nodules{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "suffix", "message"), [(0, ".png", "no finding"), (1, ".svg", r"draws \.png or")])
def test_what_cannot_be_drawn_is_an_error(tmp_path, count, suffix, message):
    with pytest.raises(ValueError, match=message):
        nodules.draw_nodules([finding_of()] * count, tmp_path / f"nodules{suffix}")
    assert not list(tmp_path.iterdir())
