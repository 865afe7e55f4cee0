"""CNN-MTL's second stage: one sparse regression of seven ratings that pulls related ratings together.

Hussein et al., "Risk stratification of lung nodules using 3D CNN-based multi-task learning", IPMI 2017.

    pip install -e ".[experiments]"
    python -m experiments.baselines.cnn_mtl --config cnn_mtl --workdir runs/cnn_mtl \\
        --config.data.source=folder --config.data.root=/path/to/nodules

From the paper: the concatenated features of the seven towers (`pnsamp_jax/models/cnn_mtl.py`), and the multi-task
regression

    min_W  sum_t ||X w_t - y_t||^2 + l1 ||W R||_F^2 + l2 ||W||_1,

with a column of the structure matrix R for each pair of related tasks, solved by accelerated proximal gradient. The
target y_t is the mean rating over the readers. Chosen here: the squared error of a task is divided by the number of
nodules that have the rating, so that ratings may be missing and the penalties do not depend on the size of the cohort;
features and ratings are standardised; two tasks are related if the correlation r of their ratings over the training
nodules exceeds 0.5 in absolute value, and the pair's column holds 1 and -sign(r), so that tasks with a negative
correlation are pulled towards opposite weights; both penalties are chosen by cross-validation within the training
nodules, with patients kept apart; the probability of a class is the mass around it of a Gaussian with the standard
deviation of the residuals of that cross-validation. The paper's weighting by the readers' disagreement is left out.
"""

from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import GroupKFold

from experiments.baselines import second_stage
from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema
from pnsamp_jax.models.cnn_mtl import TASKS

INDICES = [schema.RATING_NAMES.index(name) for name in TASKS]
RELATED = 0.5  # |r| above which tasks are related
GRAPH_PENALTIES = (0.01, 0.1, 1.0)
SPARSITY_PENALTIES = (0.3, 0.1, 0.03, 0.01)  # at about 2 every weight is 0
INNER_FOLDS = 4
TOLERANCE = 1e-4  # of the optimality condition; the gradient at 0 is of order 1
MAX_STEPS = 5000


class Moments(NamedTuple):
    """The moments that the squared errors depend on: sum_t w_t' gram_t w_t - 2 w_t' cross_t, up to a constant.

    Attributes:
      gram: (T, F, F), X'X / n over the nodules that have the rating.
      cross: (T, F), X'y / n.
    """

    gram: np.ndarray
    cross: np.ndarray


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    """Compute the moments of (n, F) features and (n, T) ratings, NaN where missing; 0 for a task without ratings."""
    rated = ~np.isnan(y)
    counts = np.maximum(rated.sum(axis=0), 1)
    gram = np.stack([x[has].T @ x[has] for has in rated.T])
    return Moments(gram / counts[:, None, None], (np.nan_to_num(y).T @ x) / counts[:, None])


def structure(y: np.ndarray) -> np.ndarray:
    """Compute the structure matrix of related tasks: (n, T) ratings, NaN where missing -> (T, pairs)."""
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
    """Compute the gradient of all terms but the last: (T, F) weights -> (T, F)."""
    fit = np.einsum("tij,tj->ti", data.gram, weights) - data.cross
    return 2 * fit + 2 * l1 * graph @ (graph.T @ weights)


def solve(data: Moments, graph: np.ndarray, l1: float, l2: float, start: np.ndarray | None = None) -> np.ndarray:
    """Minimise the regression's objective by FISTA (Beck & Teboulle, 2009) with O'Donoghue and Candes' restarts.

    Args:
      data: of `moments`.
      graph: (T, pairs), see `structure`.
      l1: penalty of the graph's term.
      l2: penalty of the sum of absolute weights.
      start: (T, F) initial weights; 0 by default.

    Returns:
      (T, F) weights.
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
    """Choose the penalties by cross-validation within the training nodules.

    Args:
      x: (n, F) standardised features.
      y: (n, T) standardised ratings, NaN where missing.
      patients: (n,), kept apart.
      graph: (T, pairs).

    Returns:
      The l1 and l2 with the smallest squared error, averaged over the tasks, and the root of each task's error (T,).
    """
    grid = list(product(GRAPH_PENALTIES, SPARSITY_PENALTIES))
    errors = np.zeros((len(grid), *y.shape))
    folds = GroupKFold(min(INNER_FOLDS, len(np.unique(patients))))
    for seen, unseen in folds.split(x, groups=patients):
        data, weights = moments(x[seen], y[seen]), None  # each solution is the start of the next
        for index, (l1, l2) in enumerate(grid):
            weights = solve(data, graph, l1, l2, weights)
            errors[index, unseen] = (x[unseen] @ weights.T - y[unseen]) ** 2
    rated = ~np.isnan(y)
    squared = np.nansum(errors, axis=1) / np.maximum(rated.sum(axis=0), 1)
    best = int(np.argmin(squared.mean(axis=1)))
    return *grid[best], np.sqrt(squared[best])


def standardise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each column, leaving out NaN; 1 for a column that does not vary."""
    rated = ~np.isnan(values)
    counts = np.maximum(rated.sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / counts
    spread = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / counts)
    return mean, np.where(spread > 0, spread, 1.0)


def regress(
    train_x: np.ndarray, train_y: np.ndarray, patients: np.ndarray, test_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the mean ratings of the test nodules, and their standard deviations.

    Args:
      train_x: (n, F).
      train_y: (n, T) mean ratings, NaN where missing.
      patients: (n,) of the training nodules.
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


def predict(train: Subset, test: Subset, seed: int) -> np.ndarray:
    """Predict the seven ratings, (m, 9, 6) probabilities; see `second_stage.cross_validate`."""
    del seed  # nothing is random
    y = train.means[:, INDICES]
    patients = train.records[schema.PATIENT_ID]
    means, deviations = regress(train.features.astype(np.float64), y, patients, test.features.astype(np.float64))
    probabilities = second_stage.no_answers(len(means))
    for task, index in enumerate(INDICES):
        classes = schema.RATINGS[index].classes
        if not np.isnan(y[:, task]).all():
            probabilities[:, index] = 0.0
            probabilities[:, index, :classes] = second_stage.gaussian_classes(
                means[:, task], deviations[task], classes
            )
    return probabilities


def run(config: ConfigDict, workdir: Path, network_workdir: Path | None = None) -> dict:
    """Cross-validate CNN-MTL on the config's nodules, and return the content of results.json."""
    network = network_workdir or workdir
    return second_stage.cross_validate(config, workdir, predict, {"name": "cnn_mtl"}, network=network)


if __name__ == "__main__":
    second_stage.launch_method(run, "network_workdir")
