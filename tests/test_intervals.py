"""The bootstrap intervals, and mean and standard error over folds."""

import numpy as np
import pytest
from made_ratings import random_cohort

from pnsamp_jax import intervals, metrics

NAN = float("nan")


def test_mean_interval_equals_the_bootstrap_of_the_mean():
    predicted, truth, clusters = random_cohort(0)
    scores = metrics.off_by_one(predicted, truth)
    own = np.random.default_rng(5).integers(1, 5, len(scores)).astype(float)
    slow = intervals.cluster_bootstrap(lambda w: metrics.mean_score(scores, w), clusters, resamples=300, seed=4)
    np.testing.assert_allclose(intervals.mean_interval(scores, clusters, resamples=300, seed=4), slow, rtol=1e-12)
    slow = intervals.cluster_bootstrap(lambda w: metrics.mean_score(scores, w * own), clusters, 300, 4, 0.8)
    np.testing.assert_allclose(intervals.mean_interval(scores, clusters, 300, 4, 0.8, own), slow, rtol=1e-12)


def test_mean_interval_of_independent_scores_is_the_normal_interval():
    scores = np.random.default_rng(0).normal(size=400)
    low, high = intervals.mean_interval(scores, np.arange(400))
    half = 1.96 * scores.std() / 20
    np.testing.assert_allclose([low, high], scores.mean() + np.array([-half, half]), atol=0.15 * half)


def test_interval_is_wider_if_the_nodules_of_a_patient_resemble_each_other():
    scores = np.repeat(np.random.default_rng(0).random(50), 4)
    by_patient = intervals.mean_interval(scores, np.repeat(np.arange(50), 4))
    by_nodule = intervals.mean_interval(scores, np.arange(200))
    assert np.diff(by_patient) == pytest.approx(2 * np.diff(by_nodule), rel=0.15)  # sqrt(4), as they are identical


def test_interval_widens_with_its_level():
    predicted, truth, clusters = random_cohort(1)
    widths = [
        np.diff(intervals.mean_interval(metrics.exact(predicted, truth), clusters, level=q)) for q in (0.5, 0.95)
    ]
    assert 0 < widths[0] < widths[1]


@pytest.mark.parametrize(("level", "low", "high"), [(0.95, 25, 975), (0.8, 100, 900), (0.5, 250, 750)])
def test_an_interval_leaves_out_as_many_replicates_on_either_side(level, low, high):
    replicates = iter(np.random.default_rng(0).permutation(1001))  # 0 to 1000, whatever is drawn
    found = intervals.cluster_bootstrap(lambda w: next(replicates), np.arange(5), resamples=1001, level=level)
    assert found == pytest.approx((low, high))


def test_interval_is_deterministic_and_depends_on_the_seed():
    predicted, truth, clusters = random_cohort(2)
    scores = metrics.absolute_error(predicted, truth)
    assert intervals.mean_interval(scores, clusters, seed=1) == intervals.mean_interval(scores, clusters, seed=1)
    assert intervals.mean_interval(scores, clusters, seed=1) != intervals.mean_interval(scores, clusters, seed=2)


def test_interval_does_not_depend_on_the_order_of_the_nodules_or_the_type_of_the_ids():
    predicted, truth, clusters = random_cohort(3)
    names = np.array([f"LIDC-IDRI-{patient:04d}" for patient in clusters])
    order = np.random.default_rng(0).permutation(len(truth))
    interval = intervals.mean_interval(metrics.off_by_one(predicted, truth), clusters)
    shuffled = intervals.mean_interval(metrics.off_by_one(predicted[order], truth[order]), list(names[order]))
    np.testing.assert_allclose(shuffled, interval, rtol=1e-12)
    assert intervals.mean_interval(metrics.off_by_one(predicted, truth), names.astype(object)) == interval

    def kappa(rows):
        return intervals.cluster_bootstrap(
            lambda w: metrics.quadratic_kappa(predicted[rows], truth[rows], 5, w), names[rows], resamples=100
        )

    np.testing.assert_allclose(kappa(order), kappa(np.arange(len(truth))), rtol=1e-12)


def test_interval_of_equal_scores_is_a_point():
    scores = np.array([1.0, 1.0, NAN, 1.0])
    assert intervals.mean_interval(scores, [0, 1, 1, 2]) == (1.0, 1.0)
    assert intervals.cluster_bootstrap(lambda w: metrics.mean_score(scores, w), [0, 1, 1, 2], 100) == (1.0, 1.0)


def test_bootstrap_draws_as_many_whole_patients_as_there_are():
    drawn = []

    def statistic(weights):
        drawn.append(weights)
        return 0.0

    intervals.cluster_bootstrap(statistic, np.array(["b", "a", "b", "c"]), resamples=50)
    weights = np.array(drawn)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)


def test_bootstrap_ignores_undefined_replicates():
    # Some draws of three patients have no positive or no negative; the AUC of all other draws is 1.
    interval = intervals.cluster_bootstrap(lambda w: metrics.auc([1, 2, 2], [False, True, True], w), [0, 1, 2], 200)
    assert interval == (1.0, 1.0)


def test_one_patient_or_no_score_gives_no_interval():
    for scores, clusters in (([], []), ([1.0, 0.0], [3, 3]), ([NAN, NAN], [1, 2]), ([1.0, 0.0, NAN], [1, 1, 2])):
        assert np.isnan(intervals.mean_interval(scores, clusters)).all()
    assert np.isnan(intervals.cluster_bootstrap(lambda w: w.sum(), [])).all()
    assert np.isnan(intervals.cluster_bootstrap(lambda w: w.sum(), [1, 1])).all()
    assert np.isnan(intervals.cluster_bootstrap(lambda w: NAN, [1, 2], resamples=10)).all()


def test_mean_and_sem_by_hand():
    mean, sem = intervals.mean_and_sem([1, 2, 3, 4, 5])
    assert mean == 3.0 and sem == pytest.approx(np.sqrt(2.5 / 5))


def test_mean_and_sem_of_one_fold_of_no_fold_and_with_an_undefined_fold():
    np.testing.assert_array_equal(intervals.mean_and_sem([0.7]), [0.7, NAN])
    np.testing.assert_array_equal(intervals.mean_and_sem([]), [NAN, NAN])
    np.testing.assert_array_equal(intervals.mean_and_sem([0.7, NAN]), [NAN, NAN])


def test_two_folds_and_two_patients_are_enough():
    assert intervals.mean_and_sem([0.4, 0.6]) == pytest.approx((0.5, 0.1))  # sd 0.1414, divided by sqrt(2)
    # Of two patients either is drawn twice in a quarter of the draws, so the interval reaches from one to the other.
    assert intervals.mean_interval([0.0, 1.0], ["a", "b"]) == (0.0, 1.0)
    score = np.array([0.0, 1.0])
    assert intervals.cluster_bootstrap(lambda w: metrics.mean_score(score, w), ["a", "b"]) == (0.0, 1.0)


def test_an_interval_rests_on_2000_replicates():
    calls = []
    intervals.cluster_bootstrap(lambda w: calls.append(w) or 0.0, np.arange(3))
    assert len(calls) == 2000
    scores = np.random.default_rng(0).random(30)
    slow = intervals.cluster_bootstrap(lambda w: metrics.mean_score(scores, w), np.arange(30), resamples=2000)
    assert intervals.mean_interval(scores, np.arange(30)) == pytest.approx(slow)
