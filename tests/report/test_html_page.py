"""The HTML report: the content of the file."""

import base64
import dataclasses
import re
import zlib

import numpy as np
import pytest
from findings import make_finding
from page_data import HEADER, HOSTILE, content_of, cube, make_place, rounded

from pnsamp_jax.data import schema
from pnsamp_jax.report import html_page


def test_voxels_are_exact_to_half_a_step(tmp_path):
    noise = np.random.default_rng(0).normal(-500, 300, (64,) * 3)
    patches = {"smooth": make_finding().hu, "noisy": noise.astype(np.int16)}
    findings = [make_finding(name, hu=hu) for name, hu in patches.items()]
    html_page.write_page(findings, "HU", tmp_path / "page.html")
    content = content_of(tmp_path / "page.html")
    assert [described["hu"]["summed"] for described in content["findings"]] == [3, 0]  # both ways of packing
    for finding, described in zip(findings, content["findings"], strict=True):
        hu = content["lowest_hu"] + content["step_hu"] * cube(described["hu"], 64).astype(int)
        known = np.clip(finding.hu, -1024, 1016)
        assert np.abs(hu - known).max() <= content["step_hu"] / 2


def test_a_patch_that_was_moved_has_its_own_centre(tmp_path):
    moved = make_finding("moved", point_mm=np.array([1.0, 2, 3]), centre_mm=np.array([1.0, 6.8, 3]))
    html_page.write_page([moved, make_finding("not moved")], "HU", tmp_path / "page.html")
    described, other = content_of(tmp_path / "page.html")["findings"]
    assert (described["point_mm"], described["centre_mm"]) == ([1, 2, 3], [1, 6.8, 3])
    assert other["centre_mm"] == other["point_mm"]


def test_masks_are_exact(tmp_path):
    finding = make_finding(mask=np.random.default_rng(1).random((48,) * 3) < 0.3, size=48)
    html_page.write_page([finding], "masks", tmp_path / "page.html")
    (described,) = content_of(tmp_path / "page.html")["findings"]
    for name in ("mask", "readers_mask"):
        bits = np.frombuffer(zlib.decompress(base64.b64decode(described[name])), np.uint8)
        np.testing.assert_array_equal(np.unpackbits(bits).reshape((48,) * 3), getattr(finding, name))


@pytest.mark.parametrize(("size", "cells"), [(32, 32), (64, 32), (48, 24)])
def test_saliency_is_kept_as_means_over_blocks(tmp_path, size, cells):
    finding = make_finding(size=size)
    html_page.write_page([finding], "saliency", tmp_path / "page.html")
    packed = content_of(tmp_path / "page.html")["findings"][0]["saliency"]
    assert packed["cells"] == cells
    block = size // cells
    means = finding.saliency.reshape(cells, block, cells, block, cells, block).mean(axis=(1, 3, 5))
    shown = packed["strongest"] * (cube(packed, cells).astype(float) - 128) / 127
    np.testing.assert_allclose(shown, means, atol=0.51 * packed["strongest"] / 127)


def test_saliency_of_zeros_is_zero():
    assert (cube(html_page._coarse(np.zeros((32,) * 3, np.float32)), 32) == 128).all()


def test_the_locator_is_exact_and_optional(tmp_path):
    place = make_place()
    html_page.write_page([make_finding("known", locator=place), make_finding("unknown")], "t", tmp_path / "page.html")
    known, unknown = [described["locator"] for described in content_of(tmp_path / "page.html")["findings"]]
    assert unknown is None
    assert (known["corner_mm"], known["pixel_mm"]) == ([-182.75, -141.0], 3.0)
    grey = np.frombuffer(zlib.decompress(base64.b64decode(known["voxels"])), np.uint8).reshape(known["shape"])
    for axis in range(known["summed"]):
        grey = np.cumsum(grey, axis=axis, dtype=np.uint8)
    np.testing.assert_array_equal(grey, place.grey)


def test_the_same_findings_and_header_give_the_same_bytes(tmp_path):
    for name, date in (("one", "2024-02-29"), ("two", "2024-02-29"), ("later", "2024-03-01")):
        findings = [make_finding(locator=make_place())]
        html_page.write_page(findings, "t", tmp_path / name, [], "", HEADER | {"date": date})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() != (tmp_path / "later").read_bytes()


def test_numbers_equal_those_of_the_finding_and_unknown_ones_are_null(tmp_path):
    nan = float("nan")
    truth = np.array([5, 0, 6, 3, 1, 2, 2, 4, 0])
    known = make_finding("known", truth=truth)
    unknown = make_finding("unknown", known=False, saliency=None, ensemble_spread=nan, flip_spread=nan)
    html_page.write_page([known, unknown], "numbers", tmp_path / "page.html")
    first, second = content_of(tmp_path / "page.html")["findings"]
    assert first["malignant_probability"] == rounded(known.malignant_probability)
    assert first["volume_mm3"] == rounded(known.volume_mm3)
    nominal = [1, 2]  # internal structure and calcification
    means = known.probabilities @ np.arange(1, 7)
    assert first["expected"] == [None if i in nominal else rounded(mean) for i, mean in enumerate(means)]
    assert first["arg_max"] == known.arg_max.tolist()
    assert first["within_one"] == [None if i in nominal else k for i, k in enumerate(known.within_one.tolist())]
    assert first["truth"] == [5, None, 6, 3, 1, 2, 2, 4, None]
    assert first["contributions"] == {name: rounded(value) for name, value in known.contributions.items()}
    for rating, row, shown in zip(schema.RATINGS, known.probabilities, first["probabilities"], strict=True):
        assert shown == [rounded(value) for value in row[: rating.classes]]
    assert second["truth"] == [None] * 9
    assert [second[name] for name in ("readers_mask", "saliency", "ensemble_spread", "flip_spread")] == [None] * 4


def test_sets_and_intervals_are_there_if_they_are_known_and_finite(tmp_path):
    sets = np.zeros((2, 9, 6), bool)
    sets[0, schema.MALIGNANCY, 1:4] = True
    known = make_finding(
        "known",
        class_sets=sets,
        volume_range_mm3=(60.25, 180.0),
        diameter_range_mm=(0.0, float("inf")),
        nodule_like=0.75,
    )
    html_page.write_page([known, make_finding("unknown")], "t", tmp_path / "page.html")
    first, second = content_of(tmp_path / "page.html")["findings"]
    names = ("malignancy_set", "volume_range_mm3", "diameter_range_mm", "nodule_like")
    assert [first[name] for name in names] == [[2, 3, 4], [60.25, 180], None, 0.75]
    assert [second[name] for name in names] == [[], None, None, None]


def test_twenty_nodules_would_fit_into_five_megabytes(tmp_path):
    # Independent noise of 30 HU in every voxel: resampled CTs have less, since resampling correlates neighbours.
    noise = np.random.default_rng(0).normal(-800, 30, (64,) * 3).astype(np.int16)
    saliency = np.random.default_rng(1).normal(size=(64,) * 3).astype(np.float32)
    finding = make_finding(hu=noise, saliency=saliency)
    sizes = []
    for name, count in (("none", 0), ("two", 2)):
        findings = [dataclasses.replace(finding, nodule_id=f"nodule_{index}") for index in range(count)]
        html_page.write_page(findings, "size", tmp_path / f"{name}.html")
        sizes.append((tmp_path / f"{name}.html").stat().st_size)
    none, two = sizes
    assert none + 20 * (two - none) / 2 < 5e6


def test_user_text_is_escaped(tmp_path):
    html_page.write_page([make_finding(image=HOSTILE)], HOSTILE, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert content_of(tmp_path / "page.html")["findings"][0]["image"] == HOSTILE


def test_file_names_that_are_not_utf8_are_shown_with_escapes(tmp_path):
    name = b"case_\xe4.nii".decode("utf-8", "surrogateescape")
    html_page.write_page([make_finding(image=name)], name, tmp_path / "page.html")
    shown = r"case_\udce4.nii"
    assert f"<h1>{shown}</h1>" in (tmp_path / "page.html").read_text()
    assert content_of(tmp_path / "page.html")["findings"][0]["image"] == shown


def test_the_template_loads_nothing():
    text = html_page.TEMPLATE.read_text()
    assert not re.findall(r"https?:|url\(|@import|\bsrc=|fetch\(|XMLHttpRequest", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"data:,", "#index"}
    assert "default-src 'none'" in text
    assert "cancer" not in text.lower()
