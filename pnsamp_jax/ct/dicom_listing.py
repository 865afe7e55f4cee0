"""What a folder of DICOM files holds, in the words of notes and refusals."""

import os
from collections.abc import Iterable, Sequence
from os import PathLike

from pnsamp_jax.ct.archives import ARCHIVE_SUFFIXES, is_unpacked
from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
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
)
from pnsamp_jax.ct.file_kinds import PAGE, POINTER, WAYS_OUT, kind_of
from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES
from pnsamp_jax.errors import UserError

# What often lies beside a series and is not worth a word; other files are named.
USUAL_NAMES = {"dicomdir", "thumbs.db", "desktop.ini", "autorun.inf", "lockfile", "version", "readme", "license"}
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff")
USUAL_SUFFIXES = {
    *(".txt", ".md", ".pdf", ".xml", ".csv", ".json", ".html", ".htm", ".css", ".js", ".log", ".ini", ".inf"),
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ico", ".exe", ".dll", ".bat"),
}
SINGLE = "single image"  # of a CT, alone in its series
PHRASES = {  # singular and plural
    NOT_DICOM: ("file that is not DICOM", "files that are not DICOM"),
    INCOMPLETE: ("incomplete DICOM file", "incomplete DICOM files"),
    BROKEN: ("damaged DICOM file", "damaged DICOM files"),
    SCOUT: ("scout", "scouts"),
    CAPTURE: ("screen capture", "screen captures"),
    COLOR: ("color image", "color images"),
    UNPLACED: ("derived image without a position", "derived images without a position"),
    SINGLE: ("series of a single image", "series of a single image each"),
    POINTER: ("pointer of Git LFS in place of a file", "pointers of Git LFS in place of files"),
    PAGE: ("web page in place of a file", "web pages in place of files"),
    **{suffix: (f"{suffix} file, which holds no HU", f"{suffix} files, which hold no HU") for suffix in PICTURES},
}
READ_AS_FILES = (*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES)
MAX_SHOWN = 3  # names of each kind in a note
MAX_LISTED = 20  # series in a refusal


class SeveralSeries(UserError):
    """A folder that contains several series, of which none was chosen, or one that it does not contain."""


def phrase(kind: str, names: Sequence[str]) -> str:
    """Return how many files of a kind there are, and the names of the first."""
    one, many = PHRASES.get(kind) or (f"{kind[:16]} file", f"{kind[:16]} files")
    shown = ", ".join(sorted(names)[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
    return f"{len(names)} {one if len(names) == 1 else many} ({shown})"


def is_usual(path: str) -> bool:
    """Return whether a file often lies beside a series."""
    name = os.path.basename(path).lower()
    return name.startswith(".") or name in USUAL_NAMES or os.path.splitext(name)[1] in USUAL_SUFFIXES


def refusal(root: str | PathLike[str], folder: Folder, chosen: str) -> UserError:
    """Return the error for a folder without exactly one series, or without the chosen one."""
    series = folder.series
    if not series:
        return _without_series(root, folder.others)
    listed = [_describe(uid, paths) for uid, paths in list(series.items())[:MAX_LISTED]]
    listed += [f"and {len(series) - MAX_LISTED} more"] * (len(series) > MAX_LISTED)
    missing = f", none with the SeriesInstanceUID {chosen}" if chosen else ""
    advice = "give a folder that contains exactly one"
    if chosen:
        advice = "correct the series" + (" or leave it out" if len(series) == 1 else "")
    return SeveralSeries(f"{root}: contains {len(series)} DICOM CT series{missing}: {', '.join(listed)}; {advice}")


def _without_series(root: str | PathLike[str], others: Iterable[Other]) -> UserError:
    """Return the error for a folder without a CT series, which tells what it holds."""
    kinds: dict[str, list[str]] = {}
    readable_here = []
    for other in others:
        name = os.path.relpath(other.path, root)
        kind = _kind(other)
        if kind in PICTURES or not is_usual(other.path):
            kinds.setdefault(kind, []).append(name)
        if other.path.lower().endswith(READ_AS_FILES) and kind == other.kind:
            readable_here.append(name)
    replaced = [WAYS_OUT[kind] for kind in (POINTER, PAGE) if kind in kinds]
    if readable_here and is_unpacked(root):  # what lies in an archive has no path
        advice = f"unpack it and give {min(readable_here)}"
    elif readable_here:
        advice = f"give {os.path.join(root, min(readable_here))} itself"
    elif replaced:
        advice = replaced[0].replace("file", "files")
    elif kinds and set(kinds) <= set(PICTURES):
        advice = "export the CT as DICOM"
    else:
        advice = "give a folder that contains exactly one"
    held = ", ".join(phrase(kind, names) for kind, names in sorted(kinds.items()))
    return UserError(f"{root}: contains 0 DICOM CT series{f' but {held}' if held else ''}; {advice}")


def _kind(other: Other) -> str:
    """Return the kind of a file, of one that is not DICOM as far as its beginning or its suffix tells."""
    suffix = os.path.splitext(other.path)[1].lower()
    if other.kind != NOT_DICOM:
        return other.kind
    found = kind_of(other.path)
    if found in (POINTER, PAGE) and suffix not in (".html", ".htm"):
        return found
    return suffix if suffix in PICTURES else other.kind


def slice_count(paths: Sequence[str]) -> int:
    """Return the number of slices in the files of a series; if it has one file, that of its frames."""
    if len(paths) > 1:
        return len(paths)
    try:
        return max(int(header_of(paths[0]).get("NumberOfFrames") or 1), 1)
    except DAMAGED:
        return 1


def _describe(uid: str, paths: list[str]) -> str:
    """Return a series' UID with its description, number of slices and thickness, as far as its header has them."""
    header = header_of(paths[0])
    words = " ".join(str(header.get("SeriesDescription") or "").split())[:40]
    count = slice_count(paths)
    try:
        thickness = float(header.get("SliceThickness") or 0)
    except DAMAGED:
        thickness = 0.0
    slices = f"{count} slice{'s' * (count != 1)}" + (f" of {thickness:g} mm" if thickness > 0 else "")
    return f"{uid or 'without UID'} ({f'{words}, ' if words else ''}{slices})"


def header_of(path: str) -> dict:
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
