"""The head that tells nodules from what lies beside them."""

import numpy as np
import pytest

from pnsamp_jax.inference import likeness


@pytest.fixture
def features():
    """Nodules and points in features of very different sizes, one of which never changes."""
    random = np.random.default_rng(0)
    scale, offset = np.array([1.0, 100.0, 0.01, 1.0]), np.array([0.0, 500.0, 3.0, 0.0])
    nodules = random.normal((1.0, 0.5, 0.0, 0.0), (1, 1, 1, 0), (60, 4)) * scale + offset
    points = random.normal((-1.0, 0.0, 0.0, 0.0), (1, 1, 1, 0), (150, 4)) * scale + offset
    return nodules, points


def test_it_is_scikit_learns_regression(features):
    linear_model = pytest.importorskip("sklearn.linear_model")
    nodules, points = features
    both = np.concatenate(features)
    mean, deviation = both.mean(axis=0), both.std(axis=0)
    deviation[3] = 1.0
    other = linear_model.LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=10_000)
    other.fit((both - mean) / deviation, np.arange(len(both)) < len(nodules))
    expected = other.predict_proba((both - mean) / deviation)[:, 1]
    found = likeness.scores(likeness.fit(nodules, points), both)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.min() < 0.2 and expected.max() > 0.8


def test_both_kinds_weigh_the_same(features):
    nodules, points = features
    once = likeness.fit(nodules, points)
    repeated = likeness.fit(nodules, np.concatenate([points] * 5))
    # Where neither kind is nearer, the score stays one half, however many points there are.
    middle = (nodules.mean(axis=0) + points.mean(axis=0)) / 2
    assert likeness.scores(once, middle) == pytest.approx(0.5, abs=0.05)
    assert likeness.scores(repeated, middle) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("count", "lost"), [(10, 0), (49, 0), (50, 1), (100, 2), (250, 5)])
def test_the_bias_is_raised_until_one_in_fifty_nodules_is_lost(count, lost):
    head = np.array([1.0, 0.0])  # the logit is the only feature
    nodules = np.linspace(-3, -1, count)[:, None]
    found = likeness.raised(head, nodules)
    assert (likeness.scores(found, nodules) < 0.5).sum() == lost
    assert found[0] == 1.0


def test_it_is_not_lowered_where_fewer_are_lost():
    head, nodules = np.array([1.0, 0.25]), np.linspace(0, 5, 100)[:, None]
    np.testing.assert_array_equal(likeness.raised(head, nodules), head)


def test_the_score_is_the_mean_of_the_networks_each_with_its_mean_features():
    heads = [np.array([1.0, 0.0]), np.array([0.0, np.log(3)])]
    features = np.array([[[[1.0]], [[-1.0]]], [[[7.0]], [[9.0]]]])  # of two networks, two flips and one nodule
    assert likeness.mean_scores(heads, features) == pytest.approx([(0.5 + 0.75) / 2])
    assert likeness.mean_scores([heads[0], None], features) is None
    assert likeness.mean_scores(heads, None) is None


def test_extreme_features_neither_overflow_nor_leave_the_range():
    assert likeness.scores(np.array([1.0, 0.0]), np.array([[-1e4], [1e4]])).tolist() == [0.0, 1.0]
