"""Which nodules a user asks about: from an image and its points, or from a table of many, to patches of voxels.

An image that cannot be read, or a point outside of it, concerns its own nodules alone.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_index import only_series
from pnsamp_jax.ct.read import check_chest, read_ct
from pnsamp_jax.data.csv_tables import number, read_table
from pnsamp_jax.data.patches import sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable

POINT_COLUMNS = {"mm": ("x_mm", "y_mm", "z_mm"), "voxel": ("i", "j", "k")}
NODULE_ID = re.compile(r"[\w-][\w.-]{0,63}", re.ASCII)


class Request(NamedTuple):
    """A nodule to look at.

    Attributes:
      nodule_id: unique; part of file names.
      image: as the user named it, readable.
      path: of the image.
      point: (3,) in the units of the request.
    """

    nodule_id: str
    image: str
    path: Path
    point: np.ndarray


class Located(NamedTuple):
    """A request with the voxels round its point.

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


def read_requests(options: ml_collections.ConfigDict) -> list[Request]:
    """The nodules that `config.predict` asks for, in the order in which they were given.

    Raises:
      UserError: the points are missing or malformed, or ids repeat.
    """
    if options.units not in POINT_COLUMNS:
        raise UserError(f"config.predict.units: '{options.units}' is none of {', '.join(POINT_COLUMNS)}")
    if options.points.lower().endswith(".csv"):
        requests = _read_points_file(Path(options.points), options)
    else:
        requests = _read_points(options)
    seen = set()
    for request in requests:
        if not NODULE_ID.fullmatch(request.nodule_id):
            raise UserError(f"nodule_id '{request.nodule_id}': give at most 64 letters, digits, '.', '_' and '-'")
        if request.nodule_id in seen:
            raise UserError(f"nodule_id '{request.nodule_id}' appears twice; ids must be unique")
        seen.add(request.nodule_id)
    return requests


def _read_points_file(table: Path, options: ml_collections.ConfigDict) -> list[Request]:
    if options.image:
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV, which names images")
    names = POINT_COLUMNS[options.units]
    requests = []
    for where, row in read_table(table, ("nodule_id", "image", *names)):
        point = np.array([number(where, row, name) for name in names])
        requests.append(Request(row["nodule_id"], row["image"], table.parent / row["image"], point))
    if not requests:
        raise UserError(f"{table}: holds no nodule")
    return requests


def _read_points(options: ml_collections.ConfigDict) -> list[Request]:
    if not options.image:
        raise UserError("config.predict.image: is empty; give an image file or a folder that holds one DICOM series")
    requests = []
    for place, text in enumerate(filter(str.strip, options.points.split(";")), start=1):
        try:
            point = np.array([float(part) for part in text.split(",")])
        except ValueError:
            point = np.array([])
        if point.shape != (3,) or not np.isfinite(point).all():
            raise UserError(f"config.predict.points: '{text.strip()}' is no point; give 'x,y,z;x,y,z' or a CSV file")
        requests.append(Request(f"nodule_{place}", readable(options.image), Path(options.image), point))
    if not requests:
        raise UserError("config.predict.points: is empty; give 'x,y,z;x,y,z' in mm (LPS) or a CSV file")
    return requests


def locate(
    requests: Iterable[Request], units: str, size: int, spacing_mm: float, failures: dict[str, str]
) -> Iterator[Located]:
    """Reads the images, one at a time, and cuts out the patches.

    Args:
      requests: those of an image one after the other.
      units: of the points, "mm" (LPS) or "voxel" (i, j, k along width, height and depth, from 0).
      size: voxels on a side of a patch.
      spacing_mm: size of a voxel.
      failures: takes the reason of each nodule, by its id, for which this is not possible.
    """
    for path, group in groupby(requests, key=lambda request: request.path):
        group = list(group)
        try:
            files = only_series(path) if path.is_dir() else None
            ct = check_chest(path, read_series(files)) if files else read_ct(path)
        except (UserError, OSError) as error:
            failures |= {request.nodule_id: str(error) for request in group}
            continue
        for request in group:
            point_mm = request.point if units == "mm" else ct.to_lps(request.point[::-1])
            if ct.holds(point_mm):
                hu = np.rint(sample(ct, point_mm, size, spacing_mm)).astype(np.int16)
                yield Located(request, point_mm, hu, ct.array.shape, ct.affine, files)
            else:
                hint = {
                    "mm": "give LPS mm, as DICOM has it (NIfTI viewers show RAS: negate x and y)",
                    "voxel": "give i, j, k along width, height and depth, from 0",
                }[units]
                failures[request.nodule_id] = f"the point lies outside {request.image}; {hint}"
        del ct  # before the next one is read
