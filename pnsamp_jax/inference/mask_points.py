"""Points from a mask: one for each connected region of each label, so that any segmentation names nodules.

Masks are NIfTI, NRRD or MetaImage files with labels (0 is the background), DICOM Segmentations or RT Structure Sets. A
detector's mask need not have the grid of the CT.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES
from pnsamp_jax.ct.notes import collected, note
from pnsamp_jax.ct.read import open_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.dicom_masks import is_dicom_mask
from pnsamp_jax.data.folder_masks import MAX_SIZE_MM, require_same_place
from pnsamp_jax.data.slicer_masks import label_names, layered_segments, numbered, read_segment
from pnsamp_jax.data.whole_masks import read_mask
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference.point_rois import dicom_marks

MOST_REGIONS = 1000  # more are noise, or the lungs' own vessels
MOST_VALUES = 40  # in one region; bits of readers make 34 at most in LIDC-IDRI, probabilities soon more
NODULE_MM = 100.0  # the longest region whose labels may be parts of one nodule; the longest of LIDC-IDRI has 62.5
MIN_CONTACT = 0.4  # share of a label's surface; half of a ball that was cut in two has 0.37 at most, a shell more
TOLERANCE = 1.0  # voxels that a mask may lie off the CT; a nodule's point need not be more exact
ALL_AROUND = np.ones((3, 3, 3))  # voxels that share a corner belong together


def is_mask_file(path: Path) -> bool:
    """Return whether a path is that of a mask rather than typed points."""
    return path.name.lower().endswith(IMAGE_SUFFIXES) or (os.path.exists(path) and is_dicom_mask(path))


def read_mask_points(path: Path, image: Path, series: str) -> list[tuple[str, np.ndarray]]:
    """Return the name and the point in LPS mm of every region of a mask, label by label, largest region first.

    The point is the voxel of the region that is nearest to its centroid, which may lie outside a hollow region. What
    can be no nodule is passed over with a note: regions that are too long, segments without a voxel, and ROIs that
    cannot be read. Names are those of segments and ROIs; the regions of a mask with one label are numbered.

    Args:
      path: of the mask.
      image: the CT, on whose grid a DICOM object must lie, and at whose place a mask of its size.
      series: of the CT, if there are several.

    Raises:
      UserError: the file cannot be read, lies elsewhere than the CT, marks nothing or the background, has more than
        `MOST_REGIONS` regions, or its values are probabilities.
    """
    ct: Volume | None
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        ct = _grid(image, series)
        masks = _label_masks(path, ct)
    else:
        ct = open_image(image, series).volume
        masks = dicom_marks(path, ct)
    points: list[tuple[str, np.ndarray]] = []
    count, named = 0, False
    too_long: list[str] = []
    empty: list[str] = []
    for own, number, mask in masks:  # one at a time: a label map of a whole body has a hundred
        name = own or f"label_{number}"
        found, long = ([mask], 0) if isinstance(mask, np.ndarray) else _region_points(path, mask, len(points))
        count += 1
        named |= bool(own)
        too_long += [name] * long
        empty += [name] * (not found and not long)
        points += [(name if len(found) == 1 else f"{name}_{index}", point) for index, point in enumerate(found, 1)]
    if too_long:
        text = f"{path}: marks regions longer than {MAX_SIZE_MM:g} mm, which are no nodules: {', '.join(too_long)}"
        if not points:
            raise UserError(f"{text}; give a mask of nodules")
        note(f"{text}; they are passed over")
    if not points:
        raise UserError(f"{path}: marks no voxel; give a mask of nodules, or their points")
    if empty:
        note(f"{path}: marks no voxel of {', '.join(map(repr, empty))}")
    if ct is not None and not any(ct.holds(point) for _, point in points):
        raise UserError(f"{path}: marks nothing within {image}; save it with the geometry of its image")
    return points if count > 1 or named else [(f"nodule_{index}", point) for index, (_, point) in enumerate(points, 1)]


def _grid(image: Path, series: str) -> Volume | None:
    """Return the grid of a CT without its voxels; None if it cannot be read, as its nodules will say."""
    try:
        with collected():  # the notes come when the CT is read for its voxels
            ct = open_image(image, series).volume
    except (UserError, OSError, MemoryError):
        return None
    return Volume(np.broadcast_to(np.int16(0), ct.array.shape), ct.affine)


def _label_masks(path: Path, ct: Volume | None) -> Iterator[tuple[str, int, Volume | np.ndarray]]:
    """Yield the name, "" if it has none, the number and the mask of each label or segment of an image file."""
    segments = layered_segments(path)
    for number, segment in numbered(segments).items():
        mask = read_segment(path, segments, number)
        _require_place(path, mask, ct)
        yield segment.name, number, mask
    if segments:
        return
    mask = read_mask(path)
    _require_place(path, mask, ct)
    names = label_names(path)
    lacking = names.keys() - set(np.unique(mask.array).tolist())  # whose mask is empty
    labels = _with_whole_nodules(path, mask)
    for label in sorted({*np.unique(labels[labels > 0]).tolist(), *lacking}):
        yield names.get(label, ""), label, Volume(labels == label, mask.affine)


def _require_place(path: Path, mask: Volume, ct: Volume | None) -> None:
    """Raise UserError if a mask lies elsewhere than the CT, or marks the background."""
    if ct is not None:
        require_same_place(path, mask, ct, TOLERANCE)
    corners = mask.array[tuple(np.ix_(*((0, -1),) * 3))]
    if corners.max() > 0 and corners.min() == corners.max():
        raise UserError(
            f"{path}: marks its corners with {int(corners.max())}, as if that was the background; save 0 there, and "
            "one label for each nodule"
        )


def _with_whole_nodules(path: Path, mask: Volume) -> np.ndarray:
    """Return a label map, in which labels that are parts of one nodule have become the largest of them.

    The bits of several readers, votes and the solid part of a nodule are labels within each other, whose surfaces are
    mostly in contact. Of nodules that merely touch, most of the surface is free.

    Raises:
      UserError: the values are those of probabilities.
    """
    labels = mask.array
    if len(np.unique(labels[labels > 0])) < 2:
        return labels
    parts, count = ndimage.label(labels > 0, ALL_AROUND)
    _require_few(path, count)
    joined = labels.copy()
    whole: list[np.ndarray] = []
    touching: list[np.ndarray] = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        own = np.where(parts[box] == number, labels[box], 0)
        found, voxels = np.unique(own[own > 0], return_counts=True)
        if len(found) > MOST_VALUES:
            raise UserError(
                f"{path}: has {len(found)} different values in one region, as of probabilities or a CT; give a mask "
                "of nodules, 0 elsewhere"
            )
        if len(found) == 1 or (np.array(own.shape) * mask.spacing).max() > NODULE_MM:  # such as nodules in a lung
            continue
        if _contact(own, mask.spacing) >= MIN_CONTACT:
            joined[box][own > 0] = found[voxels.argmax()]
            whole.append(found)
        else:
            touching.append(found)
    for groups, meaning in ((whole, "taken as one nodule"), (touching, "taken as a nodule each")):
        if groups:
            shown = "; ".join(sorted({", ".join(map(str, group)) for group in groups}))
            note(f"{path}: labels that touch are {meaning}: {shown}")
    return joined


def _contact(labels: np.ndarray, spacing: np.ndarray) -> float:
    """Return the largest share of a label's surface that is in contact with other labels.

    Args:
      labels: (d, h, w) one connected region, 0 around it.
      spacing: (3,) mm.
    """
    values, index = np.unique(np.pad(labels, 1), return_inverse=True)
    index = index.reshape(np.array(labels.shape) + 2)
    surface, shared = np.zeros(len(values)), np.zeros(len(values))
    for axis, area in enumerate(spacing.prod() / spacing):
        moved = np.moveaxis(index, axis, 0)
        pairs = np.stack([moved[:-1], moved[1:]]).reshape(2, -1)
        pairs = pairs[:, pairs[0] != pairs[1]]
        surface += area * np.bincount(pairs.ravel(), minlength=len(values))
        shared += area * np.bincount(pairs[:, pairs.all(axis=0)].ravel(), minlength=len(values))
    return float((shared / surface)[1:].max())  # the first is what lies around


def _require_few(path: Path, count: int) -> None:
    if count > MOST_REGIONS:
        raise UserError(f"{path}: has {count} regions or more; give a mask of nodules, at most {MOST_REGIONS}")


def _region_points(path: Path, mask: Volume, before: int) -> tuple[list[np.ndarray], int]:
    """Return the points of a mask's regions, the largest first, and how many regions are too long for a nodule."""
    regions, count = ndimage.label(mask.array, ALL_AROUND)
    _require_few(path, before + count)
    found: list[tuple[int, np.ndarray]] = []
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        own = regions[box] == number
        if (np.array(own.shape) * mask.spacing).max() > MAX_SIZE_MM:
            continue
        index = np.argwhere(own) + [part.start for part in box]
        nearest = ((index - index.mean(axis=0)) ** 2).sum(axis=1).argmin()
        found.append((len(index), mask.to_lps(index[nearest])))
    return [point for _, point in sorted(found, key=lambda region: -region[0])], count - len(found)
