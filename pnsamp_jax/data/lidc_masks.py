"""From the contours of LIDC-IDRI's readers to masks, voxel for voxel the same as pylidc's."""

from collections.abc import Sequence

import numpy as np
from matplotlib.path import Path as Polygon

from pnsamp_jax.data.lidc_database import Annotation


def reader_masks(annotations: Sequence[Annotation], slice_z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mask that each reader's contours enclose, identical to pylidc's `Annotation.boolean_mask`.

    Args:
      annotations: the readers' annotations of one nodule.
      slice_z_mm: (slices,) positions of the scan's slices.

    Returns:
      masks: (readers, d, h, w) bool in the smallest box around all contours; axes run along slice, row and column.
      origin: (3,) int, index (slice, row, column) in the scan of the box's first voxel.
    """
    points = np.concatenate([annotation.points(slice_z_mm) for annotation in annotations])[:, [2, 0, 1]]
    origin = points.min(axis=0)
    masks = np.zeros((len(annotations), *(points.max(axis=0) - origin + 1)), bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        # Holes are cut last. The other contours must keep their order (the sort is stable): each clears its own
        # points, which matters where two regions of a slice touch.
        for contour in sorted(annotation.contours, key=lambda contour: not contour.inclusion):
            image = mask[contour.slice_index(slice_z_mm) - origin[0]]
            low, high = contour.points.min(axis=0), contour.points.max(axis=0) + 1
            window = image[tuple(map(slice, low - origin[1:], high - origin[1:]))]
            polygon = Polygon(np.concatenate([contour.points, contour.points[:1]]), closed=True)
            pixels = low + np.indices(window.shape).reshape(2, -1).T
            inside = polygon.contains_points(pixels).reshape(window.shape)
            window[inside] = contour.inclusion
            window[tuple((contour.points - low).T)] = False
    return masks, origin
