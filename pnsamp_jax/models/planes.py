"""A 2D convolutional network for views of a nodule, which TumorNet and SHC-DCNN share.

Both papers use networks like AlexNet (Krizhevsky et al., NIPS 2012), which was designed for a million images of 227
pixels on a side. This network keeps AlexNet's five convolutions and the max-pooling after the first, the second and
the last. Chosen here, for views of 32 or 64 pixels and a thousand nodules: a quarter of the channels, all kernels 3x3,
BatchNorm before each ReLU, and mean and maximum over space instead of the flattened map, so that any size works.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

FEATURES = (24, 64, 96, 96, 64)
POOLED = (0, 1, 4)  # indices of the convolutions that are followed by max-pooling


class PlaneCNN(nn.Module):
    """Five convolutions: views (N, H, W, C), H and W at least 8 -> features (N, 2 features[-1]) float32.

    Attributes:
      features: channels of the five convolutions.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations.
    """

    features: tuple[int, ...] = FEATURES
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        he_normal = nn.initializers.he_normal()
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = partial(nn.BatchNorm, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name)
        for i, features in enumerate(self.features):
            x = conv(features)(x)
            x = nn.relu(norm()(x, use_running_average=not train))
            if i in POOLED:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.astype(jnp.float32)
        return jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
