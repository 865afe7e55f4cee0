"""Read the points of nodules: as a user types them, and from the files in which they come.

    x,y,z;x,y,z            typed
    .csv, .tsv             our own table, those of LUNA16 and LUNA25 (one row for a nodule), or 3D Slicer's
    .mrk.json, .fcsv       3D Slicer's point lists and boxes
    .json                  detections of MONAI's lung nodule bundle
    .nii.gz, .nrrd, .dcm   masks, such as TotalSegmentator's lung_nodules: see `mask_points`

Each file's own system of coordinates is used: LUNA16's and MONAI's world is LPS mm, and 3D Slicer's files name theirs.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.data.csv_tables import column_names, number, read_table
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under, readable, user_path
from pnsamp_jax.inference.mask_points import is_mask_file, read_mask_points
from pnsamp_jax.inference.requests import Request, require_ids

POINT_COLUMNS = {"mm": ("x_mm", "y_mm", "z_mm"), "ras": ("x_mm", "y_mm", "z_mm"), "voxel": ("i", "j", "k")}
# The columns of other tables: of the series, and of the point in LPS mm.
CHALLENGES = (
    ("seriesuid", ("coordx", "coordy", "coordz")),  # LUNA16
    ("seriesinstanceuid", ("coordx", "coordy", "coordz")),  # LUNA25
)
SLICER_AXES = {"mm": ("l", "p", "s"), "ras": ("r", "a", "s")}
SLICER_SYSTEMS = {"lps": "mm", "1": "mm", "ras": "ras", "0": "ras"}
FCSV_PLACED = "2"  # what Slicer writes behind the last named column of a point that was placed
SCORES = ("probability", "score", "label_scores")
POINT_SEPARATOR = re.compile(r";|(?<=[)\]])\s*,?\s*(?=[(\[])")  # "x,y,z;x,y,z", or "(x,y,z), (x,y,z)"
IMAGE_ENDINGS = (".mhd", ".mha", ".nii.gz", ".nii", ".nrrd")  # of files that are named after a series
FIELD = "config.predict.points"


def read_requests(image: str, points: str, units: str, series: str = "", min_score: float = 0.0) -> list[Request]:
    """Return the nodules that a user asks for, in the order in which they were given.

    Args:
      image: the path of the image of all points; for LUNA16's tables the folder that holds all images; "" if the file
        of the points names its images.
      points: "x,y,z;x,y,z", or the path of a file of one of the kinds that this module's docstring lists.
      units: of typed points and of our own table, one of `requests.UNITS`; other files have their own.
      series: SeriesInstanceUID of the CT series to read, where an image's folder holds several and the table has no
        column `series` with another; "" for the only one.
      min_score: detections with a lower score are left out.

    Raises:
      UserError: the points are missing or malformed, or ids repeat.
    """
    lower = points.lower().rstrip()
    if lower.endswith((".csv", ".tsv", ".fcsv", ".json")):
        read = _read_fcsv if lower.endswith(".fcsv") else _read_json if lower.endswith(".json") else _read_table
        requests = list(read(user_path(points), image, units, series, min_score))
    elif is_mask_file(user_path(points)):
        found = read_mask_points(user_path(points), user_path(_given(image)), series)
        requests = _in_image(image, series, found, "mm")
    elif _is_there(points):
        raise UserError(f"{points}: is no file of points that is read; give .csv, .tsv, .fcsv, .json or a mask")
    else:
        requests = _read_typed(points, image, units, series)
        points = FIELD
    if not requests:
        raise UserError(f"{points}: holds no nodule" + (f" with a score of at least {min_score:g}" * (min_score > 0)))
    return require_ids(requests)


def _read_typed(points: str, image: str, units: str, series: str) -> list[Request]:
    found = []
    for text in filter(str.strip, POINT_SEPARATOR.split(points)):
        try:
            point = np.array([float(part) for part in re.split(r"[\s,]+", text.replace("−", "-").strip(" ()[]"))])
        except ValueError:
            point = np.array([])
        if point.shape != (3,) or not np.isfinite(point).all():
            raise UserError(f"{FIELD}: '{text.strip()}' is not a point; give 'x,y,z;x,y,z' or a file of points")
        found.append(("", point))
    if not found:
        raise UserError(f"{FIELD}: is empty; give 'x,y,z;x,y,z' in mm (LPS) or a file of points")
    return _in_image(image, series, found, units)


def _in_image(image: str, series: str, points: list[tuple[str, np.ndarray]], units: str) -> list[Request]:
    """Return requests for points with names in one image. A name that cannot be part of a file's is replaced."""
    _given(image)
    names = [re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:100] for name, _ in points]
    unique = len(set(names)) == len(names) and all(names)
    names = names if unique else [f"nodule_{index}" for index in range(1, len(points) + 1)]
    return [
        Request(name, readable(image), user_path(image), point, series, units)
        for name, (_, point) in zip(names, points, strict=True)
    ]


def _given(image: str) -> str:
    if not image:
        raise UserError("config.predict.image: is empty; give an image file or a folder that holds one DICOM series")
    return image


# Tables


def _is_there(points: str) -> bool:
    try:
        return bool(points.strip()) and user_path(points).exists()
    except OSError:  # many typed points are too long for a name
        return False


def _read_table(table: Path, image: str, units: str, series: str, min_score: float) -> Iterator[Request]:
    names = column_names(table)
    for uid_column, columns in CHALLENGES:
        if uid_column in names:
            return _read_challenge(table, image, uid_column, columns, min_score)
    for own, columns in SLICER_AXES.items():
        if {"label", *columns} <= names:
            rows = read_table(table, columns)
            placed = ((where, row) for where, row in rows if row.get("defined") != "0")
            points = [(row.get("label", ""), _point(where, row, columns)) for where, row in placed]
            return iter(_in_image(image, series, points, own))
    return _read_own(table, image, "image" in names, units, series, min_score)


def _point(where: str, row: Any, columns: tuple[str, ...]) -> np.ndarray:
    return np.array([number(where, row, name) for name in columns])


def _read_own(
    table: Path, image: str, names_images: bool, units: str, series: str, min_score: float
) -> Iterator[Request]:
    if image and names_images:
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV, which names images")
    columns = ("nodule_id", *(() if image else ("image",)), *POINT_COLUMNS[units])
    for where, row in read_table(table, columns):
        if _scored_below(where, row, min_score):
            continue
        named = image or row["image"]
        path = user_path(image) if image else table.parent / user_path(named)
        point = _point(where, row, POINT_COLUMNS[units])
        yield Request(row["nodule_id"], readable(named), path, point, row.get("series") or series, units)


def _scored_below(where: str, row: Any, min_score: float) -> bool:
    scores = [number(where, row, name) for name in SCORES if row.get(name)]
    return bool(scores) and scores[0] < min_score


def _read_challenge(
    table: Path, image: str, uid_column: str, columns: tuple[str, ...], min_score: float
) -> Iterator[Request]:
    """Read a table of LUNA16 or LUNA25, whose images are found by their SeriesInstanceUID in a folder."""
    if not image:
        raise UserError(f"config.predict.image: is empty; give the folder that holds the images that {table} names")
    root = user_path(image)
    files: dict[str, Path] = {}
    counts: dict[str, int] = {}
    for path in files_under(root, *IMAGE_ENDINGS):
        ending = next(ending for ending in IMAGE_ENDINGS if path.name.lower().endswith(ending))
        files.setdefault(path.name[: -len(ending)], path)
    for where, row in read_table(table, (uid_column, *columns)):
        uid = row[uid_column]
        counts[uid] = counts.get(uid, 0) + 1  # before the scores, so that ids do not depend on `min_score`
        if _scored_below(where, row, min_score):
            continue
        path, series = (files[uid], "") if uid in files else (root, uid)
        name = f"{uid}_{counts[uid]}"
        yield Request(name, readable(str(path)), path, _point(where, row, columns), series)


# 3D Slicer and MONAI


def _read_fcsv(file: Path, image: str, units: str, series: str, min_score: float) -> list[Request]:
    """Read a point list of 3D Slicer before 5, whose header names the system: 0 or RAS, 1 or LPS."""
    lines = _text(file).splitlines()
    header = dict(re.findall(r"^#\s*(\w+)\s*=\s*(.*?)\s*$", "\n".join(lines), re.MULTILINE))
    names = [name.strip() for name in header.get("columns", "").split(",")]
    if not {"x", "y", "z"} <= set(names):
        raise UserError(f"{file}: has no line '# columns = id,x,y,z,...'; export the points from 3D Slicer again")
    own = _slicer_units(file, header.get("CoordinateSystem"))
    points = []
    for count, fields in enumerate(csv.reader(line for line in lines if line.strip() and line[0] != "#"), start=1):
        row = dict(zip(names, fields, strict=False))
        if fields[len(names) : len(names) + 1] not in ([], [""], [FCSV_PLACED]):
            continue
        points.append((row.get("label", ""), _numbers(f"{file}, point {count}", [row.get(axis) for axis in "xyz"])))
    return _in_image(image, series, points, own)


def _slicer_units(file: Path, system: Any) -> str:
    if str(system).lower() not in SLICER_SYSTEMS:
        raise UserError(f"{file}: its coordinate system is {system}; save the points as LPS or RAS")
    return SLICER_SYSTEMS[str(system).lower()]


def _read_json(file: Path, image: str, units: str, series: str, min_score: float) -> list[Request]:
    """Read a file of 3D Slicer's Markups module, or the boxes that MONAI's detector writes."""
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); export it again") from error
    if isinstance(content, dict) and "markups" in content:
        return _read_markups(file, content["markups"], image, series)
    parts = content.values() if isinstance(content, dict) and "box" not in content else [content]
    cases = [case for part in parts for case in (part if isinstance(part, list) else [part])]
    if not cases or not all(isinstance(case, dict) and "box" in case for case in cases):
        raise UserError(f"{file}: holds neither 3D Slicer's markups nor detected boxes; give one of these, or a CSV")
    images = [case.get("image", "") for case in cases]
    if not image and not all(isinstance(named, str) and named for named in images):
        raise UserError(f"{file}: does not name the image of every box; give the CT, by config.predict.image")
    if image and any(named != images[0] for named in images):
        raise UserError(
            f"{file}: holds the boxes of several images; leave out config.predict.image, since it names them"
        )
    found: list[Request] = []
    for case, named in zip(cases, images, strict=True):
        boxes, scores = _boxes(f"{file}, {image or named}", case)
        kept = [("", box) for box, score in zip(boxes, scores, strict=True) if score >= min_score]
        path = image or str(file.parent / user_path(named))
        found += _in_image(path, series, kept, "mm") if kept else []
    return _told_apart(found)


def _boxes(where: str, case: dict[str, Any]) -> tuple[list[np.ndarray], list[float]]:
    """Return the centres of the boxes of an image, and their scores.

    A box is its centre and the lengths of its sides. Boxes with two corners would give other points, and nearly always
    have a negative number where a length must be.
    """
    boxes = case["box"] if isinstance(case["box"], list) else [case["box"]]
    centres = [_numbers(where, box[:3] if isinstance(box, list) else box) for box in boxes]
    for box in boxes:
        if len(box) != 3 and (len(box) != 6 or min(_numbers(where, box[3:])) <= 0):
            raise UserError(f"{where}: {box} is no box; give its centre and the lengths of its sides")
    given = next((case[name] for name in SCORES if name in case), [1.0] * len(boxes))
    try:
        scores = [float(np.max(score)) for score in given]
    except (TypeError, ValueError):
        scores = []
    if len(scores) != len(boxes):
        raise UserError(f"{where}: its scores are not a number for each of the {len(boxes)} boxes; detect them again")
    return centres, scores


def _read_markups(file: Path, markups: Any, image: str, series: str) -> list[Request]:
    found: list[Request] = []
    try:
        for markup in markups:
            if markup["type"] not in ("Fiducial", "ROI"):
                raise UserError(f"{file}: holds a {markup['type']}; mark nodules by points or boxes (ROI)")
            if markup.get("coordinateUnits", "mm") not in ("mm", ["mm"] * 3):
                raise UserError(f"{file}: its coordinateUnits are {markup['coordinateUnits']}; save the points in mm")
            placed = [p for p in markup["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
            points = [(str(point.get("label", "")), _numbers(str(file), point["position"])) for point in placed]
            if markup["type"] == "ROI" and points and "center" in markup:  # its points may be what it was drawn around
                points = [(points[0][0], _numbers(str(file), markup["center"]))]
            found += _in_image(image, series, points, _slicer_units(file, markup.get("coordinateSystem")))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not written by 3D Slicer's Markups module, or damaged ({error})") from error
    return _told_apart(found)


def _told_apart(requests: list[Request]) -> list[Request]:
    """Return the requests of several parts of a file, numbered throughout if two parts gave the same name."""
    if len({request.nodule_id for request in requests}) == len(requests):
        return requests
    return [request._replace(nodule_id=f"nodule_{index}") for index, request in enumerate(requests, start=1)]


def _numbers(where: str, values: Any) -> np.ndarray:
    try:
        point = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        point = np.array([])
    if point.shape != (3,) or not np.isfinite(point).all():
        raise UserError(f"{where}: {values} is not a point of three numbers")
    return point


def _text(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file}: no such file; correct the path")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not text in UTF-8; export it again") from error
