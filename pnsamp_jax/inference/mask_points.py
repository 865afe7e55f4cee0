"""Points from a mask: one for each connected region of each label, so that any segmentation names nodules.

Masks are NIfTI, NRRD or MetaImage files with labels (0 is the background), DICOM Segmentations or RT Structure Sets. A
detector's mask need not have the grid of the CT.
"""

import os
from pathlib import Path

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES
from pnsamp_jax.ct.read import open_image, read_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.dicom_masks import is_dicom_mask, mask_names, read_dicom_mask
from pnsamp_jax.errors import UserError

MOST_REGIONS = 1000  # more are noise, or the lungs' own vessels


def is_mask_file(path: Path) -> bool:
    """Return whether a path is that of a mask rather than typed points."""
    return path.name.lower().endswith(IMAGE_SUFFIXES) or (os.path.exists(path) and is_dicom_mask(path))


def read_mask_points(path: Path, image: Path, series: str) -> list[tuple[str, np.ndarray]]:
    """Return the name and the point in LPS mm of every region of a mask, label by label, largest region first.

    The point is the voxel of the region that is nearest to its centroid, which may lie outside a hollow region.

    Args:
      path: of the mask.
      image: the CT, on whose grid a DICOM object must lie.
      series: of the CT, if there are several.

    Raises:
      UserError: the file cannot be read, marks nothing, or has more than `MOST_REGIONS` regions.
    """
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        mask = read_image(path)
        labels = [int(label) for label in np.unique(mask.array) if label > 0]
        count = len(labels)
        named = ((f"label_{label}", Volume(mask.array == label, mask.affine)) for label in labels)
    else:
        ct = open_image(image, series).volume
        names = mask_names(path)
        count = len(names)
        named = ((name or f"label_{number}", read_dicom_mask(path, ct, number)) for number, name in names.items())
    points: list[tuple[str, np.ndarray]] = []
    for name, region in named:  # one at a time: a CT that is given as a mask has hundreds of labels
        found = _region_points(path, region, len(points))
        points += [(name if len(found) == 1 else f"{name}_{index}", point) for index, point in enumerate(found, 1)]
    if not points:
        raise UserError(f"{path}: marks no voxel; give a mask of nodules, or their points")
    return points if count > 1 else [(f"nodule_{index}", point) for index, (_, point) in enumerate(points, 1)]


def _region_points(path: Path, mask: Volume, before: int) -> list[np.ndarray]:
    regions, count = ndimage.label(mask.array, np.ones((3, 3, 3)))
    if before + count > MOST_REGIONS:
        raise UserError(
            f"{path}: has {before + count} regions or more; give a mask of nodules, at most {MOST_REGIONS}"
        )
    found: list[tuple[int, np.ndarray]] = []
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        index = np.argwhere(regions[box] == number) + [part.start for part in box]
        nearest = ((index - index.mean(axis=0)) ** 2).sum(axis=1).argmin()
        found.append((len(index), mask.to_lps(index[nearest])))
    return [point for _, point in sorted(found, key=lambda region: -region[0])]
