"""What networks predict of nodules, and how far they and the flips of a patch agree."""

from dataclasses import dataclass, replace

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.inference.masks import adapted, at_one_half
from pnsamp_jax.metrics import expected


@dataclass(frozen=True)
class Predictions:
    """What M networks predict of N nodules over F flips; None where the model lacks an output.

    Attributes:
      mask: (N, S, S, S) float32, mean probability over networks and flips.
      probabilities: (M, F, N, 9, 6), calibrated.
      features: (M, F, N, C).
    """

    mask: np.ndarray | None
    probabilities: np.ndarray | None
    features: np.ndarray | None

    @property
    def mean_probabilities(self) -> np.ndarray:
        """Return the mean probabilities over networks and flips: (N, 9, 6)."""
        assert self.probabilities is not None, "a model without ratings has no probabilities"
        return self.probabilities.mean(axis=(0, 1))

    @property
    def ensemble_spread(self) -> np.ndarray:
        """Return the standard deviation over networks of the expected malignancy: (N,), NaN for a single network."""
        return _sample_deviation(self._expected_malignancy().mean(axis=1))

    @property
    def flip_spread(self) -> np.ndarray:
        """Return the standard deviation over flips of the expected malignancy: (N,), NaN without flips."""
        return _sample_deviation(self._expected_malignancy().mean(axis=0))

    def _expected_malignancy(self) -> np.ndarray:
        assert self.probabilities is not None, "a model without ratings has no probabilities"
        return expected(self.probabilities[..., schema.MALIGNANCY, :])


def with_own_thresholds(predictions: Predictions, spacing_mm: float, share: float) -> Predictions:
    """Shift the logits of each mask so that its own threshold is one half; see `masks.best_threshold`.

    Args:
      predictions: with masks.
      spacing_mm: size of a voxel.
      share: of the shift by density and size that comes first, see `masks.adapted`.
    """
    assert predictions.mask is not None
    masks = [np.asarray(one) for one in predictions.mask]
    if share:
        textures = expected(predictions.mean_probabilities[:, schema.TEXTURE])
        masks = [adapted(*pair, spacing_mm, share) for pair in zip(masks, textures, strict=True)]
    return replace(predictions, mask=np.stack([at_one_half(one) for one in masks]))


def _sample_deviation(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation of (M, N) over the first axis, NaN for M = 1."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
