"""The HTML report in a browser, as it is printed."""

import numpy as np
import pytest
from findings import make_finding
from page_data import HEADER

from pnsamp_jax.data import schema
from pnsamp_jax.report import html_page

A4, LETTER = (210, 297), (215.9, 279.4)


@pytest.fixture
def printed(user, tmp_path):
    """Yield a user who sees what is printed of a page with five nodules, the last without a mask, and a failure."""
    findings = [make_finding(f"nodule_{i}", seed=i, size=32, known=i < 3) for i in range(1, 5)]
    worst = {"truncated": True, "volume_mm3": 9.0, "distance_mm": 5.0}  # has the longest note
    findings[1] = make_finding("nodule_2", seed=2, **worst)
    empty = {"mask": np.zeros((64,) * 3, bool), "volume_mm3": 0.0, "hint": "are these RAS coordinates?"}
    findings.append(make_finding("nodule_5", known=False, **empty))
    failures = [("lost", "ct.nii", "no such file")]
    html_page.write_page(findings, "All", tmp_path / "page.html", failures, "Only a test.", HEADER)
    user.emulate(scheme="dark", media="print")
    user.load(tmp_path / "page.html")
    user.driver.execute_async_script("view.sheets.then(arguments[0])")
    user.findings = findings
    return user


def test_every_nodule_is_printed_with_its_words_measurements_and_note(printed):
    assert printed.texts(".sheet h2") == [finding.nodule_id for finding in printed.findings]
    sheets = printed.texts(".sheet")
    for finding, sheet in zip(printed.findings, sheets, strict=True):
        assert "−61.3, 40.5, −120.8" in sheet and finding.image in sheet
        assert (f"Note: {finding.note}" if finding.note else "ok") in sheet
        lines = sheet.splitlines() if finding.segmented else []
        for rating, k, words in zip(schema.RATINGS, finding.arg_max, finding.words, strict=True):
            name = rating.name.replace("_", " ").capitalize()
            assert any(line.split("\t")[:3] == [name, str(k), words] for line in lines) == finding.segmented
    assert "Mean diameter, Lung-RADS\n≥" in sheets[1] and "nothing segmented" in sheets[4]
    assert "readers" in sheets[0] and "readers" not in sheets[3]
    (count,) = printed.texts("#printed-count")
    assert count.startswith("5 nodules, and 1 that could not be predicted, listed at the end. Slices through")
    assert printed.texts("#failed th") == ["lost"]
    assert printed.texts("#warning") == ["Only a test."] and "2024-02-29" in printed.find("#made").text


def test_the_slices_through_the_point_are_printed_with_the_outlines(printed):
    script = """
        const reds = (canvas) => {
          const context = canvas.getContext("2d");
          const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
          return [...data].filter((_, index) => index % 4 === 0);
        };
        const sheets = [...document.querySelectorAll(".sheet")];
        return sheets.map((sheet) => [...sheet.querySelectorAll("canvas")].map(reds))"""
    for finding, images in zip(printed.findings, printed.driver.execute_script(script), strict=True):
        middle = len(finding.hu) // 2
        slices = finding.hu[middle], finding.hu[::-1, middle], finding.hu[::-1, :, middle]
        for pixels, hu in zip(images, slices, strict=True):
            known = np.clip((hu + 600) / 1600 + 0.5, 0, 1) * 255
            block = 192 // len(hu)
            shown = np.array(pixels, float).reshape(len(hu), block, len(hu), block).mean(axis=(1, 3))
            assert abs(shown - known).mean() < 6 and np.corrcoef(shown.ravel(), known.ravel())[0, 1] > 0.99
    lines = """
        return [...document.querySelectorAll(".sheet")].map((sheet) =>
          [...sheet.querySelectorAll("path")].map((path) => (path.getAttribute("d") ?? "").length > 0))"""
    drawn = printed.driver.execute_script(lines)
    assert drawn == [[finding.segmented, finding.readers_mask is not None] * 3 for finding in printed.findings]


def test_neither_controls_nor_a_dark_background_are_printed(printed):
    assert printed.find("body").value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"
    for selector in ("button", "input", "nav", "summary", "#index", "#viewer", ".skip"):
        assert printed.texts(selector) == [], selector


@pytest.mark.parametrize("paper", [A4, LETTER])
def test_a_nodule_takes_half_a_page(printed, paper):
    assert printed.count_of_printed_pages(*paper) == 3
    heights = printed.driver.execute_script(
        "return [...document.querySelectorAll('.sheet')].map((s) => s.offsetHeight)"
    )
    assert max(heights) == min(heights)  # the longest note fits, too


def test_the_button_prints_when_all_nodules_are_drawn(user):
    user.driver.execute_script(
        "window.print = () => { window.asked = document.querySelectorAll('.sheet svg').length }"
    )
    user.find("#print").click()
    user.driver.execute_async_script("view.sheets.then(() => setTimeout(arguments[0]))")
    assert user.driver.execute_script("return window.asked") == 9
