"""MCNN: one 3D network that reads a nodule at three scales.

Shen et al., "Multi-scale convolutional neural networks for lung nodule classification", IPMI 2015.

From the paper: cubes of 96, 64 and 32 voxels around the nodule, all resampled to 32 voxels; one stream per scale, with
shared weights, of two convolutions that are each followed by max-pooling; the features of the scales concatenated; and
a random forest on them, benign against malignant (`experiments/baselines/mcnn.py`). Chosen here: for a patch of S
voxels on a side, the cubes have S, 2S/3 and S/3 and are averaged down in cells of 3, 2 and 1 voxels; the channels and
the 3x3x3 kernels of the streams; PN-SAMP's block (BatchNorm -> Conv -> ELU); mean and maximum over space instead of
the flattened map; and that the network is trained on the five classes of the malignancy rating.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.models.heads import Heads
from pnsamp_jax.models.layers import Block
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pooling import global_pool, max_pool

Array = jax.Array

CELLS = (3, 2, 1)  # voxels of the patch on a side of one voxel, for each of the three scales


def scales(x: Array) -> Array:
    """Cut central cubes of S, 2S/3 and S/3 voxels and average them down to S/3 voxels.

    Args:
      x: (B, S, S, S, C), S divisible by 3.

    Returns:
      (B, 3, S/3, S/3, S/3, C).
    """
    batch, size, channels = x.shape[0], x.shape[1], x.shape[-1]
    side, cubes = size // 3, []
    for cell in CELLS:
        start = (size - cell * side) // 2
        inner = slice(start, start + cell * side)
        cells = x[:, inner, inner, inner].reshape(batch, side, cell, side, cell, side, cell, channels)
        cubes.append(cells.mean(axis=(2, 4, 6)))
    return jnp.stack(cubes, axis=1)


class Stream(nn.Module):
    """Blocks, each followed by max-pooling: (N, D, H, W, C) -> (N, 2 features[-1]) float32; fields as in `MCNN`."""

    features: tuple[int, ...]
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        block = partial(Block, axis_name=self.axis_name, dtype=self.dtype)
        for features in self.features:
            x = max_pool(block(features)(x, train=train))
        return global_pool(x)


class MCNN(nn.Module):
    """MCNN. It predicts the malignancy rating.

    Attributes:
      features: channels of the two convolutions.
      hidden: width of the dense layer on the features of all scales.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 12  # a cube is a third of the patch, and two poolings halve it

    features: tuple[int, int] = (32, 64)
    hidden: int = 128
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, S, S, S, windows) in 0..1, with S divisible by 12, to `Outputs`."""
        cubes = scales(x)
        batch, count = cubes.shape[:2]
        stream = Stream(self.features, self.axis_name, self.dtype, name="stream")
        all_scales = stream(cubes.reshape(batch * count, *cubes.shape[2:]), train=train).reshape(batch, -1)
        features = nn.elu(nn.Dense(self.hidden, name="features")(all_scales))
        return Outputs(ratings=Heads(("malignancy",), name="heads")(features), features=features)
