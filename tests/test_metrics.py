"""pnsamp_jax.metrics against hand-computed values and scikit-learn: decoding, scores, agreement and reliability."""

import numpy as np
import pytest
from made_ratings import random_cohort
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from pnsamp_jax import metrics

NAN = float("nan")


# Decoding


def test_arg_max_is_one_based_and_takes_the_smallest_class_in_a_tie():
    np.testing.assert_array_equal(metrics.arg_max([[0.1, 0.2, 0.7, 0.0], [0.4, 0.1, 0.1, 0.4]]), [3, 1])


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_arg_max_of_a_certain_class_is_that_class(classes):
    np.testing.assert_array_equal(metrics.arg_max(np.eye(classes)), np.arange(1, classes + 1))


def test_best_within_one_differs_from_arg_max():
    probabilities = [[0.4, 0.0, 0.1, 0.3, 0.2]]  # sums: .4, .5, .4, .6, .5
    assert metrics.arg_max(probabilities) == 1
    assert metrics.best_within_one(probabilities) == 4


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_best_within_one_maximises_the_chance_of_being_within_one(classes):
    probabilities = np.random.default_rng(classes).dirichlet(np.ones(classes), 300)
    for p, chosen in zip(probabilities, metrics.best_within_one(probabilities), strict=True):
        chance = [sum(p[j - 1] for j in range(1, classes + 1) if abs(j - k) <= 1) for k in range(1, classes + 1)]
        assert chosen == 1 + int(np.argmax(chance))


def test_ties_of_best_within_one_go_to_the_likeliest_class_then_to_the_smallest():
    one_hot = np.eye(5)
    np.testing.assert_array_equal(metrics.best_within_one(one_hot), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(metrics.best_within_one([[0.0, 0.5, 0.5, 0.0], [0.0, 0.3, 0.7, 0.0]]), [2, 3])


def test_best_within_one_ignores_float32_rounding_in_ties():
    p = np.array([[1e-9, 0.3, 0.7, 0.0, 0.0]], np.float32)  # class 2 is ahead of 3 by less than rounding
    assert metrics.best_within_one(p) == 3


def test_best_within_one_never_returns_a_padded_class():
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.1), 300)
    probabilities[:5] = np.eye(5)
    padded = np.pad(probabilities, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(metrics.best_within_one(padded), metrics.best_within_one(probabilities))


def test_expected_is_the_mean_class():
    np.testing.assert_allclose(metrics.expected([[0.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25]]), [4.0, 2.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_malignant_probability_by_hand_for_one_nodule_and_for_several(dtype):
    p = np.array([[0.1, 0.2, 0.3, 0.1, 0.3, 0.0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0]], dtype)
    expected = [0.4 / 0.7, 0, 1]
    several = metrics.malignant_probability(p)
    assert several.dtype == dtype
    np.testing.assert_allclose(several, expected, rtol=1e-6)
    np.testing.assert_array_equal([metrics.malignant_probability(row) for row in p], several)
    np.testing.assert_array_equal(metrics.malignant_probability(p[:, :5]), several)
    np.testing.assert_array_equal(metrics.malignant_probability(p[:, None]), several[:, None])


def test_decoding_no_nodules():
    nothing = np.zeros((0, 5))
    for decode in (metrics.arg_max, metrics.best_within_one, metrics.expected):
        assert decode(nothing).shape == (0,)


# Scores


def test_scores_by_hand_with_nan_where_the_truth_is_missing():
    predicted, truth = [1, 2, 5, 1], [1, 3, 3, 0]
    np.testing.assert_array_equal(metrics.off_by_one(predicted, truth), [1, 1, 0, NAN])
    np.testing.assert_array_equal(metrics.exact(predicted, truth), [1, 0, 0, NAN])
    np.testing.assert_array_equal(metrics.absolute_error(predicted, truth), [0, 1, 2, NAN])
    np.testing.assert_array_equal(metrics.absolute_error([1.5], [3]), [1.5])


def test_unsigned_classes_do_not_wrap_around():
    predicted, truth = np.array([1, 1], np.uint8), np.array([2, 5], np.uint8)
    np.testing.assert_array_equal(metrics.absolute_error(predicted, truth), [1, 4])


def test_mean_score_leaves_out_nan_and_is_nan_without_scores():
    assert metrics.mean_score([1, 0, NAN]) == 0.5
    assert metrics.mean_score([1, 0, NAN], [3, 1, 100]) == 0.75
    assert np.isnan(metrics.mean_score([]))
    assert np.isnan(metrics.mean_score([NAN, 1.0], [1, 0]))


def test_macro_within_one_by_hand_with_an_absent_class_and_a_missing_truth():
    # Class 1: 3 of 3, class 3: 1 of 1, class 5: 0 of 2; the nodule with truth 0 does not count.
    predicted, truth = [2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 3, 5, 5, 0]
    assert metrics.macro_within_one(predicted, truth) == pytest.approx(2 / 3)
    assert metrics.macro_within_one(predicted, truth, [1, 1, 1, 1, 0, 0, 1]) == 1.0
    assert np.isnan(metrics.macro_within_one([], []))
    assert np.isnan(metrics.macro_within_one([1, 2], [0, 0]))


def test_balanced_accuracy_agrees_with_scikit_learn_and_counts_exact_classes_only():
    predicted, truth, _ = random_cohort(4)
    weights, rated = np.random.default_rng(2).integers(0, 4, len(truth)), truth > 0
    assert metrics.balanced_accuracy(predicted, truth) == pytest.approx(
        balanced_accuracy_score(truth[rated], predicted[rated])
    )
    assert metrics.balanced_accuracy(predicted, truth, weights) == pytest.approx(
        balanced_accuracy_score(truth[rated], predicted[rated], sample_weight=weights[rated])
    )
    assert metrics.balanced_accuracy([6, 6, 6, 6], [6, 6, 6, 5]) == 0.5


# Agreement and discrimination


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_quadratic_kappa_agrees_with_scikit_learn(classes):
    predicted, truth, _ = random_cohort(classes, classes=classes)
    weights = np.random.default_rng(1).integers(0, 4, len(truth))
    rated = truth > 0
    options = {"labels": range(1, classes + 1), "weights": "quadratic"}
    reference = cohen_kappa_score(truth[rated], predicted[rated], **options)
    assert metrics.quadratic_kappa(predicted, truth, classes) == pytest.approx(reference)
    reference = cohen_kappa_score(truth[rated], predicted[rated], sample_weight=weights[rated], **options)
    assert metrics.quadratic_kappa(predicted, truth, classes, weights) == pytest.approx(reference)


def test_quadratic_kappa_perfect_reversed_and_constant():
    truth = np.array([1, 2, 3, 4])
    assert metrics.quadratic_kappa(truth, truth, 4) == 1.0
    assert metrics.quadratic_kappa(5 - truth, truth, 4) == pytest.approx(-1.0)
    assert metrics.quadratic_kappa(np.full(4, 2), truth, 4) == pytest.approx(0.0)


def test_quadratic_kappa_undefined_is_nan():
    nothing = np.zeros(0, int)
    assert np.isnan(metrics.quadratic_kappa(nothing, nothing, 5))
    assert np.isnan(metrics.quadratic_kappa([1, 2], [0, 0], 5))
    assert np.isnan(metrics.quadratic_kappa([3, 3], [3, 3], 5))
    assert np.isnan(metrics.quadratic_kappa([1, 2], [1, 2], 5, [0, 0]))


def test_quadratic_kappa_raises_for_a_class_that_does_not_exist():
    with pytest.raises(IndexError):
        metrics.quadratic_kappa([5], [4], 4)


def test_auc_by_hand():
    assert metrics.auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert metrics.auc([1, 1, 1], [True, False, False]) == 0.5
    assert metrics.auc([3, 2, 1], [False, True, True]) == 0.0


def test_auc_agrees_with_scikit_learn_with_ties_and_weights():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 20, 300), rng.random(300) < 0.3
    weights = rng.integers(0, 4, 300)
    assert metrics.auc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    reference = roc_auc_score(positive, score, sample_weight=weights)
    assert metrics.auc(score, positive, weights) == pytest.approx(reference)


def test_auc_without_positives_or_negatives_is_nan():
    assert np.isnan(metrics.auc([], []))
    assert np.isnan(metrics.auc([0.1, 0.2], [True, True]))
    assert np.isnan(metrics.auc([0.1, 0.2], [True, False], [1, 0]))


def test_auc_of_a_nan_score_is_nan_unless_it_has_no_weight():
    assert np.isnan(metrics.auc([0.1, 0.2, NAN], [False, True, True]))
    assert metrics.auc([0.1, 0.2, NAN], [False, True, True], [1, 1, 0]) == 1.0


@pytest.mark.parametrize("metric", ["kappa", "auc", "macro", "mean"])
def test_integer_weights_equal_repeated_nodules(metric):
    predicted, truth, _ = random_cohort(7)
    weights = np.random.default_rng(7).integers(0, 4, len(truth))
    compute = {
        "kappa": lambda p, t, w=None: metrics.quadratic_kappa(p, t, 5, w),
        "auc": lambda p, t, w=None: metrics.auc(p, t > 3, w),
        "macro": metrics.macro_within_one,
        "mean": lambda p, t, w=None: metrics.mean_score(metrics.off_by_one(p, t), w),
    }[metric]
    repeated = np.repeat(predicted, weights), np.repeat(truth, weights)
    assert compute(predicted, truth, weights) == pytest.approx(compute(*repeated))


# Reliability


def test_reliability_bins_by_hand():
    mean, rate, count = metrics.reliability_bins([0.0, 0.2, 0.5, 1.0, 0.9], [False, True, True, True, NAN], bins=2)
    np.testing.assert_allclose(mean, [0.1, 0.75])
    np.testing.assert_allclose(rate, [0.5, 1.0])
    np.testing.assert_array_equal(count, [2, 2])
    error = metrics.expected_calibration_error([0.0, 0.2, 0.5, 1.0, 0.9], [0, 1, 1, 1, NAN], bins=2)
    assert error == pytest.approx((0.4 + 0.25) / 2)


def test_calibration_error_of_a_calibrated_and_of_an_overconfident_forecast():
    rng = np.random.default_rng(0)
    probability = rng.random(20000)
    outcome = rng.random(20000) < probability
    assert metrics.expected_calibration_error(probability, outcome) < 0.02
    assert metrics.expected_calibration_error(np.ones(20000), outcome) == pytest.approx(1 - outcome.mean())


def test_empty_reliability_bins_are_nan_and_do_not_count():
    mean, rate, count = metrics.reliability_bins([0.55, 0.55], [True, False])
    assert np.isnan(np.delete(mean, 5)).all() and np.isnan(np.delete(rate, 5)).all()
    assert count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert metrics.expected_calibration_error([0.55, 0.55], [True, False]) == pytest.approx(0.05)
    assert np.isnan(metrics.expected_calibration_error([], []))


def test_nodules_rated_3_or_not_at_all_are_neither_suspected_nor_not():
    np.testing.assert_array_equal(metrics.suspected(np.array([0, 1, 2, 3, 4, 5])), [np.nan, 0, 0, np.nan, 1, 1])
