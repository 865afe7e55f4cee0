"""The one CT series that a user means by a folder, and what else lies in it."""

import os
import re
from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

from pnsamp_jax.ct.dicom import SLICES_PER_SCOUT, Series, assemble_series, slice_positions
from pnsamp_jax.ct.dicom_agreement import MIN_SCATTERED
from pnsamp_jax.ct.dicom_file import DAMAGED, ENHANCED
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
from pnsamp_jax.ct.dicom_listing import SINGLE, SeveralSeries, header_of, is_usual, phrase, refusal, slice_count
from pnsamp_jax.ct.notes import note
from pnsamp_jax.errors import UserError

NO_IMAGES = {"SR", "KO", "PR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "DOC", "AU", "PLAN", "FID"}
NEXT = 0.05  # share of a step by which the next slice may lie elsewhere
MAX_STEP = 2.01  # times SliceThickness, and rounding; beyond it, more lies between the slices than in them


class Found(NamedTuple):
    """The files of one series under a folder.

    Attributes:
      uid: its SeriesInstanceUID; empty if the files have none, or each its own.
      paths: sorted.
      joined: number of series with one file each that were taken for one series; else 0.
      others: the other files under the folder; if one of several series was chosen, those beside its slices.
    """

    uid: str
    paths: list[str]
    joined: int
    others: list[Other]


def only_series(root: str | PathLike[str], chosen: str = "") -> list[str]:
    """Return the sorted paths of `find_series`."""
    return find_series(root, chosen).paths


def find_series(root: str | PathLike[str], chosen: str = "") -> Found:
    """Find the one CT series under a folder. Series of a single image beside it, as of a scout, are no choice.

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
        raise refusal(root, folder, chosen)
    if len(series) == 2 and "" in series:  # a UID that was lost; the other elements tell whether they belong together
        uid = next(uid for uid in series if uid)
        return Found(uid, sorted(path for paths in series.values() for path in paths), 0, folder.others)
    if len(series) == 1:
        return Found(next(iter(series)), next(iter(series.values())), 0, folder.others)
    volume = _only_volume(folder)
    if volume:
        return volume
    single = [paths[0] for paths in series.values() if len(paths) == 1]
    if len(single) < max(len(series), MIN_SCATTERED) or header_of(single[0]).get("SOPClassUID") in ENHANCED:
        raise refusal(root, folder, chosen)
    return Found("", sorted(single), len(single), folder.others)


def _only_volume(folder: Folder) -> Found | None:
    """Return the only series of several images, if each other is of a single one and they are few; else None."""
    counts = {uid: slice_count(paths) for uid, paths in folder.series.items()}
    volumes = [uid for uid, count in counts.items() if count > 1]
    if len(volumes) != 1 or counts[volumes[0]] < SLICES_PER_SCOUT * (len(counts) - 1):
        return None
    (uid,) = volumes
    single = [Other(paths[0], SINGLE, other) for other, paths in folder.series.items() if other != uid]
    return Found(uid, folder.series[uid], 0, sorted([*folder.others, *single]))


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
    single = [other.path for other in found.others if other.kind == SINGLE]
    for path in single:
        if _is_lost_slice(path, series):
            raise SeveralSeries(
                f"{root}: contains {len(single) + 1} DICOM CT series, of which one is a single image "
                f"({os.path.relpath(path, root)}) that seems to be a slice which another lacks ({found.uid}); give a "
                "folder that contains exactly one"
            )
    text = passed_over(root, series, found.others)
    if text:
        note(text)
    return series


def _is_lost_slice(path: str, series: Series) -> bool:
    """Return whether an image lies in the row of a series that lacks slices, or one step before or after the row."""
    try:
        depth, *aside = series.volume.to_index(slice_positions([path])[0])
    except (UserError, *DAMAGED):
        return False
    count = len(series.volume.array)
    in_gap = series.missing > 0 and 0 < depth < count - 1
    return max(map(abs, aside)) < 0.5 and (in_gap or min(abs(depth + 1), abs(depth - count)) < NEXT)


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
            doubtful = same_series or (_name_pattern(other.path) in patterns and not is_usual(other.path))
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
        if not is_usual(other.path):
            kinds.setdefault(other.kind, []).append(os.path.relpath(other.path, root))
    parts = [phrase(kind, names) for kind, names in sorted(kinds.items())]
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


def _name_pattern(path: str) -> str:
    """Return what the names of the slices of a series have in common: the suffix, or else all but the digits."""
    name = re.sub(r"\d+", "#", os.path.basename(path).lower())
    return os.path.splitext(name)[1] or name
