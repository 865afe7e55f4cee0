"""Closed contours of a region in one slice, in pixel coordinates: what they enclose, and whether that is clear."""

from collections.abc import Sequence

import numpy as np
from matplotlib.path import Path as Polygon
from scipy.spatial import cKDTree

SAME = 0.2  # pixels; contours nowhere farther apart are one, stored twice and rounded
RING = 0.9  # pixels; a ring that is nowhere wider, so nowhere as wide as a pixel, is rather between two copies
CROSSED = 0.5  # pixels; contours reach farther into each other only if they cross, and do not just touch
STEP = 0.1  # pixels between the points at which distances are taken


class UnclearContours(ValueError):
    """Two contours that enclose no clear region. The message says how they lie; `index` is that of the second."""

    def __init__(self, reason: str, index: int):
        super().__init__(reason)
        self.index = index


def enclosed(contours: Sequence[np.ndarray], shape: Sequence[int], crossing: bool = False) -> np.ndarray:
    """Return the pixels whose centres lie inside an odd number of contours, so that one within another is a hole.

    A contour that is stored again, wherever it starts and in whichever direction it runs, counts once.

    Args:
      contours: (n, 2) each, row and column of the vertices.
      shape: (height, width) of the slice.
      crossing: whether contours may cross each other.

    Returns:
      (height, width) bool.

    Raises:
      UnclearContours: two contours cross, or lie less than a pixel apart all round.
    """
    mask = np.zeros(shape, bool)
    kept: list[_Outline] = []
    for index, points in enumerate(contours):
        if len(points) < 3:  # encloses nothing
            continue
        outline = _Outline(points)
        relations = [] if len(contours) == 1 else [outline.relation_to(other) for other in kept]
        if "same" in relations:
            continue
        if "near" in relations:
            raise UnclearContours("lie less than a pixel apart all round, as if one outline was stored twice", index)
        if "crossing" in relations and not crossing:
            raise UnclearContours("cross, which leaves open what they enclose", index)
        kept.append(outline)
        mask ^= _inside(points, shape)
    return mask


class _Outline:
    """A contour and points along it, for distances from it."""

    def __init__(self, points: np.ndarray):
        self.polygon = Polygon(np.concatenate([points, points[:1]]), closed=True)
        self.low, self.high = points.min(axis=0), points.max(axis=0)
        edges = np.roll(points, -1, axis=0) - points
        counts = np.ceil(np.linalg.norm(edges, axis=1) / STEP).astype(int).clip(1)
        share = np.concatenate([np.arange(count) / count for count in counts])
        self.along = np.repeat(points, counts, axis=0) + share[:, None] * np.repeat(edges, counts, axis=0)
        self._tree: cKDTree | None = None

    def distances_of(self, points: np.ndarray) -> np.ndarray:
        """Return the distances (n,) of points from the contour, in pixels."""
        if self._tree is None:
            self._tree = cKDTree(self.along)
        return self._tree.query(points)[0]

    def relation_to(self, other: "_Outline") -> str:
        """Return "same", "near" or "crossing"; "" if the contours lie apart or one within the other."""
        if (self.low > other.high).any() or (other.low > self.high).any():
            return ""
        shorter, longer = sorted((self, other), key=lambda outline: len(outline.along))
        away = longer.distances_of(shorter.along)
        if away.max() <= RING:
            apart = max(away.max(), shorter.distances_of(longer.along).max())
            if apart <= RING:
                return "same" if apart <= SAME else "near"
        within = longer.polygon.contains_points(shorter.along)
        clear = away > CROSSED
        return "crossing" if (within & clear).any() and (~within & clear).any() else ""


def _inside(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return which pixel centres of a slice lie inside a polygon with vertices (n, 2): (h, w) bool, by even-odd."""
    pixels = np.indices(shape).reshape(2, -1).T
    low, high = points.min(axis=0), points.max(axis=0)
    near = ((pixels >= low) & (pixels <= high)).all(axis=1)
    inside = np.zeros(len(pixels), bool)
    inside[near] = Polygon(np.concatenate([points, points[:1]]), closed=True).contains_points(pixels[near])
    return inside.reshape(shape)
