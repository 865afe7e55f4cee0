"""Per-sample losses: one value for each nodule and task, added up by a fixed trade-off."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import Outputs, given

Array = jax.Array

EPSILON = 1.0  # of equation (1), in voxels: small beside a nodule, and an empty prediction of an empty mask costs 0


class Weights(NamedTuple):
    """The fixed trade-off between the tasks."""

    segmentation: float
    attributes: float
    malignancy: float


def dice_loss(logits: Array, mask: Array) -> Array:
    """Equation (1) of the paper: L_S = 1 - (2 sum p g + eps) / (sum p^2 + sum g^2 + eps).

    Args:
      logits: (B, D, H, W) of the segmentation.
      mask: (B, D, H, W), 0 or 1.

    Returns:
      (B,) in 0..1.
    """
    p = jax.nn.sigmoid(logits)
    space = (1, 2, 3)
    overlap = 2 * (p * mask).sum(space) + EPSILON
    return 1 - overlap / ((p * p).sum(space) + (mask * mask).sum(space) + EPSILON)


def rating_losses(logits: Array, targets: Array) -> Array:
    """Categorical cross-entropy of each rating.

    Args:
      logits: (B, 9, 6); classes that a rating lacks hold a large negative number.
      targets: (B, 9, 6) distribution over the classes; all zero where the rating is missing.

    Returns:
      (B, 9), 0 where the rating is missing.
    """
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)


def total(outputs: Outputs, mask: Array, targets: Array, weights: Weights) -> tuple[Array, dict[str, Array]]:
    """The combined loss and its terms.

    Args:
      outputs: of a model; the terms of a task that it lacks are left out.
      mask: (B, D, H, W), 0 or 1.
      targets: (B, 9, 6), see `rating_losses`.
      weights: the trade-off.

    Returns:
      (B,) loss of each nodule, and its terms by name, (B,) each. The attributes' term is the mean over the
      attributes that were rated and that the model gives.
    """
    terms = {}
    if outputs.mask is not None:
        terms["segmentation"] = dice_loss(outputs.mask, mask)
    if outputs.ratings is not None:
        rated = (targets.sum(axis=-1) > 0) & given(outputs.ratings)
        entropy = rating_losses(outputs.ratings, targets) * rated
        attribute = jnp.arange(len(schema.RATINGS)) != schema.MALIGNANCY
        terms["attributes"] = (entropy * attribute).sum(axis=1) / jnp.maximum((rated & attribute).sum(axis=1), 1)
        terms["malignancy"] = entropy[:, schema.MALIGNANCY]
    loss = sum(getattr(weights, name) * term for name, term in terms.items())
    return loss, terms
