import json

import numpy as np
import pytest

from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import calibration
from pnsamp_jax.inference.what_if import fit_class_terms


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_scaling_divides_the_logits():
    logits = np.random.default_rng(0).normal(size=(5, 3, 4))
    temperatures = np.array([0.5, 1.0, 3.0])
    expected = softmax(logits / temperatures[:, None])
    np.testing.assert_allclose(calibration.scale(softmax(logits), temperatures), expected, rtol=1e-12)


def test_classes_that_a_rating_lacks_stay_without_probability():
    scaled = calibration.scale(np.array([0.3, 0.7, 0.0]), 2.0)
    assert scaled[2] == 0 and scaled.sum() == pytest.approx(1)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(true_temperature):
    random = np.random.default_rng(1)
    logits = 2 * random.normal(size=(20000, 5))
    p = softmax(logits / true_temperature)
    truth = 1 + (p.cumsum(axis=1) < random.random((len(p), 1))).sum(axis=1)
    found = calibration.fit_temperatures(softmax(logits)[:, None], truth[:, None])
    # The standard error of a scale from 20,000 labels is about 1 %.
    assert found == pytest.approx([true_temperature], rel=0.04)


def test_it_never_makes_the_fitted_labels_less_likely_and_keeps_the_order():
    random = np.random.default_rng(2)
    p = random.dirichlet(np.ones(6), (200, 9))
    truth = random.integers(0, 6, (200, 9))
    temperatures = calibration.fit_temperatures(p, truth)
    scaled = calibration.scale(p, temperatures)
    assert np.array_equal(scaled.argmax(-1), p.argmax(-1))
    for rating in range(9):
        known = truth[:, rating] > 0
        before = calibration.negative_log_likelihood(p[known, rating], truth[known, rating])
        after = calibration.negative_log_likelihood(scaled[known, rating], truth[known, rating])
        assert after <= before + 1e-6  # the optimiser's own tolerance


def test_what_nodules_cannot_tell_stays_one():
    p = np.random.default_rng(3).dirichlet(np.ones(4), (30, 2))
    truth = np.zeros((30, 2), int)
    truth[:, 1] = 2
    assert calibration.fit_temperatures(p, truth).tolist() == [1, 1]


def test_perfect_predictions_stop_at_the_range():
    truth = np.random.default_rng(4).integers(1, 4, (50, 1))
    p = np.where(np.arange(1, 4) == truth[..., None], 0.8, 0.1)
    assert calibration.fit_temperatures(p, truth)[0] == pytest.approx(calibration.RANGE[0], rel=1e-3)


def test_a_file_names_its_checkpoint_and_one_that_does_not_is_refused(tmp_path):
    random, path = np.random.default_rng(5), tmp_path / "calibration.json"
    p, truth = random.dirichlet(np.ones(6), (30, 9)), random.integers(1, 4, (30, 9))
    features = random.normal(size=(30, 7))
    calibration.write(path, p, truth, features, "best", step=40)
    content, found = json.loads(path.read_text()), calibration.read(path)
    assert (content["checkpoint"], content["step"]) == (found.checkpoint, found.step) == ("best", 40)
    np.testing.assert_array_equal(found.temperatures, calibration.fit_temperatures(p, truth))
    np.testing.assert_allclose(found.features, features.mean(axis=0), rtol=1e-6)
    del content["checkpoint"], content["step"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"calibration\.json: damaged .*--mode evaluate"):
        calibration.read(path)


def ball(radius, size=24):
    centre = (size - 1) / 2
    return sum((x - centre) ** 2 for x in np.ogrid[:size, :size, :size]) <= radius**2


def test_the_mask_shift_finds_the_outline_that_was_under_segmented():
    # Probabilities of 0.8 deep inside, of 0.3 in the rest of the nodule, and of 0.12 in a shell around it: one half
    # finds the core alone, and any threshold between 0.12 and 0.3 the whole nodule.
    consensus = np.stack([ball(6), ball(8)])
    mask = np.select([np.stack([ball(3), ball(4)]), consensus, np.stack([ball(8), ball(10)])], [0.8, 0.3, 0.12], 0.0)
    amount = calibration.fit_mask_shift(mask.astype(np.float32), consensus)
    shifted = calibration.shift(mask.astype(np.float32), amount)
    np.testing.assert_array_equal(shifted > 0.5, consensus)


def test_shifting_adds_to_the_logits():
    p = np.array([0.0, 0.01, 0.3, 0.5, 0.99, 1.0], np.float32)
    expected = 1 / (1 + np.exp(-(np.log(p[1:-1]) - np.log1p(-p[1:-1]) + 1.5)))
    shifted = calibration.shift(p, 1.5)
    np.testing.assert_allclose(shifted[1:-1], expected, rtol=1e-5)  # of float32
    assert shifted[0] == 0 and shifted[-1] == 1
    assert calibration.shift(p, 0.0) is p  # the paper's forms stay as they are, to the bit


def test_a_file_keeps_the_mask_shift_and_an_older_one_has_none(tmp_path):
    path = tmp_path / "calibration.json"
    calibration.write(path, np.full((3, 9, 6), 1 / 6), np.ones((3, 9), int), None, "last", 5, mask_shift=0.75)
    assert calibration.read(path).mask_shift == 0.75
    content = json.loads(path.read_text())
    del content["mask_shift"]
    path.write_text(json.dumps(content))
    assert calibration.read(path).mask_shift == 0


def test_a_file_keeps_the_mean_terms_of_calibrated_ratings_and_an_older_one_has_none(tmp_path):
    path, random = tmp_path / "calibration.json", np.random.default_rng(6)
    p, truth = random.dirichlet(np.ones(6), (30, 9)), random.integers(1, 5, (30, 9))
    terms = random.normal(size=(30, 8, 5))
    calibration.write(path, p, truth, None, "last", 5, terms=terms)
    found = calibration.read(path)
    expected = fit_class_terms(terms, calibration.scale(p, found.temperatures))
    np.testing.assert_array_equal(found.class_terms, expected)
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    calibration.write(path, p, truth, None, "last", 5)
    assert calibration.read(path).class_terms is None
