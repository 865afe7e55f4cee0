"""The masks of the `folder` source: which voxels each reader marked, and whether they can be those of the nodule."""

from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pnsamp_jax.ct.volume import SAME_SPACING, Volume
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.dicom_masks import is_dicom_mask, read_dicom_mask
from pnsamp_jax.data.reader_bits import split_bits
from pnsamp_jax.data.slicer_masks import layered_segments, read_segment
from pnsamp_jax.data.whole_masks import read_mask, require_no_gap
from pnsamp_jax.errors import UserError

# The largest values that masks of LIDC-IDRI have: 2.3 mm from the point, 6.4 mm between regions, 62.5 mm in size.
MAX_OFFSET_MM = 8.0  # from a nodule's point to its mask
MAX_GAP_MM = 20.0  # between two regions of a mask
MAX_SIZE_MM = 150.0  # along an axis
MAX_FILLED = 1.3  # times the voxels, when the holes of its slices are filled; the largest is 1.26
MIN_INNER = 0.2  # share of voxels whose neighbours in the slice are all marked, where there are holes; least 0.64
MAX_BOX = 0.95  # share of its bounding box that a mask fills; the largest is 0.82, and that of an ellipsoid 0.52
MIN_BOX = 2, 5, 5  # voxels along the sides of a box, the shortest first; smaller nodules may look like one
MAX_SHARE = 0.3  # of the image; the largest is 0.14, of a slab that ends with its nodule
MOST_LISTED = 5  # labels in a message
SAME_VOXEL = 0.1  # voxels that lie closer than this share of their spacing are the same


def read_readers(path: Path, ct: Volume, nodule: Nodule, label: int | None) -> Volume:
    """Read the mask of a nodule.

    Args:
      path: an image file with one bit per reader, or with labels; overlapping segments of 3D Slicer, see
        `slicer_masks`; or a DICOM object, see `dicom_masks`.
      ct: the image of which it is a mask.
      nodule: with its ratings, one row per reader, or none.
      label: of the nodule, where the mask has several; None if it has not.

    Returns:
      (readers, d, h, w) bool, on the mask's own grid.

    Raises:
      UserError: the file is damaged; its values are no bits, or those of more readers than have rated the nodule; it
        marks no voxel or the outline alone, or lacks slices; or it has as many voxels as the image, but at another
        place.
    """
    if is_dicom_mask(path):
        mask = read_dicom_mask(path, ct, label)
        readers = [mask.array]
    else:
        segments = layered_segments(path)
        mask = read_segment(path, segments, label) if segments else read_mask(path)
        require_same_place(path, mask, ct)
        if label is not None and not segments:
            mask = _with_label(path, mask, label)
        readers = [mask.array] if segments else split_bits(path, mask.array, nodule)
        _require_background(path, mask, ct)
    if not np.any(readers):
        raise UserError(f"{path}: the mask marks no voxel; a nodule needs at least one")
    # One of several readers may have skipped a slice, as two did among the 5,764 masks at hand; all of them never did.
    union = Volume(np.any(readers, axis=0), mask.affine)
    require_no_gap(path, "the mask marks nothing", union, union.body_axis)
    for reader in readers:
        _require_filled(path, reader > 0)
    return Volume(np.stack(readers).astype(bool), mask.affine)


def _with_label(path: Path, mask: Volume, label: int) -> Volume:
    """Return where a label map holds a label. Raise UserError if it holds others alone."""
    found = mask.array == label
    held = [int(value) for value in np.unique(mask.array[mask.array != 0])]
    if held and not found.any():
        listed = ", ".join(map(str, held[:MOST_LISTED])) + (", ..." if len(held) > MOST_LISTED else "")
        raise UserError(f"{path}: holds no label {label}, as mask_label names it, but {listed}; correct nodules.csv")
    return Volume(found.astype(np.int16), mask.affine)


def _require_filled(path: Path, mask: np.ndarray) -> None:
    """Raise UserError if a mask (d, h, w) marks the outline of a nodule in its slices, but not what lies within."""
    index = np.argwhere(mask)
    box = mask[tuple(map(slice, index.min(axis=0), index.max(axis=0) + 1))]
    cross = ndimage.generate_binary_structure(2, 1)[np.newaxis]
    for axis in range(3):  # whichever is across the slices
        slices = np.moveaxis(box, axis, 0)
        if ndimage.binary_erosion(slices, cross).sum() >= MIN_INNER * len(index):
            continue  # most nodules, whose slices need not be filled
        if sum(int(ndimage.binary_fill_holes(one).sum()) for one in slices) > MAX_FILLED * len(index):
            raise UserError(f"{path}: marks only the outline of the nodule; fill it in, and save the mask again")


def _require_background(path: Path, mask: Volume, ct: Volume) -> None:
    """Raise UserError if a mask of the image's size marks all of its corners, as a mask of the background does."""
    corners = mask.array[tuple(np.ix_(*((0, -1),) * 3))]
    if sorted(mask.array.shape) == sorted(ct.array.shape) and corners.all():
        raise UserError(
            f"{path}: marks the corners of its image, as if the background was marked; save 1 where the nodule is and "
            "0 elsewhere"
        )


def require_same_place(path: Path, mask: Volume, ct: Volume, tolerance: float = SAME_VOXEL) -> None:
    """Raise UserError if a mask has the image's number of voxels, but lies elsewhere. Flipped axes are no difference.

    Such a mask lost its geometry, was saved with that of another image, or has its origin at the corner of a voxel. A
    mask of another size may have a grid of its own, or lie on some of the image's voxels.

    Args:
      path: of the mask.
      mask: (d, h, w).
      ct: the image.
      tolerance: how far the mask may lie off, as a share of the image's smallest spacing.
    """
    if sorted(mask.array.shape) != sorted(ct.array.shape):
        _require_own_place(path, mask, ct, tolerance)
        return
    corners = [
        volume.to_lps(np.argwhere(np.ones((2, 2, 2))) * (np.array(volume.array.shape) - 1)) for volume in (mask, ct)
    ]
    distance_mm = np.linalg.norm(corners[0][:, None] - corners[1], axis=-1).min(axis=1).max()
    if distance_mm > tolerance * ct.spacing.min():
        raise UserError(
            f"{path}: has as many voxels as its image, but lies up to {distance_mm:.2g} mm off; save it with the "
            "geometry of its image"
        )


def _require_own_place(path: Path, mask: Volume, ct: Volume, tolerance: float) -> None:
    """Raise UserError if a mask of another size than its image has the image's voxels, but seems to be misplaced.

    Where one of the two was cropped, the mask lies on voxels of the image, and its origin tells on which.
    """
    if np.abs(mask.affine[:3, :3] - ct.affine[:3, :3]).max() > SAME_SPACING * ct.spacing.min():
        return
    offset = ct.to_index(mask.affine[:3, 3])
    off_mm = np.linalg.norm((offset - np.rint(offset)) * ct.spacing)
    if off_mm > tolerance * ct.spacing.min():
        raise UserError(
            f"{path}: has the spacing of its image, but lies {off_mm:.2g} mm off the image's voxels; save it with the "
            "geometry of its image"
        )
    if not np.rint(offset).any():
        sizes = [" x ".join(map(str, volume.array.shape[::-1])) for volume in (mask, ct)]
        raise UserError(
            f"{path}: has the spacing and the origin of its image, but {sizes[0]} voxels and not {sizes[1]}, as if "
            "one of them was cropped or padded without its origin; save that one with the geometry that it had"
        )


def require_around(path: Path, readers: Volume, ct: Volume, nodule_id: str, point_mm: np.ndarray) -> None:
    """Raise UserError unless a mask can be that of the nodule at a point.

    Args:
      path: of the mask.
      readers: (readers, d, h, w), as `read_readers` returns it.
      ct: the image.
      nodule_id: of the nodule.
      point_mm: (3,) its point in LPS mm.

    Raises:
      UserError: the mask lies off the point or reaches beyond the image, is larger than any nodule, has a second
        region far from the first, is a box, or is what the image mostly shows, as the lung is in a crop.
    """
    union = np.any(readers.array, axis=0)
    index = np.argwhere(union)
    marked = readers.to_lps(index)
    offset_mm = np.linalg.norm(marked - point_mm, axis=1)
    if offset_mm.min() > MAX_OFFSET_MM:
        mirrored_mm = np.linalg.norm(marked - point_mm * (-1, -1, 1), axis=1)
        raise UserError(
            f"{path}: the mask lies {offset_mm.min():.0f} mm from the point of '{nodule_id}' in nodules.csv; "
            + (
                "negate x_mm and y_mm there, which seem to be RAS"
                if mirrored_mm.min() <= MAX_OFFSET_MM
                else "correct the point, or save the mask with the geometry of its image"
            )
        )
    in_ct = ct.to_index(marked)
    outside_mm = (np.maximum(-in_ct, in_ct - np.array(ct.array.shape) + 1).max(axis=0) * ct.spacing).max()
    if outside_mm > max(ct.spacing.max(), readers.spacing.max()):
        raise UserError(
            f"{path}: the mask reaches {outside_mm:.0f} mm beyond its image; save it with the geometry of its image"
        )
    size_mm = np.ptp(marked, axis=0).max()
    gap_mm = 0.0 if size_mm > MAX_SIZE_MM else _gap_mm(union, index, marked, int(offset_mm.argmin()))
    if size_mm > MAX_SIZE_MM or gap_mm > MAX_GAP_MM:
        found = f"has a region {gap_mm:.0f} mm away" if gap_mm else f"is {size_mm:.0f} mm long"
        raise UserError(
            f"{path}: the mask of '{nodule_id}' {found}; give that of this nodule alone, or name its label in a "
            "column mask_label of nodules.csv"
        )
    _require_surroundings(path, in_ct, abs(np.linalg.det(readers.affine)), ct, nodule_id)
    _require_outline(path, union)


def _require_surroundings(path: Path, in_ct: np.ndarray, voxel_mm3: float, ct: Volume, nodule_id: str) -> None:
    """Raise UserError if a mask fills much of its image, or reaches across it within the slices.

    One border is no fault: three nodules of LIDC-IDRI reach that of their crop. Nor are the first and the last slice,
    between which a crop may have been cut.

    Args:
      path: of the mask.
      in_ct: (n, 3) index in the image of the marked voxels.
      voxel_mm3: volume of each.
      ct: the image.
      nodule_id: of the nodule.
    """
    share = len(in_ct) * voxel_mm3 / (ct.array.size * abs(np.linalg.det(ct.affine)))
    across = (in_ct.min(axis=0) < 0.5) & (in_ct.max(axis=0) > np.array(ct.array.shape) - 1.5)
    across[ct.body_axis] = False
    if share > MAX_SHARE or across.any():
        found = f"fills {share:.0%} of" if share > MAX_SHARE else "reaches across"
        raise UserError(
            f"{path}: the mask of '{nodule_id}' {found} its image; give that of this nodule alone, or an image that "
            "shows more of its surroundings"
        )


def _require_outline(path: Path, mask: np.ndarray) -> None:
    """Raise UserError if a mask (d, h, w) is the box around a nodule, as detectors give it."""
    index = np.argwhere(mask)
    sides = np.ptp(index, axis=0) + 1
    if (np.sort(sides) >= MIN_BOX).all() and len(index) >= MAX_BOX * sides.prod():
        raise UserError(
            f"{path}: is a box of {' x '.join(map(str, sides[::-1]))} voxels, not an outline; draw the outline of the "
            "nodule, which a network would otherwise learn to be a box"
        )


def _gap_mm(union: np.ndarray, index: np.ndarray, marked: np.ndarray, first: int) -> float:
    """Return the largest distance of a region from that of one voxel.

    Args:
      union: (d, h, w) bool.
      index: (n, 3) of the marked voxels.
      marked: (n, 3) their positions in mm.
      first: which of them.
    """
    low = index.min(axis=0)
    box = union[tuple(map(slice, low, index.max(axis=0) + 1))]
    regions, count = ndimage.label(box, np.ones((3, 3, 3)))
    if count == 1:
        return 0.0
    region = regions[tuple((index - low).T)]
    distance_mm, _ = cKDTree(marked[region == region[first]]).query(marked)
    return float(np.max(ndimage.minimum(distance_mm, region, np.arange(1, count + 1))))
