"""Rating heads: logits of some or all of the nine ratings, in the one layout that all models return."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import ABSENT

Array = jax.Array


def stack_logits(logits: dict[str, Array]) -> Array:
    """Stack the logits of some ratings, (B, classes) each, to (B, 9, 6) float32, filled up with `ABSENT`."""
    no_classes = jnp.zeros((next(iter(logits.values())).shape[0], 0))
    rows = [logits.get(name, no_classes).astype(jnp.float32) for name in schema.RATING_NAMES]
    missing = [((0, 0), (0, schema.MAX_CLASSES - row.shape[1])) for row in rows]
    return jnp.stack([jnp.pad(row, pad, constant_values=ABSENT) for row, pad in zip(rows, missing, strict=True)], 1)


class Heads(nn.Module):
    """A dense layer for each of some ratings: (B, F) -> (B, 9, 6) float32, `ABSENT` for the other ratings.

    Attributes:
      ratings: names from `schema.RATING_NAMES`.
    """

    ratings: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        predicted = [rating for rating in schema.RATINGS if rating.name in self.ratings]
        return stack_logits({rating.name: nn.Dense(rating.classes, name=rating.name)(x) for rating in predicted})
