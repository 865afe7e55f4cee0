"""How much what lies at a point looks like the nodules that a network learnt from: `nodule_like`, from 0 to 1.

A logistic regression on the features of the network tells the nodules of a fold's training part from points beside
them (`data.background`). Both kinds have the same weight in total, and the squares of the weights of the standardised
features are penalised. A network knows its own training nodules better than new ones. So the bias is then raised, if
need be, until at most `LOST` of the validation nodules, which it was not trained on, fall below `LEAST`.
"""

from collections.abc import Sequence

import numpy as np

PENALTY = 0.1  # inverse strength of the penalty, `C` of scikit-learn's LogisticRegression
LEAST = 0.5  # below, it does not look like a nodule
LOST = 0.02  # largest share of the validation nodules that may fall below
STOP = {"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-7}  # of the optimiser
MARGIN = 1e-3  # of the bias, so that rounding does not lose the last nodule that must not be lost


def fit(nodules: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Fit the regression.

    Args:
      nodules: (n, F) features, n at least 1.
      points: (m, F) features of points at which there is no nodule, m at least 1.

    Returns:
      (F + 1,) weights of the features as they are, and the bias.
    """
    from scipy.optimize import minimize  # not needed for predicting, which starts sooner without

    features = np.concatenate([nodules, points]).astype(np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation < 1e-12] = 1.0  # a feature that never changes keeps the weight 0
    standardised = np.c_[(features - mean) / deviation, np.ones(len(features))]
    sign = np.repeat([1.0, -1.0], [len(nodules), len(points)])
    share = len(features) / 2 / np.repeat([len(nodules), len(points)], [len(nodules), len(points)])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        against = -sign * (standardised @ weights)
        slope = -PENALTY * share * sign * _sigmoid(against)
        penalised = np.append(weights[:-1], 0.0)
        value = 0.5 * penalised @ penalised + PENALTY * share @ np.logaddexp(0, against)
        return float(value), penalised + slope @ standardised

    found = minimize(loss, np.zeros(standardised.shape[1]), jac=True, method="L-BFGS-B", options=STOP)
    weights = found.x[:-1] / deviation
    return np.append(weights, found.x[-1] - weights @ mean)


def raised(head: np.ndarray, nodules: np.ndarray) -> np.ndarray:
    """Return a head whose bias is raised until at most `LOST` of the nodules fall below `LEAST`, if need be.

    Args:
      head: (F + 1,), see `fit`.
      nodules: (n, F) features of nodules that the network was not trained on.
    """
    logits = np.sort(_logits(head, nodules))
    lowest = logits[int(LOST * len(logits))] - MARGIN  # as many nodules are lower as may be lost
    return np.append(head[:-1], head[-1] + max(0.0, np.log(LEAST / (1 - LEAST)) - lowest))


def scores(head: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return `nodule_like` of features (..., F): (...) from 0 to 1."""
    return _sigmoid(_logits(head, features))


def mean_scores(heads: Sequence[np.ndarray | None], features: np.ndarray | None) -> np.ndarray | None:
    """Return the mean `nodule_like` over networks, (N,); None if a network has no head or no features.

    Args:
      heads: of the M networks, (F + 1,) each.
      features: (M, flips, N, F), which are averaged over the flips first.
    """
    if features is None or any(head is None for head in heads):
        return None
    return np.mean(
        [scores(head, own) for head, own in zip(heads, features.mean(axis=1), strict=True) if head is not None], axis=0
    )


def _logits(head: np.ndarray, features: np.ndarray) -> np.ndarray:
    return np.asarray(features, np.float64) @ head[:-1] + head[-1]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
