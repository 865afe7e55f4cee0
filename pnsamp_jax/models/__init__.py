"""Flax modules. Every model maps windowed patches to mask logits and rating logits; `create` builds one by name."""

import jax.numpy as jnp
from flax import linen as nn

from pnsamp_jax.errors import UserError
from pnsamp_jax.models.pn_samp import PNSAMP

MODELS = {"pn_samp": PNSAMP}


def create(name: str, dtype: str = "float32", axis_name: str | None = None, **fields) -> nn.Module:
    """Builds the model `name`; `fields` are its own.

    Raises:
      UserError: there is no such model.
    """
    if name not in MODELS:
        raise UserError(f"config.model.name: no model '{name}'; choose from {', '.join(MODELS)}")
    return MODELS[name](dtype=jnp.dtype(dtype), axis_name=axis_name, **fields)
