"""The one CT series that a user means by a folder, and what else lies in it."""

import os
import re
from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

from pnsamp_jax.ct.archives import ARCHIVE_SUFFIXES, is_unpacked
from pnsamp_jax.ct.dicom import Series, assemble_series
from pnsamp_jax.ct.dicom_agreement import MIN_SCATTERED
from pnsamp_jax.ct.dicom_file import DAMAGED, ENHANCED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.dicom_index import (
    BROKEN,
    CAPTURE,
    COLOR,
    INCOMPLETE,
    NOT_DICOM,
    SCOUT,
    UNPLACED,
    Folder,
    Other,
    index_folder,
)
from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES
from pnsamp_jax.ct.notes import note
from pnsamp_jax.errors import UserError

# What often lies beside a series and is not worth a word; other files are named.
USUAL_NAMES = {"dicomdir", "thumbs.db", "desktop.ini", "autorun.inf", "lockfile", "version", "readme", "license"}
USUAL_SUFFIXES = {
    *(".txt", ".md", ".pdf", ".xml", ".csv", ".json", ".html", ".htm", ".css", ".js", ".log", ".ini", ".inf"),
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ico", ".exe", ".dll", ".bat"),
}
NO_IMAGES = {"SR", "KO", "PR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "DOC", "AU", "PLAN", "FID"}
PHRASES = {  # singular and plural
    NOT_DICOM: ("file that is not DICOM", "files that are not DICOM"),
    INCOMPLETE: ("incomplete DICOM file", "incomplete DICOM files"),
    BROKEN: ("damaged DICOM file", "damaged DICOM files"),
    SCOUT: ("scout", "scouts"),
    CAPTURE: ("screen capture", "screen captures"),
    COLOR: ("color image", "color images"),
    UNPLACED: ("derived image without a position", "derived images without a position"),
}
READ_AS_FILES = (*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES)
MAX_SHOWN = 3  # names of each kind in a note
MAX_LISTED = 20  # series in a refusal
MAX_STEP = 2.01  # times SliceThickness, and rounding; beyond it, more lies between the slices than in them


class SeveralSeries(UserError):
    """A folder that contains several series, of which none was chosen, or one that it does not contain."""


class Found(NamedTuple):
    """The files of one series under a folder.

    Attributes:
      uid: its SeriesInstanceUID; empty if the files have none, or each its own.
      paths: sorted.
      joined: number of series with one file each that were taken for one series; else 0.
      others: the other files under the folder; if there are several series, those beside the slices.
    """

    uid: str
    paths: list[str]
    joined: int
    others: list[Other]


def only_series(root: str | PathLike[str], chosen: str = "") -> list[str]:
    """Return the sorted paths of `find_series`."""
    return find_series(root, chosen).paths


def find_series(root: str | PathLike[str], chosen: str = "") -> Found:
    """Find the one CT series under a folder.

    Args:
      root: the folder.
      chosen: its SeriesInstanceUID, if there may be several; "" for the only one.

    Raises:
      SeveralSeries: there are several series and none is chosen, or not the chosen one.
      UserError: there is no series, or `index_folder` raises it.
    """
    folder = index_folder(root)
    series = folder.series
    if chosen and chosen in series:
        beside = folder.others if len(series) == 1 else others_beside(folder, series[chosen])
        return Found(chosen, series[chosen], 0, beside)
    if chosen or not series:
        raise _refusal(root, folder, chosen)
    if len(series) == 2 and "" in series:  # a UID that was lost; the other elements tell whether they belong together
        uid = next(uid for uid in series if uid)
        return Found(uid, sorted(path for paths in series.values() for path in paths), 0, folder.others)
    if len(series) == 1:
        return Found(next(iter(series)), next(iter(series.values())), 0, folder.others)
    single = [paths[0] for paths in series.values() if len(paths) == 1]
    if len(single) < max(len(series), MIN_SCATTERED) or _header(single[0]).get("SOPClassUID") in ENHANCED:
        raise _refusal(root, folder, chosen)
    return Found("", sorted(single), len(single), folder.others)


def read_folder(root: str | PathLike[str], chosen: str = "") -> Series:
    """Read the one CT series under a folder, and tell the user in a note what was passed over.

    Args:
      root: the folder.
      chosen: see `find_series`.

    Raises:
      UserError: `find_series` or `assemble_series` raises it, or files that seem to be slices of the series cannot be
        read and no gap shows where they lay, so that slices may be missing at an end.
    """
    found = find_series(root, chosen)
    require_whole(found.others)
    try:
        series = assemble_series(found.paths)
    except UserError as error:
        if not found.joined:
            raise
        count = f"{found.joined} DICOM CT series of one slice each"
        raise UserError(f"{root}: contains {count}, which do not form one volume: {error}") from error
    lost = seeming_slices(found)
    if len(lost) > series.missing:
        raise UserError(
            f"{lost[0]}: cannot be read as a slice, but seems to be one of the series, which would end too early "
            "without it; copy the file again or remove it"
        )
    text = passed_over(root, series, found.others)
    if text:
        note(text)
    return series


def others_beside(folder: Folder, paths: Iterable[str]) -> list[Other]:
    """Return the files that are no slices, but lie in the same folders as some slices."""
    folders = {os.path.dirname(path) for path in paths}
    return [other for other in folder.others if os.path.dirname(other.path) in folders]


def require_whole(others: Iterable[Other]) -> None:
    """Raise UserError if one of the files is DICOM, but too damaged to tell what it is."""
    for other in others:
        if other.kind == BROKEN:
            raise UserError(f"{other.path}: the DICOM header cannot be read; copy the file again or remove it")


def seeming_slices(found: Found) -> list[str]:
    """Return the files that seem to be slices of the series, by their UID or by their name, but cannot be read."""
    patterns = {_name_pattern(path) for path in found.paths}
    lost = []
    for other in found.others:
        same_series = bool(other.series) and other.series == found.uid
        if other.kind in (NOT_DICOM, INCOMPLETE):
            doubtful = same_series or (_name_pattern(other.path) in patterns and not _is_usual(other.path))
        else:
            doubtful = same_series and other.kind not in (SCOUT, CAPTURE, COLOR, UNPLACED, *NO_IMAGES)
        if doubtful:
            lost.append(other.path)
    return lost


def passed_over(root: str | PathLike[str], series: Series, others: Iterable[Other]) -> str:
    """Return a line about what is not in the volume but may be missed; empty if there is nothing of the kind."""
    kinds: dict[str, list[str]] = {}
    for path in series.scouts:
        kinds.setdefault(SCOUT, []).append(os.path.relpath(path, root))
    for other in others:
        if not _is_usual(other.path):
            kinds.setdefault(other.kind, []).append(os.path.relpath(other.path, root))
    parts = [_phrase(kind, names) for kind, names in sorted(kinds.items())]
    apart = series.step > MAX_STEP * series.thickness
    if not (parts or series.missing or series.scattered or apart):
        return ""
    text = f"{root}: {series.slices} slices read"
    if apart:
        text += (
            f", {series.thickness:g} mm thick but {series.step:g} mm apart, so that most between them was not imaged"
        )
    if series.missing:
        text += f", {series.missing} missing between them and interpolated"
    if series.scattered:
        text += f" as one series, since they are evenly spaced, although {series.scattered} differs in each"
    return text + (f"; passed over: {', '.join(parts)}" if parts else "")


def _phrase(kind: str, names: list[str]) -> str:
    one, many = PHRASES.get(kind) or (f"{kind[:16]} file", f"{kind[:16]} files")
    shown = ", ".join(sorted(names)[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
    return f"{len(names)} {one if len(names) == 1 else many} ({shown})"


def _is_usual(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name.startswith(".") or name in USUAL_NAMES or os.path.splitext(name)[1] in USUAL_SUFFIXES


def _name_pattern(path: str) -> str:
    """Return what the names of the slices of a series have in common: the suffix, or else all but the digits."""
    name = re.sub(r"\d+", "#", os.path.basename(path).lower())
    return os.path.splitext(name)[1] or name


def _refusal(root: str | PathLike[str], folder: Folder, chosen: str) -> UserError:
    """Return the error for a folder without exactly one series, or without the chosen one."""
    series, advice = folder.series, "give a folder that contains exactly one"
    if not series:
        kinds: dict[str, list[str]] = {}
        for other in folder.others:
            if not _is_usual(other.path):
                kinds.setdefault(other.kind, []).append(os.path.relpath(other.path, root))
        readable_here = sorted(o.path for o in folder.others if o.path.lower().endswith(READ_AS_FILES))
        if readable_here and is_unpacked(root):  # what lies in an archive has no path
            advice = f"unpack it and give {os.path.relpath(readable_here[0], root)}"
        elif readable_here:
            advice = f"give {readable_here[0]} itself"
        held = ", ".join(_phrase(kind, names) for kind, names in sorted(kinds.items()))
        return UserError(f"{root}: contains 0 DICOM CT series{f' but {held}' if held else ''}; {advice}")
    listed = [_describe(uid, paths) for uid, paths in list(series.items())[:MAX_LISTED]]
    listed += [f"and {len(series) - MAX_LISTED} more"] * (len(series) > MAX_LISTED)
    missing = f", none with the SeriesInstanceUID {chosen}" if chosen else ""
    return SeveralSeries(f"{root}: contains {len(series)} DICOM CT series{missing}: {', '.join(listed)}; {advice}")


def _describe(uid: str, paths: list[str]) -> str:
    """Return a series' UID with its description, number of slices and thickness, as far as its header has them."""
    header = _header(paths[0])
    words = " ".join(str(header.get("SeriesDescription") or "").split())[:40]
    try:
        count = max(int(header.get("NumberOfFrames") or 1), len(paths))
        thickness = float(header.get("SliceThickness") or 0)
    except DAMAGED:
        count, thickness = len(paths), 0.0
    slices = f"{count} slice{'s' * (count != 1)}" + (f" of {thickness:g} mm" if thickness > 0 else "")
    return f"{uid or 'without UID'} ({f'{words}, ' if words else ''}{slices})"


def _header(path: str) -> dict:
    """Return the elements that tell series apart, those that can be read."""
    tags = ["SeriesDescription", "SliceThickness", "NumberOfFrames", "SOPClassUID"]
    found = {}
    with quiet_pydicom():
        try:
            header = read_dataset(path, stop_before_pixels=True, specific_tags=tags)
        except DAMAGED:
            return {}
        for tag in tags:
            try:
                found[tag] = header.get(tag)
            except DAMAGED:
                continue
    return found
