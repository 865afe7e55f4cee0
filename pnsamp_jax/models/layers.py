"""Building blocks of the 3D networks: the convolution with its parameters, BatchNorm, and the block of the paper."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pnsamp_jax.models.conv3d import conv3d, conv3d_of_affine, conv3d_of_upsampled_concat

Array = jax.Array


class Conv3x3x3(nn.Module):
    """3x3x3 convolution with bias, stride 1, zero padding: (B, D, H, W, C) -> (B, D, H, W, features).

    With a skip (B, 2D, 2H, 2W, S), it convolves the up-pooled input concatenated with the skip. With `affine`, a scale
    and a bias (C,), it convolves x * scale + bias; see `conv3d_of_affine` for what that saves.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None, *, affine: tuple[Array, Array] | None = None) -> Array:
        channels = x.shape[-1] + (0 if skip is None else skip.shape[-1])
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel.astype(self.dtype)
        if affine is not None:
            y = conv3d_of_affine(x, *affine, kernel)
        elif skip is None:
            y = conv3d(x.astype(self.dtype), kernel)
        else:
            y = conv3d_of_upsampled_concat(x.astype(self.dtype), skip.astype(self.dtype), kernel)
        return y + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015) of maps as if they were concatenated, in float32.

    It differs from Flax's in two ways, both of which save large arrays. It takes the maps separately; a map that is
    up-pooled later may be passed before, since up-pooling changes neither mean nor variance. And it leaves the last
    step to the caller: it returns, for each map, the map with mean 0 and variance 1 and the learnt scale and bias.

    Attributes:
      axis_name: pmap axis over which the batch's statistics are averaged, if any.
    """

    MOMENTUM: ClassVar[float] = 0.9
    EPSILON: ClassVar[float] = 1e-5

    axis_name: str | None = None

    @nn.compact
    def __call__(self, *maps: Array, train: bool) -> list[tuple[Array, Array, Array]]:
        """Normalise maps by the statistics of the batch and update the running ones (train), or by the running ones.

        Args:
          *maps: (B, D, H, W, C) each; the sizes may differ.
          train: whether to use the statistics of the batch.

        Returns:
          For each map: the normalised map (B, D, H, W, C), its scale (C,) and its bias (C,).
        """
        widths = [x.shape[-1] for x in maps]
        scale = self.param("scale", nn.initializers.ones, (sum(widths),))
        bias = self.param("bias", nn.initializers.zeros, (sum(widths),))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, sum(widths))
        running_var = self.variable("batch_stats", "var", jnp.ones, sum(widths))
        floats = [x.astype(jnp.float32) for x in maps]
        mean, var = running_mean.value, running_var.value
        if train and not self.is_initializing():
            space = (0, 1, 2, 3)
            moments = jnp.concatenate([jnp.stack([x.mean(space), jnp.square(x).mean(space)]) for x in floats], axis=-1)
            mean, square = moments if self.axis_name is None else lax.pmean(moments, self.axis_name)
            var = jnp.maximum(square - jnp.square(mean), 0)
            for running, value in ((running_mean, mean), (running_var, var)):
                running.value = self.MOMENTUM * running.value + (1 - self.MOMENTUM) * value
        per_channel, splits = (mean, lax.rsqrt(var + self.EPSILON), scale, bias), np.cumsum(widths)[:-1]
        per_map = zip(floats, *(jnp.split(values, splits) for values in per_channel), strict=True)
        return [((x - mean) * inverse_std, scale, bias) for x, mean, inverse_std, scale, bias in per_map]


class Block(nn.Module):
    """BatchNorm -> Conv 3x3x3 -> ELU, the unit of PN-SAMP: (B, D, H, W, C) -> (B, D, H, W, features).

    With a skip (B, 2D, 2H, 2W, S), its input is the up-pooled map concatenated with the skip:
    -> (B, 2D, 2H, 2W, features).

    Attributes:
      features: output channels.
      axis_name: see `BatchNorm`.
      dtype: precision of the convolution.
      fuse_affine: whether to apply BatchNorm's scale and bias inside the convolution, see `conv3d_of_affine`. It is
        meant for the first block of a network, whose input needs no gradient in training; that block has no skip.
    """

    features: int
    axis_name: str | None = None
    dtype: Any = jnp.float32
    fuse_affine: bool = False

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None, *, train: bool) -> Array:
        normalised = BatchNorm(self.axis_name)(*((x,) if skip is None else (x, skip)), train=train)
        conv = Conv3x3x3(self.features, self.dtype)
        if self.fuse_affine:
            [(x, scale, bias)] = normalised
            return nn.elu(conv(x, affine=(scale, bias)))
        return nn.elu(conv(*[x * scale + bias for x, scale, bias in normalised]))
