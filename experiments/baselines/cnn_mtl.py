"""CNN-MTL's second stage: one sparse regression of seven ratings that pulls related ratings together.

Hussein et al., "Risk stratification of lung nodules using 3D CNN-based multi-task learning", IPMI 2017.

    pip install -e ".[experiments]"
    python -m experiments.baselines.cnn_mtl --config configs/cnn_mtl.py --workdir runs/cnn_mtl \\
        --config.data.source=folder --config.data.root=/path/to/nodules

From the paper: the features of the seven towers joined (`pnsamp_jax/models/cnn_mtl.py`), and the multi-task regression

    min_W  sum_t ||X w_t - y_t||^2 + l1 ||W R||_F^2 + l2 ||W||_1,

with a column of the structure matrix R for each pair of related tasks, solved by accelerated proximal gradient. Its
rating is the mean over the readers. Chosen here: a task's squared error is divided by the number of its rated nodules,
so that ratings may be missing and the penalties do not depend on the cohort's size; features and ratings are
standardised; two tasks are related where the correlation r of their ratings over the training nodules exceeds 0.5 in
size, and the pair's column holds 1 and -sign(r), so that tasks that run against each other are pulled to opposite
weights; both penalties are chosen by cross-validation within the training part, patients kept apart; a class's
probability is the mass round it of a Gaussian with the standard deviation of the residuals of that cross-validation.
The paper's weighting by how far the readers disagree is not taken over.
"""

from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import GroupKFold

from experiments.baselines import second_stage
from experiments.baselines.parts import Part
from pnsamp_jax.data import schema
from pnsamp_jax.models.cnn_mtl import TASKS

PLACES = [schema.RATING_NAMES.index(name) for name in TASKS]
RELATED = 0.5  # least |r| of related tasks
GRAPH_PENALTIES = (0.01, 0.1, 1.0)
SPARSITY_PENALTIES = (0.3, 0.1, 0.03, 0.01)  # at about 2 every weight is 0
INNER_FOLDS = 4
TOLERANCE = 1e-4  # of the optimality condition, where the gradient at 0 is of order 1
MAX_STEPS = 5000


class Moments(NamedTuple):
    """What the squared errors depend on: sum_t w_t' gram_t w_t - 2 w_t' cross_t, and a constant.

    Attributes:
      gram: (T, F, F), X'X / n over the nodules that have the rating.
      cross: (T, F), X'y / n.
    """

    gram: np.ndarray
    cross: np.ndarray


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    """(n, F) features and (n, T) ratings, NaN where missing. A task without any rating has zeros."""
    rated = ~np.isnan(y)
    counts = np.maximum(rated.sum(axis=0), 1)
    gram = np.stack([x[has].T @ x[has] for has in rated.T])
    return Moments(gram / counts[:, None, None], (np.nan_to_num(y).T @ x) / counts[:, None])


def structure(y: np.ndarray) -> np.ndarray:
    """The structure matrix of related tasks: (n, T) ratings, NaN where missing -> (T, pairs)."""
    columns = [np.empty((y.shape[1], 0))]
    for a, b in combinations(range(y.shape[1]), 2):
        both = ~np.isnan(y[:, [a, b]]).any(axis=1)
        if both.sum() > 1 and (np.ptp(y[both][:, [a, b]], axis=0) > 0).all():
            r = np.corrcoef(y[both, a], y[both, b])[0, 1]
            if abs(r) > RELATED:
                column = np.zeros((y.shape[1], 1))
                column[[a, b], 0] = 1.0, -np.sign(r)
                columns.append(column)
    return np.concatenate(columns, axis=1)


def smooth_gradient(weights: np.ndarray, data: Moments, graph: np.ndarray, l1: float) -> np.ndarray:
    """Gradient of all but the last term: (T, F) weights, a task a row -> (T, F)."""
    fit = np.einsum("tij,tj->ti", data.gram, weights) - data.cross
    return 2 * fit + 2 * l1 * graph @ (graph.T @ weights)


def solve(data: Moments, graph: np.ndarray, l1: float, l2: float, start: np.ndarray | None = None) -> np.ndarray:
    """Minimises the regression's objective by FISTA (Beck & Teboulle, 2009) with O'Donoghue and Candes' restarts.

    Args:
      data: of `moments`.
      graph: (T, pairs), see `structure`.
      l1: weight of the graph's term.
      l2: weight of the sum of absolute weights.
      start: (T, F) weights from which to begin; 0 by default.

    Returns:
      (T, F) weights, a task a row.
    """
    curvature = 2 * np.linalg.eigvalsh(data.gram)[:, -1].max() + 2 * l1 * np.linalg.norm(graph @ graph.T, 2)
    step = 1 / max(curvature, 1e-12)
    weights = ahead = np.zeros_like(data.cross) if start is None else start
    momentum = 1.0
    for _ in range(MAX_STEPS):
        moved = ahead - step * smooth_gradient(ahead, data, graph, l1)
        after = np.sign(moved) * np.maximum(np.abs(moved) - step * l2, 0)
        residual = ahead - after
        if np.abs(residual).max() <= step * TOLERANCE:
            return after
        if (residual * (after - weights)).sum() > 0:  # the momentum points uphill
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / following * (after - weights)
        weights, momentum = after, following
    return weights


def choose_penalties(
    x: np.ndarray, y: np.ndarray, patients: np.ndarray, graph: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """Cross-validates the penalties within the training part.

    Args:
      x: (n, F) standardised features.
      y: (n, T) standardised ratings, NaN where missing.
      patients: (n,), kept apart.
      graph: (T, pairs).

    Returns:
      l1 and l2 with the least squared error, the mean over the tasks, and (T,) the root of each task's.
    """
    grid = list(product(GRAPH_PENALTIES, SPARSITY_PENALTIES))
    errors = np.zeros((len(grid), *y.shape))
    folds = GroupKFold(min(INNER_FOLDS, len(np.unique(patients))))
    for seen, unseen in folds.split(x, groups=patients):
        data, weights = moments(x[seen], y[seen]), None
        for index, (l1, l2) in enumerate(grid):
            weights = solve(data, graph, l1, l2, weights)
            errors[index, unseen] = (x[unseen] @ weights.T - y[unseen]) ** 2
    rated = ~np.isnan(y)
    squared = np.nansum(errors, axis=1) / np.maximum(rated.sum(axis=0), 1)
    best = int(np.argmin(squared.mean(axis=1)))
    return *grid[best], np.sqrt(squared[best])


def standardise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, NaN left out; a column that does not vary is given 1."""
    rated = ~np.isnan(values)
    counts = np.maximum(rated.sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / counts
    spread = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / counts)
    return mean, np.where(spread > 0, spread, 1.0)


def regress(
    train_x: np.ndarray, train_y: np.ndarray, patients: np.ndarray, test_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean ratings of the test nodules and how far off they are.

    Args:
      train_x: (n, F).
      train_y: (n, T) mean ratings, NaN where missing.
      patients: (n,) whose the training nodules are.
      test_x: (m, F).

    Returns:
      (m, T) mean ratings and (T,) standard deviations, in classes.
    """
    (x_mean, x_sd), (y_mean, y_sd) = standardise(train_x), standardise(train_y)
    x, y = (train_x - x_mean) / x_sd, (train_y - y_mean) / y_sd
    graph = structure(train_y)
    l1, l2, deviations = choose_penalties(x, y, patients, graph)
    weights = solve(moments(x, y), graph, l1, l2)
    return (test_x - x_mean) / x_sd @ weights.T * y_sd + y_mean, deviations * y_sd


def predict(train: Part, test: Part, seed: int) -> np.ndarray:
    """(m, 9, 6) probabilities of the seven ratings; see `second_stage.cross_validate`."""
    del seed  # nothing is drawn
    y = train.means[:, PLACES]
    patients = train.records[schema.PATIENT_ID]
    means, deviations = regress(train.features.astype(np.float64), y, patients, test.features.astype(np.float64))
    probabilities = second_stage.no_answers(len(means))
    for task, place in enumerate(PLACES):
        classes = schema.RATINGS[place].classes
        if not np.isnan(y[:, task]).all():
            probabilities[:, place] = 0.0
            probabilities[:, place, :classes] = second_stage.gaussian_classes(
                means[:, task], deviations[task], classes
            )
    return probabilities


def run(config: ConfigDict, workdir: Path, network_workdir: Path | None = None) -> dict:
    """Cross-validates CNN-MTL on the config's nodules; gives the results as in results.json."""
    network = network_workdir or workdir
    return second_stage.cross_validate(config, workdir, predict, {"name": "cnn_mtl"}, network=network)


if __name__ == "__main__":
    second_stage.launch(run, "network_workdir")
