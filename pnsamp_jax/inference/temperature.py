"""Temperature scaling: one number for each rating that makes its probabilities as sure as they are right.

Guo et al., "On calibration of modern neural networks", ICML 2017. Pure numpy. What is found on the validation part of
a fold is kept beside its checkpoints in calibration.json, with the features of the average nodule of that part and
the checkpoint that it is true of.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path

RANGE = (0.25, 4.0)  # some hundred nodules cannot tell of more


class Calibration(NamedTuple):
    """What the validation part of a fold tells of its network.

    Attributes:
      temperatures: (9,) of the ratings.
      features: (F,) mean of the nodules' features; of no length for a model without.
      checkpoint: of the network, "best" or "last"; None in a file of before that was noted.
      step: that the checkpoint was saved at; None likewise.
    """

    temperatures: np.ndarray
    features: np.ndarray
    checkpoint: str | None
    step: int | None


def scale(probabilities: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """Softens (temperature over 1) or sharpens probabilities, as if their logits were divided by it.

    Args:
      probabilities: (..., K), 0 where there is no such class.
      temperatures: (...), or what broadcasts to it.

    Returns:
      (..., K) that sum to 1.
    """
    powers = np.asarray(probabilities, np.float64) ** (1 / np.asarray(temperatures)[..., None])
    return powers / powers.sum(axis=-1, keepdims=True)


def negative_log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean -log P(truth): (N, K) and (N,) 1..K. Probabilities count as 1e-6 at the least."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth - 1], 1e-6)).mean())


def fit_temperatures(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The temperature of each rating that makes the truth likeliest, within `RANGE`.

    Args:
      probabilities: (N, R, K) of nodules that the network was not trained on.
      truth: (N, R) int 1..K, 0 where there is none.

    Returns:
      (R,) float; 1 for a rating of which the nodules show a single class or none, which tells nothing.
    """
    from scipy.optimize import minimize_scalar  # a prediction, which only applies them, starts sooner without

    temperatures = np.ones(truth.shape[1])
    for rating in range(len(temperatures)):
        known = truth[:, rating] > 0
        p, classes = np.asarray(probabilities[known, rating], np.float64), truth[known, rating]
        if len(np.unique(classes)) < 2:
            continue

        def loss(log_temperature: float, p=p, classes=classes) -> float:
            return negative_log_likelihood(scale(p, np.exp(log_temperature)), classes)

        found = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded")
        temperatures[rating] = np.exp(found.x)
    return temperatures


def write(
    path: Path, probabilities: np.ndarray, truth: np.ndarray, features: np.ndarray | None, checkpoint: str, step: int
) -> None:
    """Fits temperatures and writes them with the mean features.

    A rating that the model does not give, so that its probabilities are NaN, has a temperature of 1.

    Args:
      path: of the JSON file.
      probabilities: (N, 9, 6) of the N nodules.
      truth: (N, 9) int, 0 where there is none.
      features: (N, F), None for a model without.
      checkpoint: which one says so, "best" or "last".
      step: that it was saved at.
    """
    given = ~np.isnan(probabilities).all(axis=(0, 2))
    temperatures = fit_temperatures(probabilities, truth * given)
    content = {
        "checkpoint": checkpoint,
        "step": step,
        "nodules": len(truth),
        "temperatures": dict(zip(schema.RATING_NAMES, temperatures.tolist(), strict=True)),
        "features": [] if features is None else np.asarray(features, np.float64).mean(axis=0).tolist(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def read(path: Path) -> Calibration:
    """Reads what `write` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text())
        temperatures = np.array([float(content["temperatures"][name]) for name in schema.RATING_NAMES])
        features = np.array(content["features"], np.float32)
        return Calibration(temperatures, features, content.get("checkpoint"), content.get("step"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run --mode evaluate on this workdir, which writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); run --mode evaluate on this workdir, which writes it") from error
