import json

import numpy as np
import pytest

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import calibration, conformal, masks


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
    assert calibration.fit_temperatures(p, truth)[0] == pytest.approx(0.25, rel=1e-3)


def made_up(random):
    p, truth = random.dirichlet(np.ones(6), (30, 9)) * schema.CLASS_EXISTS, random.integers(1, 4, (30, 9))
    return calibration.Calibration(
        temperatures=random.uniform(0.5, 2, 9),
        features=random.normal(size=7).astype(np.float32),
        checkpoint="best",
        step=40,
        mask_shift=0.75,
        class_limits=conformal.fit_limits(p, truth, np.arange(30)),
        extent_limits=np.array([[-1.5, 0.25], [-np.inf, np.inf]]),
        class_terms=np.where(random.random((8, 6, 1)) < 0.2, np.nan, random.normal(size=(8, 6, 5))).astype(np.float32),
        likeness=random.normal(size=8),
        mask_adaptation=0.5,
    )


def test_a_file_gives_back_what_was_written(tmp_path):
    written, path = made_up(np.random.default_rng(5)), tmp_path / "calibration.json"
    calibration.write(path, written, nodules=30)
    found = calibration.read(path)
    assert found._fields == written._fields
    for name, value in written._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
    assert json.loads(path.read_text())["nodules"] == 30


def test_a_file_that_does_not_name_its_checkpoint_is_refused(tmp_path):
    path = tmp_path / "calibration.json"
    calibration.write(path, made_up(np.random.default_rng(5)), nodules=30)
    content = json.loads(path.read_text())
    del content["checkpoint"], content["step"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"calibration\.json: damaged .*--mode evaluate"):
        calibration.read(path)


@pytest.mark.parametrize("damage", [{"0.8": {}}, {"0.8": {}, "0.9": {}}, [], 3])
def test_damaged_limits_are_refused(tmp_path, damage):
    path = tmp_path / "calibration.json"
    calibration.write(path, made_up(np.random.default_rng(5)), nodules=30)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_limits": damage}))
    with pytest.raises(UserError, match=r"calibration\.json: damaged"):
        calibration.read(path)


@pytest.mark.parametrize("damage", [{"weights": [1.0] * 7}, {"weights": [1.0] * 6, "bias": 0.0}, [], 3])
def test_a_damaged_head_is_refused(tmp_path, damage):
    path = tmp_path / "calibration.json"
    calibration.write(path, made_up(np.random.default_rng(5)), nodules=30)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"likeness": damage}))
    with pytest.raises(UserError, match=r"calibration\.json: damaged"):
        calibration.read(path)


def test_an_older_file_has_no_limits_and_no_shift(tmp_path):
    path = tmp_path / "calibration.json"
    calibration.write(path, made_up(np.random.default_rng(5)), nodules=30)
    content = json.loads(path.read_text())
    for name in ("mask_shift", "class_limits", "extent_limits", "class_terms", "likeness", "mask_adaptation"):
        del content[name]
    path.write_text(json.dumps(content))
    found = calibration.read(path)
    assert found.mask_shift == found.mask_adaptation == 0
    assert found.class_limits is found.extent_limits is found.class_terms is found.likeness is None


def ball(radius, size=24):
    centre = (size - 1) / 2
    return sum((x - centre) ** 2 for x in np.ogrid[:size, :size, :size]) <= radius**2


def test_the_mask_shift_corrects_a_network_that_is_too_sure():
    # Nothing of the shell is part of the nodule. At its probability of 0.4, though, marking it as well promises the
    # best Dice, and below 0.3 no longer.
    consensus = np.stack([ball(6), ball(8)])
    mask = np.select([np.stack([ball(3), ball(4)]), consensus, np.stack([ball(8), ball(10)])], [0.9, 0.6, 0.4], 0.0)
    assert (masks.at_one_half(mask[0]) > 0.5).sum() > consensus[0].sum()
    amount, adaptation = calibration.fit_mask_shift(mask.astype(np.float32), consensus, None, 1.2)
    assert adaptation == 0  # the texture is not known
    assert -1 <= amount < 0
    with np.errstate(divide="ignore"):  # outside, the logits are infinite
        shifted = 1 / (1 + np.exp(-(np.log(mask) - np.log1p(-mask) + amount)))
    np.testing.assert_array_equal([masks.at_one_half(one) > 0.5 for one in shifted], consensus)


@pytest.mark.parametrize("texture", [None, np.array([2.0, 5.0])])
def test_masks_that_no_shift_improves_are_left_alone(texture):
    consensus = np.stack([ball(6), ball(8)])
    for mask in (np.where(consensus, 0.999, 0.001), np.zeros(consensus.shape)):  # right, and empty, at every shift
        assert calibration.fit_mask_shift(mask.astype(np.float32), consensus, texture, 1.2) == (0.0, 0.0)


@pytest.mark.parametrize(("missed", "expected"), [(True, 1.0), (False, 0.0)])
def test_masks_are_adapted_to_ground_glass_only_where_that_helps(missed, expected):
    """Of two nodules of ground glass, a network either misses a shell or knows that it is not part of them."""
    inner, outer = np.stack([ball(3), ball(5), ball(4)]), np.stack([ball(5), ball(8), ball(6)])
    texture = np.array([1.5, 2.0, 5.0])
    mask = np.select([inner, outer], [0.9, 0.05], 0.0).astype(np.float32)
    thin = (texture < 3)[:, None, None, None]
    consensus = np.where(thin & missed, outer, inner)
    shift, adaptation = calibration.fit_mask_shift(mask, consensus, texture, 1.2)
    assert adaptation == expected
    for probability, known, e in zip(mask, consensus, texture, strict=True):
        found = masks.adapted(masks.shift_logits(probability, shift), e, 1.2, adaptation)
        np.testing.assert_array_equal(found > masks.best_threshold(found), known)
