"""Augmentation of how a nodule looks: faded, enlarged, noisy or smeared. Pure functions inside the compiled step.

Solid nodules are common and ground glass is rare, yet ground glass is where outlines fail. So a solid nodule is faded:
its contrast to what would lie in its place without it is scaled down, while its outline stays known. Ground glass has
denser parts, so the contrast also varies within the nodule: from evenly faded nodules a network learns to outline what
is even, which of ground glass is the densest part. Large nodules are rare too; enlarging a small one shows the network
the shape at another size. Neither change keeps the ratings true, so such patches teach the outline only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

NODULE_MARGIN = 2  # voxels around the readers' marks that still hold the blurred rim of the nodule
LUNG_HU = -500.0  # voxels below are lung
SOLID_WEIGHT = 0.05  # of other voxels around the nodule in what it is filled in with: nodules grow in place of lung
RIM = 3  # further voxels in which the noise of the surroundings is measured
FADED_HU = (90.0, 450.0)  # mean contrast of a faded nodule; ground glass has some 100 to 400 HU above lung
DENSITY_VOXELS = (3, 6)  # distances between the nodes of the fields that make a faded nodule uneven
SMALLEST_FACTOR = 1.2  # by which a nodule is enlarged
LARGEST_SHARE = 0.75  # of the patch's side that an enlarged nodule may fill, unless the smallest factor fills more
SMOOTHING = (0.25, 0.5, 0.25)


class Appearance(NamedTuple):
    """How far the look of a training patch may change; see `configs/base.py`.

    Attributes:
      fade: probability that a nodule is faded to ground glass.
      uneven: how much the density within a faded nodule varies at most, see `density`; 0 fades evenly.
      enlarge: probability that a nodule is enlarged.
      enlarge_faded: the same for a faded nodule, whose ratings do not hold in any case.
      largest: largest factor by which it is enlarged.
      noise: largest standard deviation of added noise, in HU.
      smear: probability that a patch is smoothed along one axis, as thick slices are.
    """

    fade: float = 0.0
    uneven: float = 0.0
    enlarge: float = 0.0
    enlarge_faded: float = 0.0
    largest: float = 2.0
    noise: float = 0.0
    smear: float = 0.0

    @property
    def changes(self) -> bool:
        """Return whether any change may happen."""
        return bool(self.fade or self.enlarge or self.noise or self.smear)


def change_appearance(key: Array, image: Array, mask: Array, options: Appearance) -> tuple[Array, Array, Array]:
    """Change the look of one patch at random.

    Args:
      key: random key of this nodule in this step.
      image: (S, S, S) float32 HU.
      mask: (S, S, S) float32 share of the readers, in any unit; above 0 where any reader marked the voxel.
      options: which changes, and how far.

    Returns:
      Image and mask, (S, S, S) float32 each, and () bool: whether the ratings of the nodule still hold.
    """
    fade_key, faded_key, enlarge_key, noise_key, smear_key = jax.random.split(key, 5)
    ratings_hold = jnp.array(True)
    if options.fade:
        chosen, faded_image = fade(fade_key, image, mask, options.uneven)
        chosen &= jax.random.bernoulli(faded_key, options.fade)
        image = jnp.where(chosen, faded_image, image)
        ratings_hold &= ~chosen
    if options.enlarge or options.enlarge_faded:
        draw_key, factor_key = jax.random.split(enlarge_key)
        probability = jnp.where(ratings_hold, options.enlarge, options.enlarge_faded)
        largest = jnp.clip(room(mask), SMALLEST_FACTOR, options.largest)
        factor = jax.random.uniform(factor_key, (), minval=SMALLEST_FACTOR, maxval=largest)
        chosen = jax.random.bernoulli(draw_key, probability)
        factor = jnp.where(chosen, factor, 1.0)
        resampling = enlarging_matrix(image.shape[0], factor)
        image, mask = along_axes(image, [resampling] * 3), along_axes(mask, [resampling] * 3)
        ratings_hold &= ~chosen
    if options.smear:
        draw_key, axis_key = jax.random.split(smear_key)
        axis = jnp.where(jax.random.bernoulli(draw_key, options.smear), jax.random.randint(axis_key, (), 0, 3), 3)
        identity, smoothing = jnp.eye(image.shape[0]), smoothing_matrix(image.shape[0])
        image = along_axes(image, [jnp.where(axis == along, smoothing, identity) for along in range(3)])
    if options.noise:
        level_key, draw_key = jax.random.split(noise_key)
        # None in half of the patches.
        level = options.noise * jnp.maximum(0.0, jax.random.uniform(level_key, (), minval=-1.0))
        image = image + level * jax.random.normal(draw_key, image.shape)
    return image, mask, ratings_hold


def room(mask: Array) -> Array:
    """Return the factor by which a nodule can be enlarged in its patch; below 1 if it is too large already.

    Args:
      mask: (S, S, S), above 0 in the nodule.
    """
    diameter = jnp.cbrt(6 / jnp.pi * (mask > 0).sum())  # of the ball of the same volume
    return LARGEST_SHARE * mask.shape[0] / jnp.maximum(diameter, 1.0)


def fade(key: Array, image: Array, mask: Array, uneven: float) -> tuple[Array, Array]:
    """Scale the contrast of a nodule to its surroundings down to that of ground glass.

    v' = c + a d (v - c), where c is the patch with the nodule filled in from its surroundings (`cleared`), d is the
    `density` where the nodule is brighter than c and 1 elsewhere, and a follows from a mean contrast that is drawn
    from `FADED_HU`.

    Args:
      key: random key.
      image: (S, S, S) HU.
      mask: (S, S, S), above 0 in the nodule.
      uneven: see `density`; 0 fades evenly.

    Returns:
      () bool, whether the nodule had more contrast than that, and the faded image.
    """
    marked = mask > 0
    fill_key, contrast_key, density_key = jax.random.split(key, 3)
    background = cleared(fill_key, image, marked)
    change = image - background

    def mean_inside(change: Array) -> Array:
        return (change * marked).sum() / jnp.maximum(marked.sum(), 1)

    contrast = mean_inside(change)
    wanted = jax.random.uniform(contrast_key, (), minval=FADED_HU[0], maxval=FADED_HU[1])
    if uneven:
        change = change * jnp.where(change > 0, density(density_key, image.shape[0], uneven), 1.0)
    scale = wanted / jnp.maximum(mean_inside(change), wanted)
    return contrast > wanted, background + scale * change


def density(key: Array, size: int, uneven: float) -> Array:
    """Draw how dense a faded nodule is from place to place, up to a factor.

    Its logarithm is the sum of fields of independent normal values at nodes `DENSITY_VOXELS` apart, interpolated
    linearly.

    Args:
      key: random key.
      size: side of the patch in voxels.
      uneven: largest standard deviation of the values; the one of a patch is drawn between 0 and it.

    Returns:
      (size, size, size) float32 above 0.
    """
    strength_key, *keys = jax.random.split(key, 1 + len(DENSITY_VOXELS))
    logarithm = jnp.zeros((size,) * 3)
    for field_key, voxels in zip(keys, DENSITY_VOXELS, strict=True):
        nodes = max(2, size // voxels)
        field = jax.random.normal(field_key, (nodes,) * 3)
        logarithm += along_axes(field, [interpolating_matrix(jnp.linspace(0, nodes - 1, size), nodes)] * 3)
    return jnp.exp(jax.random.uniform(strength_key, (), maxval=uneven) * logarithm)


def cleared(key: Array, image: Array, marked: Array) -> Array:
    """Fill a nodule in from its surroundings.

    The fill is smooth, from a pyramid of averages of the voxels around the nodule ("push-pull", Gortler et al.,
    SIGGRAPH 1996), plus noise as strong as that of the lung next to the nodule.

    Args:
      key: random key of the noise.
      image: (S, S, S) HU, S a power of two times at most any number that stays even while it is halved.
      marked: (S, S, S) bool, the nodule.

    Returns:
      (S, S, S) HU, equal to the image outside the nodule and a margin of `NODULE_MARGIN` voxels.
    """
    hidden = dilated(marked, NODULE_MARGIN)
    known = jnp.where(hidden, 0.0, jnp.where(image < LUNG_HU, 1.0, SOLID_WEIGHT))
    fill = _push_pull(image * known, known)
    smoothing = [smoothing_matrix(image.shape[0])] * 3
    rim = dilated(hidden, RIM) & ~dilated(image > LUNG_HU, 1) & ~hidden
    residue = jnp.where(rim, image - along_axes(image, smoothing), 0.0)
    deviation = jnp.minimum(jnp.sqrt((residue**2).sum() / jnp.maximum(rim.sum(), 1)), 60.0)
    noise = deviation * jax.random.normal(key, image.shape)
    return jnp.where(hidden, along_axes(jnp.where(hidden, fill, image), smoothing) + noise, image)


def _push_pull(total: Array, weight: Array) -> Array:
    """Return total / weight where the weight is positive, and an average of coarser cells elsewhere."""
    own = total / jnp.maximum(weight, 1e-6)
    if total.shape[0] % 2:
        return jnp.where(weight > 0, own, total.sum() / jnp.maximum(weight.sum(), 1e-6))
    half = total.shape[0] // 2

    def cells(x: Array) -> Array:
        return x.reshape(half, 2, half, 2, half, 2).sum(axis=(1, 3, 5))

    coarse = _push_pull(cells(total), cells(weight))
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    smoothing = smoothing_matrix(total.shape[0])
    return jnp.where(weight > 0, own, along_axes(fine, [smoothing] * 3))


def dilated(marked: Array, voxels: int) -> Array:
    """Dilate a mask (S, S, S) bool by a cube of 2 `voxels` + 1 on a side."""
    size = marked.shape[0]
    near = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size)) <= voxels
    return along_axes(marked.astype(jnp.float32), [near.astype(jnp.float32)] * 3) > 0.5


def along_axes(volume: Array, matrices: list[Array]) -> Array:
    """Apply a matrix (T, S) along each of the three axes of a volume (S, S, S)."""
    for axis, matrix in enumerate(matrices):
        volume = jnp.moveaxis(jnp.tensordot(matrix, volume, axes=(1, axis), precision="highest"), 0, axis)
    return volume


def smoothing_matrix(size: int) -> Array:
    """Return the (size, size) matrix that averages neighbours with weights 1/4, 1/2, 1/4, repeating the edges."""
    identity = jnp.eye(size)
    before = jnp.concatenate([identity[:1], identity[:-1]])
    after = jnp.concatenate([identity[1:], identity[-1:]])
    return SMOOTHING[0] * before + SMOOTHING[1] * identity + SMOOTHING[2] * after


def interpolating_matrix(positions: Array, nodes: int) -> Array:
    """Return the (P, nodes) matrix that interpolates linearly between nodes 0, 1, ... at positions (P,)."""
    return jnp.maximum(0.0, 1 - jnp.abs(positions[:, None] - jnp.arange(nodes)))


def enlarging_matrix(size: int, factor: Array) -> Array:
    """Return the (size, size) matrix that enlarges about the centre by linear interpolation; factor 1 is the identity.

    Args:
      size: voxels along the axis.
      factor: () 1 or more.
    """
    middle = (size - 1) / 2
    positions = middle + (jnp.arange(size) - middle) / factor
    return interpolating_matrix(positions, size)
