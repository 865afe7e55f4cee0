"""A 2D convolutional network for views of a nodule, which TumorNet and SHC-DCNN share.

Both papers take networks of AlexNet's kind (Krizhevsky et al., NIPS 2012), made for images of 227 pixels on a side and
millions of them. This one keeps AlexNet's five convolutions and the max-pooling after the first, the second and the
last. Chosen here, for views of 32 or 64 pixels and a thousand nodules: a quarter of the kernels, all of them 3x3,
BatchNorm before each ReLU, and the mean and the maximum over space in the place of the flattened map, so that any size
works.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

FEATURES = (24, 64, 96, 96, 64)
POOLED = (0, 1, 4)  # the convolutions that a max-pooling follows


class PlaneCNN(nn.Module):
    """(N, H, W, C) views, H and W at least 8 -> (N, 2 features[-1]) float32 features.

    Attributes:
      train: whether BatchNorm uses the batch's statistics, and updates its running ones.
      features: channels of the five convolutions.
      axis_name: pmap axis over which the batch's statistics are averaged, if any.
      dtype: of the activations.
    """

    train: bool
    features: tuple[int, ...] = FEATURES
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for layer, features in enumerate(self.features):
            he_normal = nn.initializers.he_normal()
            x = nn.Conv(features, (3, 3), use_bias=False, dtype=self.dtype, kernel_init=he_normal)(x)
            norm = partial(nn.BatchNorm, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name)
            x = nn.relu(norm(use_running_average=not self.train)(x))
            if layer in POOLED:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.astype(jnp.float32)
        return jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
