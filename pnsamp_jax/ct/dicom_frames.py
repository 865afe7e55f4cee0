"""The frames of an enhanced (multi-frame) CT: what describes each is in functional groups (PS3.3, C.7.6.16)."""

from collections.abc import Iterable
from typing import NamedTuple

import pydicom

from pnsamp_jax.ct.dicom_file import DAMAGED, ENHANCED, numbers, quiet_pydicom, read_dataset
from pnsamp_jax.errors import UserError

PER_FRAME, SHARED_BY_ALL = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
ONE_VOLUME = (
    "StackID",
    "TemporalPositionIndex",
)  # of the frame's content; more than one value is more than one volume

CONCATENATION = ("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber")


class Frame(NamedTuple):
    """The datasets that describe a slice: all the same one for an ordinary file, items of groups for a frame.

    Attributes:
      name: the file, and the number of the frame.
      position: holds ImagePositionPatient.
      orientation: holds ImageOrientationPatient.
      measures: holds PixelSpacing.
      rescale: holds RescaleSlope and RescaleIntercept.
      acquisition: its number, empty if absent.
    """

    name: str
    position: pydicom.Dataset
    orientation: pydicom.Dataset
    measures: pydicom.Dataset
    rescale: pydicom.Dataset
    acquisition: str


def is_enhanced(ds: pydicom.Dataset) -> bool:
    """Return whether a dataset is an enhanced CT, whose slices are frames of one file."""
    return ds.get("SOPClassUID") in ENHANCED or PER_FRAME in ds


def require_placed_frames(path: str, ds: pydicom.Dataset) -> None:
    """Raise UserError if a dataset that is no enhanced CT holds several frames, whose positions nothing tells."""
    count = numbers(path, ds, "NumberOfFrames", 1, default=1)[0]
    if count < 1:
        raise UserError(f"{path}: NumberOfFrames is {count:g}; export the series again")
    if count > 1:
        raise UserError(
            f"{path}: NumberOfFrames is {count:g}, but nothing tells the positions of the frames, as {PER_FRAME} does "
            "in an enhanced CT; export it as enhanced CT or as single slices"
        )


def require_all_parts(paths: Iterable[str]) -> None:
    """Raise UserError if enhanced CTs are parts of one that was stored in several files, and some are missing.

    Args:
      paths: all files of a series with frames.
    """
    found: dict[str, dict[int, str]] = {}  # number of each part -> its file, by the UID that the parts share
    totals: dict[str, int] = {}
    for path in paths:
        uid, number, total = _part(path)
        if number:
            found.setdefault(uid, {})[number] = path
            totals[uid] = max(totals.get(uid, 0), number, total)
    for uid, parts in found.items():
        missing = [str(number) for number in range(1, totals[uid] + 1) if number not in parts]
        if missing:
            listed = " and ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
            raise UserError(
                f"{parts[min(parts)]}: is one of {totals[uid]} files of an enhanced CT, of which number {listed} "
                "(InConcatenationNumber) is missing; give a folder that holds all of them"
            )


def _part(path: str) -> tuple[str, int, int]:
    """Return the UID of the concatenation that a file is a part of, its number and their total; 0 if unknown."""
    try:
        with quiet_pydicom():
            ds = read_dataset(path, stop_before_pixels=True, specific_tags=list(CONCATENATION))
            uid, number, total = (ds.get(keyword) for keyword in CONCATENATION)
            return str(uid or ""), int(number or (1 if uid or total else 0)), int(total or 0)
    except DAMAGED as error:
        raise UserError(f"{path}: {', '.join(CONCATENATION)} cannot be read; export it again") from error


def read_frames(path: str, ds: pydicom.Dataset) -> list[Frame]:
    """Return the frames of an enhanced CT, in the order in which they are stored.

    Raises:
      UserError: a functional group is missing or damaged, or the frames are those of several volumes.
    """
    count = numbers(path, ds, "NumberOfFrames", 1)[0]
    try:
        per_frame, shared = list(ds.get(PER_FRAME) or []), list(ds.get(SHARED_BY_ALL) or [])
        if count != len(per_frame):
            raise UserError(
                f"{path}: NumberOfFrames is {count:g}, but {PER_FRAME} describes {len(per_frame)}; export it again"
            )
        contents = [_group((item,), "FrameContentSequence") or pydicom.Dataset() for item in per_frame]
        for keyword in ONE_VOLUME:
            values = sorted({str(content.get(keyword, "")) for content in contents})
            if len(values) > 1:
                raise UserError(
                    f"{path}: its frames are of {len(values)} volumes ({keyword} {', '.join(values[:4])}"
                    f"{', ...' if len(values) > 4 else ''}); give one"
                )
        return [
            _frame(f"{path}, frame {number}", (item, *shared[:1]), content, ds)
            for number, (item, content) in enumerate(zip(per_frame, contents, strict=True), start=1)
        ]
    except DAMAGED as error:
        raise UserError(f"{path}: its functional groups cannot be read; export it again") from error


def _frame(name: str, items: tuple[pydicom.Dataset, ...], content: pydicom.Dataset, ds: pydicom.Dataset) -> Frame:
    def group(keyword: str) -> pydicom.Dataset:
        found = _group(items, keyword)
        if found is None:
            raise UserError(f"{name}: has no valid {keyword}, which a CT slice needs; export it again")
        return found

    acquisition = content.get("FrameAcquisitionNumber")
    if acquisition is None:
        acquisition = ds.get("AcquisitionNumber")
    return Frame(
        name,
        group("PlanePositionSequence"),
        group("PlaneOrientationSequence"),
        group("PixelMeasuresSequence"),
        group("PixelValueTransformationSequence"),
        "" if acquisition is None else str(acquisition),
    )


def _group(items: tuple[pydicom.Dataset, ...], keyword: str) -> pydicom.Dataset | None:
    """Return the one item of a functional group, the frame's own or else a shared one; None if neither has it."""
    for item in items:
        group = item.get(keyword)
        if group is not None:
            return group[0] if isinstance(group, pydicom.Sequence) and len(group) == 1 else None
    return None
