"""Paired statistics: against their definitions, and properties that any paired comparison must have."""

import numpy as np
import pytest

from experiments.comparison import paired
from pnsamp_jax import intervals, metrics

NAN = float("nan")


def two_systems(seed: int, nodules: int = 120, levels: int = 12):
    """Return the correlated scores, with many ties, of two systems; the truth; and the patients."""
    rng = np.random.default_rng(seed)
    positive = rng.random(nodules) < 0.4
    common = 2.0 * positive + rng.normal(size=nodules)
    a, b = (np.round(levels / 6 * (common + rng.normal(0, 0.7, nodules))) for _ in range(2))
    return a, b, positive, rng.integers(0, nodules // 3, nodules)


def delong_by_definition(a, b, positive):
    """Compute placements from all pairs, and the 2x2 covariance of DeLong et al., equations 4 to 8."""
    v10, v01 = [], []
    for score in (np.asarray(a, float), np.asarray(b, float)):
        x, y = score[positive], score[~positive]
        order = (x[:, None] > y).astype(float) + (x[:, None] == y) / 2
        v10.append(order.mean(axis=1))
        v01.append(order.mean(axis=0))
    covariance = np.cov(v10) / positive.sum() + np.cov(v01) / (~positive).sum()
    return np.mean(v10, axis=1), np.sqrt(np.array([1, -1]) @ covariance @ np.array([1, -1]))


@pytest.mark.parametrize("levels", [3, 12, 1000])
def test_delong_is_its_definition_and_its_areas_are_those_of_auc(levels):
    a, b, positive, _ = two_systems(levels, levels=levels)
    result = paired.delong(a, b, positive)
    areas, error = delong_by_definition(a, b, positive)
    assert (result.auc_a, result.auc_b) == (metrics.auc(a, positive), metrics.auc(b, positive))
    np.testing.assert_allclose([result.auc_a, result.auc_b], areas)
    assert result.difference == result.auc_a - result.auc_b
    assert result.standard_error == pytest.approx(error)


def test_delong_p_is_that_of_a_normal_deviate():
    a, b, positive, _ = two_systems(0)
    result = paired.delong(a, b, positive)
    deviates = np.abs(np.random.default_rng(0).normal(size=400_000))
    share = (deviates > abs(result.difference) / result.standard_error).mean()
    assert result.p == pytest.approx(share, abs=0.004)  # four standard errors of the share at most


def test_delong_is_symmetric_and_ignores_monotone_scales():
    a, b, positive, _ = two_systems(1)
    one, other = paired.delong(a, b, positive), paired.delong(b, np.exp(a / 5), positive)
    assert other.difference == pytest.approx(-one.difference)
    assert (other.standard_error, other.p) == pytest.approx((one.standard_error, one.p))


def test_delong_of_equal_areas_with_errors_on_different_nodules():
    result = paired.delong([2, 4, 1, 3], [4, 2, 1, 3], np.array([True, True, False, False]))
    assert result[:3] == (0.75, 0.75, 0.0) and result.p == 1.0
    assert result.standard_error == pytest.approx(0.5)  # the positives' placements differ by -1/2 and 1/2


def test_delong_of_a_system_with_itself():
    a, _, positive, _ = two_systems(2)
    result = paired.delong(a, a, positive)
    assert result[2:] == (0.0, 0.0, 1.0)


def test_delong_keeps_its_level_if_there_is_no_difference():
    p = [paired.delong(*two_systems(seed, levels=1000)[:3]).p for seed in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.033)  # three standard errors
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_delong_if_it_is_not_defined():
    some = np.array([True, False, False])
    assert np.isnan(paired.delong([1, 2, 3], [3, 2, 1], np.zeros(3, bool))).all()
    assert np.isnan(paired.delong([1, NAN, 3], [3, 2, 1], some)[2:]).all()
    one_positive = paired.delong([3, 1, 2], [2, 1, 3], some)
    assert one_positive[:3] == (1.0, 0.5, 0.5) and np.isnan(one_positive[3:]).all()
    opposite = paired.delong([1, 1, 0, 0], [0, 0, 1, 1], np.array([True, True, False, False]))
    assert opposite[:4] == (1.0, 0.0, 1.0, 0.0) and np.isnan(opposite.p)


def mean_of(scores):
    return lambda weights: metrics.mean_score(scores, weights)


def area_of(score, positive):
    return lambda weights: metrics.auc(score, positive, weights)


def test_paired_interval_of_means_is_that_of_the_mean_difference():
    a, b, _, patients = two_systems(3)
    slow = paired.paired_interval(mean_of(a), mean_of(b), patients, resamples=200)
    np.testing.assert_allclose(slow, intervals.mean_interval(a - b, patients, resamples=200), atol=1e-12)


def test_paired_interval_of_a_constant_advantage_is_a_point():
    a, _, positive, patients = two_systems(4)
    np.testing.assert_allclose(paired.paired_interval(mean_of(a), mean_of(a - 0.5), patients, 100), 0.5)
    assert paired.paired_interval(area_of(a, positive), area_of(a, positive), patients, 50) == (0.0, 0.0)


def test_pairing_narrows_the_interval_of_systems_with_the_same_errors():
    a, b, positive, patients = two_systems(5)
    areas = [area_of(score, positive) for score in (a, b)]
    low, high = paired.paired_interval(*areas, patients, 300)
    alone = [np.diff(intervals.cluster_bootstrap(area, patients, 300))[0] for area in areas]
    assert low < metrics.auc(a, positive) - metrics.auc(b, positive) < high
    assert high - low < 0.8 * np.hypot(*alone)  # the width for independent systems
