"""Pure functions from a stored patch to the input and the targets of the network. They run inside the compiled step.

Flips, turns, permutations and rotations are linear maps from the output grid to the stored one. Their matrices are
multiplied first, so that a patch is interpolated only once. Without rotation, voxel values stay unchanged.
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates

from pnsamp_jax.data import cohort, schema

Array = jax.Array

LABELS = ("rounded", "distribution")

# A voxel belongs to the consensus mask if at least half of the readers marked it. The tolerance of half a quantisation
# step keeps a tie (exactly one half) in the mask when interpolation rounds it down.
CONSENSUS = (schema.MASK_UNIT / 2 - 0.5) / schema.MASK_UNIT


class Augmentation(NamedTuple):
    """How far a training patch may be moved; see `configs/base.py`.

    Attributes:
      flip: whether to flip each axis with probability one half.
      turn: whether to turn the axial plane by a random multiple of 90 degrees.
      permute: whether to put the three axes in a random order; with flips, this gives all 48 symmetries of a cube.
      translate: largest shift along each axis, in whole voxels.
      rotate: largest angle of a rotation about a random axis, in degrees. Linear interpolation then blurs the training
        patches, which the test patches are not; see `configs/base.py`.
    """

    flip: bool
    turn: bool
    permute: bool
    translate: int
    rotate: float


def window(hu: Array, windows: tuple[tuple[float, float], ...]) -> Array:
    """Map HU to 0..1 through (width, centre) windows, clipped at their edges: (...) -> (..., windows) float32."""
    width, centre = jnp.array(windows, jnp.float32).T
    return jnp.clip((hu[..., None].astype(jnp.float32) - centre) / width + 0.5, 0.0, 1.0)


def flip(volumes: Array, axes: Array) -> Array:
    """Flip volumes (B, D, H, W) along the axes that (3,) bool names, which may be traced."""
    for axis in (1, 2, 3):
        volumes = jnp.where(axes[axis - 1], jnp.flip(volumes, axis), volumes)
    return volumes


def flip_matrix(key: Array) -> Array:
    """Draw a (3, 3) matrix that flips each axis with probability one half."""
    return jnp.diag(jax.random.rademacher(key, (3,), jnp.float32))


def turn_matrix(key: Array) -> Array:
    """Draw a (3, 3) matrix that turns the axial plane by 0, 90, 180 or 270 degrees."""
    cos, sin = jnp.array([[1, 0], [0, 1], [-1, 0], [0, -1]], jnp.float32)[jax.random.randint(key, (), 0, 4)]
    return jnp.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def permutation_matrix(key: Array) -> Array:
    """Draw a (3, 3) matrix that puts the axes in a random order."""
    return jax.random.permutation(key, jnp.eye(3))


def rotation_matrix(key: Array, degrees: float) -> Array:
    """Draw a (3, 3) rotation about a random axis by an angle uniform in +-degrees (Rodrigues' formula)."""
    axis_key, angle_key = jax.random.split(key)
    direction = jax.random.normal(axis_key, (3,))
    x, y, z = direction / jnp.linalg.norm(direction)
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = jnp.deg2rad(jax.random.uniform(angle_key, (), minval=-degrees, maxval=degrees))
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * (cross @ cross)


def crop(volume: Array, size: int) -> Array:
    """Cut out the centre of a stored patch.

    Args:
      volume: (S, S, S) int16 or uint8.
      size: voxels on a side of the result; S - size is even.

    Returns:
      (size, size, size) float32.
    """
    inner = slice((volume.shape[0] - size) // 2, (volume.shape[0] + size) // 2)
    return volume[inner, inner, inner].astype(jnp.float32)


def fetch(volume: Array, matrix: Array, shift: Array, size: int, order: int) -> Array:
    """Cut out a stored patch turned about its centre and shifted, voxel by voxel.

    Args:
      volume: (S, S, S) int16 or uint8.
      matrix: (3, 3) from offsets from the centre of the result to offsets from the centre of the volume.
      shift: (3,) voxels, added to the offsets in the volume.
      size: voxels on a side of the result; S - size is even.
      order: of the interpolation: 1 for linear, 0 for the nearest voxel.

    Returns:
      (size, size, size) float32. Outside the volume, its outermost voxels are repeated.
    """
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(size) - (size - 1) / 2] * 3, indexing="ij"))
    points = _points(offsets, matrix, shift, volume.shape[0])
    return map_coordinates(volume.astype(jnp.float32), list(points), order=order, mode="nearest")


def _points(offsets: Array, matrix: Array, shift: Array, stored: int) -> Array:
    """Return the indices (3, ...) into a volume of voxels at offsets (3, ...) from the centre of the result."""
    turned = jnp.einsum("ij,j...->i...", matrix, offsets, precision="highest")
    return turned + shift.reshape(3, *[1] * (offsets.ndim - 1)) + (stored - 1) / 2


def move(volume: Array, matrix: Array, shift: Array, size: int, farthest: int, permute: bool) -> Array:
    """Compute what `fetch` does where voxels fall on voxels, by slicing, reversing and transposing the whole patch.

    Args:
      volume: see `fetch`.
      matrix: (3, 3), a product of flips and turns, and of a permutation if `permute`.
      shift: (3,) int, at most `farthest`.
      size: see `fetch`.
      farthest: voxels.
      permute: whether the axes may be in any order; otherwise only the last two may be swapped, by a turn.
    """
    margin = (volume.shape[0] - size) // 2
    missing = max(0, farthest - margin)
    start = shift + (margin + missing)
    volume = lax.dynamic_slice(jnp.pad(volume, missing, mode="edge"), start, (size, size, size))
    for axis in range(3):
        volume = jnp.where(matrix[axis].sum() < 0, jnp.flip(volume, axis), volume)
    orders = list(itertools.permutations(range(3)))[: None if permute else 2]
    along = jnp.abs(matrix).argmax(axis=0).astype(jnp.int32)  # the axis of the volume along each axis of the result
    number = 2 * along[0] + (along[1] > along[2])  # of this order in the list
    return lax.select_n(number, *[volume.transpose(order) for order in orders]).astype(jnp.float32)


BLOCK = 8  # voxels on a side; of smaller blocks there are more, in larger ones more weights are zero


def rotate(volume: Array, matrix: Array, shift: Array, size: int, degrees: float) -> Array:
    """Compute what `fetch` does by linear interpolation, block by block.

    The points of a block of the result lie in a window of the volume. So each block cuts its window out and multiplies
    it by the weights of its voxels, which are zero but for two along each axis.

    Args:
      volume: see `fetch`.
      matrix: (3, 3), a product of flips, a permutation and a rotation by at most `degrees`.
      shift: see `fetch`.
      size: see `fetch`.
      degrees: largest angle.
    """
    stored, count = volume.shape[0], -(-size // BLOCK)
    # The largest sum of the absolute values in a row of a rotation matrix is cos a + sqrt(2) sin a: with the cosine on
    # the diagonal, the rest of the row, of length sin a, is shared by two. It grows up to the angle at which all three
    # are equal. The extent of a block along an axis is so much larger at most.
    angle = min(math.radians(degrees), math.atan(math.sqrt(2)))
    extent = (BLOCK - 1) * (math.cos(angle) + math.sqrt(2) * math.sin(angle))
    width = min(stored, math.ceil(extent + 0.01) + 2)  # the voxels on both sides; a little is for rounding
    volume = volume.astype(jnp.float32)

    def interpolate(block: Array) -> Array:
        """Compute the voxels of a block (BLOCK^3,) from its place (3,), counted in blocks."""
        offsets = BLOCK * block[:, None] + np.indices([BLOCK] * 3).reshape(3, -1) - (size - 1) / 2
        points = jnp.clip(_points(offsets, matrix, shift, stored), 0, stored - 1)
        corner = jnp.minimum(jnp.floor(points.min(axis=1)).astype(jnp.int32), stored - width)
        window = lax.dynamic_slice(volume, corner, (width, width, width))
        # (3, width, N): on TPU the last axis should be the long one.
        distances = jnp.abs((points - corner[:, None])[:, None] - jnp.arange(width)[:, None])
        along_d, along_h, along_w = jnp.maximum(0, 1 - distances)
        weights = (along_d[:, None] * along_h).reshape(width**2, -1)
        rows = jnp.einsum("kw,kn->wn", window.reshape(width**2, width), weights, precision="highest")
        return (rows * along_w).sum(axis=0)

    # One layer of blocks at a time: the weights of all would take a gigabyte for eight patches of 64 voxels.
    places = jnp.asarray(np.indices([count] * 3).reshape(3, -1).T)
    values = lax.map(interpolate, places, batch_size=count**2)
    values = values.reshape(count, count, count, BLOCK, BLOCK, BLOCK).transpose(0, 3, 1, 4, 2, 5)
    return values.reshape([count * BLOCK] * 3)[:size, :size, :size]


def augment(key: Array, image: Array, mask: Array, size: int, options: Augmentation) -> tuple[Array, Array]:
    """Augment a stored patch.

    Args:
      key: random key of this nodule in this step.
      image: (S, S, S) int16 HU.
      mask: (S, S, S) uint8 share of the readers, moved together with the image.
      size: voxels on a side of the results.
      options: which movements, and how far.

    Returns:
      Image and mask, (size, size, size) float32 each.
    """
    flip_key, turn_key, rotate_key, translate_key, permute_key = jax.random.split(key, 5)
    matrix = jnp.eye(3)
    if options.flip:
        matrix = matrix @ flip_matrix(flip_key)
    if options.turn:
        matrix = matrix @ turn_matrix(turn_key)
    if options.permute:
        matrix = matrix @ permutation_matrix(permute_key)
    if options.rotate:
        matrix = matrix @ rotation_matrix(rotate_key, options.rotate)
    # Whole voxels only: a fraction would blur the training patches, while the test patches are sharp.
    shift = jax.random.randint(translate_key, (3,), -options.translate, options.translate + 1)
    if options.rotate:
        order, in_blocks = 1, partial(rotate, degrees=options.rotate)
    else:  # voxels fall on voxels; linear interpolation is slow
        order, in_blocks = 0, partial(move, farthest=options.translate, permute=options.permute)

    def place(volume: Array) -> Array:
        """Cut out the volume as drawn; fetching single voxels moves 150 times the bytes on TPU."""
        on_tpu, elsewhere = partial(in_blocks, size=size), partial(fetch, size=size, order=order)
        return lax.platform_dependent(volume, matrix, shift, tpu=on_tpu, default=elsewhere)

    return place(image), place(mask)


def segmentation_target(mask: Array) -> Array:
    """Return 1.0 where at least half of the readers marked the voxel, else 0.0, in float32.

    Args:
      mask: share of the readers who marked the voxel, times `schema.MASK_UNIT`; see `schema.MASK`.
    """
    return (mask / schema.MASK_UNIT >= CONSENSUS).astype(jnp.float32)


def rating_targets(rating_counts: Array, labels: str, nominal: str = cohort.NOMINAL_RULES[0]) -> Array:
    """Return the distribution over the classes that each rating is trained on.

    Args:
      rating_counts: (..., 9, 6) readers per class.
      labels: one of `LABELS`. "distribution" is the share of the readers who chose each class. "rounded" is the one
        class to which the mean of the readers rounds, half up, as in `cohort.rounded_rating`. It is computed in
        integers, floor(mean + 1/2) = (2 sum + n) // (2 n), so that rounding errors decide no tie.
      nominal: one of `cohort.NOMINAL_RULES`. With "modal", the class of a nominal rating is the one that most readers
        chose, as in `cohort.labels`; the distribution is the same with either.

    Returns:
      (..., 9, 6) float32 that sums to 1 over the classes, or is all zero where nobody rated.
    """
    rating_counts = rating_counts.astype(jnp.int32)
    values = jnp.arange(1, schema.MAX_CLASSES + 1)
    count = rating_counts.sum(axis=-1)
    if labels == "distribution":
        return rating_counts / jnp.maximum(count, 1)[..., None]
    total = (rating_counts * values).sum(axis=-1)
    chosen = (2 * total + count) // jnp.maximum(2 * count, 1)
    if nominal == "modal":
        score = rating_counts * (schema.MAX_CLASSES + 1) + cohort.TIE_RANK
        chosen = jnp.where(schema.NOMINAL, 1 + jnp.argmax(score, axis=-1), chosen)
    return ((chosen[..., None] == values) & (count > 0)[..., None]).astype(jnp.float32)


def without_indeterminate(targets: Array, rating_counts: Array) -> Array:
    """Remove the malignancy target of nodules whose mean malignancy rounds to 3, half up.

    Args:
      targets: (..., 9, 6) from `rating_targets`.
      rating_counts: (..., 9, 6) readers per class.

    Returns:
      (..., 9, 6) float32.
    """
    rounded = rating_targets(rating_counts, "rounded", "mean")[..., schema.MALIGNANCY, :]
    indeterminate = rounded[..., 3 - 1] > 0
    malignancy = jnp.arange(len(schema.RATINGS)) == schema.MALIGNANCY
    return jnp.where((indeterminate[..., None] & malignancy)[..., None], 0.0, targets)
