"""Losses: one value for each nodule and task, added up with a fixed trade-off (Wu et al., ISBI 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import Outputs, given

Array = jax.Array

EPSILON = 1.0  # of equation (1), in voxels: small compared with a nodule; an empty prediction of an empty mask costs 0


class Weights(NamedTuple):
    """The fixed trade-off: factors of the terms of `total`."""

    segmentation: float
    attributes: float
    malignancy: float
    voxels: float = 0.0


def dice_loss(logits: Array, mask: Array) -> Array:
    """Compute equation (1) of Wu et al.: L_S = 1 - (2 sum p g + eps) / (sum p^2 + sum g^2 + eps).

    Args:
      logits: (B, D, H, W) of the segmentation; p is their sigmoid.
      mask: (B, D, H, W) g, 0 or 1.

    Returns:
      (B,) in 0..1.
    """
    p = jax.nn.sigmoid(logits)
    space = (1, 2, 3)
    overlap = 2 * (p * mask).sum(space) + EPSILON
    return 1 - overlap / ((p * p).sum(space) + (mask * mask).sum(space) + EPSILON)


def voxel_loss(logits: Array, mask: Array) -> Array:
    """Compute the binary cross-entropy of all voxels, per voxel of the nodule.

    The mean over the patch hardly counts a small nodule, see experiments/RESULTS.md. Relative to the nodule's own
    size, a voxel at the rim of a nodule costs as much as the Dice loss makes it cost, and unlike Dice it is never
    saturated: a nodule that is missed altogether keeps its full gradient.

    Args:
      logits: (B, D, H, W) of the segmentation.
      mask: (B, D, H, W), 0 or 1.

    Returns:
      (B,), 0 or more.
    """
    space = (1, 2, 3)
    return optax.sigmoid_binary_cross_entropy(logits, mask).sum(space) / (mask.sum(space) + EPSILON)


def rating_losses(logits: Array, targets: Array) -> Array:
    """Compute the categorical cross-entropy of each rating.

    Args:
      logits: (B, 9, 6); `outputs.ABSENT` for classes that a rating lacks.
      targets: (B, 9, 6) distribution over the classes; all zero where the rating is missing.

    Returns:
      (B, 9), 0 where the rating is missing.
    """
    return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1)


def total(outputs: Outputs, mask: Array, targets: Array, weights: Weights) -> tuple[Array, dict[str, Array]]:
    """Compute the combined loss and its terms.

    Args:
      outputs: of a model; the terms of outputs that it lacks are left out.
      mask: (B, D, H, W), 0 or 1.
      targets: (B, 9, 6), see `rating_losses`.
      weights: the trade-off.

    Returns:
      (B,) loss of each nodule, and its terms by name, (B,) each. The term of the attributes is the mean over those
      attributes that readers rated and the model predicts.
    """
    terms = {}
    if outputs.mask is not None:
        terms["segmentation"] = dice_loss(outputs.mask, mask)
        if weights.voxels:
            terms["voxels"] = voxel_loss(outputs.mask, mask)
    if outputs.ratings is not None:
        rated = (targets.sum(axis=-1) > 0) & given(outputs.ratings)
        entropy = rating_losses(outputs.ratings, targets) * rated
        attribute = jnp.arange(len(schema.RATINGS)) != schema.MALIGNANCY
        terms["attributes"] = (entropy * attribute).sum(axis=1) / jnp.maximum((rated & attribute).sum(axis=1), 1)
        terms["malignancy"] = entropy[:, schema.MALIGNANCY]
    loss = sum(getattr(weights, name) * term for name, term in terms.items())
    return loss, terms
