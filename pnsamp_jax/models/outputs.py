"""The outputs that all models share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

ABSENT = -1e9  # logit of a class that a rating does not have


class Outputs(NamedTuple):
    """The outputs of a model for a batch of nodules; None for an output that the model lacks.

    Attributes:
      mask: (B, D, H, W) float32 logits of the segmentation.
      ratings: (B, 9, 6) float32 logits in the order of `schema.RATINGS`; `ABSENT` for the classes that a rating lacks,
        and for every class of a rating that the model does not predict.
      features: (B, F) float32 from which the ratings are predicted, or which a classifier of a second stage reads.
    """

    mask: Array | None = None
    ratings: Array | None = None
    features: Array | None = None


def given(ratings: Array) -> Array:
    """Return which ratings a model predicts: logits (..., 9, 6) -> (..., 9) bool."""
    return ratings.max(axis=-1) > ABSENT / 2


def probabilities_of(outputs: Outputs, temperatures: Array, mask_shift: Array) -> dict[str, Array]:
    """Turn a model's logits into probabilities.

    Args:
      outputs: of a model.
      temperatures: (9,) that divide the logits of the ratings, see `inference.calibration`.
      mask_shift: () that is added to the logits of the mask.

    Returns:
      `mask` (B, D, H, W), `probabilities` (B, 9, 6) and `features` (B, F), as far as the model has them.
      Probabilities of a rating that the model does not predict are NaN.
    """
    results = {}
    if outputs.mask is not None:
        results["mask"] = jax.nn.sigmoid(outputs.mask + mask_shift)
    if outputs.ratings is not None:
        softmax = jax.nn.softmax(outputs.ratings / temperatures[:, None])
        results["probabilities"] = jnp.where(given(outputs.ratings)[..., None], softmax, jnp.nan)
    if outputs.features is not None:
        results["features"] = outputs.features
    return results
