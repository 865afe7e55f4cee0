"""What is fitted on the validation nodules of a trained fold, so that its answers mean what they say.

Temperature scaling (Guo et al., "On calibration of modern neural networks", ICML 2017): one number for each rating
that makes its probabilities match how often they are right. The shift is one number that is added to the logits of the
mask, so that the thresholds of `masks.best_threshold` give the best mean Dice, and the adaptation is the share of a
further shift, by density and size, see `masks.adapted`. `conformal` describes the limits of the sets of classes,
`extent` those of volume and diameter, `what_if` the terms of malignancy by class, and `likeness` the head that tells
nodules from what lies beside them. All are kept next to the fold's checkpoints in calibration.json, together with the
mean features of the nodules and the checkpoint that they belong to.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pnsamp_jax import outlines
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import conformal, extent
from pnsamp_jax.inference.masks import adapted, best_threshold, central_component, shift_logits

RANGE = (0.25, 4.0)  # a few hundred nodules do not support temperatures beyond
SHIFTS = tuple(np.linspace(-1.0, 1.0, 11).round(1).tolist())  # of the mask's logits, which are tried
ADAPTATIONS = (0.0, 0.5, 1.0)  # which are tried


class Calibration(NamedTuple):
    """What is fitted on the validation nodules of a fold.

    Attributes:
      temperatures: (9,) of the ratings.
      features: (F,) mean over the nodules; empty for a model without features.
      checkpoint: which one was used, "best" or "last".
      step: at which that checkpoint was saved.
      mask_shift: added to the logits of the mask; 0 where none was fitted.
      class_limits: (2, 9, 6) of the sets of classes, see `conformal`; None where none were fitted.
      extent_limits: (2, 2) of volume and diameter, see `extent`; None where none were fitted.
      class_terms: (8, 6, 5), see `what_if.fit_class_terms`; None where there are none.
      likeness: (F + 1,) weights of the features and the bias, see `likeness`; None where none were fitted.
      mask_adaptation: share for `masks.adapted`; 0 where none was fitted.
      fitted_threshold: whether each mask had a threshold of its own, as `config.fit_threshold` says; None in older
        files.
    """

    temperatures: np.ndarray
    features: np.ndarray
    checkpoint: str
    step: int
    mask_shift: float = 0.0
    class_limits: np.ndarray | None = None
    extent_limits: np.ndarray | None = None
    class_terms: np.ndarray | None = None
    likeness: np.ndarray | None = None
    mask_adaptation: float = 0.0
    fitted_threshold: bool | None = None


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


def fit_mask_shift(
    mask: np.ndarray, consensus: np.ndarray, texture: np.ndarray | None, spacing_mm: float
) -> tuple[float, float]:
    """Find the shift of the logits and the share of that of `masks.adapted` that give the best mean Dice.

    The masks are those of `masks.best_threshold`. Tried are `SHIFTS`, and `ADAPTATIONS` if the texture is predicted.

    Args:
      mask: (N, D, H, W) probabilities, of nodules that the network was not trained on.
      consensus: (N, D, H, W) bool.
      texture: (N,) expected class of the predicted texture; None for a network that does not predict it.
      spacing_mm: size of a voxel.

    Returns:
      The shift and the share.
    """

    def mean_dice(tried: tuple[float, float]) -> float:
        shift, adaptation = tried
        scores = []
        for i, probability in enumerate(mask):
            shifted = shift_logits(probability, shift)
            if texture is not None:
                shifted = adapted(shifted, texture[i], spacing_mm, adaptation)
            scores.append(outlines.dice(central_component(shifted > best_threshold(shifted)), consensus[i]))
        return float(np.mean(scores))

    tried = itertools.product(SHIFTS, ADAPTATIONS if texture is not None else ADAPTATIONS[:1])
    return max(sorted(tried, key=lambda pair: (abs(pair[0]), pair[1])), key=mean_dice)  # the smallest, if equally good


def write(path: Path, fitted: Calibration, nodules: int) -> None:
    """Write what is fitted on a number of nodules as JSON."""
    content: dict[str, Any] = {
        "checkpoint": fitted.checkpoint,
        "step": fitted.step,
        "nodules": nodules,
        "temperatures": dict(zip(schema.RATING_NAMES, fitted.temperatures.tolist(), strict=True)),
        "mask_shift": fitted.mask_shift,
        "mask_adaptation": fitted.mask_adaptation,
    }
    if fitted.fitted_threshold is not None:
        content["fitted_threshold"] = fitted.fitted_threshold
    if fitted.class_limits is not None:
        content["class_limits"] = {
            str(coverage): {
                rating.name: limits[: rating.classes].tolist()
                for rating, limits in zip(schema.RATINGS, of_ratings, strict=True)
            }
            for coverage, of_ratings in zip(conformal.COVERAGES, fitted.class_limits, strict=True)
        }
    if fitted.extent_limits is not None:
        content["extent_limits"] = {
            measure: [end if np.isfinite(end) else None for end in ends]
            for measure, ends in zip(extent.MEASURES, fitted.extent_limits.tolist(), strict=True)
        }
    if fitted.class_terms is not None:
        content["class_terms"] = _by_class(fitted.class_terms)
    if fitted.likeness is not None:
        *weights, bias = np.asarray(fitted.likeness, np.float64).tolist()
        content["likeness"] = {"bias": bias, "weights": weights}
    content["features"] = np.asarray(fitted.features, np.float64).tolist()
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def read(path: Path) -> Calibration:
    """Read what `write` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    advice = "run --mode evaluate on this workdir, which writes it"
    try:
        content = json.loads(path.read_text())
        return Calibration(
            np.array([float(content["temperatures"][name]) for name in schema.RATING_NAMES]),
            np.array(content["features"], np.float32),
            content["checkpoint"],
            int(content["step"]),
            float(content.get("mask_shift", 0.0)),  # older files lack this and the following
            _class_limits(content["class_limits"]) if "class_limits" in content else None,
            _extent_limits(content["extent_limits"]) if "extent_limits" in content else None,
            _from_classes(content["class_terms"]) if "class_terms" in content else None,
            _likeness(content["likeness"], content["features"]) if "likeness" in content else None,
            float(content.get("mask_adaptation", 0.0)),
            bool(content["fitted_threshold"]) if "fitted_threshold" in content else None,
        )
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {advice}") from error


def _class_limits(content: dict[str, dict[str, list[float]]]) -> np.ndarray:
    limits = np.zeros((len(conformal.COVERAGES), *schema.CLASS_EXISTS.shape))
    for of_ratings, coverage in zip(limits, conformal.COVERAGES, strict=True):
        for of_classes, rating in zip(of_ratings, schema.RATINGS, strict=True):
            of_classes[: rating.classes] = content[str(coverage)][rating.name]
    return limits


def _extent_limits(content: dict[str, list[float | None]]) -> np.ndarray:
    limits = np.array([content[measure] for measure in extent.MEASURES], float)  # None becomes NaN
    return np.where(np.isnan(limits), (-np.inf, np.inf), limits)


def _likeness(content: dict[str, Any], features: list[float]) -> np.ndarray:
    if len(content["weights"]) != len(features):
        raise ValueError(f"{len(content['weights'])} weights for {len(features)} features")
    return np.array([*content["weights"], content["bias"]], np.float64)


def _by_class(class_terms: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Return the known mean terms by attribute and class."""
    return {
        name: {str(k): term.tolist() for k, term in enumerate(terms, start=1) if np.isfinite(term).all()}
        for name, terms in zip(schema.ATTRIBUTE_NAMES, np.asarray(class_terms, np.float64), strict=True)
    }


def _from_classes(content: dict[str, dict[str, list[float]]]) -> np.ndarray:
    """Return what `_by_class` was given, (8, 6, 5) float32."""
    classes = schema.RATINGS[schema.MALIGNANCY].classes
    found = np.full((len(schema.ATTRIBUTE_NAMES), schema.MAX_CLASSES, classes), np.nan, np.float32)
    for index, name in enumerate(schema.ATTRIBUTE_NAMES):
        for k, term in content[name].items():
            found[index, int(k) - 1] = term
    return found
