"""3D U-Net, the segmentation network that PN-SAMP is compared with.

Çiçek et al., "3D U-Net: learning dense volumetric segmentation from sparse annotation", MICCAI 2016.

From the paper: four levels of two 3x3x3 convolutions each, with BatchNorm before each ReLU; channels that double
before each max-pooling (32-64, 64-128, 128-256, 256-512); 2x2x2 up-convolutions of stride 2; skips concatenated on the
channels; a 1x1x1 convolution at the end. The paper counts 19,069,955 parameters for three input channels and three
classes. That number leaves, in addition to the kernels, one parameter for each channel of a 3x3x3 convolution and none
for the up-convolutions. BatchNorm therefore has an offset here but no scale. The network loses nothing by that: ReLU
and pooling pass a positive factor on, so the kernel of the next convolution can express the scale.

Chosen here: convolutions are zero-padded, so that the mask has the size of the input (the paper's are not padded); the
initial mask is a prior, as in PN-SAMP; `up="pool"`, nearest up-pooling instead of up-convolutions, which leaves 16.3
million parameters, the form that the PN-SAMP paper compares with; and the Dice loss of this project.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.errors import UserError
from pnsamp_jax.models.conv3d import conv3d
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pn_samp import MASK_PRIOR
from pnsamp_jax.models.pooling import max_pool, up_pool

Array = jax.Array

LEVELS = 4
UPS = ("pool", "convolution")


class ConvNormRelu(nn.Module):
    """Conv 3x3x3 -> BatchNorm (offset only) -> ReLU: (B, D, H, W, C) -> (B, D, H, W, features); cf. `layers.Block`."""

    features: int
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 3, x.shape[-1], self.features))
        x = conv3d(x.astype(self.dtype), kernel.astype(self.dtype))
        norm = nn.BatchNorm(momentum=0.9, use_scale=False, dtype=self.dtype, axis_name=self.axis_name)
        return nn.relu(norm(x, use_running_average=not train))


class UpConv2x2x2(nn.Module):
    """2x2x2 transposed convolution, stride 2, no bias: (B, D, H, W, C) -> (B, 2D, 2H, 2W, C).

    Each input voxel becomes a cell of 2x2x2 output voxels; the cells do not overlap, so this is one matrix product.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, depth, height, width, channels = x.shape
        init = nn.initializers.lecun_normal(
            batch_axis=(0, 1, 2)
        )  # the fan-in of an output voxel is one voxel, not eight
        kernel = self.param("kernel", init, (2, 2, 2, channels, channels))
        cells = jnp.einsum("bdhwc,ijkcf->bdihjwkf", x.astype(self.dtype), kernel.astype(self.dtype))
        return cells.reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


class UNet3D(nn.Module):
    """3D U-Net with one output channel. It predicts a mask and no ratings.

    Attributes:
      features: channels of the first convolution.
      up: "pool" (nearest) or "convolution".
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 8  # three poolings halve the patch

    features: int = 32
    up: str = "pool"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, D, H, W, windows) in 0..1, with D, H and W divisible by 8, to `Outputs`.

        Raises:
          UserError: `up` is not one of `UPS`.
        """
        if self.up not in UPS:
            raise UserError(f"config.model.up: '{self.up}' is none of {', '.join(UPS)}")
        conv = partial(ConvNormRelu, axis_name=self.axis_name, dtype=self.dtype)
        skips = []
        for level in range(LEVELS):
            features = self.features * 2**level
            x = conv(features, name=f"down_{level}_0")(x, train=train)
            x = conv(2 * features, name=f"down_{level}_1")(x, train=train)
            if level < LEVELS - 1:
                skips.append(x)
                x = max_pool(x)
        for level in reversed(range(LEVELS - 1)):
            x = up_pool(x) if self.up == "pool" else UpConv2x2x2(self.dtype, name=f"up_{level}")(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            for i in range(2):
                x = conv(self.features * 2 ** (level + 1), name=f"up_{level}_{i}")(x, train=train)
        prior = nn.initializers.constant(MASK_PRIOR)
        mask = nn.Dense(1, dtype=self.dtype, bias_init=prior, name="mask")(x)[..., 0]
        return Outputs(mask=mask.astype(jnp.float32))
