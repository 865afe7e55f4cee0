"""Metrics of outlines: how much two masks overlap, and how far apart their surfaces lie. NumPy and SciPy.

The surface distances follow Nikolov et al. (Journal of Medical Internet Research 2021; the package surface-distance),
whose definitions Metrics Reloaded (Maier-Hein et al., Nature Methods 2024) recommends:

* A mask's surface consists of elements at the corners between voxels: at each corner whose eight voxels are not all
  inside or all outside. An element's area is the gradient of the mask, averaged over these voxels, times the volume of
  a voxel. (The package adds up marching-cubes triangles; faces that lie along the grid have the same area in both.)
  Beyond the array there is no mask, so one that reaches its border has a surface there.
* The distance of an element is that to the nearest element of the other surface, whatever its area.

Empty masks: two empty ones agree (Dice 1, distance 0, surface Dice 1). If only one is empty there is no distance; it
counts as the diagonal of the array, the largest that could be, so that a nodule that was not found is not left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

TOLERANCE_MM = 1.0  # of the surface Dice; less than a voxel where patches have 1.2 mm
ROUNDING_MM = 1e-6  # a distance that equals the tolerance is within it


class SurfaceDistances(NamedTuple):
    """The surface elements of two masks A and B.

    Attributes:
      from_a, from_b: (n,), (m,) distance in mm of each element of one surface to the other surface.
      areas_a, areas_b: (n,), (m,) areas of these elements in mm^2.
    """

    from_a: np.ndarray
    from_b: np.ndarray
    areas_a: np.ndarray
    areas_b: np.ndarray

    def farthest(self, share: float = 0.95) -> float:
        """Return the distance in mm within which this share of either surface, by area, lies of the other one."""
        pairs = (self.from_a, self.areas_a), (self.from_b, self.areas_b)
        return max(_percentile(distances, areas, share) for distances, areas in pairs)

    def share_within(self, tolerance_mm: float) -> float:
        """Return the share of both surfaces, by area, that lies within a tolerance of the other one."""
        pairs = (self.from_a, self.areas_a), (self.from_b, self.areas_b)
        near = sum(areas[distances <= tolerance_mm + ROUNDING_MM].sum() for distances, areas in pairs)
        return float(near / (self.areas_a.sum() + self.areas_b.sum()))


def dice(mask: ArrayLike, reference: ArrayLike) -> float:
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) of boolean arrays of one shape; 1 if both are empty."""
    mask, reference = np.asarray(mask, dtype=bool), np.asarray(reference, dtype=bool)
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0


def scores(mask: ArrayLike, reference: ArrayLike, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return all scores of a mask by the names of their columns in predictions.csv; see `surface_distances`."""
    found = {"dice": dice(mask, reference)}
    if _empty(mask, reference).any():
        distance, share = hausdorff_95(mask, reference, spacing_mm), surface_dice(mask, reference, spacing_mm)
    else:
        distances = surface_distances(mask, reference, spacing_mm)  # once for both
        distance, share = distances.farthest(), distances.share_within(TOLERANCE_MM)
    return found | {"hd95_mm": distance, "nsd": share}


def surface_distances(mask: ArrayLike, reference: ArrayLike, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, neither of them empty.

    Args:
      mask: (D, H, W) bool, A.
      reference: the same shape, B.
      spacing_mm: (3,) between voxels along each axis.
    """
    masks = np.stack([np.asarray(mask, dtype=bool), np.asarray(reference, dtype=bool)])
    # Only the box that holds both matters. One voxel of padding closes surfaces at the border of the array.
    (box,) = ndimage.find_objects(masks.any(axis=0).astype(np.int8))
    areas = [_element_areas(np.pad(one[box], 1), spacing_mm) for one in masks]
    surfaces = [~np.isnan(area) for area in areas]
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces)
    a, b = surfaces
    return SurfaceDistances(to_b[a], to_a[b], areas[0][a], areas[1][b])


def _element_areas(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the area in mm^2 of the surface element at each corner between voxels, NaN where there is none.

    (d, h, w) bool -> (d - 1, h - 1, w - 1) float64.
    """
    inside = mask.astype(np.float64)
    gradient = np.zeros(np.array(mask.shape) - 1)
    for axis, spacing in enumerate(spacing_mm):
        along = np.diff(inside, axis=axis)
        for other in {0, 1, 2} - {axis}:
            along = (along[_from(other, 0)] + along[_from(other, 1)]) / 2
        gradient += (along / spacing) ** 2
    count = inside
    for axis in range(3):
        count = count[_from(axis, 0)] + count[_from(axis, 1)]
    return np.where((count > 0) & (count < 8), np.sqrt(gradient) * np.prod(spacing_mm), np.nan)


def _from(axis: int, start: int) -> tuple[slice, ...]:
    """Return the index of all but the last (start 0) or the first (start 1) entry along an axis of three."""
    return tuple(slice(start, start - 1 or None) if other == axis else slice(None) for other in range(3))


def hausdorff_95(mask: ArrayLike, reference: ArrayLike, spacing_mm: Sequence[float]) -> float:
    """Return the 95th percentile of the distance between two surfaces in mm, the larger of both directions.

    The percentile is over area: 95 % of either surface lie no further from the other. For empty masks see the module.
    Arguments are those of `surface_distances`.
    """
    if (empty := _empty(mask, reference)).any():
        diagonal = np.linalg.norm(np.array(np.shape(mask)) * spacing_mm)
        return 0.0 if empty.all() else float(diagonal)
    return surface_distances(mask, reference, spacing_mm).farthest()


def surface_dice(
    mask: ArrayLike, reference: ArrayLike, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> float:
    """Return the share of both surfaces, by area, that lies within a tolerance of the other one: 0..1.

    It is also called the normalised surface distance (NSD). For empty masks see the module. Arguments are those of
    `surface_distances`, and the tolerance in mm.
    """
    if (empty := _empty(mask, reference)).any():
        return float(empty.all())
    return surface_distances(mask, reference, spacing_mm).share_within(tolerance_mm)


def _empty(*masks: ArrayLike) -> np.ndarray:
    return np.array([not np.any(mask) for mask in masks])


def _percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """Return the smallest distance within which at least this share of the area lies."""
    order = np.argsort(distances)
    within = np.cumsum(areas[order]) / areas.sum()
    # The cumulative sum may end a rounding error below 1.
    return float(distances[order][min(int(np.searchsorted(within, share)), len(order) - 1)])
