"""Find CT series under any folder, whatever the layout and the names of the DICOM files."""

import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from pydicom.errors import InvalidDicomError

from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.errors import UserError

HEADER_TAGS = ["SeriesInstanceUID", "Modality", "ImageType", "SOPClassUID", "ImagePositionPatient"]


def index_series(root: str | PathLike[str], cache: str | PathLike[str] | None = None) -> dict[str, list[str]]:
    """Find every CT series under a folder.

    Pipes and sockets, files that are not DICOM, other modalities, localizers and secondary captures without a position
    are ignored.

    Args:
      root: folder to search, following links. It is only read.
      cache: JSON file with the series of each known file (by relative path, size and modification time), so that a
        later call opens only new or changed files. A damaged cache is rebuilt; if it cannot be written, a warning is
        logged.

    Returns:
      SeriesInstanceUID -> sorted paths of the slices; the UIDs are sorted too.

    Raises:
      UserError: `root` is not a folder, or something in it cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; give the one that contains the DICOM files")
    known = _load_cache(cache)
    entries: dict[str, dict[str, int | str | None]] = {}
    series: dict[str, list[str]] = {}
    for path in _walk(root):
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
        old = known.get(name)
        if isinstance(old, dict) and old == {**stamp, "ct": old.get("ct")} and isinstance(old["ct"], str | None):
            uid = old["ct"]
        else:
            uid = _ct_series(path)
        entries[name] = {**stamp, "ct": uid}
        if uid:
            series.setdefault(uid, []).append(path)
    if cache is not None and entries != known:
        _save_cache(Path(cache), entries)
    return {uid: sorted(series[uid]) for uid in sorted(series)}


def only_series(root: str | PathLike[str]) -> list[str]:
    """Return the sorted paths of the one CT series under a folder.

    Raises:
      UserError: there is not exactly one series, or `index_series` raises it.
    """
    series = index_series(root)
    if len(series) != 1:
        names = f" ({', '.join([*series][:3])}{', ...' if len(series) > 3 else ''})" if series else ""
        raise UserError(
            f"{root}: contains {len(series)} DICOM CT series{names}; give a folder that contains exactly one"
        )
    return next(iter(series.values()))


def _walk(root: str | PathLike[str]) -> Iterator[str]:
    """Yield the paths of all files under `root`, entering each folder only once, so that links cannot form a loop."""

    def fail(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: folder cannot be read ({error.strerror}); restore or remove it") from error

    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(folder, name) for name in files)


def _ct_series(path: str) -> str | None:
    """Return the SeriesInstanceUID of a CT slice, or None for any other file."""
    with quiet_pydicom():
        try:
            header = read_dataset(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            placed = "ImagePositionPatient" in header
            is_ct = header.get("Modality") == "CT" or (not header.get("Modality") and placed)  # lost when anonymized
            is_slice = is_ct and "LOCALIZER" not in (header.get("ImageType") or ())
            if "Secondary Capture" in getattr(header.get("SOPClassUID"), "name", ""):
                is_slice = is_slice and placed  # a dose report has no position
            return (str(header.get("SeriesInstanceUID") or "") or None) if is_slice else None
        except InvalidDicomError:
            return None
        except DAMAGED as error:
            raise UserError(f"{path}: the DICOM header cannot be read; copy the file again or remove it") from error


def _load_cache(cache: str | PathLike[str] | None) -> dict[str, Any]:
    """Return relative path -> {"size", "mtime", "ct": series UID or None}, empty if there is no usable cache."""
    try:
        content = json.loads(Path(cache).read_text(encoding="utf-8")) if cache is not None else {}
    except (OSError, ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}


def _save_cache(cache: Path, entries: dict[str, dict[str, int | str | None]]) -> None:
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
