"""PN-SAMP: one 3D network for a nodule's segmentation, its attributes and its malignancy rating.

Wu et al., "Joint learning for pulmonary nodule segmentation, attributes and malignancy prediction", ISBI 2018.

From the paper: the trunk (a 3D U-Net with half the convolutions and half the kernels, BatchNorm -> Conv -> ELU ->
pool), the second way into the rating heads (a sub-3DCNN of four convolutions on the *predicted* segmentation, so that
the ratings' gradients reach the trunk through both ways), their concatenation, one dense layer, the attribute heads,
and malignancy built upon the attributes' features. Chosen here, because the paper is silent: the widths of the
sub-3DCNN and of the dense layers, the mean and the maximum over space as the summary of a feature map (so that any
patch size works), and that malignancy also sees the fused features.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import rating_logits
from pnsamp_jax.models.layers import Block, max_pool, up_pool
from pnsamp_jax.models.outputs import Outputs

Array = jax.Array

# Initial logit of the mask. A nodule fills about one voxel in a hundred; from an even start (0) the Dice loss first
# spends hundreds of steps on unlearning the background.
MASK_PRIOR = -4.0


class MaskHead(nn.Module):
    """1x1x1 convolution of a map of half the size, up-pooled, joined with its skip: -> (B, D, H, W) float32 logits.

    The sum of a convolution of either part, so that the joined map, the largest of the network, is never built.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, skip: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1] + skip.shape[-1], 1))
        bias = self.param("bias", nn.initializers.constant(MASK_PRIOR), (1,))
        below, beside = jnp.split(kernel.astype(self.dtype), [x.shape[-1]])
        logits = up_pool(x.astype(self.dtype) @ below) + skip.astype(self.dtype) @ beside
        return logits[..., 0].astype(jnp.float32) + bias


def summarise(x: Array) -> Array:
    """Mean and maximum over space: (B, D, H, W, C) -> (B, 2 C) float32."""
    x = x.astype(jnp.float32)
    return jnp.concatenate([x.mean(axis=(1, 2, 3)), x.max(axis=(1, 2, 3))], axis=-1)


class RatingHeads(nn.Module):
    """Fused features to the logits of all nine ratings.

    Attributes:
      train: whether dropout is on.
      dropout: rate on the fused features.
      fused: width of the dense layer that fuses both ways.
      features: width of each rating's own features; malignancy sees those of all attributes.
    """

    train: bool
    dropout: float = 0.0
    fused: int = 192
    features: int = 24

    @nn.compact
    def __call__(self, x: Array, average: Array | None = None, replaced: Array | None = None) -> Array:
        """Rates nodules, where asked for as if in some respects they were an average one.

        Args:
          x: (B, F) features of both ways.
          average: (F,) those of an average nodule.
          replaced: (B, 9) bool, what malignancy is given of the average nodule instead: the features of the eight
            attributes, and last the fused features that it sees beside them.

        Returns:
          (B, 9, 6) float32 logits.
        """
        fusion = nn.Dense(self.fused, name="fusion")
        dropout = nn.Dropout(self.dropout, deterministic=not self.train)
        fused = dropout(nn.elu(fusion(x)))
        average = None if average is None else nn.elu(fusion(average))

        def of_average(place: int, own: Array, average: Array) -> Array:
            return jnp.where(replaced[:, place, None], average, own)

        attributes, logits = [], {}
        for place, rating in enumerate(schema.RATINGS):
            inputs = fused
            if rating.name == "malignancy":
                direct = fused if replaced is None else of_average(place, fused, average)
                inputs = jnp.concatenate([direct, *attributes], axis=-1)
            dense = nn.Dense(self.features, name=f"{rating.name}_features")
            hidden = nn.elu(dense(inputs))
            logits[rating.name] = nn.Dense(rating.classes, name=rating.name)(hidden)
            if replaced is not None and rating.name != "malignancy":
                hidden = of_average(place, hidden, nn.elu(dense(average)))
            attributes.append(hidden)
        return rating_logits(logits)


def contributions(heads: dict, features: Array, average: Array, temperature: Array) -> Array:
    """By how much each part of what malignancy is built upon raises its expected rating.

    That is the expected rating less what it would be if that part were an average nodule's. What one part shares with
    another is credited to neither, so that they need not add up.

    Args:
      heads: parameters of `RatingHeads`.
      features: (B, F) of the nodules, as `PNSAMP` gives them.
      average: (F,) of an average nodule.
      temperature: () of malignancy, see `calibration`.

    Returns:
      (B, 9) in classes of malignancy: of the eight attributes, and last of what is read off the image directly.
    """
    parts = len(schema.RATINGS)
    replaced = jnp.tile(jnp.eye(1 + parts, parts, -1, dtype=bool), (len(features), 1))  # first nothing, then each
    logits = RatingHeads(train=False).apply({"params": heads}, jnp.repeat(features, 1 + parts, 0), average, replaced)
    p = nn.softmax(logits[:, schema.MALIGNANCY] / temperature)
    expected = (p @ jnp.arange(1.0, schema.MAX_CLASSES + 1)).reshape(len(features), 1 + parts)
    return expected[:, :1] - expected[:, 1:]


class PNSAMP(nn.Module):
    """PN-SAMP in its multi-task and single-task forms.

    Attributes:
      segment: whether there is a segmentation; without it (form C) the ratings come from the encoder alone.
      rate: whether there are ratings; without them (form Seg) the trunk stands alone.
      dropout: rate on the fused features.
      features: channels of the four blocks down; the blocks up mirror them.
      mask_features: channels of the sub-3DCNN that reads the predicted segmentation.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 16  # four poolings halve it

    segment: bool = True
    rate: bool = True
    dropout: float = 0.0
    features: tuple[int, ...] = (16, 32, 64, 128)
    mask_features: tuple[int, ...] = (8, 16, 32, 64)
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Maps windowed patches (B, D, H, W, windows) in 0..1, D, H and W divisible by 16, to `Outputs`."""

        def block(features: int, name: str) -> Block:
            return Block(features, train, self.axis_name, self.dtype, of_data=name == "down_0", name=name)

        skips = []
        for level, features in enumerate(self.features):
            x = block(features, f"down_{level}")(x)
            skips.append(x)
            x = max_pool(x)
        summaries = [summarise(x)]

        mask = None
        if self.segment:
            beside = None
            for level, features in reversed(list(enumerate(self.features))):
                x = block(features, f"up_{level}")(x, beside)  # joined with what was beside it on the way down
                beside = skips[level]
            mask = MaskHead(dtype=self.dtype, name="mask")(x, beside)

        if not self.rate:
            return Outputs(mask, None)
        if self.segment:
            y = nn.sigmoid(mask)[..., None]
            for level, features in enumerate(self.mask_features):
                y = max_pool(block(features, f"mask_{level}")(y))
            summaries.append(summarise(y))
        fused = jnp.concatenate(summaries, axis=-1)
        return Outputs(mask, RatingHeads(train, self.dropout, name="heads")(fused), fused)
