"""From a CT and the readers' masks to isotropic patches, the network's input.

A patch's axes follow the body, not the scanner: depth, height and width run towards S(uperior), P(osterior) and
L(eft), so that a scan gives the same patch in whatever order its file stores the voxels.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.errors import UserError

# Voxels up to this size are point samples of the linearly interpolated CT. Larger voxels average several samples,
# since a single sample would alias the CT's finer voxels into noise.
POINT_SAMPLE_MM = 0.6


@dataclass(frozen=True)
class Geometry:
    """The grid of stored patches.

    Attributes:
      patch_size: side of the network's input in voxels.
      margin: further voxels on every side, so that shifts and rotations bring in real voxels.
      spacing_mm: size of a voxel.
    """

    patch_size: int = 64
    margin: int = 8
    spacing_mm: float = 0.6

    @property
    def stored_size(self) -> int:
        """Return the side of a stored patch in voxels."""
        return self.patch_size + 2 * self.margin


@dataclass(frozen=True)
class MarkedNodule:
    """A nodule with the voxels around it, as a data source returns it.

    Attributes:
      nodule: ids and ratings.
      ct: (depth, height, width) int16 HU.
      readers: (readers, d, h, w) bool masks in a box that may differ from the CT's; nothing is marked outside it.
      context: see `schema.CONTEXT`.
      centre_mm: (3,) centre of the patch in LPS mm; None for the centroid of the readers' consensus, which then must
        mark a voxel.
    """

    nodule: Nodule
    ct: Volume
    readers: Volume
    context: str
    centre_mm: np.ndarray | None = None


@dataclass(frozen=True)
class Unusable:
    """A nodule that a data source names but cannot return, as one whose mask is damaged.

    Attributes:
      nodule_id: of the nodule.
      reason: why, as a `UserError` says it.
    """

    nodule_id: str
    reason: str


def require_usable(found: Iterable[MarkedNodule | Unusable], wanted: Container[str]) -> list[MarkedNodule]:
    """Return those of a source's nodules whose ids are wanted.

    Raises:
      UserError: one of them is unusable.
    """
    usable = []
    for one in found:
        if isinstance(one, MarkedNodule):
            usable += [one] * (one.nodule.nodule_id in wanted)
        elif one.nodule_id in wanted:
            raise UserError(f"{one.nodule_id}: {one.reason}")
    return usable


def patch_affine(centre_mm: npt.ArrayLike, size: int, spacing_mm: float) -> np.ndarray:
    """Return the (4, 4) affine from a patch's index (d, h, w, 1) to LPS mm; `centre_mm` is at index (size - 1) / 2."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:3, 3] = np.asarray(centre_mm) - spacing_mm * (size - 1) / 2
    affine[3, 3] = 1.0
    return affine


def sample(
    volume: Volume, centre_mm: np.ndarray, size: int, spacing_mm: float, outside: str = "nearest"
) -> np.ndarray:
    """Resample a cube of a volume by linear interpolation.

    Args:
      volume: (depth, height, width) array and its affine, in any orientation.
      centre_mm: (3,) centre of the cube in LPS mm.
      size: side of the cube in voxels.
      spacing_mm: size of a voxel.
      outside: values beyond the volume: "nearest" repeats its edge, "grid-constant" is 0.

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


def covered(mask: Volume, centre_mm: np.ndarray, size: int, spacing_mm: float) -> np.ndarray:
    """Return the voxels of a cube that a mask covers most, as many as make up the volume of the mask in it.

    Those covered by more than one half would make up less: 0.8 of the volume of LIDC-IDRI's nodules at 1.2 mm, because
    edges and thin ends are lost. Voxels that are covered equally are all taken or none.

    Args:
      mask: (d, h, w) bool; nothing is marked outside it.
      centre_mm: see `sample`, as the following.
      size: side of the cube in voxels.
      spacing_mm: size of a voxel.

    Returns:
      (size, size, size) bool.
    """
    marked = Volume(mask.array.astype(np.float32), mask.affine)
    share = sample(marked, centre_mm, size, spacing_mm, outside="grid-constant")
    ordered = np.sort(share[share > 0])[::-1]
    if not len(ordered):
        return share > 0
    volume = share.sum(dtype=np.float64)  # in voxels
    least = ordered[min(max(1, round(volume)), len(ordered)) - 1]
    with_ties, without = share >= least, share > least
    return without if without.any() and volume - without.sum() < with_ties.sum() - volume else with_ties


def consensus(masks: np.ndarray) -> np.ndarray:
    """Return the voxels that at least half of the readers marked, as in pylidc: (readers, ...) bool -> (...) bool."""
    return 2 * masks.sum(axis=0) >= len(masks)


def consensus_centroid(readers: Volume) -> np.ndarray:
    """Return the centroid (3,) of the consensus in LPS mm, or of all marked voxels if the consensus is empty.

    Raises:
      UserError: all masks are empty.
    """
    marked = consensus(readers.array)
    if not marked.any():
        marked = np.any(readers.array, axis=0)
    if not marked.any():
        raise UserError("the mask marks no voxel; a nodule needs at least one")
    return readers.to_lps(np.argwhere(marked).mean(axis=0))


def reader_dice(masks: np.ndarray) -> float:
    """Return the mean Dice of the readers, each against the consensus of the others; NaN below 3 readers."""
    if len(masks) < 3:
        return float("nan")
    scores = []
    for reader, mask in enumerate(masks):
        agreed = consensus(np.delete(masks, reader, axis=0))
        scores.append(2 * (mask & agreed).sum() / max(mask.sum() + agreed.sum(), 1))
    return float(np.mean(scores))


def ball_diameter_mm(readers: Volume) -> float:
    """Return the diameter of the ball with the volume of the readers' consensus."""
    volume_mm3 = consensus(readers.array).sum() * abs(np.linalg.det(readers.affine[:3, :3]))
    return float(np.cbrt(6 * volume_mm3 / np.pi))


def make_record(marked: MarkedNodule, geometry: Geometry) -> dict[str, Any]:
    """Return the record of one nodule: its stored patch and labels under the feature names of `schema`.

    Raises:
      UserError: no reader marked a voxel, and the centre is not given.
    """
    centre = consensus_centroid(marked.readers) if marked.centre_mm is None else marked.centre_mm
    cube = (centre, geometry.stored_size, geometry.spacing_mm)
    share = np.mean([covered(Volume(mask, marked.readers.affine), *cube) for mask in marked.readers.array], axis=0)
    return {
        schema.NODULE_ID: marked.nodule.nodule_id,
        schema.PATIENT_ID: marked.nodule.patient_id,
        schema.CONTEXT: marked.context,
        schema.IMAGE: np.rint(sample(marked.ct, *cube)).astype(np.int16),
        schema.MASK: np.rint(share * schema.MASK_UNIT).astype(np.uint8),
        schema.RATING_COUNTS: marked.nodule.rating_counts,
        schema.READER_DICE: np.float32(reader_dice(marked.readers.array)),
        schema.DIAMETER: np.float32(ball_diameter_mm(marked.readers)),
    }
