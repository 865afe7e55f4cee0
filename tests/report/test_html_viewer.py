"""The HTML report in a browser: the viewer of one nodule."""

import numpy as np
import pytest
from findings import make_finding
from page_data import cube

from pnsamp_jax.report import html_page


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_scroll_by_wheel_keys_and_slider(user, plane):
    user.open("nodule_2")
    index = ["axial", "coronal", "sagittal"].index(plane)
    canvas, before = user.find(f"[data-plane={plane}] canvas"), user.shown(plane)
    user.wheel(canvas, 120)
    assert user.slices()[index] == 32
    assert user.shown(plane) != before
    user.wheel(canvas, -120)
    assert user.slices()[index] == 33
    assert user.shown(plane) == before
    canvas.send_keys(user.keys.ARROW_UP)
    assert user.slices()[index] == 34
    canvas.send_keys(user.keys.HOME)
    assert user.slices()[index] == 1
    assert "slice 1 of 64" in canvas.get_attribute("aria-valuetext")
    canvas.send_keys(user.keys.ARROW_LEFT)
    assert user.slices()[index] == 1  # there is no slice before the first
    user.click(user.find(f"[data-plane={plane}] input"), x=0.75)
    assert 44 < user.slices()[index] < 53
    assert sorted(user.slices())[:2] == [33, 33]  # the other planes have not moved


def test_planes_have_the_radiological_orientation_and_move_together(user, tmp_path):
    voxels = np.indices((64,) * 3)
    hu = np.where((abs(voxels - np.array([50, 44, 54])[:, None, None, None]) < 8).all(axis=0), 200, -1000)
    empty = np.zeros_like(hu, bool)
    finding = make_finding(hu=hu.astype(np.int16), mask=empty, readers_mask=empty)
    html_page.write_page([finding], "a block above, behind and to the left", tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    user.open("nodule_1")
    user.click(user.find("[data-plane=axial] canvas"), x=54.5 / 64, y=44.5 / 64)
    assert user.slices() == [33, 45, 55]
    user.click(user.find("[data-plane=sagittal] canvas"), x=44.5 / 64, y=(63.5 - 50) / 64)
    assert user.slices() == [51, 45, 55]
    user.find("#show-crosshair").click()
    letters = [user.texts(f"[data-plane={plane}] .frame span")[:4] for plane in ("axial", "coronal", "sagittal")]
    assert letters == [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]]
    left, behind, above = 54.5 / 64, 44.5 / 64, (63.5 - 50) / 64
    for plane, x, y in (("axial", left, behind), ("coronal", left, above), ("sagittal", behind, above)):
        assert user.grey(plane, x, y) == 255, plane
        assert max(user.grey(plane, 1 - x, y), user.grey(plane, x, 1 - y), user.grey(plane, 1 - x, 1 - y)) < 80

    x, y, z = finding.point_mm + 0.6 * (np.array([54, 44, 50]) - 31.5)
    text = user.find("#crosshair").text.replace("−", "-")
    assert text == f"Crosshair {x:.1f}, {y:.1f}, {z:.1f} mm: ≈ 200 HU"


def test_the_browser_unpacks_what_was_packed(user, nodules):
    user.open("nodule_1")
    finding = nodules.findings["nodule_1"]
    expected = {"hu": html_page._levels(finding.hu), "mask": finding.mask, "readers": finding.readers_mask}
    expected["saliency"] = cube(html_page._coarse(finding.saliency), 32)
    for name, voxels in expected.items():
        unpacked = user.driver.execute_script("return [...view.volumes[arguments[0]]]", name)
        np.testing.assert_array_equal(np.array(unpacked).reshape((32,) * 3), voxels, err_msg=name)


def test_the_crosshair_shows_the_hu_of_its_voxel(user, nodules):
    user.open("nodule_2")
    finding, random = nodules.findings["nodule_2"], np.random.default_rng(0)
    for depth, height, width in random.integers(0, 64, (3, 3)):
        script = "moveTo({ 0: arguments[0], 1: arguments[1], 2: arguments[2] })"
        user.driver.execute_script(script, int(depth), int(height), int(width))
        hu = int(user.find("#crosshair").get_attribute("data-hu"))
        assert abs(hu - finding.hu[depth, height, width]) <= html_page.HU_STEP / 2


def test_overlays_can_be_switched_on_and_off(user):
    user.open("nodule_2")
    before = user.shown("axial")
    assert not user.find("#show-saliency").is_selected()
    for overlay in ("mask", "readers", "saliency", "crosshair"):
        user.find(f"#show-{overlay}").click()
        assert user.shown("axial") != before, overlay
        assert user.find("#saliency-legend").is_displayed() == (overlay == "saliency")
        user.find(f"#show-{overlay}").click()
        assert user.shown("axial") == before, overlay
    user.open("nodule_10")  # has neither readers nor saliency
    assert not user.find("#show-readers").is_displayed()
    assert not user.find("#show-saliency").is_displayed()


def test_windows_are_set_by_button_number_and_slider(user):
    user.open("nodule_2")
    wide, narrow, soft = user.driver.find_elements("css selector", "button.window")
    width, wide_image = user.find("#width"), user.shown("axial")
    narrow.click()
    assert user.shown("axial") != wide_image
    assert [button.get_attribute("aria-pressed") for button in (wide, narrow)] == ["false", "true"]
    assert [user.find(f"#{name}").get_attribute("value") for name in ("width", "centre")] == ["700", "-600"]
    user.empty(width)  # an empty field does not change the window
    narrow_image = user.shown("axial")
    width.send_keys("400")
    assert user.shown("axial") != narrow_image
    assert user.find("#width-range").get_attribute("value") == "400"
    assert narrow.get_attribute("aria-pressed") == "false"
    user.find("#centre-range").send_keys(user.keys.ARROW_RIGHT)
    assert user.find("#centre").get_attribute("value") == "-590"
    soft.click()
    assert window_of(user) == (400, 40)
    wide.click()
    assert user.shown("axial") == wide_image


def window_of(user):
    """Return the width and the level in the fields, which the images must show, too."""
    window = tuple(int(user.find(f"#{name}").get_attribute("value")) for name in ("width", "centre"))
    shown = "W {} · L {}".format(*window).replace("-", "−")
    assert user.texts(".window-shown") == [shown] * 3
    return window


@pytest.mark.parametrize("how", [{"button": 2}, {"shift": True}])
def test_dragging_sets_the_window_and_a_button_resets_it(user, how):
    user.open("nodule_2")
    canvas, image, slices = user.find("[data-plane=axial] canvas"), user.shown("axial"), user.slices()
    user.drag(canvas, -30, 10, **how)
    assert window_of(user) == (1600 - 4 * 30, -600 - 4 * 10)
    assert user.shown("axial") != image and user.slices() == slices  # the crosshair stays
    user.drag(canvas, 20, -10, **how)
    assert window_of(user) == (1600 - 4 * 10, -600)
    for _ in range(5):
        user.drag(canvas, -140, 0, **how)
    assert window_of(user) == (1, -600)  # no window is narrower
    user.find("#reset-window").click()
    assert window_of(user) == (1600, -600)
    assert user.shown("axial") == image
    user.drag(canvas, -30, 10)  # the left button alone moves the crosshair
    assert window_of(user) == (1600, -600) and user.slices() != slices


def test_the_locator_shows_where_the_patch_is(user):
    user.open("nodule_2")
    assert user.texts("#locator figcaption span") == ["360 × 300 mm"]
    script = """
        const canvas = document.querySelector("#locator canvas");
        const [scale, context] = [canvas.width / 120, canvas.getContext("2d")];
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        return arguments[0].map((place) => {
          const [y, x] = place.map((index) => Math.floor((index + 0.5) * scale));
          return [...data.slice(4 * (y * canvas.width + x), 4 * (y * canvas.width + x) + 3)];
        })"""
    yellow, half = [255, 217, 47], 19.2 / 3
    marked = [(60, 40), (60, 40 - half), (60, 40 + half), (60 - half, 40), (60 + half, 40)]
    grey = [(10, 10), (60 + 2 * half, 40), (60 - 0.5 * half, 40 - 0.5 * half)]
    colours = user.driver.execute_script(script, [*marked, *grey])
    assert colours[: len(marked)] == [yellow] * len(marked)
    for (row, column), colour in zip(grey, colours[len(marked) :], strict=True):
        assert len({*colour}) == 1 and abs(colour[0] - (row + column)) <= 2
    assert "patient's right on the left" in user.find("#locator canvas").accessible_name
    user.open("nodule_1")  # whose CT is not known
    assert not user.find("#locator").is_displayed()
