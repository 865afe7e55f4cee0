"""The HTML report in a browser: what raises the expected malignancy, and what moving a rating changes."""

import numpy as np
import pytest
from findings import make_additive, make_finding

from pnsamp_jax.data import schema
from pnsamp_jax.report import html_page


@pytest.fixture
def explained(user, tmp_path):
    """Return a user of a page with a nodule whose malignancy is a sum over the attributes, and one whose is not."""
    findings = [make_additive("nodule_1", seed=1), make_additive("nodule_2", seed=2), make_finding("nodule_3")]
    html_page.write_page(findings, "Explained", tmp_path / "page.html")
    user.load(tmp_path / "page.html")
    user.findings = {finding.nodule_id: finding for finding in findings}
    return user


def moved(user):
    """Return the expected malignancy and the suspicion that are shown after moving."""
    return [float(value) for value in user.values("#moved dd")]


def test_the_contributions_lead_from_an_average_nodule_to_this_one(explained):
    for nodule_id in ("nodule_1", "nodule_2"):
        explained.open(nodule_id)
        finding = explained.findings[nodule_id]
        values = [float(value) for value in explained.values("#parts .value[data-value]")]
        assert len(values) == 1 + 8 + 1
        assert np.abs(values[1:-1]).tolist() == sorted(np.abs(values[1:-1]), reverse=True)
        # All are rounded to six digits.
        assert sum(values[:-1]) == pytest.approx(values[-1], abs=1e-4)
        assert values[-1] == pytest.approx(finding.expected[schema.MALIGNANCY], abs=1e-4)
        assert explained.values("[data-part=image]") == []


def test_words_say_what_weighs_most(explained):
    explained.open("nodule_1")
    finding = explained.findings["nodule_1"]
    (text,) = explained.texts("#reasons")
    assert f"An average nodule has an expected malignancy of {finding.average_malignancy:.1f}." in text
    first = max(finding.contributions, key=lambda name: abs(finding.contributions[name]))
    value, index = finding.contributions[first], schema.RATING_NAMES.index(first)
    by = f"{'raises' if value > 0 else 'lowers'} the expected malignancy by {abs(value):.1f} classes"
    rating, expected = schema.RATINGS[index], finding.expected[index]
    words = rating.words[(finding.arg_max[index] if rating.nominal else round(expected)) - 1]
    as_rated = f": {words}" if rating.nominal else f" {expected:.1f} ({words})"
    assert f"What weighs most: {first.replace('_', ' ')}{as_rated} {by};" in text
    shown = words if rating.nominal else f"{expected:.1f} {words}"
    assert explained.texts(f"#parts [data-part={first}] .rated") == [shown]


def test_parts_that_do_not_add_up_are_not_added_up(explained):
    explained.open("nodule_3")
    assert "do not add up" in explained.texts("#reasons")[0]
    assert explained.values(".whole .value") == []
    assert explained.texts("[data-part=image] th") == ["Image, directly"]
    assert not explained.find("#what-if").is_displayed()


def test_a_slider_moves_the_malignancy_as_python_does(explained):
    explained.open("nodule_1")
    finding = explained.findings["nodule_1"]
    assert moved(explained) == pytest.approx(
        [finding.expected[schema.MALIGNANCY], finding.malignant_probability], rel=1e-5
    )
    slider = explained.find("#what-if-texture")
    start, towards = slider.get_attribute("value"), explained.keys.ARROW_LEFT
    slider.send_keys(towards * 7)
    rating = float(slider.get_attribute("value"))
    assert rating == pytest.approx(float(start) - 0.7)
    assert moved(explained) == pytest.approx(answer(finding, texture=rating), abs=2e-4)  # logits have four decimals
    assert abs(moved(explained)[0] - finding.expected[schema.MALIGNANCY]) > 0.01
    assert f"{rating:.1f} " in slider.get_attribute("aria-valuetext")
    slider.send_keys(explained.keys.ARROW_RIGHT * 7)  # its own rating restores the prediction exactly
    assert moved(explained) == pytest.approx(
        [finding.expected[schema.MALIGNANCY], finding.malignant_probability], rel=1e-5
    )
    assert explained.texts("#moved small") == ["as predicted"] * 2


def answer(finding, **ratings):
    p = finding.what_if.probabilities(**ratings)
    return [p @ np.arange(1, 6), (p[3] + p[4]) / (1 - p[2])]


def test_several_attributes_move_together_and_go_back(explained):
    explained.open("nodule_2")
    finding = explained.findings["nodule_2"]
    likeliest = schema.RATINGS[2].words[finding.arg_max[2] - 1]
    other = next(words for words in schema.RATINGS[2].words if words != likeliest)
    explained.find("#what-if-calcification").send_keys(other)
    explained.find("#what-if-lobulation").send_keys(explained.keys.HOME)
    expected = answer(finding, calcification=schema.RATINGS[2].words.index(other) + 1, lobulation=1)
    assert moved(explained) == pytest.approx(expected, abs=2e-4)
    assert f"(network: {likeliest})" in explained.texts("[data-attribute=calcification] .set")[0]
    explained.find("#unmove").click()
    assert moved(explained)[0] == pytest.approx(finding.expected[schema.MALIGNANCY], rel=1e-5)
    explained.find("#what-if-lobulation").send_keys(explained.keys.HOME)
    explained.open("nodule_1")  # which starts from its own ratings
    assert explained.texts("#moved small") == ["as predicted"] * 2


def test_a_slider_ends_where_the_known_classes_end(explained):
    explained.open("nodule_1")
    own = explained.findings["nodule_1"].what_if.own[schema.RATING_NAMES.index("spiculation")]
    slider = explained.find("#what-if-spiculation")
    slider.send_keys(explained.keys.END)
    assert float(slider.get_attribute("value")) == pytest.approx(max(4, np.ceil(10 * own) / 10), abs=0.05)
    assert explained.values("#what-if-internal_structure") == []  # of which one class is known
