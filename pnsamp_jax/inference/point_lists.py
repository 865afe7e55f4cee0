"""Read the points of nodules from lists of other programs: 3D Slicer, grand-challenge.org and MONAI's detector."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.notes import note
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference.point_scores import score_name, score_of_entry
from pnsamp_jax.inference.requests import Points, Request, in_image, named_image, point_of, told_apart

SLICER_SYSTEMS = {"lps": "mm", "1": "mm", "ras": "ras", "0": "ras"}
IN_MM = ("mm", ["mm", "UCUM", "millimeter"])  # the coordinateUnits of a markup, or their code and what it is from
FCSV_PLACED = "2"  # what Slicer writes behind the last named column of a point that was placed
MAX_SIDE_MM = 100.0  # of a detected box; longer than any nodule or mass that a detector finds
MAX_NODULE_MM = 30.0  # by definition; larger ones are masses


def read_fcsv(file: Path, image: str, series: str) -> Points:
    """Return the points of a list of 3D Slicer before 5, whose header names the system: 0 or RAS, 1 or LPS.

    Raises:
      UserError: the file cannot be read, or is none of this kind.
    """
    lines = _text(file).splitlines()
    header = dict(re.findall(r"^#\s*(\w+)\s*=\s*(.*?)\s*$", "\n".join(lines), re.MULTILINE))
    names = [name.strip() for name in header.get("columns", "").split(",")]
    if not {"x", "y", "z"} <= set(names):
        raise UserError(f"{file}: has no line '# columns = id,x,y,z,...'; export the points from 3D Slicer again")
    if "CoordinateSystem" not in header:
        raise UserError(f"{file}: has no line '# CoordinateSystem = LPS' or RAS; save the points from 3D Slicer again")
    own = _slicer_units(file, header["CoordinateSystem"])
    points = []
    for count, fields in enumerate(csv.reader(line for line in lines if line.strip() and line[0] != "#"), start=1):
        row = dict(zip(names, fields, strict=False))
        if fields[len(names) : len(names) + 1] not in ([], [""], [FCSV_PLACED]):
            continue
        points.append((row.get("label", ""), point_of(f"{file}, point {count}", [row.get(axis) for axis in "xyz"])))
    return Points(in_image(image, series, points, own), states_units=True)


def _slicer_units(file: Path, system: Any) -> str:
    if str(system).lower() not in SLICER_SYSTEMS:
        raise UserError(f"{file}: its coordinate system is {system}; save the points as LPS or RAS")
    return SLICER_SYSTEMS[str(system).lower()]


def read_json(file: Path, image: str, series: str, min_score: float) -> Points:
    """Return the points of a file of 3D Slicer's Markups module, of grand-challenge.org, or of MONAI's detector.

    Args:
      file: its path.
      image: as the user named it; "" if the file names its images.
      series: SeriesInstanceUID in the image's folder; "" for the only one.
      min_score: detections with a lower score may have any size.

    Raises:
      UserError: the file cannot be read, or is none of these kinds.
    """
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); export it again") from error
    if isinstance(content, dict) and "markups" in content:
        return _read_markups(file, content["markups"], image, series)
    if isinstance(content, dict) and {"point", "points"} & content.keys():
        return _read_grand_challenge(file, content, image, series)
    parts = content.values() if isinstance(content, dict) and "box" not in content else [content]
    cases = [case for part in parts for case in (part if isinstance(part, list) else [part])]
    if not cases or not all(isinstance(case, dict) and "box" in case for case in cases):
        raise UserError(f"{file}: holds neither 3D Slicer's markups nor detected boxes; give one of these, or a CSV")
    return _read_boxes(file, cases, image, series, min_score)


def _read_markups(file: Path, markups: Any, image: str, series: str) -> Points:
    found: list[Request] = []
    others: list[str] = []  # what is no point
    try:
        for markup in markups:
            if markup["type"] not in ("Fiducial", "ROI"):
                others.append(str(markup["type"]))
                continue
            if markup.get("coordinateUnits", "mm") not in IN_MM:
                raise UserError(f"{file}: its coordinateUnits are {markup['coordinateUnits']}; save the points in mm")
            placed = [p for p in markup["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
            points = [(str(point.get("label", "")), point_of(str(file), point["position"])) for point in placed]
            if markup["type"] == "ROI" and points and "center" in markup:  # its points may be what it was drawn around
                points = [(points[0][0], point_of(str(file), markup["center"]))]
            found += in_image(image, series, points, _slicer_units(file, markup.get("coordinateSystem", "LPS")))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not written by 3D Slicer's Markups module, or damaged ({error})") from error
    if others and not found:
        raise UserError(f"{file}: holds a {others[0]}; mark nodules by points or boxes (ROI)")
    if others:
        note(f"{file}: passed over what is neither a point nor a box: {', '.join(others)}")
    return Points(told_apart(found), states_units=True)


def _read_grand_challenge(file: Path, content: dict[str, Any], image: str, series: str) -> Points:
    """Read a point or several, in LPS mm, as grand-challenge.org's viewer and algorithms write them."""
    entries = content.get("points", [content])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file}: its points are not a list of {{'point': [x, y, z]}}; export it again")
    points, scores = [], []
    for count, entry in enumerate(entries, start=1):
        where = f"{file}, point {count}"
        points.append((str(entry.get("name") or ""), point_of(where, entry.get("point"))))
        scores.append(score_of_entry(where, entry))
    found = in_image(image, series, points, "mm", scores) if points else []
    return Points(found, _fields(entries), convention="grand-challenge.org")


def _fields(entries: list[dict[str, Any]]) -> list[str]:
    """Return the names that have a value in any of the entries."""
    return sorted({name for entry in entries for name, value in entry.items() if value is not None})


# Detected boxes


def _read_boxes(file: Path, cases: list[dict[str, Any]], image: str, series: str, min_score: float) -> Points:
    images = [case.get("image", "") for case in cases]
    if not image and not all(isinstance(named, str) and named for named in images):
        raise UserError(f"{file}: does not name the image of every box; give the CT, by config.predict.image")
    if image and any(named != images[0] for named in images):
        raise UserError(
            f"{file}: holds the boxes of several images; leave out config.predict.image, since it names them"
        )
    found: list[Request] = []
    kept: list[list[float]] = []
    for case, named in zip(cases, images, strict=True):
        boxes, scores = _boxes(f"{file}, {image or named}", case)
        low = [min_score > 0 and score is not None and score < min_score for score in scores]
        kept += [box.tolist() for box, left_out in zip(boxes, low, strict=True) if not left_out]
        path = image or str(named_image(file.parent, named))
        found += in_image(path, series, [("", box[:3]) for box in boxes], "mm", scores) if boxes else []
    _require_centres(file, kept)
    return Points(told_apart(found), _fields(cases), convention="MONAI's detector")


def _boxes(where: str, case: dict[str, Any]) -> tuple[list[np.ndarray], list[float | None]]:
    """Return the boxes of an image, and their scores or None. A box is its centre (3,), or that and its sides (6,).

    Boxes with two corners would give other points, and nearly always have a negative number where a length must be.
    """
    listed = case["box"] if isinstance(case["box"], list) else [case["box"]]
    boxes = []
    for box in listed:
        centre = point_of(where, box[:3] if isinstance(box, list) else box)
        if len(box) != 3 and (len(box) != 6 or min(point_of(where, box[3:])) <= 0):
            raise UserError(f"{where}: {box} is no box; give its centre and the lengths of its sides")
        boxes.append(np.array([*centre, *point_of(where, box[3:])]) if len(box) == 6 else centre)
    name = score_name(case)
    if name is None:
        return boxes, [None] * len(boxes)
    try:
        scores = [float(np.max(score)) for score in case[name]]
    except (TypeError, ValueError):
        scores = []
    if len(scores) != len(boxes) or not np.isfinite(scores).all():
        raise UserError(f"{where}: its scores are not a number for each of the {len(boxes)} boxes; detect them again")
    return boxes, [*scores]


def _require_centres(file: Path, boxes: list[list[float]]) -> None:
    """Raise UserError if boxes cannot be centres and sides, but pairs of corners with positive coordinates.

    Sides of nodules are short. And where every side is longer than its centre's coordinate, all nodules would lie
    within a box's length of the scanner's origin, on the same side of it.
    """
    whole = np.array([box for box in boxes if len(box) == 6]).reshape(-1, 2, 3)
    centres, sides = whole[:, 0], whole[:, 1]
    ordered = len(whole) > 0 and bool(((centres >= 0) & (centres < sides)).all())
    if (sides > MAX_SIDE_MM).any() or (ordered and (sides.max(axis=1) > MAX_NODULE_MM).all()):
        box = whole[sides.max(axis=1).argmax()].ravel().tolist()
        raise UserError(
            f"{file}: the box {box} would have a side of {max(box[3:]):g} mm, as if it was two corners; give the "
            "centre of each box in LPS mm and the lengths of its sides (MONAI's mode cccwhd)"
        )


def _text(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file}: no such file; correct the path")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not text in UTF-8; export it again") from error
