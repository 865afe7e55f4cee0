"""The networks of CNN-MTL: a 3D network for each of seven ratings, whose features a multi-task regression joins.

Hussein et al., "Risk stratification of lung nodules using 3D CNN-based multi-task learning", IPMI 2017.

From the paper: a 3D network of C3D's kind (Tran et al., ICCV 2015: 3x3x3 convolutions, five poolings) for malignancy
and for each of six attributes, all apart, and the graph-regularised sparse regression on what they have learnt
(`experiments/cnn_mtl.py`). Chosen here: weights from scratch (the paper's start from C3D's, learnt on videos),
PN-SAMP's block (BatchNorm -> Conv -> ELU, without BatchNorm on the patch itself) with one convolution before each
pooling, and widths that let all seven towers together cost about as much as one PN-SAMP.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import rating_logits
from pnsamp_jax.models.layers import Block, Conv3x3x3, max_pool
from pnsamp_jax.models.outputs import Outputs

Array = jax.Array

TASKS = ("calcification", "lobulation", "spiculation", "sphericity", "margin", "texture", "malignancy")


class Tower(nn.Module):
    """A rating's network from its first pooling on: (B, D, H, W, C) -> (B, hidden) float32; see `CNNMTL`."""

    features: tuple[int, ...]
    hidden: int
    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for features in self.features[1:-1]:
            x = max_pool(Block(features, self.train, self.axis_name, self.dtype)(x))
        x = Block(self.features[-1], self.train, self.axis_name, self.dtype)(x)
        # As in C3D the last pooling pads what is odd. Of 32 voxels one is left; of more, the mean over space.
        x = nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME").astype(jnp.float32).mean(axis=(1, 2, 3))
        return nn.elu(nn.Dense(self.hidden, name="features")(x))


class CNNMTL(nn.Module):
    """Seven towers that share nothing; they give the ratings in `TASKS`, and their features joined in that order.

    Attributes:
      features: channels of a tower's five convolutions.
      hidden: width of a tower's dense layer.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 16  # four poolings halve it

    features: tuple[int, ...] = (4, 16, 32, 64, 64)
    hidden: int = 32
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Maps windowed patches (B, D, H, W, windows) in 0..1, D, H and W divisible by 16, to `Outputs`."""
        classes = {rating.name: rating.classes for rating in schema.RATINGS}
        # The towers' first convolutions read the same patch: they run as one, three times as fast on CPU, and each
        # tower goes on with its own channels. Further on `vmap` over the towers would be several times slower.
        first = Conv3x3x3(len(TASKS) * self.features[0], self.dtype, name="first")
        inputs = jnp.split(max_pool(nn.elu(first(x))), len(TASKS), axis=-1)
        features, logits = [], {}
        for task, own in zip(TASKS, inputs, strict=True):
            tower = Tower(self.features, self.hidden, train, self.axis_name, self.dtype, name=f"{task}_tower")
            features.append(tower(own))
            logits[task] = nn.Dense(classes[task], name=task)(features[-1])
        return Outputs(ratings=rating_logits(logits), features=jnp.concatenate(features, axis=-1))
