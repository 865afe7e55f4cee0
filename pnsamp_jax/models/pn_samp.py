"""PN-SAMP: one 3D network for a nodule's segmentation, its attributes and its malignancy rating.

Wu et al., "Joint learning for pulmonary nodule segmentation, attributes and malignancy prediction", ISBI 2018.

From the paper:
- the trunk, a 3D U-Net with half the convolutions and half the channels: four blocks down, each BatchNorm -> Conv ->
  ELU followed by max-pooling, and four blocks up with up-pooling and skips;
- two paths from the trunk to the ratings: the features at the bottom of the trunk, and a sub-3DCNN of four
  convolutions on the *predicted* segmentation, so that the gradients of the ratings reach the trunk through both;
- the features of both paths concatenated and fused by one dense layer, a head for each attribute, and a malignancy
  head built upon the attributes' features.

Chosen here, because the paper does not say: the widths of the sub-3DCNN and of the dense layers; mean and maximum over
space as the summary of a feature map, so that any patch size works; and that the malignancy head also receives the
fused features.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import stack_logits
from pnsamp_jax.models.layers import Block
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pooling import global_pool, max_pool, up_pool

Array = jax.Array

# Initial logit of the mask. A nodule fills about one voxel in a hundred. Starting from even odds (logit 0), the Dice
# loss would first spend hundreds of steps on unlearning the background.
MASK_PRIOR = -4.0


class PNSAMP(nn.Module):
    """PN-SAMP in its multi-task and single-task forms.

    Attributes:
      segment: whether to predict the segmentation; without it (form C) the ratings come from the encoder alone.
      rate: whether to predict the ratings; without them (form Seg) the trunk stands alone.
      dropout: rate on the fused features.
      features: channels of the four blocks down; the blocks up mirror them.
      mask_features: channels of the sub-3DCNN on the predicted segmentation.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 16  # four poolings halve the patch

    segment: bool = True
    rate: bool = True
    dropout: float = 0.0
    features: tuple[int, ...] = (16, 32, 64, 128)
    mask_features: tuple[int, ...] = (8, 16, 32, 64)
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, D, H, W, windows) in 0..1, with D, H and W divisible by 16, to `Outputs`."""
        block = partial(Block, axis_name=self.axis_name, dtype=self.dtype)
        x, skips = encode(block, self.features, x, train)
        paths, mask = [global_pool(x)], None
        if self.segment:
            mask = MaskHead(self.dtype, name="mask")(decode(block, self.features, x, skips, train), skips[0])

        if not self.rate:
            return Outputs(mask, None)
        if mask is not None:
            probability = nn.sigmoid(mask)[..., None]  # not thresholded, so that gradients pass
            paths.append(read_mask(block, self.mask_features, probability, train))
        both_paths = jnp.concatenate(paths, axis=-1)
        return Outputs(mask, RatingHeads(self.dropout, name="heads")(both_paths, train=train), both_paths)


# The parts of the trunk, for the compact method of a module, to which their blocks then belong.


def encode(block: Callable[..., Block], widths: tuple[int, ...], x: Array, train: bool) -> tuple[Array, list[Array]]:
    """Run the blocks down: patches (B, D, H, W, C) -> the map at the bottom, and the map of each block before pooling.

    Args:
      block: `Block` with all but its features and name.
      widths: channels of the blocks down.
      x: patches.
      train: whether in training.
    """
    skips = []
    for level, features in enumerate(widths):
        # Training needs no gradient of the patch, the input of the first block.
        x = block(features, fuse_affine=level == 0, name=f"down_{level}")(x, train=train)
        skips.append(x)
        x = max_pool(x)
    return x, skips


def decode(block: Callable[..., Block], widths: tuple[int, ...], x: Array, skips: list[Array], train: bool) -> Array:
    """Run the blocks up, from the results of `encode` to the map that `MaskHead` takes."""
    for level, features in reversed(list(enumerate(widths))):
        skip = None if level == len(skips) - 1 else skips[level + 1]  # there is none at the bottom
        x = block(features, name=f"up_{level}")(x, skip, train=train)
    return x


def read_mask(block: Callable[..., Block], widths: tuple[int, ...], probability: Array, train: bool) -> Array:
    """Run the sub-3DCNN on the predicted segmentation: (B, D, H, W, 1) probabilities -> (B, F) features."""
    y = probability
    for level, features in enumerate(widths):
        y = max_pool(block(features, name=f"mask_{level}")(y, train=train))
    return global_pool(y)


class MaskHead(nn.Module):
    """1x1x1 convolution of an up-pooled map concatenated with a skip, to one logit per voxel.

    It is computed as the sum of two convolutions, one of which is up-pooled afterwards, because the concatenation
    would be the largest array of the network.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, skip: Array) -> Array:
        """Map x (B, D/2, H/2, W/2, C) and skip (B, D, H, W, S) to (B, D, H, W) float32 logits."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1] + skip.shape[-1], 1))
        bias = self.param("bias", nn.initializers.constant(MASK_PRIOR), (1,))
        kernel_x, kernel_skip = jnp.split(kernel.astype(self.dtype), [x.shape[-1]])
        logits = up_pool(x.astype(self.dtype) @ kernel_x) + skip.astype(self.dtype) @ kernel_skip
        return logits[..., 0].astype(jnp.float32) + bias


class AttributeHeads(nn.Module):
    """The layers from the features of all paths to the eight attributes, which the heads of all ratings build upon.

    The parameters of an attribute's two layers are named after it: `subtlety_features` and `subtlety`.

    Attributes:
      dropout: rate on the fused features.
      fused: width of the dense layer that fuses all paths.
      features: width of each rating's own features.
    """

    dropout: float = 0.0
    fused: int = 192
    features: int = 24

    def setup(self) -> None:
        self.fusion = nn.Dense(self.fused)
        for rating in schema.ATTRIBUTES:
            setattr(self, f"{rating.name}_features", nn.Dense(self.features))
            setattr(self, rating.name, nn.Dense(rating.classes))

    def fuse(self, x: Array) -> Array:
        """Fuse the features of all paths: (..., F) -> (..., fused)."""
        return nn.elu(self.fusion(x))

    def attribute_features(self, name: str, fused: Array) -> Array:
        """Compute the features of one attribute: (..., fused) -> (..., features)."""
        return nn.elu(getattr(self, f"{name}_features")(fused))


class RatingHeads(AttributeHeads):
    """The heads of all nine ratings, on the features of both paths.

    Its steps can be applied one by one, as `inference.attribution` does.
    """

    def setup(self) -> None:
        super().setup()
        self.malignancy_features = nn.Dense(self.features)
        self.malignancy = nn.Dense(schema.RATINGS[schema.MALIGNANCY].classes)

    @nn.compact  # for the dropout, whose draws depend on the name that Flax gives it here
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map the features of both paths (B, F) to the logits of all ratings, (B, 9, 6) float32."""
        fused = nn.Dropout(self.dropout, deterministic=not train)(self.fuse(x))
        attributes, logits = [], {}
        for rating in schema.ATTRIBUTES:
            features = self.attribute_features(rating.name, fused)
            attributes.append(features)
            logits[rating.name] = getattr(self, rating.name)(features)
        logits["malignancy"] = self.malignancy_logits(fused, attributes)
        return stack_logits(logits)

    def malignancy_logits(self, fused: Array, attributes: list[Array]) -> Array:
        """Compute the logits of malignancy from the fused features and those of the eight attributes: (..., 5)."""
        features = nn.elu(self.malignancy_features(jnp.concatenate([fused, *attributes], axis=-1)))
        return self.malignancy(features)
