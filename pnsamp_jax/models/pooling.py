"""Pooling and up-pooling of feature maps.

`jax.jit` keeps a function as one piece, for which `export` can then use the operator that ONNX has for it.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@jax.jit
def max_pool(x: Array) -> Array:
    """Halve depth, height and width by the maximum of each 2x2x2 cell: (B, 2D, 2H, 2W, C) -> (B, D, H, W, C)."""
    for axis in (1, 2, 3):
        shape = x.shape
        pairs = x.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
        x = jnp.maximum(lax.index_in_dim(pairs, 0, axis + 1, False), lax.index_in_dim(pairs, 1, axis + 1, False))
    return x


@jax.jit
def mean_pool(x: Array) -> Array:
    """Halve depth, height and width by the mean of each 2x2x2 cell: (B, 2D, 2H, 2W, C) -> (B, D, H, W, C)."""
    batch, depth, height, width, channels = x.shape
    return x.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4, 6))


@jax.jit
def up_pool(x: Array) -> Array:
    """Double depth, height and width by repeating each voxel (nearest): (B, D, H, W, C) -> (B, 2D, 2H, 2W, C)."""
    batch, depth, height, width, channels = x.shape
    cells = jnp.broadcast_to(x[:, :, None, :, None, :, None], (batch, depth, 2, height, 2, width, 2, channels))
    return cells.reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


def global_pool(x: Array) -> Array:
    """Concatenate the mean and the maximum over space: (B, D, H, W, C) -> (B, 2C) float32."""
    x = x.astype(jnp.float32)
    return jnp.concatenate([x.mean(axis=(1, 2, 3)), x.max(axis=(1, 2, 3))], axis=-1)
