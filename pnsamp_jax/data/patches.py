"""From a CT and its readers' masks to the isotropic patch that the network sees.

A patch's axes follow the body, not the scanner: depth, height and width run towards S(uperior), P(osterior) and
L(eft), so that a scan gives the same patch whichever way its file orders the voxels.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.errors import UserError

# Voxels up to this size are point samples of the linearly interpolated CT; larger ones average several such samples,
# since a single one would alias the CT's finer voxels into noise.
POINT_SAMPLE_MM = 0.6


@dataclass(frozen=True)
class Geometry:
    """The grid of stored patches.

    Attributes:
      patch_size: voxels on a side that the network sees.
      margin: further voxels on every side, so that shifts and turns bring in real voxels.
      spacing_mm: size of a voxel.
    """

    patch_size: int = 64
    margin: int = 8
    spacing_mm: float = 0.6

    @property
    def stored_size(self) -> int:
        """Voxels on a side of a stored patch."""
        return self.patch_size + 2 * self.margin


@dataclass(frozen=True)
class MarkedNodule:
    """A nodule with the voxels round it, as a data source delivers it.

    Attributes:
      nodule: identity and ratings.
      ct: (depth, height, width) int16 HU.
      readers: (readers, d, h, w) bool, each reader's mask; a box of its own with its own affine, empty outside.
      context: where the voxels come from, see `schema.CONTEXT`.
      centre_mm: (3,) LPS point at the middle of the patch; None for the centroid of the readers' consensus.
    """

    nodule: Nodule
    ct: Volume
    readers: Volume
    context: str
    centre_mm: np.ndarray | None = None


def patch_affine(centre_mm: np.ndarray, size: int, spacing_mm: float) -> np.ndarray:
    """The (4, 4) affine from the index (d, h, w, 1) of a patch to LPS mm, with `centre_mm` at index (size - 1) / 2."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:3, 3] = np.asarray(centre_mm) - spacing_mm * (size - 1) / 2
    affine[3, 3] = 1.0
    return affine


def sample(
    volume: Volume, centre_mm: np.ndarray, size: int, spacing_mm: float, outside: str = "nearest"
) -> np.ndarray:
    """Resamples a cube of a volume by linear interpolation.

    Args:
      volume: (depth, height, width) array and its affine, in any orientation.
      centre_mm: (3,) LPS mm, the middle of the cube.
      size: voxels on a side.
      spacing_mm: size of a voxel.
      outside: what lies beyond the volume: "nearest" extends its edge, "grid-constant" is 0.

    Returns:
      (size, size, size) float32, axes towards S, P, L.
    """
    splits = max(1, round(spacing_mm / POINT_SAMPLE_MM))
    fine = size * splits
    to_index = np.linalg.inv(volume.affine) @ patch_affine(centre_mm, fine, spacing_mm / splits)
    values = ndimage.affine_transform(
        volume.array,
        to_index[:3, :3],
        to_index[:3, 3],
        output_shape=(fine,) * 3,
        output=np.float32,
        order=1,
        mode=outside,
    )
    return values.reshape(size, splits, size, splits, size, splits).mean(axis=(1, 3, 5))


def consensus(masks: np.ndarray) -> np.ndarray:
    """The voxels that at least half of the readers marked: (readers, ...) bool -> (...) bool, as pylidc has it."""
    return 2 * masks.sum(axis=0) >= len(masks)


def consensus_centroid(readers: Volume) -> np.ndarray:
    """Centroid of the 50 % consensus in LPS mm; where no voxel has a majority, of all that anyone marked.

    Raises:
      UserError: the masks are empty.
    """
    marked = consensus(readers.array)
    if not marked.any():
        marked = readers.array.any(axis=0)
    if not marked.any():
        raise UserError("the mask marks no voxel; a nodule needs at least one")
    return readers.to_lps(np.argwhere(marked).mean(axis=0))


def reader_dice(masks: np.ndarray) -> float:
    """Mean Dice of each reader against the consensus of the others, on the native grid; NaN below 3 readers."""
    if len(masks) < 3:
        return float("nan")
    scores = []
    for reader, mask in enumerate(masks):
        others = consensus(np.delete(masks, reader, axis=0))
        scores.append(2 * (mask & others).sum() / max(mask.sum() + others.sum(), 1))
    return float(np.mean(scores))


def ball_diameter_mm(readers: Volume) -> float:
    """Diameter of the ball with the volume of the readers' consensus."""
    volume_mm3 = consensus(readers.array).sum() * abs(np.linalg.det(readers.affine[:3, :3]))
    return float(np.cbrt(6 * volume_mm3 / np.pi))


def make_record(marked: MarkedNodule, geometry: Geometry) -> dict:
    """The record of one nodule: its stored patch and labels, under the names of `schema`.

    Raises:
      UserError: nobody marked a voxel.
    """
    centroid = consensus_centroid(marked.readers)
    centre = centroid if marked.centre_mm is None else marked.centre_mm
    cube = (centre, geometry.stored_size, geometry.spacing_mm)
    share = Volume(marked.readers.array.mean(axis=0, dtype=np.float32), marked.readers.affine)
    return {
        schema.NODULE_ID: marked.nodule.nodule_id,
        schema.PATIENT_ID: marked.nodule.patient_id,
        schema.CONTEXT: marked.context,
        schema.IMAGE: np.rint(sample(marked.ct, *cube)).astype(np.int16),
        schema.MASK: np.rint(sample(share, *cube, outside="grid-constant") * schema.MASK_UNIT).astype(np.uint8),
        schema.RATING_COUNTS: marked.nodule.rating_counts,
        schema.READER_DICE: np.float32(reader_dice(marked.readers.array)),
        schema.DIAMETER: np.float32(ball_diameter_mm(marked.readers)),
    }
