"""The diameters of a nodule in an axial slice, as radiologists measure and round them.

The long axis is the longest diameter of the nodule in any axial slice, the short axis the longest diameter
perpendicular to it in the same slice, and the mean diameter their average:

- Bankier et al., *Recommendations for measuring pulmonary nodules at CT: a statement from the Fleischner Society*,
  Radiology 285 (2017), doi 10.1148/radiol.2017162894; MacMahon et al., *Guidelines for management of incidental
  pulmonary nodules detected on CT images: from the Fleischner Society 2017*, Radiology 284 (2017),
  doi 10.1148/radiol.2017161659: the average of long and short axis, rounded to the nearest millimetre.
- Lung-RADS v2022 (American College of Radiology; Christensen et al., CHEST 165 (2024)): both axes to one decimal, and
  their average to one decimal. Lung-RADS allows any plane; here it is the axial one.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from pnsamp_jax.inference.masks import THRESHOLD


class Diameters(NamedTuple):
    """The axes of a nodule in mm; both are 0 if there is no nodule."""

    long_mm: float
    short_mm: float

    @property
    def mean_mm(self) -> float:
        """Return the average of both axes."""
        return (self.long_mm + self.short_mm) / 2

    @property
    def fleischner_mm(self) -> int:
        """Return the mean diameter as the Fleischner Society rounds it, to the nearest millimetre."""
        return int(_rounded(self.mean_mm, 0))

    @property
    def lung_rads_mm(self) -> float:
        """Return the mean diameter as Lung-RADS v2022 rounds it: one decimal, from axes of one decimal."""
        return _rounded((_rounded(self.long_mm, 1) + _rounded(self.short_mm, 1)) / 2, 1)


def axial_diameters(probability: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, float]) -> Diameters:
    """Measure a nodule in the axial slice in which it is longest.

    Of a slice in which the mask has several parts, the largest is measured. Balls and ellipsoids are measured to a
    tenth of a millimetre on voxels of 0.6 mm, if the probability falls off smoothly or is the share of each voxel that
    lies inside. Zeros and ones show an outline only to half a voxel, and the longest diameter picks out its outermost
    points: it is then up to a voxel too long.

    Args:
      probability: (D, H, W) that a voxel belongs to the nodule.
      mask: (D, H, W) bool, the part of the voxels above `THRESHOLD` that makes up the nodule.
      spacing_mm: of the voxels along H and W.
    """
    longest = Diameters(0.0, 0.0)
    for d in np.flatnonzero(mask.any(axis=(1, 2))):
        outline = _outline(probability[d], _largest_part(mask[d])) * spacing_mm
        hull = outline[ConvexHull(outline, qhull_options="QJ").vertices]  # joggled: an outline may be flat
        distances = squareform(pdist(hull))
        one, other = np.unravel_index(distances.argmax(), distances.shape)
        if distances[one, other] > longest.long_mm:
            short_mm = _longest_chord_across(hull, hull[other] - hull[one])
            longest = Diameters(float(distances[one, other]), short_mm)
    return longest


def _largest_part(plane: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a slice (H, W) bool, which marks at least one pixel."""
    labels, _ = ndimage.label(plane)
    return labels == 1 + np.bincount(labels[plane])[1:].argmax()


def _outline(probability: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return where the outline of a part passes between one of its pixels and a pixel next to it.

    Args:
      probability: (H, W); beyond the border it counts as 0.
      part: (H, W) bool.

    Returns:
      (n, 2) in pixels along H and W.
    """
    probability, part = np.pad(probability.astype(np.float64), 1), np.pad(part, 1)
    points = []
    for axis, step in ((0, -1), (0, 1), (1, -1), (1, 1)):
        pixels = np.argwhere(part & ~np.roll(part, -step, axis))
        inside = probability[tuple(pixels.T)]
        outside = np.minimum(np.roll(probability, -step, axis)[tuple(pixels.T)], THRESHOLD)
        points.append(pixels + _crossing(inside, outside)[:, None] * step * np.eye(2)[axis])
    return np.concatenate(points) - 1


def _crossing(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Return how far between the centres of two pixels the edge lies: 0 at the inner one, 1 at the outer one.

    Where the probability falls off over several pixels, the edge lies where it crosses the threshold, by linear
    interpolation as in marching squares. An edge narrower than a pixel shows in the share of the pixels that it cuts:
    it lies where both shares together put it. In between, the one turns into the other.

    Args:
      inside: probability of the inner pixels, above the threshold.
      outside: probability of the outer pixels, at most the threshold.
    """
    fall = inside - outside
    interpolated = (inside - THRESHOLD) / fall
    by_shares = np.clip(inside + outside - 0.5, 0, 1)
    steep = np.clip((fall - 0.4) / 0.2, 0, 1)  # the edge of a voxel's share falls by at least 0.5
    return (1 - steep) * interpolated + steep * by_shares


def _longest_chord_across(hull: np.ndarray, direction: np.ndarray) -> float:
    """Return the longest chord of a convex polygon that is perpendicular to a direction.

    Args:
      hull: (n, 2), the corners in order.
      direction: (2,) of any length.
    """
    along = direction / np.linalg.norm(direction)
    u, v = hull @ along, hull @ np.array([-along[1], along[0]])
    next_u, next_v = np.roll(u, -1), np.roll(v, -1)
    # The length of the chord is piecewise linear between the corners, so the longest one starts from a corner.
    edge = np.where(next_u == u, np.inf, next_u - u)
    share = (u[:, None] - u) / edge  # (corner, edge): where on the edge the chord from the corner ends
    ends = np.where((share >= 0) & (share <= 1), v + share * (next_v - v), v[:, None])
    return float((ends.max(axis=1) - ends.min(axis=1)).max())


def _rounded(value: float, digits: int) -> float:
    """Round half up, as people do; halves are recognised in spite of the error of binary fractions."""
    return float(np.floor(value * 10**digits + 0.5 + 1e-9) / 10**digits)
