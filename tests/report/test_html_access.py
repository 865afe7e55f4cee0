"""The HTML report in a browser: keyboard, screen readers, small screens, contrast, and safety."""

import re
from importlib.resources import files

import numpy as np
import pytest
from findings import make_additive, make_finding
from page_data import HEADER, HOSTILE, make_place

from pnsamp_jax.report import html_page


def test_everything_works_by_keyboard(user):
    user.tab_to(".skip")
    assert user.find(".skip").rect["y"] > 0  # is visible now
    user.press(user.keys.ENTER)
    user.tab_to("#columns [data-column=id] button")
    user.press(user.keys.SPACE)
    assert user.texts("#rows a")[0] == "nodule_1"
    user.tab_to("#rows a[href='#nodule/nodule_2']")
    user.press(user.keys.ENTER)
    user.wait_for("nodule_2")
    assert user.driver.switch_to.active_element.get_attribute("id") == "viewer-name"
    user.tab_to("button.window[data-width='700']")
    user.press(user.keys.ENTER)
    assert user.find("#width").get_attribute("value") == "700"
    user.tab_to("#show-mask")
    user.press(user.keys.SPACE)
    assert not user.find("#show-mask").is_selected()
    for plane in ("axial", "coronal", "sagittal"):
        user.tab_to(f"[data-plane={plane}] canvas")
        user.press(user.keys.ARROW_UP, user.keys.PAGE_UP)
    assert user.slices() == [42, 42, 42]
    user.tab_to("summary")
    user.press(user.keys.ENTER)
    assert user.find(".explanation dl").is_displayed()


def test_every_control_has_a_name(user):
    user.open("nodule_2")
    script = "return [...document.querySelectorAll('a, button, input:not([aria-hidden]), canvas, [tabindex=\"0\"]')]"
    controls = [control for control in user.driver.execute_script(script) if control.is_displayed()]
    assert len(controls) > 20
    assert [control.get_attribute("outerHTML") for control in controls if not control.accessible_name] == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_about(user, tmp_path, scheme):
    places = {"locator": make_place(), "truncated": True}
    findings = [
        make_finding("nodule_1", **places),
        make_finding("nodule_2", mask=np.zeros((64,) * 3, bool), volume_mm3=0),
        make_additive("nodule_3"),
    ]
    failures = [("lost", "ct.nii", "no such file")]
    html_page.write_page(findings, "t", tmp_path / "page.html", failures, "Only a test.", HEADER)
    user.emulate(scheme=scheme)
    user.load(tmp_path / "page.html")
    assert serious_findings(user) == []
    user.find("summary").click()
    user.open("nodule_2")
    assert serious_findings(user) == []
    user.open("nodule_3")
    assert serious_findings(user) == []
    user.open("nodule_1")
    user.find("#show-saliency").click()
    assert serious_findings(user) == []
    user.driver.execute_async_script("view.sheets.then(arguments[0])")
    user.emulate(media="print")
    assert serious_findings(user) == []


def serious_findings(user):
    """Return what axe-core finds wrong with the page as it is shown, unless it calls it minor."""
    pytest.importorskip("axe_playwright_python", reason="needs axe-core, see the extra all-tests")
    script = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")  # does not need Playwright
    user.driver.execute_script(script)
    result = user.driver.execute_async_script("const done = arguments[0]; axe.run(document).then(done)")
    assert len(result["passes"]) > 20
    found = [rule for rule in result["violations"] if rule["impact"] != "minor"]
    return [(rule["impact"], rule["id"], node["html"]) for rule in found for node in rule["nodes"]]


def test_nothing_overflows_on_a_phone(user, tmp_path):
    long = make_finding("long." * 20, image="folder/" * 30 + "image.nrrd", volume_mm3=123456.7)
    html_page.write_page(
        [long, make_additive("nodule_2"), make_finding("nodule_10", known=False)], "l" * 99, tmp_path / "l.html"
    )
    user.emulate(width=360, height=740)
    user.load(tmp_path / "l.html")
    overflow = "return document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    assert user.driver.execute_script("return innerWidth") == 360
    assert user.driver.execute_script(overflow) == 0
    for nodule_id in (long.nodule_id, "nodule_2", "nodule_10"):
        user.open(nodule_id)
        assert user.driver.execute_script(overflow) == 0
    wider = "const box = document.getElementById('index'); return box.scrollWidth > box.clientWidth"
    assert user.driver.execute_script(wider)  # the table scrolls inside its box
    user.click(user.find("[data-plane=axial] canvas"), x=16.5 / 64, y=48.5 / 64)
    assert user.slices() == [33, 49, 17]


# The lowest contrast of any text with its background colour. Texts on images are left out; they have a shadow.
LEAST_CONTRAST = """
    const luminance = (colour) => {
      const [red, green, blue] = colour.match(/[\\d.]+/g).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const background = (element) => {
      const colour = getComputedStyle(element).backgroundColor;
      return colour === "rgba(0, 0, 0, 0)" && element.parentElement ? background(element.parentElement) : colour;
    };
    const texts = [...document.body.querySelectorAll("*:not(script)")].filter((element) =>
      element.checkVisibility() && !element.closest(".frame, .unseen, :disabled") &&
      [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return texts.map((element) => {
      const [text, ground] = [luminance(getComputedStyle(element).color), luminance(background(element))];
      const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
      return [contrast, element.outerHTML.slice(0, 200)];
    }).sort(([one], [other]) => one - other)[0]"""


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_text_has_enough_contrast_in_either_colour_scheme(user, scheme, dark):
    user.emulate(scheme=scheme)
    user.open("nodule_2")
    user.find("#show-saliency").click()
    user.find("summary").click()
    ground = user.find("body").value_of_css_property("background-color")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 60) == dark
    contrast, element = user.driver.execute_script(LEAST_CONTRAST)
    assert contrast >= 4.5, element


def test_hostile_text_is_shown_as_text(user, tmp_path):
    html_page.write_page([make_finding(image=HOSTILE)], HOSTILE, tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    user.open("nodule_1")
    assert user.driver.title == user.find("h1").text == user.find("#viewer-image").text == HOSTILE
    assert not user.texts("img")


def test_nothing_but_the_page_is_requested(user):
    user.open("nodule_2")  # the `user` fixture checks that the page's policy blocked nothing either
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in user.driver.execute_script(script) if not name.startswith("data:")] == []
