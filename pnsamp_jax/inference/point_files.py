"""Read the points of nodules: as a user types them, and from the files in which they come.

    x,y,z;x,y,z            typed
    .csv, .tsv             our own table, those of LUNA16 and LUNA25 (one row for a nodule), or 3D Slicer's: see
                           `point_tables`
    .mrk.json, .fcsv       3D Slicer's point lists and boxes: see `point_lists`
    .json                  detections of MONAI's lung nodule bundle, or points of grand-challenge.org: see there
    .nii.gz, .nrrd, .dcm   masks, such as TotalSegmentator's lung_nodules: see `mask_points`

Each file's own system of coordinates is used: LUNA16's, MONAI's and grand-challenge.org's world is LPS mm, and 3D
Slicer's files name theirs.
"""

import re

import numpy as np

from pnsamp_jax.ct.notes import note
from pnsamp_jax.data.spellings import with_minus
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import user_path
from pnsamp_jax.inference.mask_points import is_mask_file, read_mask_points
from pnsamp_jax.inference.point_lists import read_fcsv, read_json
from pnsamp_jax.inference.point_scores import with_score
from pnsamp_jax.inference.point_tables import POINT_COLUMNS, read_point_table
from pnsamp_jax.inference.requests import Points, Request, in_image, require_ids, require_image

POINT_SEPARATOR = re.compile(r";|(?<=[)\]])\s*,?\s*(?=[(\[])")  # "x,y,z;x,y,z", or "(x,y,z), (x,y,z)"
FIELD = "config.predict.points"


def read_requests(image: str, points: str, units: str, series: str = "", min_score: float = 0.0) -> list[Request]:
    """Return the nodules that a user asks for, in the order in which they were given.

    Args:
      image: the path of the image of all points; for LUNA16's tables the folder that holds all images, or one of them;
        "" if the file of the points names its images.
      points: "x,y,z;x,y,z", or the path of a file of one of the kinds that this module's docstring lists.
      units: of typed points and of our own table, one of `requests.UNITS`; other files have their own.
      series: SeriesInstanceUID of the CT series to read, where an image's folder holds several and the table has no
        column `series` with another; "" for the only one.
      min_score: detections with a lower score are left out, and those without a score kept.

    Raises:
      UserError: the points are missing or malformed, ids repeat, the units cannot be those of the file, or scores are
        asked for that no point has.
    """
    lower = points.lower().rstrip()
    if lower.endswith((".csv", ".tsv", ".fcsv", ".json")):
        file = user_path(points)
        if lower.endswith(".fcsv"):
            found = read_fcsv(file, image, series)
        elif lower.endswith(".json"):
            found = read_json(file, image, series, min_score)
        else:
            found = read_point_table(file, image, units, series, min_score)
    elif is_mask_file(user_path(points)):
        marked = read_mask_points(user_path(points), user_path(require_image(image)), series)
        found = Points(in_image(image, series, marked, "mm"), states_units=True)
    elif _is_there(points):
        raise UserError(f"{points}: is no file of points that is read; give .csv, .tsv, .fcsv, .json or a mask")
    else:
        found = Points(_read_typed(points, image, units, series))
        points = FIELD
    _check_units(points, found, units)
    requests = with_score(points, found, min_score)
    if not requests:
        raise UserError(f"{points}: holds no nodule" + (f" with a score of at least {min_score:g}" * (min_score > 0)))
    return require_ids(requests)


def _check_units(source: str, points: Points, units: str) -> None:
    """Tell the user of units that are not used, because the file states others.

    Raises:
      UserError: the file does not say in which units its points are, but is of a kind that has others; a table of a
        program's own may look like that.
    """
    if points.convention and units != "mm":
        raise UserError(
            f"{source}: its columns or fields are those of {points.convention}, which has LPS mm, but "
            f"config.predict.units is {units}; leave it out, or give a table with the columns nodule_id, "
            f"{', '.join(POINT_COLUMNS[units])}"
        )
    if points.states_units and units not in ("mm", *(request.units for request in points.requests)):
        note(f"{source}: says itself where its points lie, so that units={units} is not used")


def _read_typed(points: str, image: str, units: str, series: str) -> list[Request]:
    found = []
    for text in filter(str.strip, POINT_SEPARATOR.split(points)):
        try:
            point = np.array([float(part) for part in re.split(r"[\s,]+", with_minus(text).strip(" ()[]"))])
        except ValueError:
            point = np.array([])
        if point.shape != (3,) or not np.isfinite(point).all():
            raise UserError(f"{FIELD}: '{text.strip()}' is not a point; give 'x,y,z;x,y,z' or a file of points")
        found.append(("", point))
    if not found:
        raise UserError(f"{FIELD}: is empty; give 'x,y,z;x,y,z' in mm (LPS) or a file of points")
    return in_image(image, series, found, units)


def _is_there(points: str) -> bool:
    try:
        return bool(points.strip()) and user_path(points).exists()
    except OSError:  # many typed points are too long for a name
        return False
