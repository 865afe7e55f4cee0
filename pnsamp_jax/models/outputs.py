"""What every model says of a batch of nodules."""

from typing import NamedTuple

import jax

Array = jax.Array

ABSENT = -1e9  # logit of a class that a rating does not have


class Outputs(NamedTuple):
    """What a model says of a batch of nodules; what it does not say is None.

    Attributes:
      mask: (B, D, H, W) float32 logits of the segmentation.
      ratings: (B, 9, 6) float32 logits in the order of `schema.RATINGS`; classes that a rating lacks are `ABSENT`, and
        so is every class of a rating that the model does not give.
      features: (B, F) float32 from which the ratings are made, or that a classifier reads in a second stage.
    """

    mask: Array | None = None
    ratings: Array | None = None
    features: Array | None = None


def given(ratings: Array) -> Array:
    """Which ratings a model gives: logits (..., 9, 6) -> (..., 9) bool."""
    return ratings.max(axis=-1) > ABSENT / 2
