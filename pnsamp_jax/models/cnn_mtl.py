"""The networks of CNN-MTL: one 3D network for each of seven ratings; a multi-task regression combines their features.

Hussein et al., "Risk stratification of lung nodules using 3D CNN-based multi-task learning", IPMI 2017.

From the paper: a separate 3D network like C3D (Tran et al., ICCV 2015: 3x3x3 convolutions, five poolings) for
malignancy and for each of six attributes, and a graph-regularised sparse regression on their features
(`experiments/baselines/cnn_mtl.py`). Chosen here: training from scratch (the paper fine-tunes C3D, pre-trained on
videos), PN-SAMP's block (BatchNorm -> Conv -> ELU, without BatchNorm on the patch itself) with one convolution before
each pooling, and widths at which all seven towers together cost about as much as one PN-SAMP.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import stack_logits
from pnsamp_jax.models.layers import Block, Conv3x3x3
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pooling import max_pool

Array = jax.Array

TASKS = ("calcification", "lobulation", "spiculation", "sphericity", "margin", "texture", "malignancy")


class Tower(nn.Module):
    """The network of one rating after its first pooling: (B, D, H, W, C) -> (B, hidden) float32; see `CNNMTL`."""

    features: tuple[int, ...]
    hidden: int
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        block = partial(Block, axis_name=self.axis_name, dtype=self.dtype)
        for features in self.features[1:-1]:
            x = max_pool(block(features)(x, train=train))
        x = block(self.features[-1])(x, train=train)
        # As in C3D, the last pooling pads odd sizes. A patch of 32 voxels ends as one voxel; larger ones are averaged.
        x = nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME").astype(jnp.float32).mean(axis=(1, 2, 3))
        return nn.elu(nn.Dense(self.hidden, name="features")(x))


class CNNMTL(nn.Module):
    """Seven towers without shared weights. It predicts the ratings in `TASKS`; its features are those of the towers.

    Attributes:
      features: channels of the five convolutions of a tower.
      hidden: width of the dense layer of a tower.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 16  # four poolings halve the patch

    features: tuple[int, ...] = (4, 16, 32, 64, 64)
    hidden: int = 32
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, D, H, W, windows) in 0..1, with D, H and W divisible by 16, to `Outputs`."""
        classes = {rating.name: rating.classes for rating in schema.RATINGS}
        # All towers read the same patch, so their first convolutions run as one, three times as fast on CPU. Each
        # tower continues with its own channels; running them as one by `vmap` would be several times slower.
        first = Conv3x3x3(len(TASKS) * self.features[0], self.dtype, name="first")
        inputs = jnp.split(max_pool(nn.elu(first(x))), len(TASKS), axis=-1)
        tower = partial(Tower, self.features, self.hidden, self.axis_name, self.dtype)
        features, logits = [], {}
        for task, tower_input in zip(TASKS, inputs, strict=True):
            features.append(tower(name=f"{task}_tower")(tower_input, train=train))
            logits[task] = nn.Dense(classes[task], name=task)(features[-1])
        return Outputs(ratings=stack_logits(logits), features=jnp.concatenate(features, axis=-1))
