"""PN-SAMP Plus: the trunk of PN-SAMP, heads that measure the predicted outline, and malignancy as a sum of attributes.

It differs from the paper's form (`pn_samp`) in four ways:

- The trunk has one more block up, at the full resolution. The paper's trunk ends at half of it, where a nodule of 5 mm
  is two voxels wide if voxels are 1.2 mm.
- It is told where the point is: a further input channel is bright there and fades with the distance. Of two nodules,
  or a nodule and a vessel, it can tell which one is meant.
- In addition to the paper's two paths, the ratings see what a radiologist would measure: the mean, the spread and the
  extremes of the feature maps and of the CT inside the predicted mask, in a shell around it and outside, and the size
  and shape of the mask (`regional_features`, `shape_features`).
- Malignancy is built upon the attributes' features alone, as a sum of one term for each attribute. So the
  contributions of these features to the malignancy add up.
"""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import stack_logits
from pnsamp_jax.models.layers import Block
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pn_samp import MASK_PRIOR, AttributeHeads, decode, encode, read_mask
from pnsamp_jax.models.pooling import global_pool, mean_pool

Array = jax.Array

SHELL_VOXELS = 2  # thickness of the shell around the mask
TINY = 1e-3


class PNSAMPPlus(nn.Module):
    """PN-SAMP with heads that measure the predicted outline.

    Attributes:
      dropout: rate on the fused features.
      features: channels of the four blocks down; the blocks up mirror them.
      mask_features: channels of the sub-3DCNN on the predicted segmentation.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 16  # four poolings halve the patch

    dropout: float = 0.0
    features: tuple[int, ...] = (16, 32, 64, 128)
    mask_features: tuple[int, ...] = (8, 16, 32, 64)
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, D, H, W, windows) in 0..1, with D, H and W divisible by 16, to `Outputs`."""
        block = partial(Block, axis_name=self.axis_name, dtype=self.dtype)
        bottom, skips = encode(block, self.features, with_point(x), train)
        decoded = decode(block, self.features, bottom, skips, train)
        fine = block(self.features[0], name="up_full")(decoded, skips[0], train=train)
        mask_head = nn.Dense(1, dtype=self.dtype, bias_init=nn.initializers.constant(MASK_PRIOR), name="mask")
        mask = mask_head(fine)[..., 0].astype(jnp.float32)

        probability = nn.sigmoid(mask)[..., None]  # not thresholded, so that gradients pass
        paths = [global_pool(bottom), read_mask(block, self.mask_features, probability, train)]
        # The measured mask passes no gradients: the mask is learnt from outlines, and through the paper's two paths.
        measured_mask = jax.lax.stop_gradient(probability)
        regions = soft_regions(measured_mask)
        paths.append(regional_features(x, regions))
        # The decoder's maps and those of the second block have half the resolution; pooled regions are soft anyway.
        maps = jnp.concatenate([decoded, skips[1]], axis=-1)
        paths.append(regional_features(maps, [mean_pool(region) for region in regions]))
        paths.append(shape_features(measured_mask[..., 0]))
        measured = jnp.concatenate(paths, axis=-1)
        standardised = Standardise(self.axis_name, name="standardise")(measured, train=train)
        ratings = AdditiveHeads(self.dropout, name="heads")(standardised, train=train)
        return Outputs(mask, ratings, standardised)


def with_point(x: Array) -> Array:
    """Append a channel to patches (B, S, S, S, C): a Gaussian around their centre, where the user's point is.

    Its standard deviation is an eighth of the patch, 4.8 mm of 38.
    """
    size = x.shape[1]
    along = jnp.exp(-jnp.square((jnp.arange(size) - (size - 1) / 2) / (size / 8)) / 2)
    nearness = along[:, None, None] * along[None, :, None] * along[None, None, :]
    return jnp.concatenate([x, jnp.broadcast_to(nearness[..., None], (*x.shape[:-1], 1)).astype(x.dtype)], axis=-1)


def soft_regions(probability: Array) -> list[Array]:
    """Return soft masks of the nodule, of the shell around it and of the rest, which add up to 1 in every voxel.

    Args:
      probability: (B, D, H, W, 1) that a voxel belongs to the nodule.
    """
    wide = probability
    for _ in range(SHELL_VOXELS):
        wide = _dilate(wide)
    return [probability, wide - probability, 1 - wide]


def _dilate(x: Array) -> Array:
    """Return the maximum of each voxel (B, D, H, W, C) and its 26 neighbours."""
    for axis in (1, 2, 3):
        size = x.shape[axis]
        before = jnp.concatenate(
            [lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis
        )
        after = jnp.concatenate(
            [lax.slice_in_dim(x, 1, size, axis=axis), lax.slice_in_dim(x, size - 1, size, axis=axis)], axis
        )
        x = jnp.maximum(x, jnp.maximum(before, after))
    return x


def regional_features(maps: Array, regions: list[Array]) -> Array:
    """Summarise maps by their mean and standard deviation in each region, and their extremes in the first.

    Args:
      maps: (B, D, H, W, C).
      regions: R soft masks (B, D, H, W, 1) in 0..1.

    Returns:
      (B, (2 R + 2) C) float32.
    """
    space = (1, 2, 3)
    maps, found = maps.astype(jnp.float32), []
    for region in regions:
        size = region.sum(space) + TINY
        mean = (maps * region).sum(space) / size
        variance = (jnp.square(maps) * region).sum(space) / size - jnp.square(mean)
        found += [mean, jnp.sqrt(jnp.maximum(variance, 0) + 1e-6)]
    middle = found[0][:, None, None, None]
    inside = middle + regions[0] * (maps - middle)
    return jnp.concatenate([*found, _greatest(inside), -_greatest(-inside)], axis=-1)


@jax.jit  # see `pooling`
def _greatest(maps: Array) -> Array:
    """Return the maximum over space: (B, D, H, W, C) -> (B, C).

    It is read at its index. The derivative of `max` looks for the maximum again by its value, and finds none where the
    compiler has meanwhile computed that value in another order, which makes the gradient 0 / 0.
    """
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return jnp.take_along_axis(flat, flat.argmax(axis=1, keepdims=True), axis=1)[:, 0]


def shape_features(probability: Array) -> Array:
    """Describe the size and the shape of a soft mask by smooth functions of its moments and its surface.

    They are the logarithms of the volume V, of the surface A (the total variation), of the compactness
    (36 pi V^2 / A^3)^(1/3), and of the standard deviation along the longest axis, in all directions together and as
    the geometric mean of the three axes. The longest axis is taken from a high power of the covariance, because the
    derivative of an eigenvalue is undefined where two are equal.

    Args:
      probability: (B, D, H, W).

    Returns:
      (B, 6) float32, lengths in voxels.
    """
    size = probability.shape[1:]
    volume = probability.sum((1, 2, 3)) + TINY
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(n) - (n - 1) / 2 for n in size], indexing="ij"))
    moment = jnp.einsum("bdhw,idhw->bi", probability, grid, precision="highest") / volume[:, None]
    second = jnp.einsum("bdhw,idhw,jdhw->bij", probability, grid, grid, precision="highest") / volume[:, None, None]
    covariance = second - moment[:, :, None] * moment[:, None, :] + jnp.eye(3) / 12  # a voxel's own extent
    squared = covariance @ covariance
    largest = jnp.trace(squared @ squared, axis1=1, axis2=2) ** 0.25
    steps = [jnp.diff(probability, axis=axis)[:, : size[0] - 1, : size[1] - 1, : size[2] - 1] for axis in (1, 2, 3)]
    surface = jnp.sqrt(sum(jnp.square(step) for step in steps) + 1e-8).sum((1, 2, 3)) + TINY
    logs = [
        jnp.log(volume),
        jnp.log(surface),
        (jnp.log(36 * jnp.pi) + 2 * jnp.log(volume) - 3 * jnp.log(surface)) / 3,
        jnp.log(largest) / 2,
        jnp.log(jnp.trace(covariance, axis1=1, axis2=2)) / 2,
        jnp.log(jnp.linalg.det(covariance)) / 6,
    ]
    return jnp.stack(logs, axis=-1)


class Standardise(nn.Module):
    """Batch normalisation of features without learnt scale or bias: (B, F) -> (B, F)."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        norm = nn.BatchNorm(
            not train,
            momentum=0.95,
            use_bias=False,
            use_scale=False,
            axis_name=None if self.is_initializing() else self.axis_name,
        )
        return jnp.clip(norm(x), -8, 8)  # a nodule unlike those of training must not drown the rest


class AdditiveHeads(AttributeHeads):
    """The heads of all nine ratings, where malignancy is a sum of one term for each attribute."""

    def setup(self) -> None:
        super().setup()
        classes = schema.RATINGS[schema.MALIGNANCY].classes
        self.drop = nn.Dropout(self.dropout)
        for rating in schema.ATTRIBUTES:
            setattr(self, f"malignancy_of_{rating.name}", nn.Dense(classes, use_bias=False))
        self.malignancy_bias = self.param("malignancy_bias", nn.initializers.zeros, (classes,))

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map the features of all paths (B, F) to the logits of all ratings, (B, 9, 6) float32."""
        features = self._features(self.drop(self.fuse(x), deterministic=not train))
        logits = {name: getattr(self, name)(own) for name, own in features.items()}
        logits["malignancy"] = self._terms(features).sum(axis=-2) + self.malignancy_bias
        return stack_logits(logits)

    def malignancy_terms(self, x: Array) -> tuple[Array, Array]:
        """Compute what each attribute adds to the logits of malignancy, in inference mode.

        Args:
          x: (..., F) features of all paths.

        Returns:
          (..., 8, 5) terms in the order of the attributes, and the (5,) bias to which they are added.
        """
        return self._terms(self._features(self.fuse(x))), self.malignancy_bias

    def _features(self, fused: Array) -> dict[str, Array]:
        return {rating.name: self.attribute_features(rating.name, fused) for rating in schema.ATTRIBUTES}

    def _terms(self, features: dict[str, Array]) -> Array:
        return jnp.stack([getattr(self, f"malignancy_of_{name}")(own) for name, own in features.items()], axis=-2)
