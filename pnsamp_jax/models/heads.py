"""Rating heads of the compared systems: some or all of the nine ratings, in the layout that every model gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import ABSENT

Array = jax.Array


def rating_logits(logits: dict[str, Array]) -> Array:
    """The logits of some ratings, each (B, classes), as (B, 9, 6) float32; what is not given is `ABSENT`."""
    none = jnp.zeros((len(next(iter(logits.values()))), 0))
    rows = [logits.get(name, none).astype(jnp.float32) for name in schema.RATING_NAMES]
    missing = [((0, 0), (0, schema.MAX_CLASSES - row.shape[1])) for row in rows]
    return jnp.stack([jnp.pad(row, pad, constant_values=ABSENT) for row, pad in zip(rows, missing, strict=True)], 1)


class Heads(nn.Module):
    """A dense layer for each named rating: (B, F) -> (B, 9, 6) float32, `ABSENT` for the other ratings.

    Attributes:
      ratings: names of `schema.RATING_NAMES`.
    """

    ratings: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        given = [rating for rating in schema.RATINGS if rating.name in self.ratings]
        return rating_logits({rating.name: nn.Dense(rating.classes, name=rating.name)(x) for rating in given})
