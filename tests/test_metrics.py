"""pnsamp_jax.metrics against hand-computed values, scikit-learn and its own slow path."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from pnsamp_jax import metrics
from pnsamp_jax.data import cohort, schema

NAN = float("nan")
SUBSET = Path(__file__).resolve().parents[2] / "shared/data/lidc_subset/ratings.csv"


def cohort_like(seed, nodules=200, classes=5, patients=60):
    """Truths (some 0), predictions that follow them loosely, and patients."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes + 1, nodules)
    predicted = np.clip(truth + rng.integers(-2, 3, nodules), 1, classes)
    return predicted, truth, rng.integers(0, patients, nodules)


# Decoding


def test_arg_max_is_one_based_and_takes_the_smallest_of_equals():
    np.testing.assert_array_equal(metrics.arg_max([[0.1, 0.2, 0.7, 0.0], [0.4, 0.1, 0.1, 0.4]]), [3, 1])


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


def test_best_within_one_ties_go_to_the_class_itself_likeliest_then_to_the_smallest():
    one_hot = np.eye(5)
    np.testing.assert_array_equal(metrics.best_within_one(one_hot), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(metrics.best_within_one([[0.0, 0.5, 0.5, 0.0], [0.0, 0.3, 0.7, 0.0]]), [2, 3])


def test_best_within_one_ignores_float32_rounding_in_ties():
    p = np.array([[1e-9, 0.3, 0.7, 0.0, 0.0]], np.float32)  # class 2 is ahead of 3 by less than rounding
    assert metrics.best_within_one(p) == 3


def test_best_within_one_never_answers_a_padded_class():
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.1), 300)
    probabilities[:5] = np.eye(5)
    padded = np.pad(probabilities, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(metrics.best_within_one(padded), metrics.best_within_one(probabilities))


def test_expected_is_the_mean_class():
    np.testing.assert_allclose(metrics.expected([[0.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25]]), [4.0, 2.5])


def test_decoding_no_nodules():
    nothing = np.zeros((0, 5))
    for decode in (metrics.arg_max, metrics.best_within_one, metrics.expected):
        assert decode(nothing).shape == (0,)


# Scores


def test_scores_by_hand_and_nan_where_the_truth_is_missing():
    predicted, truth = [1, 2, 5, 1], [1, 3, 3, 0]
    np.testing.assert_array_equal(metrics.off_by_one(predicted, truth), [1, 1, 0, NAN])
    np.testing.assert_array_equal(metrics.exact(predicted, truth), [1, 0, 0, NAN])
    np.testing.assert_array_equal(metrics.absolute_error(predicted, truth), [0, 1, 2, NAN])
    np.testing.assert_array_equal(metrics.absolute_error([1.5], [3]), [1.5])


def test_unsigned_classes_do_not_wrap_around():
    predicted, truth = np.array([1, 1], np.uint8), np.array([2, 5], np.uint8)
    np.testing.assert_array_equal(metrics.absolute_error(predicted, truth), [1, 4])


def test_mean_score_leaves_nan_out_and_is_nan_of_nothing():
    assert metrics.mean_score([1, 0, NAN]) == 0.5
    assert metrics.mean_score([1, 0, NAN], [3, 1, 100]) == 0.75
    assert np.isnan(metrics.mean_score([]))
    assert np.isnan(metrics.mean_score([NAN, 1.0], [1, 0]))


def test_macro_within_one_by_hand_with_a_class_absent_and_a_truth_missing():
    # Class 1: 3 of 3, class 3: 1 of 1, class 5: 0 of 2; the truth of 0 does not count.
    predicted, truth = [2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 3, 5, 5, 0]
    assert metrics.macro_within_one(predicted, truth) == pytest.approx(2 / 3)
    assert metrics.macro_within_one(predicted, truth, [1, 1, 1, 1, 0, 0, 1]) == 1.0
    assert np.isnan(metrics.macro_within_one([], []))
    assert np.isnan(metrics.macro_within_one([1, 2], [0, 0]))


# Agreement and discrimination


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_quadratic_kappa_agrees_with_scikit_learn(classes):
    predicted, truth, _ = cohort_like(classes, classes=classes)
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


def test_quadratic_kappa_does_not_count_a_class_that_does_not_exist():
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


def test_auc_of_one_class_is_nan():
    assert np.isnan(metrics.auc([], []))
    assert np.isnan(metrics.auc([0.1, 0.2], [True, True]))
    assert np.isnan(metrics.auc([0.1, 0.2], [True, False], [1, 0]))


def test_auc_of_a_nan_score_is_nan_unless_it_has_no_weight():
    assert np.isnan(metrics.auc([0.1, 0.2, NAN], [False, True, True]))
    assert metrics.auc([0.1, 0.2, NAN], [False, True, True], [1, 1, 0]) == 1.0


@pytest.mark.parametrize("figure", ["kappa", "auc", "macro", "mean"])
def test_integer_weights_are_the_same_as_repeated_nodules(figure):
    predicted, truth, _ = cohort_like(7)
    weights = np.random.default_rng(7).integers(0, 4, len(truth))
    compute = {
        "kappa": lambda p, t, w=None: metrics.quadratic_kappa(p, t, 5, w),
        "auc": lambda p, t, w=None: metrics.auc(p, t > 3, w),
        "macro": metrics.macro_within_one,
        "mean": lambda p, t, w=None: metrics.mean_score(metrics.off_by_one(p, t), w),
    }[figure]
    repeated = np.repeat(predicted, weights), np.repeat(truth, weights)
    assert compute(predicted, truth, weights) == pytest.approx(compute(*repeated))


# Dice and calibration


def test_dice_by_hand():
    a = np.zeros((4, 4, 4), bool)
    b = a.copy()
    a[0, 0, :3] = True
    b[0, 0, 2] = True
    assert metrics.dice(a, b) == metrics.dice(b, a) == 0.5
    assert metrics.dice(a, a) == 1.0
    assert metrics.dice(a, ~a) == 0.0


def test_dice_both_empty_is_one_and_one_empty_is_zero():
    empty = np.zeros((2, 2), bool)
    assert metrics.dice(empty, empty) == 1.0
    assert metrics.dice(empty, ~empty) == 0.0


def test_calibration_by_hand():
    mean, rate, count = metrics.calibration([0.0, 0.2, 0.5, 1.0, 0.9], [False, True, True, True, NAN], bins=2)
    np.testing.assert_allclose(mean, [0.1, 0.75])
    np.testing.assert_allclose(rate, [0.5, 1.0])
    np.testing.assert_array_equal(count, [2, 2])
    error = metrics.expected_calibration_error([0.0, 0.2, 0.5, 1.0, 0.9], [0, 1, 1, 1, NAN], bins=2)
    assert error == pytest.approx((0.4 + 0.25) / 2)


def test_calibration_of_a_calibrated_and_of_an_overconfident_forecast():
    rng = np.random.default_rng(0)
    probability = rng.random(20000)
    outcome = rng.random(20000) < probability
    assert metrics.expected_calibration_error(probability, outcome) < 0.02
    assert metrics.expected_calibration_error(np.ones(20000), outcome) == pytest.approx(1 - outcome.mean())


def test_calibration_empty_bins_are_nan_and_do_not_count():
    mean, rate, count = metrics.calibration([0.55, 0.55], [True, False])
    assert np.isnan(np.delete(mean, 5)).all() and np.isnan(np.delete(rate, 5)).all()
    assert count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert metrics.expected_calibration_error([0.55, 0.55], [True, False]) == pytest.approx(0.05)
    assert np.isnan(metrics.expected_calibration_error([], []))


# What an accuracy is held against


def test_best_constant_by_hand():
    assert metrics.best_constant([1, 1, 2, 5, 0], 5) == (1, 0.75)
    assert metrics.best_constant([4, 4, 4], 4) == (4, 1.0)


def test_best_constant_ties_go_to_the_class_most_often_right_then_to_the_smallest():
    assert metrics.best_constant([2, 3, 3], 5) == (3, 1.0)
    assert metrics.best_constant([2, 4], 5) == (3, 1.0)
    assert metrics.best_constant([2, 3], 5) == (2, 1.0)


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_best_constant_is_not_beaten_by_any_other(classes):
    _, truth, _ = cohort_like(classes + 10, classes=classes)
    rates = [metrics.mean_score(metrics.off_by_one(np.full(len(truth), k), truth)) for k in range(1, classes + 1)]
    chosen, rate = metrics.best_constant(truth, classes)
    assert rate == pytest.approx(max(rates)) and rate == pytest.approx(rates[chosen - 1])


def test_best_constant_of_nothing():
    for truth in ([], [0, 0]):
        chosen, rate = metrics.best_constant(truth, 5)
        assert chosen == 0 and np.isnan(rate)


def test_one_reader_by_hand():
    rating_counts = np.array(
        [
            [1, 0, 1, 0, 0],  # 1 and 3: two apart, neither is within one
            [0, 0, 0, 2, 0],  # agree
            [1, 0, 0, 1, 1],  # 1 against 4.5 -> 5; 4 against 3; 5 against 2.5 -> 3 (half up): one of three
            [0, 1, 0, 0, 0],  # one reader
            [0, 0, 0, 0, 0],  # none
        ],
        np.uint8,
    )
    np.testing.assert_allclose(metrics.one_reader_scores(rating_counts), [0, 1, 1 / 3, NAN, NAN])
    rate, n = metrics.one_reader(rating_counts)
    assert rate == pytest.approx(3 / 7)  # 0 of 2, 2 of 2, 1 of 3 readings
    assert n == 3


def test_one_reader_agrees_with_leaving_the_readers_out_one_by_one():
    rng = np.random.default_rng(3)
    ratings = [rng.integers(1, 7, readers) for readers in rng.integers(1, 5, 100)]
    rating_counts = np.stack([np.bincount(r, minlength=7)[1:] for r in ratings])
    hits = [
        abs(r[i] - np.floor(np.delete(r, i).mean() + 0.5)) <= 1 for r in ratings if len(r) > 1 for i in range(len(r))
    ]
    assert metrics.one_reader(rating_counts)[0] == pytest.approx(np.mean(hits))


def test_one_reader_of_nothing():
    rate, n = metrics.one_reader(np.zeros((0, 5), int))
    assert np.isnan(rate) and n == 0


@pytest.mark.skipif(not SUBSET.exists(), reason=f"no {SUBSET}")
def test_baselines_on_the_real_readings_are_near_those_of_the_whole_archive():
    nodules = {}
    with SUBSET.open() as file:
        for row in csv.DictReader(file):
            nodules.setdefault(row["nodule_id"], []).append([int(row[name] or 0) for name in schema.RATING_NAMES])
    rating_counts = np.stack([cohort.count_ratings(np.array(ratings)) for ratings in nodules.values()])
    rating_counts = rating_counts[cohort.members(rating_counts, "rounded_ne_3")]
    readers = [100 * metrics.one_reader(rating_counts[:, i])[0] for i in range(len(schema.RATINGS))]
    truth = cohort.rounded_rating(rating_counts)
    constants = [100 * metrics.best_constant(truth[:, i], r.classes)[1] for i, r in enumerate(schema.RATINGS)]
    # The whole archive: readers 88.5 and 83.4 %, constants 89.6 and 71.5 %.
    assert np.mean(readers) == pytest.approx(88.66, abs=0.01)
    assert readers[schema.MALIGNANCY] == pytest.approx(83.57, abs=0.01)
    assert np.mean(constants) == pytest.approx(89.6, abs=1)
    assert constants[schema.MALIGNANCY] == pytest.approx(71.5, abs=2)


# Intervals


def test_mean_interval_is_the_bootstrap_of_the_mean():
    predicted, truth, clusters = cohort_like(0)
    scores = metrics.off_by_one(predicted, truth)
    own = np.random.default_rng(5).integers(1, 5, len(scores)).astype(float)
    slow = metrics.cluster_bootstrap(lambda w: metrics.mean_score(scores, w), clusters, resamples=300, seed=4)
    np.testing.assert_allclose(metrics.mean_interval(scores, clusters, resamples=300, seed=4), slow, rtol=1e-12)
    slow = metrics.cluster_bootstrap(lambda w: metrics.mean_score(scores, w * own), clusters, 300, 4, 0.8)
    np.testing.assert_allclose(metrics.mean_interval(scores, clusters, 300, 4, 0.8, own), slow, rtol=1e-12)


def test_mean_interval_of_independent_scores_is_the_textbook_one():
    scores = np.random.default_rng(0).normal(size=400)
    low, high = metrics.mean_interval(scores, np.arange(400))
    half = 1.96 * scores.std() / 20
    np.testing.assert_allclose([low, high], scores.mean() + np.array([-half, half]), atol=0.15 * half)


def test_interval_is_wider_where_nodules_of_a_patient_are_alike():
    scores = np.repeat(np.random.default_rng(0).random(50), 4)
    by_patient = metrics.mean_interval(scores, np.repeat(np.arange(50), 4))
    by_nodule = metrics.mean_interval(scores, np.arange(200))
    assert np.diff(by_patient) == pytest.approx(2 * np.diff(by_nodule), rel=0.15)  # sqrt(4), as they are identical


def test_interval_widens_with_its_level():
    predicted, truth, clusters = cohort_like(1)
    widths = [np.diff(metrics.mean_interval(metrics.exact(predicted, truth), clusters, level=q)) for q in (0.5, 0.95)]
    assert 0 < widths[0] < widths[1]


def test_interval_is_deterministic_and_depends_on_the_seed():
    predicted, truth, clusters = cohort_like(2)
    scores = metrics.absolute_error(predicted, truth)
    assert metrics.mean_interval(scores, clusters, seed=1) == metrics.mean_interval(scores, clusters, seed=1)
    assert metrics.mean_interval(scores, clusters, seed=1) != metrics.mean_interval(scores, clusters, seed=2)


def test_interval_does_not_depend_on_the_order_of_the_nodules_or_the_type_of_the_ids():
    predicted, truth, clusters = cohort_like(3)
    names = np.array([f"LIDC-IDRI-{patient:04d}" for patient in clusters])
    order = np.random.default_rng(0).permutation(len(truth))
    interval = metrics.mean_interval(metrics.off_by_one(predicted, truth), clusters)
    shuffled = metrics.mean_interval(metrics.off_by_one(predicted[order], truth[order]), list(names[order]))
    np.testing.assert_allclose(shuffled, interval, rtol=1e-12)
    assert metrics.mean_interval(metrics.off_by_one(predicted, truth), names.astype(object)) == interval

    def kappa(rows):
        return metrics.cluster_bootstrap(
            lambda w: metrics.quadratic_kappa(predicted[rows], truth[rows], 5, w), names[rows], resamples=100
        )

    np.testing.assert_allclose(kappa(order), kappa(np.arange(len(truth))), rtol=1e-12)


def test_interval_of_equal_scores_is_a_point():
    scores = np.array([1.0, 1.0, NAN, 1.0])
    assert metrics.mean_interval(scores, [0, 1, 1, 2]) == (1.0, 1.0)
    assert metrics.cluster_bootstrap(lambda w: metrics.mean_score(scores, w), [0, 1, 1, 2], 100) == (1.0, 1.0)


def test_bootstrap_weights_are_whole_patients_and_as_many_as_there_are():
    clusters, seen = np.array(["b", "a", "b", "c"]), []
    metrics.cluster_bootstrap(lambda w: seen.append(w) or 0.0, clusters, resamples=50)
    seen = np.array(seen)
    np.testing.assert_array_equal(seen[:, 0], seen[:, 2])
    np.testing.assert_array_equal(seen[:, [0, 1, 3]].sum(axis=1), 3)


def test_bootstrap_ignores_replicates_that_are_not_defined():
    # Some draws of three patients have no positive or no negative; the AUC of the others is 1.
    interval = metrics.cluster_bootstrap(lambda w: metrics.auc([1, 2, 2], [False, True, True], w), [0, 1, 2], 200)
    assert interval == (1.0, 1.0)


def test_one_patient_or_no_score_has_no_interval():
    for scores, clusters in (([], []), ([1.0, 0.0], [3, 3]), ([NAN, NAN], [1, 2]), ([1.0, 0.0, NAN], [1, 1, 2])):
        assert np.isnan(metrics.mean_interval(scores, clusters)).all()
    assert np.isnan(metrics.cluster_bootstrap(lambda w: w.sum(), [])).all()
    assert np.isnan(metrics.cluster_bootstrap(lambda w: w.sum(), [1, 1])).all()
    assert np.isnan(metrics.cluster_bootstrap(lambda w: NAN, [1, 2], resamples=10)).all()


def test_mean_and_sem_by_hand():
    mean, sem = metrics.mean_and_sem([1, 2, 3, 4, 5])
    assert mean == 3.0 and sem == pytest.approx(np.sqrt(2.5 / 5))


def test_mean_and_sem_of_one_fold_of_none_and_with_an_undefined_fold():
    np.testing.assert_array_equal(metrics.mean_and_sem([0.7]), [0.7, NAN])
    np.testing.assert_array_equal(metrics.mean_and_sem([]), [NAN, NAN])
    np.testing.assert_array_equal(metrics.mean_and_sem([0.7, NAN]), [NAN, NAN])
