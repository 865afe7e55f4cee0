"""MCNN: one 3D network that reads a nodule at three scales.

Shen et al., "Multi-scale convolutional neural networks for lung nodule classification", IPMI 2015.

From the paper: cubes of 96, 64 and 32 voxels about the nodule, all brought to 32 voxels; streams of two convolutions,
each with max-pooling, that share their weights; the scales' features joined, and a random forest on them for benign
against malignant (`experiments/mcnn.py`). Chosen here: the cubes are S, 2S/3 and S/3 voxels of a patch of S and are
averaged down in blocks of 3, 2 and 1; the streams' widths and 3x3x3 kernels; PN-SAMP's block (BatchNorm -> Conv ->
ELU); the mean and the maximum over space in the place of the flattened map; and that the network learns the malignancy
rating in its five classes.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.models.heads import Heads
from pnsamp_jax.models.layers import Block, max_pool
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pn_samp import summarise

Array = jax.Array

BLOCKS = (3, 2, 1)  # voxels of the patch along a side of each voxel of the three scales


def scales(x: Array) -> Array:
    """Centred cubes of S, 2S/3 and S/3 voxels, averaged down to S/3: (B, S, S, S, C) -> (B, 3, S/3, S/3, S/3, C)."""
    batch, size, channels = x.shape[0], x.shape[1], x.shape[-1]
    side, cubes = size // 3, []
    for block in BLOCKS:
        start = (size - block * side) // 2
        inner = slice(start, start + block * side)
        cells = x[:, inner, inner, inner].reshape(batch, side, block, side, block, side, block, channels)
        cubes.append(cells.mean(axis=(2, 4, 6)))
    return jnp.stack(cubes, axis=1)


class Stream(nn.Module):
    """Convolutions, each with max-pooling: (N, D, H, W, C) -> (N, 2 features[-1]) float32; fields as in `Block`."""

    features: tuple[int, ...]
    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features in self.features:
            x = max_pool(Block(features, self.train, self.axis_name, self.dtype)(x))
        return summarise(x)


class MCNN(nn.Module):
    """MCNN; it gives the malignancy rating and features.

    Attributes:
      features: channels of the two convolutions.
      hidden: width of the dense layer that joins the scales.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 12  # the patch is three small cubes across, and two poolings halve a cube

    features: tuple[int, int] = (32, 64)
    hidden: int = 128
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Maps windowed patches (B, S, S, S, windows) in 0..1, S divisible by 12, to `Outputs`."""
        cubes = scales(x)
        batch, count = cubes.shape[:2]
        stream = Stream(self.features, train, self.axis_name, self.dtype, name="stream")
        joined = stream(cubes.reshape(batch * count, *cubes.shape[2:])).reshape(batch, -1)
        features = nn.elu(nn.Dense(self.hidden, name="features")(joined))
        return Outputs(ratings=Heads(("malignancy",), name="heads")(features), features=features)
