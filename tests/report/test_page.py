"""The page of findings: what is in the file, and what a person can do with it in a browser."""

import base64
import dataclasses
import json
import re
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from findings import make_finding

from pnsamp_jax.data import schema
from pnsamp_jax.report import page

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&amp;{{data}}"


def content_of(path):
    """The data that stand in a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


def cube(packed, size):
    """What `page._pack` packed."""
    levels = np.frombuffer(zlib.decompress(base64.b64decode(packed["voxels"])), np.uint8).reshape((size,) * 3)
    for axis in range(packed["summed"]):
        levels = np.cumsum(levels, axis=axis, dtype=np.uint8)
    return levels


def as_table(value):
    """A number as predictions.csv has it."""
    return float(f"{value:.6g}")


def test_voxels_survive_to_within_half_a_step(tmp_path):
    noise = np.random.default_rng(0).normal(-500, 300, (64,) * 3)
    patches = {"smooth": make_finding().hu, "noisy": noise.astype(np.int16)}
    findings = [make_finding(name, hu=hu) for name, hu in patches.items()]
    page.write_page(findings, "HU", tmp_path / "page.html")
    content = content_of(tmp_path / "page.html")
    assert [described["hu"]["summed"] for described in content["findings"]] == [3, 0]  # both ways of packing
    for finding, described in zip(findings, content["findings"], strict=True):
        hu = content["lowest_hu"] + content["step_hu"] * cube(described["hu"], 64).astype(int)
        known = np.clip(finding.hu, -1024, 1016)
        assert np.abs(hu - known).max() <= content["step_hu"] / 2


def test_masks_survive_exactly(tmp_path):
    finding = make_finding(mask=np.random.default_rng(1).random((48,) * 3) < 0.3, size=48)
    page.write_page([finding], "masks", tmp_path / "page.html")
    (described,) = content_of(tmp_path / "page.html")["findings"]
    for name in ("mask", "readers_mask"):
        bits = np.frombuffer(zlib.decompress(base64.b64decode(described[name])), np.uint8)
        np.testing.assert_array_equal(np.unpackbits(bits).reshape((48,) * 3), getattr(finding, name))


@pytest.mark.parametrize(("size", "cells"), [(32, 32), (64, 32), (48, 24)])
def test_saliency_survives_as_means_of_blocks(tmp_path, size, cells):
    finding = make_finding(size=size)
    page.write_page([finding], "saliency", tmp_path / "page.html")
    packed = content_of(tmp_path / "page.html")["findings"][0]["saliency"]
    assert packed["cells"] == cells
    block = size // cells
    means = finding.saliency.reshape(cells, block, cells, block, cells, block).mean(axis=(1, 3, 5))
    shown = packed["strongest"] * (cube(packed, cells).astype(float) - 128) / 127
    np.testing.assert_allclose(shown, means, atol=0.51 * packed["strongest"] / 127)


def test_saliency_of_zeros_is_zero():
    assert (cube(page._coarse(np.zeros((32,) * 3, np.float32)), 32) == 128).all()


def test_numbers_are_those_of_the_finding_and_unknown_ones_null(tmp_path):
    nan = float("nan")
    truth = np.array([5, 0, 6, 3, 1, 2, 2, 4, 0])
    known = make_finding("known", truth=truth)
    unknown = make_finding("unknown", known=False, saliency=None, ensemble_spread=nan, flip_spread=nan)
    page.write_page([known, unknown], "numbers", tmp_path / "page.html")
    first, second = content_of(tmp_path / "page.html")["findings"]
    assert first["suspicion"] == as_table(known.suspicion)
    assert first["volume_mm3"] == as_table(known.volume_mm3)
    assert first["expected"] == [as_table(value) for value in known.expected]
    assert first["arg_max"] == known.arg_max.tolist()
    assert first["within_one"] == known.within_one.tolist()
    assert first["truth"] == [5, None, 6, 3, 1, 2, 2, 4, None]
    assert first["contributions"] == {name: as_table(value) for name, value in known.contributions.items()}
    for rating, row, shown in zip(schema.RATINGS, known.probabilities, first["probabilities"], strict=True):
        assert shown == [as_table(value) for value in row[: rating.classes]]
    assert second["truth"] == [None] * 9
    assert [second[name] for name in ("readers_mask", "saliency", "ensemble_spread", "flip_spread")] == [None] * 4


def test_twenty_nodules_would_fit_into_five_megabytes(tmp_path):
    # 30 HU in every voxel independently: more than real CTs have once resampled, which correlates neighbours.
    noise = np.random.default_rng(0).normal(-800, 30, (64,) * 3).astype(np.int16)
    saliency = np.random.default_rng(1).normal(size=(64,) * 3).astype(np.float32)
    finding = make_finding(hu=noise, saliency=saliency)
    sizes = []
    for name, count in (("none", 0), ("two", 2)):
        findings = [dataclasses.replace(finding, nodule_id=f"nodule_{index}") for index in range(count)]
        page.write_page(findings, "size", tmp_path / f"{name}.html")
        sizes.append((tmp_path / f"{name}.html").stat().st_size)
    none, two = sizes
    assert none + 20 * (two - none) / 2 < 5e6


def test_what_users_wrote_is_text(tmp_path):
    page.write_page([make_finding(image=HOSTILE)], HOSTILE, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert content_of(tmp_path / "page.html")["findings"][0]["image"] == HOSTILE


def test_file_names_that_are_not_utf8(tmp_path):
    name = b"case_\xe4.nii".decode("utf-8", "surrogateescape")
    page.write_page([make_finding(image=name)], name, tmp_path / "page.html")
    shown = r"case_\udce4.nii"
    assert f"<h1>{shown}</h1>" in (tmp_path / "page.html").read_text()
    assert content_of(tmp_path / "page.html")["findings"][0]["image"] == shown


def test_the_template_names_nothing_to_load():
    text = page.TEMPLATE.read_text()
    assert not re.findall(r"https?:|url\(|@import|\bsrc=|fetch\(|XMLHttpRequest", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"data:,", "#index"}
    assert "default-src 'none'" in text
    assert "cancer" not in text.lower()


def test_every_class_has_words():
    assert {name: len(words) for name, words in page.CLASS_WORDS.items()} == dict(schema.RATINGS)


# In a browser.


class Person:
    """Does with a page what a person does."""

    def __init__(self, driver, webdriver):
        self.driver, self.keys = driver, webdriver.Keys
        self._actions = lambda: webdriver.ActionChains(driver, duration=0)  # moves the pointer at once

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        """What is to be read in the elements that a selector finds and that are visible."""
        script = """
            const found = [...document.querySelectorAll(arguments[0])].filter((element) => element.checkVisibility());
            return found.map((element) => element.innerText.trim())"""
        return self.driver.execute_script(script, selector)

    def values(self, selector):
        """The full values behind the elements that a selector finds, None where one has none."""
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.dataset.value ?? null)"
        return self.driver.execute_script(script, selector)

    def load(self, path):
        self.driver.get("about:blank")  # a change of the fragment alone would not load the page again
        self.driver.get(path.as_uri())

    def open(self, nodule_id):
        self.find(f"#rows a[href='#nodule/{nodule_id}']").click()
        self.wait_for(nodule_id)

    def wait_for(self, nodule_id):
        from selenium.webdriver.support.wait import WebDriverWait

        name = "#viewer:has(#images[aria-busy='false']) #viewer-name"
        WebDriverWait(self.driver, 30, poll_frequency=0.02).until(lambda driver: self.texts(name) == [nodule_id])

    def shown(self, plane):
        """A plane's canvas, as a string that differs where a pixel does."""
        script = "return document.querySelector(`[data-plane=${arguments[0]}] canvas`).toDataURL()"
        return self.driver.execute_script(script, plane)

    def grey(self, plane, x, y):
        """The red of a canvas at a share of its width and height."""
        script = """
            const canvas = document.querySelector(`[data-plane=${arguments[0]}] canvas`);
            const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const [x, y] = [arguments[1] * canvas.width, arguments[2] * canvas.height].map(Math.floor);
            pixel.drawImage(canvas, -x, -y);
            return pixel.getImageData(0, 0, 1, 1).data[0]"""
        return self.driver.execute_script(script, plane, x, y)

    def slices(self):
        """The slices that are shown, from 1: axial, coronal, sagittal."""
        script = "return [...document.querySelectorAll('.plane canvas')].map((canvas) => Number(canvas.ariaValueNow))"
        return self.driver.execute_script(script)

    def click(self, element, x=0.5, y=0.5):
        """Clicks at a share of an element's width and height."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        box = element.rect
        offset = [round((x - 0.5) * box["width"]), round((y - 0.5) * box["height"])]
        self._actions().move_to_element_with_offset(element, *offset).click().perform()

    def wheel(self, element, pixels):
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        self._actions().scroll_from_origin(ScrollOrigin.from_element(element), 0, pixels).perform()

    def press(self, *pressed):
        self._actions().send_keys(*pressed).perform()

    def empty(self, field):
        field.send_keys(self.keys.CONTROL, "a", self.keys.NULL, self.keys.DELETE)

    def tab_to(self, selector):
        """Presses Tab until an element has the focus, which each on the way must show."""
        script = """
            const { activeElement: focused } = document;
            const outline = getComputedStyle(focused).outlineStyle;
            return [focused.matches(arguments[0]), outline !== "none" || focused.outerHTML]"""
        for _ in range(60):
            self.press(self.keys.TAB)
            found, visible = self.driver.execute_script(script, selector)
            assert visible is True, visible
            if found:
                return
        raise AssertionError(f"{selector} cannot be reached")

    def emulate(self, width=1280, height=900, scheme="light"):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-extensions"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")  # the browser itself stays off the network too
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield Person(driver, webdriver)
    driver.quit()


@pytest.fixture(scope="module")
def nodules(tmp_path_factory):
    """A page of three nodules: all is known of the first, the least possible of the second."""
    nan = float("nan")
    findings = {
        "nodule_2": make_finding("nodule_2", seed=2),
        "nodule_10": make_finding(
            "nodule_10", seed=10, known=False, saliency=None, flip_spread=nan, image="b/last.nrrd"
        ),
        "nodule_1": make_finding("nodule_1", seed=1, size=32, image="a/first.nrrd"),
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    page.write_page([*findings.values()], "Nodules & <co>", path)
    return SimpleNamespace(path=path, findings=findings)


@pytest.fixture
def person(browser, nodules):
    """In front of the page, which must not complain of anything."""
    browser.emulate()
    browser.driver.get_log("browser")
    browser.load(nodules.path)
    yield browser
    assert not browser.driver.get_log("browser")


def test_the_table_holds_the_findings(person, nodules):
    assert person.find("h1").text == person.driver.title == "Nodules & <co>"
    assert person.texts("#rows a") == [*nodules.findings]
    assert not person.find("#viewer").is_displayed()
    for row, finding in enumerate(nodules.findings.values(), start=1):
        expected = {
            "id": finding.nodule_id,
            "image": finding.image,
            **dict(zip("xyz", finding.point_mm, strict=True)),
            "mm": finding.diameter_mm,
            "mm³": finding.volume_mm3,
            "suspicion": finding.suspicion,
            "arg max": finding.arg_max[schema.MALIGNANCY],
            "within one": finding.within_one[schema.MALIGNANCY],
            "expected": finding.expected[schema.MALIGNANCY],
            "± networks": finding.ensemble_spread,
            "± flips": finding.flip_spread,
            "readers": float("nan") if finding.truth is None else finding.truth[schema.MALIGNANCY],
        }
        assert person.texts("#columns [aria-sort]") == [*expected]
        cells = person.values(f"#rows tr:nth-child({row}) [data-column]")
        for (name, value), shown in zip(expected.items(), cells, strict=True):
            if not isinstance(value, str):
                shown = None if shown is None else float(shown)
                value = None if np.isnan(value) else as_table(value)
            assert shown == value, name


def test_columns_that_nobody_fills_are_left_out(person, tmp_path):
    page.write_page([make_finding(known=False, flip_spread=float("nan"))], "bare", tmp_path / "page.html")
    person.load(tmp_path / "page.html")
    heads = person.texts("#columns [aria-sort]")
    assert "expected" in heads and "readers" not in heads and "± flips" not in heads


def test_a_page_without_nodules_says_so(person, tmp_path):
    page.write_page([], "none", tmp_path / "page.html")
    person.load(tmp_path / "page.html")
    assert person.find("#nothing").is_displayed()


def test_the_only_nodule_is_shown_at_once(person, tmp_path):
    page.write_page([make_finding("alone")], "one", tmp_path / "page.html")
    person.load(tmp_path / "page.html")
    assert person.find("#viewer-name").text == "alone"
    assert person.driver.execute_script("return scrollY") == 0


def test_rows_sort_by_any_column(person, nodules):
    head = person.find("#columns th[data-column=id]")
    head.find_element("css selector", "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert person.texts("#rows a") == ["nodule_1", "nodule_2", "nodule_10"]

    by_volume = sorted(nodules.findings.values(), key=lambda finding: finding.volume_mm3)
    button = person.find("#columns th[data-column='mm³'] button")
    button.click()
    assert head.get_attribute("aria-sort") == "none"
    assert person.texts("#rows a") == [finding.nodule_id for finding in by_volume]
    button.send_keys(person.keys.ENTER)
    assert person.texts("#rows a") == [finding.nodule_id for finding in by_volume[::-1]]

    button = person.find("#columns th[data-column=readers] button")
    for _ in range(2):
        button.click()
        assert person.texts("#rows a")[-1] == "nodule_10"  # of which nothing is known


def test_rows_filter_by_text(person):
    field = person.find("#filter")
    field.send_keys("FIRST nodule")
    assert person.texts("#rows a") == ["nodule_1"]
    assert person.find("#count").text == "1 of 3 shown"
    field.send_keys("x")
    assert person.find("#nothing").is_displayed()
    person.empty(field)
    assert len(person.texts("#rows a")) == 3


def test_a_row_opens_its_nodule_with_its_ratings(person, nodules):
    for row, finding in enumerate(nodules.findings.values(), start=1):
        person.find(f"#rows tr:nth-child({row}) [data-column=expected]").click()
        person.wait_for(finding.nodule_id)
        assert person.find("#viewer-image").text == finding.image
        order = [schema.MALIGNANCY, *(place for place in range(len(schema.RATINGS)) if place != schema.MALIGNANCY)]
        known = finding.truth is not None
        for name, values in {
            "data-fact=arg_max": finding.arg_max[order],
            "data-fact=within_one": finding.within_one[order],
            "data-fact=expected": finding.expected[order],
            "data-fact=truth": finding.truth[order] if known else [],
            "data-class": finding.probabilities[order][schema.CLASS_EXISTS[order]],
        }.items():
            assert [float(value) for value in person.values(f".rating [{name}]")] == [*map(as_table, values)], name
        if known:
            beyond = np.abs(finding.truth - finding.arg_max)[order] > 1
            marks = [f"{truth} {'✗' if far else '✓'}" for truth, far in zip(finding.truth[order], beyond, strict=True)]
            assert person.texts(".rating [data-fact=truth]") == marks
            assert person.texts(".rating [data-fact=truth].beyond") == [mark for mark in marks if "✗" in mark]
        parts = dict(zip(person.texts("#parts th"), map(float, person.values("#parts [data-value]")), strict=True))
        assert [*map(abs, parts.values())] == sorted(map(abs, parts.values()), reverse=True)
        assert sorted(parts.values()) == sorted(map(as_table, finding.contributions.values()))
        assert parts["Internal structure"] == as_table(finding.contributions["internal_structure"])
        assert parts["Image, directly"] == as_table(finding.contributions["image"])


def test_previous_and_next_follow_the_table(person):
    person.find("#columns th[data-column=id] button").click()
    person.open("nodule_1")
    assert not person.find("#previous").is_enabled()
    for nodule_id in ("nodule_2", "nodule_10"):
        person.find("#next").click()
        person.wait_for(nodule_id)
    assert not person.find("#next").is_enabled()
    person.driver.back()
    person.wait_for("nodule_2")


def test_a_link_opens_its_nodule(person, nodules):
    person.driver.get("about:blank")
    person.driver.get(nodules.path.as_uri() + "#nodule/nodule_10")
    person.wait_for("nodule_10")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_scroll_by_wheel_keys_and_slider(person, plane):
    person.open("nodule_2")
    place = ["axial", "coronal", "sagittal"].index(plane)
    canvas, before = person.find(f"[data-plane={plane}] canvas"), person.shown(plane)
    person.wheel(canvas, 120)
    assert person.slices()[place] == 32
    assert person.shown(plane) != before
    person.wheel(canvas, -120)
    assert person.slices()[place] == 33
    assert person.shown(plane) == before
    canvas.send_keys(person.keys.ARROW_UP)
    assert person.slices()[place] == 34
    canvas.send_keys(person.keys.HOME)
    assert person.slices()[place] == 1
    assert "slice 1 of 64" in canvas.get_attribute("aria-valuetext")
    canvas.send_keys(person.keys.ARROW_LEFT)
    assert person.slices()[place] == 1  # there is none before
    person.click(person.find(f"[data-plane={plane}] input"), x=0.75)
    assert 44 < person.slices()[place] < 53
    assert sorted(person.slices())[:2] == [33, 33]  # the other planes stayed


def test_planes_lie_as_radiologists_expect_and_move_together(person, tmp_path):
    place = np.indices((64,) * 3)
    hu = np.where((abs(place - np.array([50, 44, 54])[:, None, None, None]) < 8).all(axis=0), 200, -1000)
    empty = np.zeros_like(hu, bool)
    finding = make_finding(hu=hu.astype(np.int16), mask=empty, readers_mask=empty)
    page.write_page([finding], "a block above, behind and to the left", tmp_path / "page.html")
    person.load(tmp_path / "page.html")
    person.open("nodule_1")
    person.click(person.find("[data-plane=axial] canvas"), x=54.5 / 64, y=44.5 / 64)
    assert person.slices() == [33, 45, 55]
    person.click(person.find("[data-plane=sagittal] canvas"), x=44.5 / 64, y=(63.5 - 50) / 64)
    assert person.slices() == [51, 45, 55]
    person.find("#show-crosshair").click()
    letters = [person.texts(f"[data-plane={plane}] .frame span")[:4] for plane in ("axial", "coronal", "sagittal")]
    assert letters == [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]]
    left, behind, above = 54.5 / 64, 44.5 / 64, (63.5 - 50) / 64
    for plane, x, y in (("axial", left, behind), ("coronal", left, above), ("sagittal", behind, above)):
        assert person.grey(plane, x, y) == 255, plane
        assert max(person.grey(plane, 1 - x, y), person.grey(plane, x, 1 - y), person.grey(plane, 1 - x, 1 - y)) < 80

    x, y, z = finding.point_mm + 0.6 * (np.array([54, 44, 50]) - 31.5)
    text = person.find("#crosshair").text.replace("−", "-")
    assert text == f"Crosshair {x:.1f}, {y:.1f}, {z:.1f} mm: ≈ 200 HU"


def test_the_browser_unpacks_what_was_packed(person, nodules):
    person.open("nodule_1")
    finding = nodules.findings["nodule_1"]
    expected = {"hu": page._levels(finding.hu), "mask": finding.mask, "readers": finding.readers_mask}
    expected["saliency"] = cube(page._coarse(finding.saliency), 32)
    for name, voxels in expected.items():
        unpacked = person.driver.execute_script("return [...view.volumes[arguments[0]]]", name)
        np.testing.assert_array_equal(np.array(unpacked).reshape((32,) * 3), voxels, err_msg=name)


def test_the_crosshair_reads_the_voxel(person, nodules):
    person.open("nodule_2")
    finding, random = nodules.findings["nodule_2"], np.random.default_rng(0)
    for depth, height, width in random.integers(0, 64, (3, 3)):
        script = "moveTo({ 0: arguments[0], 1: arguments[1], 2: arguments[2] })"
        person.driver.execute_script(script, int(depth), int(height), int(width))
        hu = int(person.find("#crosshair").get_attribute("data-hu"))
        assert abs(hu - finding.hu[depth, height, width]) <= page.HU_STEP / 2


def test_overlays_come_and_go(person):
    person.open("nodule_2")
    before = person.shown("axial")
    assert not person.find("#show-saliency").is_selected()
    for overlay in ("mask", "readers", "saliency", "crosshair"):
        person.find(f"#show-{overlay}").click()
        assert person.shown("axial") != before, overlay
        assert person.find("#saliency-legend").is_displayed() == (overlay == "saliency")
        person.find(f"#show-{overlay}").click()
        assert person.shown("axial") == before, overlay
    person.open("nodule_10")  # has neither
    assert not person.find("#show-readers").is_displayed()
    assert not person.find("#show-saliency").is_displayed()


def test_windows_by_button_and_number(person):
    person.open("nodule_2")
    wide, narrow = person.driver.find_elements("css selector", "button.window")
    width, wide_picture = person.find("#width"), person.shown("axial")
    narrow.click()
    assert person.shown("axial") != wide_picture
    assert [button.get_attribute("aria-pressed") for button in (wide, narrow)] == ["false", "true"]
    assert [person.find(f"#{name}").get_attribute("value") for name in ("width", "centre")] == ["700", "-600"]
    person.empty(width)  # nothing is no window: the picture stays
    narrow_picture = person.shown("axial")
    width.send_keys("400")
    assert person.shown("axial") != narrow_picture
    assert person.find("#width-range").get_attribute("value") == "400"
    assert narrow.get_attribute("aria-pressed") == "false"
    person.find("#centre-range").send_keys(person.keys.ARROW_RIGHT)
    assert person.find("#centre").get_attribute("value") == "-590"
    wide.click()
    assert person.shown("axial") == wide_picture


def test_everything_works_by_keyboard(person):
    person.tab_to(".skip")
    assert person.find(".skip").rect["y"] > 0  # has come into view
    person.press(person.keys.ENTER)
    person.tab_to("#columns [data-column=id] button")
    person.press(person.keys.SPACE)
    assert person.texts("#rows a")[0] == "nodule_1"
    person.tab_to("#rows a[href='#nodule/nodule_2']")
    person.press(person.keys.ENTER)
    person.wait_for("nodule_2")
    assert person.driver.switch_to.active_element.get_attribute("id") == "viewer-name"
    person.tab_to("button.window[data-width='700']")
    person.press(person.keys.ENTER)
    assert person.find("#width").get_attribute("value") == "700"
    person.tab_to("#show-mask")
    person.press(person.keys.SPACE)
    assert not person.find("#show-mask").is_selected()
    for plane in ("axial", "coronal", "sagittal"):
        person.tab_to(f"[data-plane={plane}] canvas")
        person.press(person.keys.ARROW_UP, person.keys.PAGE_UP)
    assert person.slices() == [42, 42, 42]
    person.tab_to("summary")
    person.press(person.keys.ENTER)
    assert person.find(".explanation dl").is_displayed()


def test_every_control_has_a_name(person):
    person.open("nodule_2")
    script = "return [...document.querySelectorAll('a, button, input:not([aria-hidden]), canvas, [tabindex=\"0\"]')]"
    controls = person.driver.execute_script(script)
    assert len(controls) > 20
    assert [control.get_attribute("outerHTML") for control in controls if not control.accessible_name] == []


def test_nothing_runs_over_on_a_phone(person, tmp_path):
    long = make_finding("long." * 20, image="folder/" * 30 + "image.nrrd", volume_mm3=123456.7)
    page.write_page(
        [long, make_finding("nodule_2"), make_finding("nodule_10", known=False)], "l" * 99, tmp_path / "l.html"
    )
    person.emulate(width=360, height=740)
    person.load(tmp_path / "l.html")
    over = "return document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    assert person.driver.execute_script("return innerWidth") == 360
    assert person.driver.execute_script(over) == 0
    for nodule_id in (long.nodule_id, "nodule_2", "nodule_10"):
        person.open(nodule_id)
        assert person.driver.execute_script(over) == 0
    wider = "const box = document.getElementById('index'); return box.scrollWidth > box.clientWidth"
    assert person.driver.execute_script(wider)  # the table scrolls within its own box
    person.click(person.find("[data-plane=axial] canvas"), x=16.5 / 64, y=48.5 / 64)
    assert person.slices() == [33, 49, 17]


# The least contrast of a text with what it stands on, colours only; where images lie below, other means help.
LEAST_CONTRAST = """
    const luminance = (colour) => {
      const [red, green, blue] = colour.match(/[\\d.]+/g).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const below = (element) => {
      const colour = getComputedStyle(element).backgroundColor;
      return colour === "rgba(0, 0, 0, 0)" && element.parentElement ? below(element.parentElement) : colour;
    };
    const texts = [...document.body.querySelectorAll("*:not(script)")].filter((element) =>
      element.checkVisibility() && !element.closest(".frame, .unseen, :disabled") &&
      [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return texts.map((element) => {
      const [one, other] = [luminance(getComputedStyle(element).color), luminance(below(element))];
      const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      return [contrast, element.outerHTML.slice(0, 200)];
    }).sort(([one], [other]) => one - other)[0]"""


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_text_is_readable_in_either_scheme(person, scheme, dark):
    person.emulate(scheme=scheme)
    person.open("nodule_2")
    person.find("#show-saliency").click()
    person.find("summary").click()
    ground = person.find("body").value_of_css_property("background-color")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 60) == dark
    contrast, element = person.driver.execute_script(LEAST_CONTRAST)
    assert contrast >= 4.5, element


def test_hostile_text_is_shown_as_text(person, tmp_path):
    page.write_page([make_finding(image=HOSTILE)], HOSTILE, tmp_path / "page.html")
    person.load(tmp_path / "page.html")
    person.open("nodule_1")
    assert person.driver.title == person.find("h1").text == person.find("#viewer-image").text == HOSTILE
    assert not person.texts("img")


def test_nothing_is_requested_but_the_page(person):
    person.open("nodule_2")  # what its policy kept the page from would be in the browser's log
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in person.driver.execute_script(script) if not name.startswith("data:")] == []
