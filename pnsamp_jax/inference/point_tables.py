"""Read the points of nodules from tables: our own, those of LUNA16 and LUNA25, and 3D Slicer's."""

from pathlib import Path

import numpy as np
from pydicom.errors import InvalidDicomError

from pnsamp_jax.ct.archives import ARCHIVE_SUFFIXES, unpacked
from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES
from pnsamp_jax.ct.notes import note
from pnsamp_jax.data.csv_tables import Row, column_names, is_missing, number, plain_name, read_table
from pnsamp_jax.data.named_scans import named_scans, note_passed_over, only_scan
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under, readable, user_path
from pnsamp_jax.inference.point_scores import SCORES, score_of_row
from pnsamp_jax.inference.requests import Points, Request, in_image, named_image

POINT_COLUMNS = {"mm": ("x_mm", "y_mm", "z_mm"), "ras": ("x_mm", "y_mm", "z_mm"), "voxel": ("i", "j", "k")}
# Other tables: whose they are, and their columns of the series and of the point in LPS mm.
CHALLENGES = (
    ("LUNA16", "seriesuid", ("coordx", "coordy", "coordz")),
    ("LUNA25", "seriesinstanceuid", ("coordx", "coordy", "coordz")),
)
SLICER_AXES = {"mm": ("l", "p", "s"), "ras": ("r", "a", "s")}


def read_point_table(table: Path, image: str, units: str, series: str, min_score: float) -> Points:
    """Return the nodules of a table, whose columns tell its kind; further columns of our own are ignored.

    Args:
      table: its path.
      image: of all points, or the folder of the images that a challenge's table names; "" if the table names them.
      units: of our own table, one of `requests.UNITS`.
      series: SeriesInstanceUID in the image's folder where the table names none; "" for the only one.
      min_score: scores are read if it is not 0; a column of that name may hold something else if none is asked.

    Raises:
      UserError: the table cannot be read, or does not tell in which image its points lie.
    """
    names = column_names(table)
    plain, optional = set(map(plain_name, names)), SCORES if min_score > 0 else ()
    fields = sorted(names - {""})
    if set(map(plain_name, ("nodule_id", *POINT_COLUMNS[units]))) <= plain:
        return Points(_read_own(table, image, plain, units, series, optional), fields)
    for challenge, uid_column, columns in CHALLENGES:
        if uid_column in plain:
            found = _read_challenge(table, image, uid_column, columns, series, optional)
            return Points(found, fields, convention=challenge)
    for own, columns in SLICER_AXES.items():
        if {"label", *columns} <= plain:
            rows = read_table(table, columns, optional=("label", "defined", *optional))
            placed = [(where, row) for where, row in rows if row.get("defined") != "0"]
            points = [(row.get("label", ""), _point(where, row, columns)) for where, row in placed]
            scores = [_score(where, row, optional) for where, row in placed]
            return Points(in_image(image, series, points, own, scores), fields, states_units=True)
    return Points(_read_own(table, image, plain, units, series, optional), fields)


def _point(where: str, row: Row, columns: tuple[str, ...]) -> np.ndarray:
    return np.array([number(where, row, name) for name in columns])


def _score(where: str, row: Row, asked: tuple[str, ...]) -> float | None:
    return score_of_row(where, row) if asked else None


def _read_own(
    table: Path, image: str, names: set[str], units: str, series: str, scores: tuple[str, ...]
) -> list[Request]:
    """Read a table with the columns that own-ct.md names. Nodules of one image need no ids.

    Args:
      table: its path.
      image: of all points, or "".
      names: plain names of the table's columns.
      units: of the points.
      series: SeriesInstanceUID where a row names none, or "".
      scores: names of columns in which scores are looked for.
    """
    if image and "image" in names:
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV, which names images")
    others = [unit for unit, columns in POINT_COLUMNS.items() if _has(names, columns)]
    if others and units not in others:
        other, columns = others[0], POINT_COLUMNS[others[0]]
        raise UserError(
            f"{table}: has the columns {', '.join(columns)}, but config.predict.units is {units}; set it to {other}"
        )
    numbered = plain_name("nodule_id") not in names
    columns = (*POINT_COLUMNS[units], *(() if image else ("image",)), *(() if numbered else ("nodule_id",)))
    rows = list(read_table(table, columns, optional=("series", *scores)))
    for _, row in rows:
        if is_missing(row.get("series", "")):
            row["series"] = ""
    if numbered and not image and len({row["image"] for _, row in rows}) > 1:
        raise UserError(f"{table}, line 1: no column nodule_id; the nodules of several images need it")
    listed = {row["series"] for _, row in rows if row["series"]}
    only = _series_of_file(table, user_path(image), listed, series) if image else ""
    found = []
    for index, (where, row) in enumerate(rows, start=1):
        if only and row["series"] not in ("", only):
            continue
        named = image or row["image"]
        path = user_path(image) if image else named_image(table.parent, named)
        name = f"nodule_{index}" if numbered else row["nodule_id"]
        point, score = _point(where, row, POINT_COLUMNS[units]), _score(where, row, scores)
        found.append(Request(name, readable(named), path, point, row["series"] or series, units, score))
    return found


def _has(names: set[str], columns: tuple[str, ...]) -> bool:
    return {plain_name(column) for column in columns} <= names


def _read_challenge(
    table: Path, image: str, uid_column: str, columns: tuple[str, ...], series: str, scores: tuple[str, ...]
) -> list[Request]:
    """Read a table of LUNA16 or LUNA25, whose images are found by their SeriesInstanceUID in a folder.

    Where one file is given instead, the rows of other series are left out.
    """
    if not image:
        raise UserError(f"config.predict.image: is empty; give the folder that holds the images that {table} names")
    root = user_path(image)
    rows = list(read_table(table, (uid_column, *columns), optional=scores))
    only = _series_of_file(table, root, {row[uid_column] for _, row in rows}, series)
    scans = named_scans(root, *IMAGE_SUFFIXES)
    note_passed_over(root, scans)
    files = scans.by_uid
    counts: dict[str, int] = {}
    found = []
    for where, row in rows:
        uid = row[uid_column]
        counts[uid] = counts.get(uid, 0) + 1
        if only and uid != only:
            continue
        path, chosen = (only_scan(files[uid]), "") if uid in files else (root, uid)
        name, point = f"{uid}_{counts[uid]}", _point(where, row, columns)
        found.append(Request(name, readable(str(path)), path, point, chosen, score=_score(where, row, scores)))
    return found


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
            "choose by series=UID"
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
