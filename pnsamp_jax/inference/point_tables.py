"""Read the points of nodules from tables: our own, those of LUNA16 and LUNA25, and 3D Slicer's."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydicom.errors import InvalidDicomError

from pnsamp_jax.ct.archives import ARCHIVE_SUFFIXES, unpacked
from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES
from pnsamp_jax.ct.notes import note
from pnsamp_jax.data.csv_tables import Row, column_names, number, read_table
from pnsamp_jax.data.named_scans import only_scan, scans_by_uid
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under, readable, user_path
from pnsamp_jax.inference.requests import Request, in_image, named_image

POINT_COLUMNS = {"mm": ("x_mm", "y_mm", "z_mm"), "ras": ("x_mm", "y_mm", "z_mm"), "voxel": ("i", "j", "k")}
# The columns of other tables: of the series, and of the point in LPS mm.
CHALLENGES = (
    ("seriesuid", ("coordx", "coordy", "coordz")),  # LUNA16
    ("seriesinstanceuid", ("coordx", "coordy", "coordz")),  # LUNA25
)
SLICER_AXES = {"mm": ("l", "p", "s"), "ras": ("r", "a", "s")}
SCORES = ("probability", "score", "label_scores")


def read_point_table(table: Path, image: str, units: str, series: str, min_score: float) -> Iterable[Request]:
    """Return the nodules of a table, whose columns tell its kind; further columns of our own are ignored.

    Args:
      table: its path.
      image: of all points, or the folder of the images that a challenge's table names; "" if the table names them.
      units: of our own table, one of `requests.UNITS`.
      series: SeriesInstanceUID in the image's folder where the table names none; "" for the only one.
      min_score: rows with a lower score are left out.

    Raises:
      UserError: the table cannot be read, or does not tell in which image its points lie.
    """
    names = column_names(table)
    if {"nodule_id", *POINT_COLUMNS[units]} <= names:
        return _read_own(table, image, names, units, series, min_score)
    for uid_column, columns in CHALLENGES:
        if uid_column in names:
            return _read_challenge(table, image, uid_column, columns, series, min_score)
    for own, columns in SLICER_AXES.items():
        if {"label", *columns} <= names:
            rows = read_table(table, columns)
            placed = ((where, row) for where, row in rows if row.get("defined") != "0")
            kept = ((where, row) for where, row in placed if not _scored_below(where, row, min_score))
            points = [(row.get("label", ""), _point(where, row, columns)) for where, row in kept]
            return in_image(image, series, points, own)
    return _read_own(table, image, names, units, series, min_score)


def _point(where: str, row: Row, columns: tuple[str, ...]) -> np.ndarray:
    return np.array([number(where, row, name) for name in columns])


def _scored_below(where: str, row: Row, min_score: float) -> bool:
    """Return whether a row has a lower score. A column of that name may hold something else if no score is asked."""
    if min_score <= 0:
        return False
    scores = [number(where, row, name) for name in SCORES if row.get(name)]
    return bool(scores) and scores[0] < min_score


def _read_own(
    table: Path, image: str, names: set[str], units: str, series: str, min_score: float
) -> Iterator[Request]:
    """Read a table with the columns that own-ct.md names. Nodules of one image need no ids."""
    if image and "image" in names:
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV, which names images")
    numbered = "nodule_id" not in names and set(POINT_COLUMNS[units]) <= names
    columns = (*(() if numbered else ("nodule_id",)), *(() if image else ("image",)), *POINT_COLUMNS[units])
    rows = list(read_table(table, columns))
    if numbered and not image and len({row["image"] for _, row in rows}) > 1:
        raise UserError(f"{table}, line 1: no column nodule_id; the nodules of several images need it")
    listed = {row["series"] for _, row in rows if row.get("series")}
    only = _series_of_file(table, user_path(image), listed, series) if image else ""
    for index, (where, row) in enumerate(rows, start=1):
        if _scored_below(where, row, min_score) or (only and row.get("series", only) not in ("", only)):
            continue
        named = image or row["image"]
        path = user_path(image) if image else named_image(table.parent, named)
        name = f"nodule_{index}" if numbered else row["nodule_id"]
        point = _point(where, row, POINT_COLUMNS[units])
        yield Request(name, readable(named), path, point, row.get("series") or series, units)


def _read_challenge(
    table: Path, image: str, uid_column: str, columns: tuple[str, ...], series: str, min_score: float
) -> Iterator[Request]:
    """Read a table of LUNA16 or LUNA25, whose images are found by their SeriesInstanceUID in a folder.

    Where one file is given instead, the rows of other series are left out.
    """
    if not image:
        raise UserError(f"config.predict.image: is empty; give the folder that holds the images that {table} names")
    root = user_path(image)
    rows = list(read_table(table, (uid_column, *columns)))
    only = _series_of_file(table, root, {row[uid_column] for _, row in rows}, series)
    files = scans_by_uid(root, *IMAGE_SUFFIXES)
    counts: dict[str, int] = {}
    for where, row in rows:
        uid = row[uid_column]
        counts[uid] = counts.get(uid, 0) + 1  # before the scores, so that ids do not depend on `min_score`
        if _scored_below(where, row, min_score) or (only and uid != only):
            continue
        path, chosen = (only_scan(files[uid]), "") if uid in files else (root, uid)
        name = f"{uid}_{counts[uid]}"
        yield Request(name, readable(str(path)), path, _point(where, row, columns), chosen)


def _series_of_file(table: Path, image: Path, uids: set[str], series: str) -> str:
    """Return which series of a table one image file is; "" for a folder or archive, in which any can be found.

    Args:
      table: the path of the table.
      image: the path of the image.
      uids: SeriesInstanceUIDs that the table names.
      series: the one that the user has chosen, or "".

    Raises:
      UserError: the file may be of any of several series.
    """
    if not image.is_file() or not uids:
        return ""
    ending = next((end for end in (*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES) if image.name.lower().endswith(end)), "")
    own = {series, image.name[: len(image.name) - len(ending)]} & uids
    if not own and not ending:
        own = {_header_uid(image)} & uids
    if not own and len(uids) > 1 and ending in ARCHIVE_SUFFIXES:
        with unpacked(str(image)) as folder:
            if not files_under(folder, *IMAGE_SUFFIXES):  # DICOM, of which a series is chosen
                return ""
    if len(own) != 1 and len(uids) > 1:
        raise UserError(
            f"{table}: names several series, and none is that of {image}; give the folder that holds their images, or "
            "choose by config.predict.series=UID"
        )
    only = series if series in own else next(iter(own or uids))
    if len(uids) > 1:
        note(f"{table}: the rows of {len(uids) - 1} other series than {only} are left out")
    return only


def _header_uid(image: Path) -> str:
    """Return the SeriesInstanceUID of a DICOM file, "" if it is none."""
    with quiet_pydicom():
        try:
            return str(read_dataset(image, stop_before_pixels=True).get("SeriesInstanceUID", ""))
        except (InvalidDicomError, *DAMAGED):
            return ""
