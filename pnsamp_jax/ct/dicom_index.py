"""Find CT series under any folder, whatever the layout and the names of the DICOM files."""

import json
import logging
import os
import stat
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydicom.errors import InvalidDicomError

from pnsamp_jax.ct.dicom_file import DAMAGED, ENHANCED, quiet_pydicom, read_dataset
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import walk

HEADER_TAGS = [
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "SOPClassUID",
    "ImagePositionPatient",
    "SamplesPerPixel",
]

SLICE = "slice"  # of a CT; also an enhanced CT, which holds many
SCOUT = "scout"
CAPTURE = "screen capture"
COLOR = "color image"  # several values a pixel, so no HU
UNPLACED = "derived"  # an image without a position, as a page about the dose
NOT_DICOM = "not DICOM"
INCOMPLETE = (
    "incomplete"  # neither modality nor position, or neither series nor position, as a header that was cut off
)
BROKEN = "damaged"  # DICOM, but the header cannot be read


class Other(NamedTuple):
    """A file under a folder that is not a slice of a CT.

    Attributes:
      path: of the file.
      kind: `SCOUT`, `CAPTURE`, `COLOR`, `UNPLACED`, `NOT_DICOM`, `INCOMPLETE`, `BROKEN`, or its modality.
      series: its SeriesInstanceUID, empty if it has none.
    """

    path: str
    kind: str
    series: str


class Folder(NamedTuple):
    """What a folder contains.

    Attributes:
      series: SeriesInstanceUID -> sorted paths of the slices; the UIDs are sorted too, and one may be empty.
      others: all other files.
    """

    series: dict[str, list[str]]
    others: list[Other]


def index_series(root: str | PathLike[str], cache: str | PathLike[str] | None = None) -> dict[str, list[str]]:
    """Return the `series` of `index_folder`."""
    return index_folder(root, cache).series


def index_folder(root: str | PathLike[str], cache: str | PathLike[str] | None = None) -> Folder:
    """Find every CT series under a folder, and what else it contains.

    Pipes and sockets are ignored. Files that are not DICOM, other modalities, localizers and secondary captures
    without a position are no slices.

    Args:
      root: folder to search, following links. It is only read.
      cache: JSON file with the kind and series of each known file (by relative path, size and modification time), so
        that a later call opens only new or changed files. A damaged cache is rebuilt; if it cannot be written, a
        warning is logged.

    Raises:
      UserError: `root` is not a folder, or something in it cannot be read.
    """
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.isfile(root) else "no such folder"
        raise UserError(f"{root}: {what}; give the one that contains the DICOM files")
    known = _load_cache(cache)
    entries: dict[str, dict[str, int | str]] = {}
    series: dict[str, list[str]] = {}
    others = []
    for path in walk(root, onerror=_refuse_folder):
        if cache is not None and os.path.abspath(path) == os.path.abspath(cache):
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            if not os.path.lexists(path):
                continue  # deleted since the folder was listed, such as a temporary file of another process
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore or remove it") from error
        if not stat.S_ISREG(status.st_mode):
            continue  # opening a pipe could block forever
        name = os.path.relpath(path, root)
        stamp = {"size": status.st_size, "mtime": status.st_mtime_ns}
        kind, uid = _remembered(known.get(name), stamp) or _kind_and_series(path)
        entries[name] = {**stamp, "kind": kind, "series": uid}
        if kind == SLICE:
            series.setdefault(uid, []).append(path)
        else:
            others.append(Other(path, kind, uid))
    if cache is not None and entries != known:
        _save_cache(Path(cache), entries)
    return Folder({uid: sorted(series[uid]) for uid in sorted(series)}, sorted(others))


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: folder cannot be read ({error.strerror}); restore or remove it") from error


def _kind_and_series(path: str) -> tuple[str, str]:
    """Return what a file is, `SLICE` or a kind of `Other`, and its SeriesInstanceUID, empty if it has none."""
    with quiet_pydicom():
        try:
            header = read_dataset(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            uid = str(header.get("SeriesInstanceUID") or "").strip()
            modality = str(header.get("Modality") or "").strip()
            placed = "ImagePositionPatient" in header
            sop_class = header.get("SOPClassUID")
            image_type = header.get("ImageType") or ()
            color = header.get("SamplesPerPixel") not in (None, "", 1)
        except InvalidDicomError:
            return NOT_DICOM, ""
        except DAMAGED:
            return BROKEN, ""
    if modality.upper() not in ("", "CT"):
        return modality, uid
    # Either may be lost when anonymized, but a slice has its position, in the frames if there are many.
    if not (placed or sop_class in ENHANCED or (modality and uid)):
        return INCOMPLETE, uid
    if "LOCALIZER" in image_type:
        return SCOUT, uid
    if "Secondary Capture" in getattr(sop_class, "name", "") and not placed:
        return CAPTURE, uid
    if color:
        return COLOR, uid
    if "SECONDARY" in image_type and not placed and sop_class not in ENHANCED:
        return UNPLACED, uid
    return SLICE, uid


def _remembered(entry: Any, stamp: dict[str, int]) -> tuple[str, str] | None:
    """Return kind and series of a cached file; None if the entry is of another version of it, or damaged."""
    if not isinstance(entry, dict):
        return None
    kind, uid = entry.get("kind"), entry.get("series")
    if not isinstance(kind, str) or not isinstance(uid, str) or entry != {**stamp, "kind": kind, "series": uid}:
        return None
    return kind, uid


def _load_cache(cache: str | PathLike[str] | None) -> dict[str, Any]:
    """Return relative path -> {"size", "mtime", "kind", "series"}, empty if there is no usable cache."""
    try:
        content = json.loads(Path(cache).read_text(encoding="utf-8")) if cache is not None else {}
    except (OSError, ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}


def _save_cache(cache: Path, entries: dict[str, dict[str, int | str]]) -> None:
    """Replace the cache atomically, so that no other process reads an incomplete file."""
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            json.dump(entries, file)
        os.replace(temporary, cache)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: the index could not be saved (%s)", cache, error.strerror)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
