"""CT series found under any folder, however their DICOM files are laid out and named."""

import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from pnsamp_jax.ct.dicom import DAMAGED, quiet_pydicom
from pnsamp_jax.errors import UserError

_HEADER_TAGS = ["SeriesInstanceUID", "Modality", "ImageType", "SOPClassUID", "ImagePositionPatient"]


def index_series(root, cache=None) -> dict[str, list[str]]:
    """Finds every CT series under a folder, however the files are laid out and named.

    Passed over: pipes and sockets, files that are not DICOM, other modalities, localizers, secondary captures without
    a position.

    Args:
      root: folder to search; it is only read. Links are followed.
      cache: JSON file that remembers what each file was (by relative path, size and modification time), so that a
        later call opens only new or changed files. A damaged one is rebuilt; one that cannot be written is not kept.

    Returns:
      SeriesInstanceUID -> sorted paths of its slices; the UIDs are sorted too.

    Raises:
      UserError: `root` is not a folder, or something in it cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; give the one that holds the DICOM files")
    known = _load_cache(cache)
    entries, series = {}, {}
    for path in _walk(root):
        if cache is not None and os.path.abspath(path) == os.path.abspath(cache):
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            if not os.path.lexists(path):
                continue  # gone since the folder was listed, as another process' temporary file is
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore or remove it") from error
        if not stat.S_ISREG(status.st_mode):
            continue  # a pipe would be waited for without end
        name, entry = os.path.relpath(path, root), {"size": status.st_size, "mtime": status.st_mtime_ns}
        old = known.get(name)
        if isinstance(old, dict) and old == {**entry, "ct": old.get("ct")} and isinstance(old.get("ct"), str | None):
            entry = old
        else:
            entry["ct"] = _ct_series(path)
        entries[name] = entry
        if entry["ct"]:
            series.setdefault(entry["ct"], []).append(path)
    if cache is not None and entries != known:
        _save_cache(Path(cache), entries)
    return {uid: sorted(series[uid]) for uid in sorted(series)}


def only_series(root) -> list[str]:
    """Sorted paths of the one CT series under a folder.

    Raises:
      UserError: there is none or another one, or as `index_series`.
    """
    series = index_series(root)
    if len(series) != 1:
        names = f" ({', '.join([*series][:3])}{', ...' if len(series) > 3 else ''})" if series else ""
        raise UserError(f"{root}: holds {len(series)} DICOM CT series{names}; give a folder that holds one")
    return next(iter(series.values()))


def _walk(root) -> Iterator[str]:
    """Paths of all files under `root`; each folder is entered once, so that links cannot loop."""

    def fail(error: OSError):
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
    """SeriesInstanceUID of a CT slice, None for any other file."""
    with quiet_pydicom():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
            is_slice = header.get("Modality") == "CT" and "LOCALIZER" not in (header.get("ImageType") or ())
            if "Secondary Capture" in getattr(header.get("SOPClassUID"), "name", ""):  # a dose report, if not placed
                is_slice = is_slice and "ImagePositionPatient" in header
            return (str(header.get("SeriesInstanceUID") or "") or None) if is_slice else None
        except InvalidDicomError:
            return None
        except DAMAGED as error:
            raise UserError(f"{path}: its DICOM header cannot be read; copy the file again or remove it") from error


def _load_cache(cache) -> dict:
    """Relative path -> {"size", "mtime", "ct": series UID or None}; empty when there is no usable cache."""
    try:
        content = json.loads(Path(cache).read_text(encoding="utf-8")) if cache is not None else {}
    except (OSError, ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}


def _save_cache(cache: Path, entries: dict) -> None:
    """Replaces the cache in one go, so that nobody ever reads half of it."""
    temporary = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            json.dump(entries, file)
        os.replace(temporary, cache)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: the index is not kept (%s)", cache, error.strerror)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
