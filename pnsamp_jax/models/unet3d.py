"""3D U-Net, the segmentation that PN-SAMP is compared with.

Çiçek et al., "3D U-Net: learning dense volumetric segmentation from sparse annotation", MICCAI 2016.

From the paper: four levels; two 3x3x3 convolutions on each, with BatchNorm before each ReLU; channels that double
before each max-pooling (32-64, 64-128, 128-256, 256-512); 2x2x2 up-convolutions of stride 2; skips joined on the
channels; 1x1x1 at the end. Its parameters number 19,069,955 for three input channels and three classes. Beside the
kernels that is one number for each channel of a 3x3x3 convolution and none for an up-convolution's: so BatchNorm has
an offset here and no scale, which the next convolution's kernel can take up as well, since ReLU and pooling pass a
positive factor on.

Chosen here: convolutions are zero-padded, so that the mask has the input's size (the paper's shrink the map); the mask
starts from a prior, as PN-SAMP's does; and `up="pool"`, nearest up-pooling in the place of the up-convolutions, the
form of some 16.3 million parameters that the PN-SAMP paper compares with. The loss is the project's, Dice.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.errors import UserError
from pnsamp_jax.models.layers import conv3d, max_pool, up_pool
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pn_samp import MASK_PRIOR

Array = jax.Array

LEVELS = 4
UPS = ("pool", "convolution")


class ConvNormRelu(nn.Module):
    """Conv 3x3x3 -> BatchNorm (offset only) -> ReLU: (B, D, H, W, C) -> (B, D, H, W, features); cf. `layers.Block`."""

    features: int
    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 3, x.shape[-1], self.features))
        x = conv3d(x.astype(self.dtype), kernel.astype(self.dtype))
        norm = partial(nn.BatchNorm, momentum=0.9, use_scale=False, dtype=self.dtype, axis_name=self.axis_name)
        return nn.relu(norm(use_running_average=not self.train)(x))


class UpConv2x2x2(nn.Module):
    """2x2x2 transposed convolution, stride 2, no bias: (B, D, H, W, C) -> (B, 2 D, 2 H, 2 W, C).

    The cells that the input's voxels grow into do not overlap, so this is one matrix product.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, depth, height, width, channels = x.shape
        init = nn.initializers.lecun_normal(batch_axis=(0, 1, 2))  # an output voxel has one input voxel, not eight
        kernel = self.param("kernel", init, (2, 2, 2, channels, channels))
        cells = jnp.einsum("bdhwc,ijkcf->bdihjwkf", x.astype(self.dtype), kernel.astype(self.dtype))
        return cells.reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


class UNet3D(nn.Module):
    """3D U-Net with one output channel; it gives a mask and no ratings.

    Attributes:
      features: channels of the first convolution.
      up: "pool" (nearest) or "convolution".
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 8  # three poolings halve it

    features: int = 32
    up: str = "pool"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Maps windowed patches (B, D, H, W, windows) in 0..1, D, H and W divisible by 8, to `Outputs`.

        Raises:
          UserError: there is no such `up`.
        """
        if self.up not in UPS:
            raise UserError(f"config.model.up: '{self.up}' is none of {', '.join(UPS)}")

        def convolve(x: Array, features: int, name: str) -> Array:
            return ConvNormRelu(features, train, self.axis_name, self.dtype, name=name)(x)

        skips = []
        for level in range(LEVELS):
            features = self.features * 2**level
            x = convolve(x, features, f"down_{level}_0")
            x = convolve(x, 2 * features, f"down_{level}_1")
            if level < LEVELS - 1:
                skips.append(x)
                x = max_pool(x)
        for level in reversed(range(LEVELS - 1)):
            x = up_pool(x) if self.up == "pool" else UpConv2x2x2(self.dtype, name=f"up_{level}")(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            for i in range(2):
                x = convolve(x, self.features * 2 ** (level + 1), f"up_{level}_{i}")
        prior = nn.initializers.constant(MASK_PRIOR)
        mask = nn.Dense(1, dtype=self.dtype, bias_init=prior, name="mask")(x)[..., 0]
        return Outputs(mask=mask.astype(jnp.float32))
