"""What networks predict of nodules, and how far they and the flips of a patch agree."""

from dataclasses import dataclass

import numpy as np

from pnsamp_jax.data import schema


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
        return self.probabilities[..., schema.MALIGNANCY, :] @ np.arange(1, schema.MAX_CLASSES + 1)


def _sample_deviation(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation of (M, N) over the first axis, NaN for M = 1."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
