"""The regression of CNN-MTL: limiting cases, optimality, the pull of the graph, and missing ratings."""

import numpy as np
import pytest

from experiments.baselines import cnn_mtl
from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema

PAIR = np.array([[1.0], [-1.0], [0.0]])  # tasks 0 and 1 of three are related


@pytest.fixture(scope="module")
def problem():
    """Return (80, 6) features, (80, 3) ratings of which some are missing, and the true weights (3, 6)."""
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(80, 6)), rng.normal(size=(3, 6))
    y = x @ truth.T + 0.3 * rng.normal(size=(80, 3))
    y[rng.random(y.shape) < 0.2] = np.nan
    return x, y, truth


def objective(x, y, weights, graph, l1, l2):
    """Compute the objective as it is written, each task's error over its rated nodules."""
    errors = [
        np.mean((x[has] @ w - column[has]) ** 2) for w, column, has in zip(weights, y.T, ~np.isnan(y.T), strict=True)
    ]
    return sum(errors) + l1 * ((weights.T @ graph) ** 2).sum() + l2 * np.abs(weights).sum()


def test_without_penalties_it_is_least_squares_on_the_rated(problem):
    x, y, _ = problem
    weights = cnn_mtl.solve(cnn_mtl.moments(x, y), PAIR, 0.0, 0.0)
    for task in range(3):
        rated = ~np.isnan(y[:, task])
        expected = np.linalg.lstsq(x[rated], y[rated, task])[0]
        np.testing.assert_allclose(weights[task], expected, atol=1e-3)


def test_the_smallest_sparsity_penalty_that_leaves_no_weight(problem):
    x, y, _ = problem
    data = cnn_mtl.moments(x, y)
    limit = 2 * np.abs(data.cross).max()
    assert not cnn_mtl.solve(data, PAIR, 0.1, 1.001 * limit).any()
    assert np.count_nonzero(cnn_mtl.solve(data, PAIR, 0.1, 0.98 * limit)) == 1


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.3), (0.1, 0.03), (10.0, 0.1)])
def test_the_solution_is_optimal(problem, l1, l2):
    x, y, _ = problem
    data = cnn_mtl.moments(x, y)
    weights = cnn_mtl.solve(data, PAIR, l1, l2)
    gradient = cnn_mtl.smooth_gradient(weights, data, PAIR, l1)
    zero = weights == 0
    np.testing.assert_allclose(gradient[~zero], -l2 * np.sign(weights[~zero]), atol=1e-3)
    assert (np.abs(gradient[zero]) <= l2 + 1e-3).all()
    best = objective(x, y, weights, PAIR, l1, l2)
    rng = np.random.default_rng(1)
    assert all(objective(x, y, weights + 0.1 * rng.normal(size=weights.shape), PAIR, l1, l2) > best for _ in range(50))


def test_the_gradient_is_that_of_the_objective(problem):
    x, y, truth = problem
    data, step = cnn_mtl.moments(x, y), 1e-5
    gradient = cnn_mtl.smooth_gradient(truth, data, PAIR, 0.7)
    for index in np.ndindex(truth.shape):
        moved = np.zeros(truth.shape)
        moved[index] = step
        rise = objective(x, y, truth + moved, PAIR, 0.7, 0) - objective(x, y, truth - moved, PAIR, 0.7, 0)
        assert gradient[index] == pytest.approx(rise / (2 * step), abs=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_graph_pulls_only_related_tasks_together(problem, sign):
    x, y, _ = problem
    data, graph = cnn_mtl.moments(x, y), PAIR * [[1], [sign], [1]]
    free, pulled = (cnn_mtl.solve(data, graph, l1, 0.0) for l1 in (0.0, 100.0))
    apart = [np.linalg.norm(weights[0] - sign * weights[1]) for weights in (free, pulled)]
    assert apart[0] > 1 and apart[1] < 0.05
    np.testing.assert_allclose(pulled[2], free[2], atol=1e-3)


def test_a_warm_start_ends_at_the_same_solution(problem):
    x, y, truth = problem
    data = cnn_mtl.moments(x, y)
    cold, warm = (cnn_mtl.solve(data, PAIR, 0.1, 0.05, start) for start in (None, 5 * truth))
    np.testing.assert_allclose(cold, warm, atol=1e-3)


def test_related_tasks_are_those_that_correlate():
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    noise = rng.normal(size=(200, 2))
    y = np.stack([base, base + 0.3 * noise[:, 0], noise[:, 1], -base, np.full(200, 3.0)], axis=1)
    y[:50, 1] = np.nan
    expected = np.array([[1, -1, 0, 0, 0], [1, 0, 0, 1, 0], [0, 1, 0, 1, 0]]).T
    np.testing.assert_array_equal(cnn_mtl.structure(y), expected)


def test_standardising_leaves_out_missing_values():
    mean, sd = cnn_mtl.standardise(np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan], [np.nan, 5.0, np.nan]]))
    np.testing.assert_allclose(mean, [2, 5, 0])
    np.testing.assert_allclose(sd, [1, 1, 1])


def test_the_regression_finds_the_ratings_and_its_error():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(200, 5)) * [1, 10, 0.1, 1, 0] + 4, rng.normal(size=(2, 5)) / [1, 10, 0.1, 1, 1]
    y = x @ weights.T + 0.5 * rng.normal(size=(200, 2)) + 3
    means, deviations = cnn_mtl.regress(x[:150], y[:150], np.arange(150) // 2, x[150:])
    assert means.shape == (50, 2)
    np.testing.assert_allclose(deviations, 0.5, rtol=0.15)
    np.testing.assert_allclose(np.sqrt(((means - y[150:]) ** 2).mean(axis=0)), 0.5, rtol=0.25)


def test_seven_ratings_are_predicted():
    rng = np.random.default_rng(0)

    def subset(count):
        rating_counts = np.zeros((count, 9, 6), np.uint8)
        features = rng.normal(size=(count, 14)).astype(np.float32)
        chosen = np.where(features[:, 0] > 0, 4, 2)
        rating_counts[np.arange(count), :, chosen - 1] = 2
        rating_counts[:, 2, 5] = 1  # one of three readers gives 6
        rating_counts[:, 7] = 0  # nobody rates texture
        patients = np.array([f"p{i % 10}" for i in range(count)])
        return Subset(
            {schema.RATING_COUNTS: rating_counts, schema.PATIENT_ID: patients}, features, np.empty((count, 0))
        )

    train, test = subset(90), subset(20)
    probabilities = cnn_mtl.predict(train, test, 0)
    given = ~np.isnan(probabilities).any(axis=(0, 2))
    assert {schema.RATING_NAMES[index] for index in np.flatnonzero(given)} == set(cnn_mtl.TASKS) - {"texture"}
    np.testing.assert_allclose(probabilities[:, given].sum(axis=-1), 1)
    assert not probabilities[:, given][:, ~schema.CLASS_EXISTS[given]].any()
    malignancy = probabilities[:, schema.MALIGNANCY] @ np.arange(1, 7)
    assert (malignancy[test.labels[:, schema.MALIGNANCY] == 4].min()) > 2.6
    assert np.corrcoef(malignancy, test.labels[:, schema.MALIGNANCY])[0, 1] > 0.7
