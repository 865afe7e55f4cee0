"""The `background` source: points beside the nodules of another source, where no reader marked anything.

From them a network's answers learn what does not look like a nodule: vessels, the chest wall, the mediastinum, air and
healthy lung. A point lies at least `APART_MM` from the centre of every marked nodule of its series and `CLEARANCE_MM`
from every marked voxel; the patch around it lies within the image in the axial plane, and there is a body in it. Half
of the points are drawn uniformly, the other half are moved to the brightest voxel near by, so that vessels and bones
come in. A thin image is continued beyond its ends, as it is for nodules.

A nodule may still reach into the patch. The mask of a point's record is therefore that of the nodules in it, and
whoever asks a network about the point clears them first (`appearance.cleared`).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import Geometry, MarkedNodule, Unusable, consensus_centroid, patch_affine, sample
from pnsamp_jax.data.phantom_voxels import named_generator
from pnsamp_jax.data.prepare import Source
from pnsamp_jax.errors import UserError

VERSION = 1  # raise it when other points are drawn
APART_MM = 15.0  # least distance from the centre of a nodule
CLEARANCE_MM = 5.0  # and from its marked voxels, which reach further in a large one
BRIGHT_MM = 5.0  # how far a point is moved to a brighter voxel
EMPTY_HU = -950.0  # a patch whose mean is lower shows the air around the body; that of healthy lung is about -850
BATCH, BATCHES = 256, 40  # candidates that are drawn at once, and how often


@dataclass(frozen=True)
class BackgroundSource:
    """Points beside the nodules of a source; its series are the source's.

    Attributes:
      source: of the nodules.
      per_nodule: how many points are drawn in the image of each nodule; an image may have room for fewer, or none.
      geometry: of the patches around the points.
      seed: determines the points, together with the nodules' ids.
    """

    source: Source
    per_nodule: int
    geometry: Geometry
    seed: int = 0

    name = "background"

    def series(self) -> list[str]:
        """Return the series of the source."""
        return self.source.series()

    def load(self, series: str) -> list[MarkedNodule]:
        """Return the points of one series as nodules without ratings, whose mask is that of the nodules near by.

        Raises:
          UserError: as the source, or a nodule of the series is unusable.
        """
        nodules = self._nodules(series)
        centres = np.stack([_centre(one) for one in nodules])
        marks = [_marked_mm(one.readers) for one in nodules]
        found = []
        for nodule in nodules:
            random = named_generator(self.seed, f"{nodule.nodule.nodule_id} beside")
            side_mm = self.geometry.patch_size * self.geometry.spacing_mm
            drawn = draw_points(nodule.ct, centres, np.concatenate(marks), self.per_nodule, side_mm, random)
            for number, point in enumerate(drawn):
                ids = (f"{nodule.nodule.nodule_id}_beside{number}", nodule.nodule.patient_id)
                described = Nodule(*ids, np.zeros((0, len(schema.RATINGS)), int))
                mask = self._mask(point, nodules, marks)
                found.append(MarkedNodule(described, nodule.ct, mask, nodule.context, point))
        return found

    def _nodules(self, series: str) -> list[MarkedNodule]:
        """Return the nodules of one series, all of which have to be known: a point could lie within the others."""
        with collected():  # the notes came when the nodules were prepared
            loaded = self.source.load(series)
        found = []
        for one in loaded:
            if isinstance(one, Unusable):
                raise UserError(f"no point is drawn beside its nodules, since one of them is not known: {one.reason}")
            found.append(one)
        return found

    def _mask(self, point: np.ndarray, nodules: list[MarkedNodule], marks: list[np.ndarray]) -> Volume:
        """Return on the grid of a point's stored patch which voxels any reader marked, (1, S, S, S) bool."""
        size, spacing_mm = self.geometry.stored_size, self.geometry.spacing_mm
        marked = np.zeros((size,) * 3, bool)
        for one, own in zip(nodules, marks, strict=True):
            if (np.abs(own - point).max(axis=1) <= size * spacing_mm).any():
                union = Volume(np.any(one.readers.array, axis=0).astype(np.float32), one.readers.affine)
                marked |= sample(union, point, size, spacing_mm, outside="grid-constant") > 0
        return Volume(marked[None], patch_affine(point, size, spacing_mm))

    def description(self) -> dict[str, Any]:
        """Return what determines the points: that of the source and the settings."""
        return {
            "source": self.name,
            "of": self.source.description(),
            "version": VERSION,
            "per_nodule": self.per_nodule,
            "geometry": asdict(self.geometry),
            "seed": self.seed,
        }

    def inputs(self, series: str) -> Any:
        """Return those of the source."""
        return self.source.inputs(series)


def draw_points(
    ct: Volume, centres: np.ndarray, marks: np.ndarray, count: int, side_mm: float, random: np.random.Generator
) -> np.ndarray:
    """Draw points of a CT that are beside its nodules; see the module's docstring.

    Args:
      ct: the image.
      centres: (n, 3) of its nodules, LPS mm.
      marks: (m, 3) LPS mm of the voxels that any reader marked; (0, 3) where they are not known.
      count: how many points; every second one is moved to the brightest voxel near by.
      side_mm: of the patch around a point.
      random: decides the points.

    Returns:
      (k, 3) LPS mm; fewer than `count` where no more are found.
    """
    found: list[np.ndarray] = []
    kept_away = [(KDTree(places), mm) for places, mm in ((centres, APART_MM), (marks, CLEARANCE_MM)) if len(places)]
    candidates = _candidates(ct, kept_away, side_mm, random)
    while len(found) < count and (point := next(candidates, None)) is not None:
        if len(found) % 2:
            point = _brightest(ct, point)
            if not _beside(point[None], kept_away)[0] or not _fits(ct, point[None], side_mm)[0]:
                continue
        if _around(ct, point, side_mm / 2)[0].mean() >= EMPTY_HU:
            found.append(point)
    return np.array(found).reshape(-1, 3)


def _candidates(
    ct: Volume, kept_away: list[tuple[KDTree, float]], side_mm: float, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield points that are drawn uniformly among those beside the nodules whose patch fits."""
    for _ in range(BATCHES):
        points = ct.to_lps(random.uniform(-0.5, np.array(ct.array.shape) - 0.5, (BATCH, 3)))
        points = points[_fits(ct, points, side_mm)]
        yield from points[_beside(points, kept_away)]


def _fits(ct: Volume, points: np.ndarray, side_mm: float) -> np.ndarray:
    """Return whether the axial square around each of (n, 3) points lies within the image: (n,) bool."""
    corners = np.array([(x, y, 0.0) for x in (-0.5, 0.5) for y in (-0.5, 0.5)]) * side_mm
    index = ct.to_index(points[:, None] + corners)
    return np.all((index >= -0.5) & (index <= np.array(ct.array.shape) - 0.5), axis=(1, 2))


def _beside(points: np.ndarray, kept_away: list[tuple[KDTree, float]]) -> np.ndarray:
    """Return which of (n, 3) points keep their distance in mm from the places of each tree: (n,) bool."""
    kept = np.ones(len(points), bool)
    for places, distance_mm in kept_away:
        kept &= places.query(points)[0] >= distance_mm
    return kept


def _brightest(ct: Volume, point: np.ndarray) -> np.ndarray:
    """Return the centre of the brightest voxel within `BRIGHT_MM` of a point, or the point if there is none."""
    hu, centres = _around(ct, point, BRIGHT_MM)
    near = np.linalg.norm(centres - point, axis=-1) <= BRIGHT_MM
    return centres[near][hu[near].argmax()] if near.any() else point


def _around(ct: Volume, point: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the HU of the voxels in a box around a point, as far as the image goes, and their centres in LPS mm."""
    index, reach = ct.to_index(point), reach_mm / ct.spacing
    low = np.clip(np.ceil(index - reach), 0, np.array(ct.array.shape) - 1).astype(int)
    high = np.clip(np.floor(index + reach) + 1, low + 1, ct.array.shape).astype(int)
    places = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
    return ct.array[tuple(map(slice, low, high))], ct.to_lps(places)


def _centre(nodule: MarkedNodule) -> np.ndarray:
    return consensus_centroid(nodule.readers) if nodule.centre_mm is None else np.asarray(nodule.centre_mm)


def _marked_mm(readers: Volume) -> np.ndarray:
    return readers.to_lps(np.argwhere(np.any(readers.array, axis=0)))
