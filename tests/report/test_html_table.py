"""The HTML report in a browser: the table of nodules, and opening a nodule."""

import numpy as np
from findings import make_finding
from page_data import HEADER, rounded

from pnsamp_jax.data import schema
from pnsamp_jax.inference.diameters import Diameters
from pnsamp_jax.report import html_page


def test_the_table_holds_the_findings(user, nodules):
    assert user.find("h1").text == user.driver.title == "Nodules & <co>"
    assert user.texts("#rows a") == [*nodules.findings]
    assert not user.find("#viewer").is_displayed()
    for row, finding in enumerate(nodules.findings.values(), start=1):
        expected = {
            "id": finding.nodule_id,
            "image": finding.image,
            "status": "ok",
            **dict(zip("xyz", finding.point_mm, strict=True)),
            "mean": finding.diameters.lung_rads_mm,
            "long": finding.diameters.long_mm,
            "short": finding.diameters.short_mm,
            "mm³": finding.volume_mm3,
            "suspicion": finding.malignant_probability,
            "arg max": finding.arg_max[schema.MALIGNANCY],
            "within one": finding.within_one[schema.MALIGNANCY],
            "expected": finding.expected[schema.MALIGNANCY],
            "± networks": finding.ensemble_spread,
            "± flips": finding.flip_spread,
            "readers": float("nan") if finding.truth is None else finding.truth[schema.MALIGNANCY],
        }
        assert user.texts("#columns [aria-sort]") == [*expected]
        cells = user.values(f"#rows tr:nth-child({row}) [data-column]")
        for (name, value), shown in zip(expected.items(), cells, strict=True):
            if not isinstance(value, str):
                shown = None if shown is None else float(shown)
                value = None if np.isnan(value) else rounded(value)
            assert shown == value, name


def test_the_page_says_who_predicted_and_when(user, tmp_path):
    made = "Predicted on 2024-02-29 (UTC) by pnsamp_jax 1.2.3 with 2 networks (shipped with pnsamp_jax)"
    assert user.find("#made").text == f"{made}, averaged over 8 flips."
    alone = HEADER | {"checkpoint": "runs/m", "networks": 1, "flips": 1}
    html_page.write_page([make_finding()], "t", tmp_path / "one.html", header=alone)
    user.load(tmp_path / "one.html")
    assert user.find("#made").text.endswith("with 1 network (runs/m), without flips.")
    html_page.write_page([make_finding()], "t", tmp_path / "none.html")
    user.load(tmp_path / "none.html")
    assert not user.find("#made").is_displayed()


def test_empty_columns_are_left_out(user, tmp_path):
    html_page.write_page([make_finding(known=False, flip_spread=float("nan"))], "bare", tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    heads = user.texts("#columns [aria-sort]")
    assert "expected" in heads and not {"readers", "± flips", "note"} & {*heads}


def test_a_page_without_nodules_says_so(user, tmp_path):
    html_page.write_page([], "none", tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    assert user.find("#nothing").is_displayed()


def test_a_nodule_without_a_mask_has_no_values_and_failures_their_reasons(user, tmp_path):
    empty = make_finding("empty", mask=np.zeros((64,) * 3, bool), volume_mm3=0.0, hint="are these RAS coordinates?")
    failures = [("lost", "folder/ct.nii.gz", "no such file"), ("outside", "ct.nii", "the point lies outside ct.nii")]
    html_page.write_page([empty, make_finding("full")], "t", tmp_path / "page.html", failures, "Only a test.")
    user.load(tmp_path / "page.html")
    assert {"status", "note", "readers"} <= {*user.texts("#columns [aria-sort]")}
    assert user.find("#warning").text == "Only a test."
    assert user.texts("#rows [data-column=status]") == ["nothing segmented", "ok"]
    assert user.texts("#rows [data-column=note]") == [empty.note, ""]
    assert user.texts("#rows tr:first-child [data-column=suspicion]") == ["–"]
    assert user.texts("#failed th") == ["lost", "outside"]
    assert user.texts("#failed td:last-child") == ["no such file", "the point lies outside ct.nii"]
    user.open("empty")
    assert user.find("#note").text == "Nothing is segmented at this point; are these RAS coordinates?"
    for part in ("#outcome", "#attributes-panel"):
        assert not user.find(part).is_displayed()
    assert user.texts("#values dt") == ["Status", "Point, mm LPS"]
    user.open("full")
    assert dict(zip(user.texts("#values dt"), user.texts("#values dd"), strict=True))["Status"] == "ok"
    assert not user.find("#note").is_displayed() and user.find("#outcome").is_displayed()


def test_diameters_are_rounded_as_guidelines_ask_and_lower_bounds_marked(user, tmp_path):
    cut = make_finding("cut", diameters=Diameters(26.04, 18.55), truncated=True, volume_mm3=4638.6)
    html_page.write_page([cut], "t", tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    shown = dict(zip(user.texts("#values dt"), user.texts("#values dd"), strict=True))
    mean, rule = shown["Mean axial diameter"].split("\n")
    assert (mean, rule) == ("≥\u202f22.3 mm", "Lung-RADS; ≥\u202f22 mm for Fleischner")
    assert shown["Long × short axis"] == "≥\u202f26.0 × 18.6 mm" and shown["Volume"] == "≥\u202f4639 mm³"
    assert user.texts("#rows [data-column=long]") == ["≥\u202f26.0"]
    assert "lower bounds" in user.find("#note").text


def test_sets_of_classes_and_intervals_follow_their_values(user, tmp_path):
    sets = np.zeros((2, 9, 6), bool)
    sets[0, schema.MALIGNANCY, 1:4] = True
    known = {"volume_mm3": 100.4, "volume_range_mm3": (60.25, 180.0), "diameter_range_mm": (5.04, 9.96)}
    narrow = sets.copy()
    narrow[0, schema.MALIGNANCY, [1, 3]] = False
    html_page.write_page(
        [
            make_finding("wide", class_sets=sets, **known),
            make_finding("narrow", class_sets=narrow),
            make_finding("old"),
        ],
        "t",
        tmp_path / "page.html",
    )
    user.load(tmp_path / "page.html")
    expected = {"wide": "2 to 4", "narrow": "3", "old": None}
    for name, classes in expected.items():
        user.open(name)
        shown = dict(zip(user.texts("#values dt"), user.texts("#values dd"), strict=True))
        assert shown.get("Radiologists' malignancy", "").split("\n")[0] == (classes or "")
        assert ("in 9 of 10 nodules" in shown["Volume"]) == (name == "wide")
        if name == "wide":
            assert shown["Volume"] == "100 mm³\n60 to 180 mm³ in 9 of 10 nodules"
            assert shown["Long × short axis"].split("\n")[1] == "long axis 5.0 to 10.0 mm in 9 of 10 nodules"
            assert user.find("#note").text.startswith(
                "Unsure: radiologists may rate the malignancy anything from 2 to 4"
            )


def test_a_single_nodule_is_opened_at_once(user, tmp_path):
    html_page.write_page([make_finding("alone")], "one", tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    assert user.find("#viewer-name").text == "alone"
    assert user.driver.execute_script("return scrollY") == 0


def test_rows_are_sorted_by_any_column(user, nodules):
    head = user.find("#columns th[data-column=id]")
    head.find_element("css selector", "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert user.texts("#rows a") == ["nodule_1", "nodule_2", "nodule_10"]

    by_volume = sorted(nodules.findings.values(), key=lambda finding: finding.volume_mm3)
    button = user.find("#columns th[data-column='mm³'] button")
    button.click()
    assert head.get_attribute("aria-sort") == "none"
    assert user.texts("#rows a") == [finding.nodule_id for finding in by_volume]
    button.send_keys(user.keys.ENTER)
    assert user.texts("#rows a") == [finding.nodule_id for finding in by_volume[::-1]]

    button = user.find("#columns th[data-column=readers] button")
    for _ in range(2):
        button.click()
        assert user.texts("#rows a")[-1] == "nodule_10"  # without a value, in either direction


def test_rows_are_filtered_by_text(user):
    field = user.find("#filter")
    field.send_keys("FIRST nodule")
    assert user.texts("#rows a") == ["nodule_1"]
    assert user.find("#count").text == "1 of 3 shown"
    field.send_keys("x")
    assert user.find("#nothing").is_displayed()
    user.empty(field)
    assert len(user.texts("#rows a")) == 3


def test_a_row_opens_its_nodule_with_its_ratings(user, nodules):
    for row, finding in enumerate(nodules.findings.values(), start=1):
        user.find(f"#rows tr:nth-child({row}) [data-column=expected]").click()
        user.wait_for(finding.nodule_id)
        assert user.find("#viewer-image").text == finding.image
        order = [schema.MALIGNANCY, *(index for index in range(len(schema.RATINGS)) if index != schema.MALIGNANCY)]
        ordinal = [
            index for index in order if schema.RATING_NAMES[index] not in ("internal_structure", "calcification")
        ]
        known = finding.truth is not None
        for name, values in {
            "data-fact=arg_max": finding.arg_max[order],
            "data-fact=within_one": finding.within_one[ordinal],
            "data-fact=expected": finding.expected[ordinal],
            "data-fact=truth": finding.truth[order] if known else [],
            "data-class": finding.probabilities[order][schema.CLASS_EXISTS[order]],
        }.items():
            assert [float(value) for value in user.values(f".rating [{name}]")] == [*map(rounded, values)], name
        if known:
            reach = np.isin(np.arange(9), ordinal).astype(int)  # a nominal rating has to be the same
            beyond = (np.abs(finding.truth - finding.arg_max) > reach)[order]
            marks = [f"{truth} {'✗' if far else '✓'}" for truth, far in zip(finding.truth[order], beyond, strict=True)]
            assert user.texts(".rating [data-fact=truth]") == marks
            assert user.texts(".rating [data-fact=truth].beyond") == [mark for mark in marks if "✗" in mark]
        parts = dict(
            zip(
                user.texts("#parts [data-part] th"),
                map(float, user.values("#parts [data-part] [data-value]")),
                strict=True,
            )
        )
        assert [*map(abs, parts.values())] == sorted(map(abs, parts.values()), reverse=True)
        assert sorted(parts.values()) == sorted(map(rounded, finding.contributions.values()))
        assert parts["Internal structure"] == rounded(finding.contributions["internal_structure"])
        assert parts["Image, directly"] == rounded(finding.contributions["image"])


def test_previous_and_next_follow_the_table(user):
    user.find("#columns th[data-column=id] button").click()
    user.open("nodule_1")
    assert not user.find("#previous").is_enabled()
    for nodule_id in ("nodule_2", "nodule_10"):
        user.find("#next").click()
        user.wait_for(nodule_id)
    assert not user.find("#next").is_enabled()
    user.driver.back()
    user.wait_for("nodule_2")


def test_the_keys_n_and_p_open_the_next_and_the_previous_nodule(user):
    user.find("#columns th[data-column=id] button").click()
    user.open("nodule_1")
    for key, nodule_id in (("n", "nodule_2"), ("n", "nodule_10"), ("n", "nodule_10"), ("p", "nodule_2")):
        user.press(key)
        user.wait_for(nodule_id)
    user.find("[data-plane=axial] canvas").send_keys("p")
    user.wait_for("nodule_1")
    user.press("p")
    user.find("#filter").send_keys("n")  # is text there
    user.find("#width").send_keys("n")
    assert user.texts("#viewer-name") == ["nodule_1"]


def test_a_link_opens_its_nodule(user, nodules):
    user.driver.get("about:blank")
    user.driver.get(nodules.path.as_uri() + "#nodule/nodule_10")
    user.wait_for("nodule_10")
