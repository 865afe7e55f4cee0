"""The nodules that a user asks about: from an image and points, or a table of many, to patches of voxels.

An image that cannot be read, or a point outside its image, only fails the nodules that it concerns.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pnsamp_jax.ct.dicom_folder import SeveralSeries
from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.read import Image, open_ct
from pnsamp_jax.data.csv_tables import number, read_table
from pnsamp_jax.data.patches import sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable, user_path

POINT_COLUMNS = {"mm": ("x_mm", "y_mm", "z_mm"), "voxel": ("i", "j", "k")}
NODULE_ID = re.compile(r"[\w-][\w.-]{0,127}", re.ASCII)  # part of file names; ids made of a UID have 68 characters


POINT_SEPARATOR = re.compile(r";|(?<=[)\]])\s*,?\s*(?=[(\[])")  # "x,y,z;x,y,z", or "(x,y,z), (x,y,z)"


class Request(NamedTuple):
    """A nodule to predict.

    Attributes:
      nodule_id: unique; part of file names.
      image: as the user named it, in readable characters.
      path: of the image.
      point: (3,) in the units of the request.
      series: SeriesInstanceUID of the CT series in the image's folder; "" for the only one.
    """

    nodule_id: str
    image: str
    path: Path
    point: np.ndarray
    series: str = ""


class Located(NamedTuple):
    """A request with the voxels around its point.

    Attributes:
      request: what was asked for.
      point_mm: (3,) LPS.
      hu: (S, S, S) int16.
      shape: of the image's grid.
      affine: (4, 4) from the image's index to LPS mm.
      files: of a DICOM series, else None.
    """

    request: Request
    point_mm: np.ndarray
    hu: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    files: list[str] | None = None


class Failure(NamedTuple):
    """A request that cannot be answered, with the reason."""

    request: Request
    reason: str


def read_requests(image: str, points: str, units: str, series: str = "") -> list[Request]:
    """Return the nodules that a user asks for, in the order in which they were given.

    Args:
      image: the path of the image of all points; "" if `points` is a CSV file.
      points: "x,y,z;x,y,z", or the path of a CSV file.
      units: of the points, a key of `POINT_COLUMNS`.
      series: SeriesInstanceUID of the CT series to read, where an image's folder holds several and the table has no
        column `series` with another; "" for the only one.

    Raises:
      UserError: the points are missing or malformed, or ids repeat.
    """
    if points.lower().endswith(".csv"):
        requests = _read_points_file(user_path(points), image, units, series)
    else:
        requests = _read_points(points, image, series)
    seen = set()
    for request in requests:
        if not NODULE_ID.fullmatch(request.nodule_id):
            raise UserError(f"nodule_id '{request.nodule_id}': give at most 128 letters, digits, '.', '_' and '-'")
        if request.nodule_id in seen:
            raise UserError(f"nodule_id '{request.nodule_id}' appears twice; ids must be unique")
        seen.add(request.nodule_id)
    return requests


def _read_points_file(table: Path, image: str, units: str, series: str) -> list[Request]:
    if image:
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV, which names images")
    names = POINT_COLUMNS[units]
    requests = []
    for where, row in read_table(table, ("nodule_id", "image", *names)):
        point = np.array([number(where, row, name) for name in names])
        path, chosen = table.parent / user_path(row["image"]), row.get("series") or series
        requests.append(Request(row["nodule_id"], row["image"], path, point, chosen))
    if not requests:
        raise UserError(f"{table}: holds no nodule")
    return requests


def _read_points(points: str, image: str, series: str) -> list[Request]:
    if not image:
        raise UserError("config.predict.image: is empty; give an image file or a folder that holds one DICOM series")
    requests = []
    for index, text in enumerate(filter(str.strip, POINT_SEPARATOR.split(points)), start=1):
        try:
            point = np.array([float(part) for part in re.split(r"[\s,]+", text.replace("−", "-").strip(" ()[]"))])
        except ValueError:
            point = np.array([])
        if point.shape != (3,) or not np.isfinite(point).all():
            raise UserError(
                f"config.predict.points: '{text.strip()}' is not a point; give 'x,y,z;x,y,z' or a CSV file"
            )
        requests.append(Request(f"nodule_{index}", readable(image), user_path(image), point, series))
    if not requests:
        raise UserError("config.predict.points: is empty; give 'x,y,z;x,y,z' in mm (LPS) or a CSV file")
    return requests


def by_image(requests: Iterable[Request]) -> list[Request]:
    """Sort requests so that those of one image follow each other, and the image need be read only once."""
    first: dict[tuple[Path, str], int] = {}
    return sorted(requests, key=lambda request: first.setdefault(image_of(request), len(first)))


def image_of(request: Request) -> tuple[Path, str]:
    """Return what tells images apart: the path, and the series in it."""
    return request.path, request.series


def locate(
    requests: Iterable[Request], units: str, size: int, spacing_mm: float, quiet: bool = False
) -> Iterator[Located | Failure]:
    """Read the images, one at a time, and cut out a patch around each point.

    Args:
      requests: in the order of `by_image`.
      units: of the points, "mm" (LPS) or "voxel" (i, j, k along width, height and depth, from 0).
      size: voxels on a side of a patch.
      spacing_mm: size of a voxel.
      quiet: whether to keep the notes about the files to itself, since they were printed before.
    """
    for (path, series), group in groupby(requests, key=image_of):
        wanted = list(group)
        try:
            with collected() as notes:
                image = open_ct(path, series)
        except SeveralSeries as error:
            yield from (Failure(request, f"{error}, or choose by config.predict.series=UID") for request in wanted)
            continue
        except (UserError, OSError) as error:
            yield from (Failure(request, str(error)) for request in wanted)
            continue
        for text in () if quiet else notes:
            tqdm.write(readable(text), file=sys.stderr)  # not into the bar
        for request in wanted:
            yield _locate_one(request, image, units, size, spacing_mm)
        del image  # before the next one is read


def _locate_one(request: Request, image: Image, units: str, size: int, spacing_mm: float) -> Located | Failure:
    ct = image.volume
    point_mm = request.point if units == "mm" else ct.to_lps(request.point[::-1])
    if ct.holds(point_mm):
        hu = np.rint(sample(ct, point_mm, size, spacing_mm)).astype(np.int16)
        return Located(request, point_mm, hu, ct.array.shape, ct.affine, image.files)
    advice = {
        "mm": "give LPS mm, as DICOM has it (NIfTI viewers show RAS: negate x and y)",
        "voxel": "give i, j, k along width, height and depth, from 0",
    }[units]
    return Failure(request, f"the point lies outside {request.image}; {advice}")
