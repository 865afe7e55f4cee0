"""The nodules that a user asks about: from a point in an image to a patch of voxels.

An image that cannot be read, or a point outside its image, only fails the nodules that it concerns.
"""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom import Dataset
from tqdm import tqdm

from pnsamp_jax.ct.dicom_folder import SeveralSeries
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.read import Image, open_ct
from pnsamp_jax.data.patches import sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable, user_path
from pnsamp_jax.inference.locator import Locator, make_locator

UNITS = ("mm", "ras", "voxel")  # of a point: LPS mm, RAS mm, or the index along width, height and depth, from 0
REACH_MM = 4.8  # that a patch can be moved from its point along each axis
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
ADVICE = {
    "mm": "give LPS mm, as DICOM has it (NIfTI viewers show RAS: set units to ras)",
    "ras": "give RAS mm, as NIfTI viewers show it (DICOM has LPS: set units to mm)",
    "voxel": "give i, j, k along width, height and depth, from 0",
}
NODULE_ID = re.compile(r"[\w-][\w.-]{0,127}", re.ASCII)  # part of file names; ids made of a UID have 68 characters


class Request(NamedTuple):
    """A nodule to predict.

    Attributes:
      nodule_id: unique; part of file names.
      image: as the user named it, in readable characters.
      path: of the image.
      point: (3,) in its units.
      series: SeriesInstanceUID of the CT series in the image's folder; "" for the only one.
      units: of the point, one of `UNITS`.
      score: of a detection; None if the file of the points has none, or no lowest score was asked for.
    """

    nodule_id: str
    image: str
    path: Path
    point: np.ndarray
    series: str = ""
    units: str = "mm"
    score: float | None = None

    @property
    def point_mm(self) -> np.ndarray | None:
        """Return the point in LPS mm; None if that depends on the image."""
        if self.units == "voxel":
            return None
        return self.point * RAS_TO_LPS if self.units == "ras" else self.point


class Points(NamedTuple):
    """What the user's points, typed or in a file, say.

    Attributes:
      requests: in their order.
      fields: names of the columns or fields that the file has for each point; none if it can have no score.
      states_units: whether the file itself says in which units its points are.
      convention: of whose files one only knows that they are in LPS mm; "" for others.
    """

    requests: list[Request]
    fields: Sequence[str] = ()
    states_units: bool = False
    convention: str = ""


class Located(NamedTuple):
    """A request with the voxels around its point.

    Attributes:
      request: what was asked for.
      point_mm: (3,) LPS.
      hu: (S, S, S) int16, what the networks see.
      shape: of the image's grid.
      affine: (4, 4) from the image's index to LPS mm.
      files: of a DICOM series, else None.
      locator: the axial slice through the point; None where the CT is not known.
      around: (L, L, L) int16 around the point, L - S even, in which the patch can be moved; None if it cannot.
      move: (3,) whole voxels along depth, height and width by which the patch was moved from the point.
    """

    request: Request
    point_mm: np.ndarray
    hu: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    files: Sequence[str | Dataset] | None = None
    locator: Locator | None = None
    around: np.ndarray | None = None
    move: tuple[int, ...] = (0, 0, 0)

    def centre_mm(self, spacing_mm: float) -> np.ndarray:
        """Return the centre of the patch, (3,) LPS mm, whose voxels have that size."""
        return self.point_mm + spacing_mm * np.array(self.move[::-1])

    def moved(self, move: np.ndarray) -> "Located":
        """Return it, without its surroundings, with the patch moved by whole voxels (3,) as far as these reach."""
        if self.around is None:
            return self
        margin = (len(self.around) - len(self.hu)) // 2
        whole = tuple(int(voxels) for voxels in np.clip(move, -margin, margin))
        return self._replace(hu=_patch(self.around, len(self.hu), whole), around=None, move=whole)


class Failure(NamedTuple):
    """A request that cannot be answered, with the reason."""

    request: Request
    reason: str


def in_image(
    image: str,
    series: str,
    points: Sequence[tuple[str, np.ndarray]],
    units: str,
    scores: Sequence[float | None] | None = None,
) -> list[Request]:
    """Return requests for points with names in one image. A name that cannot be part of a file's is replaced.

    Args:
      image: its path as the user gave it.
      series: SeriesInstanceUID in the image's folder; "" for the only one.
      points: the name and the point (3,) of each.
      units: of the points, one of `UNITS`.
      scores: of the points; None if they have none.

    Raises:
      UserError: no image is given.
    """
    require_image(image)
    names = [re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:100] for name, _ in points]
    names = (
        names if _are_distinct(names) and all(names) else [f"nodule_{index}" for index in range(1, len(points) + 1)]
    )
    return [
        Request(name, readable(image), user_path(image), point, series, units, score)
        for name, (_, point), score in zip(names, points, scores or [None] * len(points), strict=True)
    ]


def _are_distinct(ids: Sequence[str]) -> bool:
    """Return whether ids differ in more than case, which macOS and Windows do not tell apart in names of files."""
    return len({nodule_id.casefold() for nodule_id in ids}) == len(ids)


def require_image(image: str) -> str:
    """Return the path of an image as the user gave it. Raise UserError if none is given."""
    if not image:
        raise UserError("config.predict.image: is empty; give an image file or a folder that holds one DICOM series")
    return image


def named_image(folder: Path, named: str) -> Path:
    """Return the path of an image that a file in a folder names, perhaps as Windows does, with backslashes."""
    path = folder / user_path(named)
    as_windows = folder / user_path(named.replace("\\", "/"))
    return as_windows if not path.exists() and as_windows.exists() else path


def point_of(where: str, values: Any) -> np.ndarray:
    """Return three numbers of a file as a point (3,). Raise UserError, which begins with `where`, if they are none."""
    try:
        point = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        point = np.array([])
    if point.shape != (3,) or not np.isfinite(point).all():
        raise UserError(f"{where}: {values} is not a point of three numbers")
    return point


def told_apart(requests: list[Request]) -> list[Request]:
    """Return the requests of several parts of a file, numbered throughout if two parts gave the same name."""
    if _are_distinct([request.nodule_id for request in requests]):
        return requests
    return [request._replace(nodule_id=f"nodule_{index}") for index, request in enumerate(requests, start=1)]


def require_ids(requests: list[Request]) -> list[Request]:
    """Return the requests. Raise UserError if an id repeats, in any case, or cannot be part of a file's name."""
    seen: dict[str, str] = {}
    for index, request in enumerate(requests, start=1):
        if not NODULE_ID.fullmatch(request.nodule_id):
            raise UserError(f"nodule_id '{request.nodule_id}': give at most 128 letters, digits, '.', '_' and '-'")
        other = seen.setdefault(request.nodule_id.casefold(), request.nodule_id)
        if other != request.nodule_id:
            raise UserError(
                f"nodule_id '{other}' and '{request.nodule_id}' differ only in case, and so would their files on "
                "macOS and Windows; rename one"
            )
        if len(seen) < index:
            raise UserError(f"nodule_id '{request.nodule_id}' appears twice; ids must be unique")
    return requests


def by_image(requests: Iterable[Request]) -> list[Request]:
    """Sort requests so that those of one image follow each other, and the image need be read only once."""
    first: dict[tuple[Path, str], int] = {}
    return sorted(requests, key=lambda request: first.setdefault(image_of(request), len(first)))


def mirrored(request: Request) -> Request:
    """Return the request as it is if its mm are of the other system: x and y with the other sign."""
    return request._replace(point=request.point * RAS_TO_LPS)


def image_of(request: Request) -> tuple[Path, str]:
    """Return what tells images apart: the path, and the series in it."""
    return request.path, request.series


def locate(
    requests: Iterable[Request], size: int, spacing_mm: float, quiet: bool = False
) -> Iterator[Located | Failure]:
    """Read the images, one at a time, and cut out a patch around each point.

    Args:
      requests: in the order of `by_image`.
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
            advice = "" if series else ", or choose by series=UID"
            yield from (Failure(request, f"{error}{advice}") for request in wanted)
            continue
        except (UserError, OSError) as error:
            reason = _no_such_series(path, series) or str(error)
            yield from (Failure(request, reason) for request in wanted)
            continue
        except MemoryError:
            reason = f"{readable(str(path))}: takes more memory than there is; close other programs or cut it out"
            yield from (Failure(request, reason) for request in wanted)
            continue
        for text in () if quiet else notes:
            tqdm.write(readable(text), file=sys.stderr)  # not into the bar
        for request in wanted:
            yield locate_in(image, request, size, spacing_mm)
        del image  # before the next one is read


def _no_such_series(path: Path, series: str) -> str:
    """Return why a folder that holds no DICOM series cannot be read, where one was asked for; else ""."""
    try:
        if not series or not path.is_dir() or index_series(path):
            return ""
    except (UserError, OSError):
        return ""
    return f"no image of series {series} in {readable(str(path))}; add it, or give the folder that holds it"


def locate_in(image: Image, request: Request, size: int, spacing_mm: float) -> Located | Failure:
    """Cut out a patch around the point of a request, in an image that is read."""
    ct, given = image.volume, request.point_mm
    point_mm = ct.to_lps(request.point[::-1]) if given is None else given
    if not ct.holds(point_mm):
        return Failure(request, f"the point lies outside {request.image}; {ADVICE[request.units]}")
    margin = math.ceil(REACH_MM / spacing_mm)
    around = np.rint(sample(ct, point_mm, size + 2 * margin, spacing_mm)).astype(np.int16)
    hu = _patch(around, size)
    locator = make_locator(ct, point_mm)
    return Located(request, point_mm, hu, ct.array.shape, ct.affine, image.files, locator, around)


def _patch(around: np.ndarray, size: int, move: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    """Return a copy, which may outlive its surroundings, of the cube of that size in their middle, or beside it."""
    starts = [(len(around) - size) // 2 + voxels for voxels in move]
    return around[tuple(slice(start, start + size) for start in starts)].copy()
