"""Pure functions from a stored patch to what the network sees. They run inside the compiled step.

Flips, turns, rotation and translation are linear maps of the output grid onto the stored one; they are composed as
matrices, so that a patch is interpolated once, whatever the chain. Without rotation the voxels come through
unchanged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from pnsamp_jax.data import schema

Array = jax.Array

LABELS = ("rounded", "distribution")

# A tie of two readers (exactly one half) belongs to the consensus. Half a quantisation step of tolerance keeps it in
# when interpolation rounds it down.
HALF = (schema.MASK_UNIT / 2 - 0.5) / schema.MASK_UNIT


class Augmentation(NamedTuple):
    """How far a training patch may be moved; see `configs/base.py`.

    Attributes:
      flip: along each axis, at even odds.
      turn: by a multiple of 90 degrees in the axial plane.
      permute: the three axes, at random; with flips and turns, any of the 48 ways to lay a cube onto itself.
      translate: whole voxels at most, along each axis.
      rotate: degrees at most, about a random axis.
    """

    flip: bool
    turn: bool
    permute: bool
    translate: int
    rotate: float


def window(hu: Array, windows: tuple[tuple[float, float], ...]) -> Array:
    """Shows HU through (width, centre) windows: (...) -> (..., windows) float32 in 0..1."""
    width, centre = jnp.array(windows, jnp.float32).T
    return jnp.clip((hu[..., None].astype(jnp.float32) - centre) / width + 0.5, 0.0, 1.0)


def flip_matrix(key: Array) -> Array:
    """(3, 3) that flips each axis at even odds."""
    return jnp.diag(jax.random.rademacher(key, (3,), jnp.float32))


def turn_matrix(key: Array) -> Array:
    """(3, 3) that turns the axial plane by 0, 90, 180 or 270 degrees."""
    cos, sin = jnp.array([[1, 0], [0, 1], [-1, 0], [0, -1]], jnp.float32)[jax.random.randint(key, (), 0, 4)]
    return jnp.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def permutation_matrix(key: Array) -> Array:
    """(3, 3) that puts the axes in a random order."""
    return jax.random.permutation(key, jnp.eye(3))


def rotation_matrix(key: Array, degrees: float) -> Array:
    """(3, 3) rotation about a random axis by an angle uniform in +-degrees (Rodrigues' formula)."""
    axis_key, angle_key = jax.random.split(key)
    direction = jax.random.normal(axis_key, (3,))
    x, y, z = direction / jnp.linalg.norm(direction)
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = jnp.deg2rad(jax.random.uniform(angle_key, (), minval=-degrees, maxval=degrees))
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * (cross @ cross)


def crop(volume: Array, size: int, matrix: Array | None = None, shift: Array | None = None, order: int = 1) -> Array:
    """The middle of a stored patch, optionally turned about its centre and shifted.

    Args:
      volume: (S, S, S) int16 or uint8.
      size: voxels on a side of the result; S - size is even.
      matrix: (3, 3) map of offsets from the centre of the result to offsets in the volume; identity by default.
      shift: (3,) voxels, added after; 0 by default.
      order: of the interpolation: 1 for linear, 0 for the nearest voxel.

    Returns:
      (size, size, size) float32; beyond the stored voxels the edge is extended.
    """
    margin = (volume.shape[0] - size) // 2
    if matrix is None and shift is None:
        inner = slice(margin, margin + size)
        return volume[inner, inner, inner].astype(jnp.float32)
    matrix = jnp.eye(3) if matrix is None else matrix
    shift = jnp.zeros(3) if shift is None else shift
    middle = (size - 1) / 2
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(size) - middle] * 3, indexing="ij"))
    turned = jnp.einsum("ij,jdhw->idhw", matrix, offsets, precision="highest")
    points = turned + shift[:, None, None, None] + middle + margin
    return map_coordinates(volume.astype(jnp.float32), list(points), order=order, mode="nearest")


def augment(key: Array, image: Array, mask: Array, size: int, options: Augmentation) -> tuple[Array, Array]:
    """Moves a stored patch at random: (S, S, S) image and mask -> (size, size, size) float32 of each."""
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
    # By whole voxels: a fraction would blur the training patches, and the test patches are sharp.
    shift = jax.random.randint(translate_key, (3,), -options.translate, options.translate + 1)
    order = 1 if options.rotate else 0  # voxels that fall on voxels need no interpolation, which is slow
    return crop(image, size, matrix, shift, order), crop(mask, size, matrix, shift, order)


def segmentation_target(mask: Array) -> Array:
    """Share of the readers in `schema.MASK_UNIT`s -> 1.0 where at least half of them marked the voxel, else 0.0."""
    return (mask / schema.MASK_UNIT >= HALF).astype(jnp.float32)


def rating_targets(rating_counts: Array, labels: str) -> Array:
    """The distribution over the classes that a rating is trained on.

    Args:
      rating_counts: (..., 9, 6) how many readers gave each class.
      labels: "distribution" for the share of the readers who gave each class; "rounded" for the one class that the mean
        rounds to, half up. That is the rule of `cohort.rounded_rating`, in integers so that no float decides a tie:
        floor(mean + 1/2) is (2 sum + n) // (2 n).

    Returns:
      (..., 9, 6) float32 that sums to 1, or is all zero where nobody rated.
    """
    rating_counts = rating_counts.astype(jnp.int32)
    values = jnp.arange(1, schema.MAX_CLASSES + 1)
    count = rating_counts.sum(axis=-1)
    if labels == "distribution":
        return rating_counts / jnp.maximum(count, 1)[..., None]
    total = (rating_counts * values).sum(axis=-1)
    rounded = (2 * total + count) // jnp.maximum(2 * count, 1)
    return ((rounded[..., None] == values) & (count > 0)[..., None]).astype(jnp.float32)
