"""What is fitted on the validation nodules of a trained fold: temperatures of the ratings, and a shift of the mask.

Temperature scaling (Guo et al., "On calibration of modern neural networks", ICML 2017): one number for each rating
that makes its probabilities match how often they are right. The shift is one number that is added to the logits of the
mask, so that a threshold of one half gives the best mean Dice. Both are kept next to the fold's checkpoints in
calibration.json, together with the mean features of the nodules, the checkpoint that they belong to and, for networks
whose malignancy is a sum over the attributes, what `what_if` needs.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pnsamp_jax import outlines
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference.masks import central_component
from pnsamp_jax.inference.what_if import ATTRIBUTES, fit_class_terms

RANGE = (0.25, 4.0)  # a few hundred nodules do not support temperatures beyond
THRESHOLDS = np.arange(0.1, 0.61, 0.05)  # of the mask, which are tried


class Calibration(NamedTuple):
    """What is fitted on the validation nodules of a fold.

    Attributes:
      temperatures: (9,) of the ratings.
      features: (F,) mean over the nodules; empty for a model without features.
      checkpoint: which one was used, "best" or "last".
      step: at which that checkpoint was saved.
      mask_shift: added to the logits of the mask; 0 where none was fitted.
      class_terms: (8, 6, 5), see `what_if.fit_class_terms`; None where there are none.
    """

    temperatures: np.ndarray
    features: np.ndarray
    checkpoint: str
    step: int
    mask_shift: float = 0.0
    class_terms: np.ndarray | None = None


def scale(probabilities: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """Rescale probabilities as if their logits were divided by a temperature: above 1 softens, below 1 sharpens.

    Args:
      probabilities: (..., K), 0 for classes that do not exist.
      temperatures: (...), or an array that broadcasts to it.

    Returns:
      (..., K) that sum to 1.
    """
    powers = np.asarray(probabilities, np.float64) ** (1 / np.asarray(temperatures)[..., None])
    return powers / powers.sum(axis=-1, keepdims=True)


def negative_log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean of -log P(truth), with P of at least 1e-6.

    Args:
      probabilities: (N, K).
      truth: (N,) int 1..K.
    """
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth - 1], 1e-6)).mean())


def fit_temperatures(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Find the temperature of each rating that maximises the likelihood of the truth, within `RANGE`.

    Args:
      probabilities: (N, R, K) of nodules that the network was not trained on.
      truth: (N, R) int 1..K, 0 where there is no rating.

    Returns:
      (R,) float; 1 for a rating of which the nodules show fewer than two classes.
    """
    from scipy.optimize import minimize_scalar  # not needed for predicting, which starts sooner without

    temperatures = np.ones(truth.shape[1])
    for rating in range(len(temperatures)):
        known = truth[:, rating] > 0
        p, classes = np.asarray(probabilities[known, rating], np.float64), truth[known, rating]
        if len(np.unique(classes)) < 2:
            continue

        def loss(log_temperature: float, p: np.ndarray = p, classes: np.ndarray = classes) -> float:
            return negative_log_likelihood(scale(p, np.exp(log_temperature)), classes)

        found = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded")
        temperatures[rating] = np.exp(found.x)
    return temperatures


def fit_mask_shift(mask: np.ndarray, consensus: np.ndarray) -> float:
    """Find the shift after which a threshold of one half gives the best mean Dice, among `THRESHOLDS`.

    Args:
      mask: (N, D, H, W) probabilities, of nodules that the network was not trained on.
      consensus: (N, D, H, W) bool.
    """

    def mean_dice(threshold: float) -> float:
        found = [central_component(probability > threshold) for probability in mask]
        return float(np.mean([outlines.dice(*pair) for pair in zip(found, consensus, strict=True)]))

    best = max(THRESHOLDS, key=mean_dice)
    return float(np.log1p(-best) - np.log(best))


def shift(mask: np.ndarray, amount: float) -> np.ndarray:
    """Add an amount to the logits of probabilities."""
    if amount == 0:
        return mask
    odds = mask * np.float32(np.exp(amount))
    return odds / (odds + (1 - mask))


def write(
    path: Path,
    probabilities: np.ndarray,
    truth: np.ndarray,
    features: np.ndarray | None,
    checkpoint: str,
    step: int,
    mask_shift: float = 0.0,
    terms: np.ndarray | None = None,
) -> None:
    """Fit the temperatures and write them with the mean features.

    A rating that the model does not predict, whose probabilities are NaN, gets a temperature of 1.

    Args:
      path: of the JSON file.
      probabilities: (N, 9, 6) of the N validation nodules.
      truth: (N, 9) int, 0 where there is no rating.
      features: (N, F), None for a model without.
      checkpoint: which one predicted them, "best" or "last".
      step: at which that checkpoint was saved.
      mask_shift: see `fit_mask_shift`.
      terms: (N, 8, 5) of which the malignancy is a sum, see `what_if.fit_class_terms`; None where it is none.
    """
    predicted = ~np.isnan(probabilities).all(axis=(0, 2))
    temperatures = fit_temperatures(probabilities, truth * predicted)
    content = {
        "checkpoint": checkpoint,
        "step": step,
        "nodules": len(truth),
        "temperatures": dict(zip(schema.RATING_NAMES, temperatures.tolist(), strict=True)),
        "mask_shift": mask_shift,
        "features": [] if features is None else np.asarray(features, np.float64).mean(axis=0).tolist(),
    }
    if terms is not None:
        content["class_terms"] = _by_class(fit_class_terms(terms, scale(probabilities, temperatures)))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def read(path: Path) -> Calibration:
    """Read what `write` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    advice = "run --mode evaluate on this workdir, which writes it"
    try:
        content = json.loads(path.read_text())
        temperatures = np.array([float(content["temperatures"][name]) for name in schema.RATING_NAMES])
        features = np.array(content["features"], np.float32)
        mask_shift = float(content.get("mask_shift", 0.0))  # older files have none
        class_terms = _from_classes(content["class_terms"]) if "class_terms" in content else None
        checkpoint, step = content["checkpoint"], int(content["step"])
        return Calibration(temperatures, features, checkpoint, step, mask_shift, class_terms)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {advice}") from error


def _by_class(class_terms: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Return the known mean terms by attribute and class."""
    return {
        name: {str(k): term.tolist() for k, term in enumerate(terms, start=1) if np.isfinite(term).all()}
        for name, terms in zip(ATTRIBUTES, np.asarray(class_terms, np.float64), strict=True)
    }


def _from_classes(content: dict[str, dict[str, list[float]]]) -> np.ndarray:
    """Return what `_by_class` was given, (8, 6, 5) float32."""
    classes = schema.RATINGS[schema.MALIGNANCY].classes
    found = np.full((len(ATTRIBUTES), schema.MAX_CLASSES, classes), np.nan, np.float32)
    for index, name in enumerate(ATTRIBUTES):
        for k, term in content[name].items():
            found[index, int(k) - 1] = term
    return found
