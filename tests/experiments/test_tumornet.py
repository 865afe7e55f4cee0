"""TumorNet's second stage: the mean and deviation of the Gaussian process, and the sources of the attributes."""

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments.baselines import tumornet
from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

TEXTURE = schema.RATING_NAMES.index("texture")


def made_up_subset(rng, count, noise=0.3):
    """Return nodules of two readers whose malignancy and texture depend on the first feature."""
    features = rng.normal(size=(count, 5)).astype(np.float32)
    features[:, 4] = 1  # uninformative
    rating_counts = np.zeros((count, 9, 6), np.uint8)
    for _ in range(2):
        rating = np.clip(np.round(3 + 1.2 * features[:, 0] + noise * rng.normal(size=count)), 1, 4).astype(int)
        rating_counts[np.arange(count), :, rating - 1] += 1
    patients = np.array([f"p{i // 3}" for i in range(count)])
    return Subset({schema.RATING_COUNTS: rating_counts, schema.PATIENT_ID: patients}, features, np.empty((count, 0)))


@pytest.fixture(scope="module")
def halves():
    rng = np.random.default_rng(0)
    return made_up_subset(rng, 90), made_up_subset(rng, 60)


def test_the_process_fits_a_smooth_function_and_its_noise():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (150, 2)) * [1, 100]  # the scales make no difference
    y = np.sin(2 * x[:, 0]) + 0.01 * x[:, 1] + 0.2 * rng.normal(size=150)
    near = rng.uniform(-1.8, 1.8, (50, 2)) * [1, 100]
    mean, sd = tumornet.gaussian_process(x, y, np.concatenate([near, [[40.0, 0.0]]]))
    np.testing.assert_allclose(mean[:-1], np.sin(2 * near[:, 0]) + 0.01 * near[:, 1], atol=0.3)
    assert 0.15 < np.median(sd[:-1]) < 0.3 and sd[-1] > 2 * sd[:-1].max()  # far from all training nodules


def test_uninformative_features_give_the_mean():
    rng = np.random.default_rng(0)
    y = rng.choice([1.0, 5.0], 200)
    mean, sd = tumornet.gaussian_process(rng.normal(size=(200, 3)), y, rng.normal(size=(20, 3)))
    np.testing.assert_allclose(mean, y.mean(), atol=0.4)
    np.testing.assert_allclose(sd, y.std(), rtol=0.1)


@pytest.mark.parametrize("variant", tumornet.VARIANTS)
def test_malignancy_alone_is_predicted_correctly(halves, variant):
    train, test = halves
    probabilities = tumornet.predict(train, test, 0, variant)
    assert np.isnan(probabilities[:, : schema.MALIGNANCY]).all()
    p = probabilities[:, schema.MALIGNANCY]
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert not p[:, 5].any()
    error = p @ np.arange(1, 7) - test.means[:, schema.MALIGNANCY]
    assert np.abs(error).mean() < 0.4


def test_the_plain_variant_uses_no_attribute(halves):
    seen, unseen = tumornet.attribute_features(*halves, "none")
    assert seen.shape == (90, 0) and unseen.shape == (60, 0)


def test_the_oracle_uses_the_readers_ratings(halves):
    train, test = halves
    train.records[schema.RATING_COUNTS][:5, TEXTURE], test.records[schema.RATING_COUNTS][2, TEXTURE] = 0, 0
    seen, unseen = tumornet.attribute_features(train, test, "readers")
    column = tumornet.ATTRIBUTES.index("texture")
    median = np.median(train.means[5:, TEXTURE])
    np.testing.assert_array_equal(seen[:5, column], median)
    assert unseen[2, column] == median
    rated = np.arange(60) != 2
    np.testing.assert_array_equal(unseen[rated], test.means[rated][:, tumornet.INDICES])


def test_predicted_attributes_do_not_depend_on_the_test_ratings(halves):
    train, test = halves
    unrated = {schema.RATING_COUNTS: np.zeros_like(test.records[schema.RATING_COUNTS])}
    blind = Subset(unrated, test.features, test.masks)
    first, second = (tumornet.attribute_features(train, unseen, "predicted")[1] for unseen in (test, blind))
    np.testing.assert_array_equal(first, second)
    assert np.corrcoef(first[:, 0], test.means[:, tumornet.INDICES[0]])[0, 1] > 0.8


def test_attributes_of_training_nodules_are_predicted_out_of_sample():
    rng = np.random.default_rng(0)
    x, patients = rng.normal(size=(60, 40)), np.repeat(np.arange(20), 3)
    y = rng.normal(size=20)[patients]  # can be learnt from nodules of the same patient only
    assert np.corrcoef(tumornet.ridge(x, y, x), y)[0, 1] > 0.5
    assert np.corrcoef(tumornet.out_of_sample(x, y, patients), y)[0, 1] < 0.3


@pytest.mark.parametrize("variant", tumornet.VARIANTS)
def test_attributes_that_nobody_rated_are_left_out(halves, variant):
    rating_counts = halves[0].records[schema.RATING_COUNTS].copy()
    rating_counts[:, : schema.MALIGNANCY] = 0
    records = {**halves[0].records, schema.RATING_COUNTS: rating_counts}
    subset = Subset(records, halves[0].features, halves[0].masks)
    seen, unseen = tumornet.attribute_features(subset, subset, variant)
    assert seen.shape == unseen.shape == (90, 0)


def test_an_unknown_variant_is_refused(tmp_path):
    with pytest.raises(UserError, match="attributes: 'oracle' is none of none, readers, predicted"):
        tumornet.run(tiny_config(**{"model.name": "tumornet"}), tmp_path, "oracle")
