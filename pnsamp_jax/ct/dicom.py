"""Read DICOM CT series as HU volumes with their geometry. `dicom_index` finds the files of a series."""

import os
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np

from pnsamp_jax.ct.dicom_agreement import (
    SAME_MM,
    check_alike,
    check_shared,
    require_depths,
    require_no_turns,
    require_stated_sizes,
)
from pnsamp_jax.ct.dicom_clashes import clash
from pnsamp_jax.ct.dicom_file import DAMAGED, numbers, quiet_pydicom, read_dataset
from pnsamp_jax.ct.dicom_frames import require_all_parts
from pnsamp_jax.ct.dicom_slices import Slice, read_slices
from pnsamp_jax.ct.dicom_stack import MAX_SHIFT_MM, count_missing, is_even, stack_evenly, usual_spacing
from pnsamp_jax.ct.volume import SPACING_MM, Volume, check_geometry
from pnsamp_jax.errors import UserError

MAX_SCOUTS = 4  # images across the slices of a series that are passed over
SLICES_PER_SCOUT = 4  # at least
SAME_SHARE = 0.01  # of the usual spacing, by which the positions of a slice that was sent twice may differ


class Series(NamedTuple):
    """A series as a volume, and what became of its files.

    Attributes:
      volume: int16 HU.
      files: those of the volume, sorted, without those of repeated slices.
      multi_frame: whether a file holds several slices.
      scattered: a UID that differs in every slice; empty if there is none.
      scouts: files that were passed over, because they show the body across the slices.
      slices: number of slices, before missing ones are interpolated.
      missing: number of slices that are missing between two others, and were interpolated.
      thickness: of a slice in mm, as the files state it; NaN if they do not.
      step: usual distance in mm from one slice to the next.
    """

    volume: Volume
    files: list[str]
    multi_frame: bool
    scattered: str
    scouts: list[str]
    slices: int
    missing: int
    thickness: float
    step: float


def read_series(paths: Iterable[str | PathLike[str]]) -> Volume:
    """Read one DICOM CT series as `assemble_series` does, and return its volume."""
    return assemble_series(paths).volume


def assemble_series(paths: Iterable[str | PathLike[str]]) -> Series:
    """Read one DICOM CT series.

    Slices are ordered along their normal (row direction x column direction); in the usual axial series, z increases.
    Repeated slices (same pixels, and the same position within 1 % of the usual spacing) count once. The depth column
    of the affine is the mean step from one slice to the next, so a tilted gantry gives a sheared affine.

    Spacings that differ from their median by more than 1 % and 0.01 mm, or that drift by more than 0.1 mm, are
    resampled by linear interpolation onto an even grid from the first slice to the last, with a spacing as close to
    the median as possible. This also fills in single missing slices.

    A few images across all others, as a scout is, are passed over. UIDs that differ in every slice, as after some
    anonymization, count as one if the slices are an even row.

    Args:
      paths: the files of the series, in any order; those of an enhanced CT hold many slices each.

    Returns:
      The series, with a volume of int16 HU.

    Raises:
      UserError: a file is damaged, incomplete or not a CT slice; or the files do not form one volume: several
        series, orientations, shapes or pixel spacings, fewer than two slices, different pixels at one position, a gap
        wider than `MAX_GAP` times the median spacing, a position more than 0.1 mm off the line through the others,
        or what `dicom_agreement` finds.
    """
    slices: list[Slice] = []
    files, scouts = _without_scouts(sorted(os.fspath(path) for path in paths))
    for path in files:
        for item in read_slices(path):
            slices.append(item)
            check_alike(slices[0], item)
    if not slices:
        raise UserError("no DICOM files given; a CT series needs at least 2 slices")
    require_all_parts(sorted({item.path for item in slices if item.name != item.path}))
    scattered = check_shared(slices)
    series = slices[0].shared["SeriesInstanceUID"]
    normal = np.cross(*slices[0].orientation.reshape(2, 3))
    require_depths(slices, normal)
    slices = _drop_repeats(sorted(slices, key=lambda item: item.position @ normal), normal)
    if len(slices) < 2:
        raise UserError(f"{slices[0].name}: the only slice of series {series}; give at least 2")

    require_no_turns(slices)
    positions = np.stack([item.position for item in slices])
    depths = _depths_along_a_line(slices, positions, normal)
    if scattered and not is_even(depths):
        raise UserError(
            f"{slices[0].name}: {scattered} differs in every slice, and the slices are not evenly spaced, so they may "
            "be of several series; give the slices of one volume"
        )
    require_stated_sizes(slices, positions, depths)
    volume = _volume(slices, positions, depths)
    multi_frame = any(item.name != item.path for item in slices)
    files = sorted({item.path for item in slices})
    return Series(
        volume, files, multi_frame, scattered, scouts, len(slices), count_missing(depths), _usual_thickness(slices),
        usual_spacing(depths),
    )  # fmt: skip


def _usual_thickness(slices: Sequence[Slice]) -> float:
    """Return the median of the thicknesses in mm that slices state, NaN if there is none."""
    stated = [item.measures["SliceThickness"] for item in slices if item.measures["SliceThickness"] > 0]
    return float(np.median(stated)) if stated else float("nan")


def _volume(slices: list[Slice], positions: np.ndarray, depths: np.ndarray) -> Volume:
    """Return the volume of slices at (n, 3) positions in mm, n increasing depths along their normal."""
    array = stack_evenly(slices, depths)
    row, column = slices[0].orientation.reshape(2, 3)
    spacing = np.median([item.pixel_spacing for item in slices], axis=0)
    step = (positions[-1] - positions[0]) / (len(array) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([step, column * spacing[0], row * spacing[1], positions[0]], axis=1)
    return check_geometry(slices[0].name, Volume(array, affine))


def _depths_along_a_line(slices: list[Slice], positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return the depths (n,) in mm of sorted slices from the first one on. Raise UserError if one lies aside."""
    extent = positions[-1] - positions[0]
    depths = (positions - positions[0]) @ normal
    shifts = np.linalg.norm(positions - positions[0] - np.outer(depths / depths[-1], extent), axis=1)
    if shifts.max() > MAX_SHIFT_MM:
        raise UserError(
            f"{slices[shifts.argmax()].name}: lies {shifts.max():.2f} mm off the line from the first to the last "
            f"slice of series {slices[0].shared['SeriesInstanceUID']}; split the series where it shifts"
        )
    return depths


def _without_scouts(paths: list[str]) -> tuple[list[str], list[str]]:
    """Split files into those of a volume and a few that lie across all others, which are scouts."""
    normals = [_normal(path) for path in paths]
    known = np.array([normal for normal in normals if normal is not None])
    if not len(known):
        return paths, []
    # The plane in which most of the slices lie: the one to which most normals are parallel.
    parallel = np.abs(known @ known.T) > np.cos(np.pi / 4)
    main = known[parallel.sum(axis=1).argmax()]
    across = [normal is not None and abs(normal @ main) <= np.cos(np.pi / 4) for normal in normals]
    scouts = [path for path, is_across in zip(paths, across, strict=True) if is_across]
    if len(scouts) > MAX_SCOUTS or len(paths) - len(scouts) < SLICES_PER_SCOUT * len(scouts):
        return paths, []  # not a clear majority: the volume will be refused
    return [path for path, is_across in zip(paths, across, strict=True) if not is_across], scouts


def _normal(path: str) -> np.ndarray | None:
    """Return the unit normal (3,) of a file's slice; None if the file does not tell, as an enhanced CT."""
    keyword = "ImageOrientationPatient"
    with quiet_pydicom():
        try:
            header = read_dataset(path, stop_before_pixels=True, specific_tags=[keyword])
            row, column = numbers(path, header, keyword, 6).reshape(2, 3)
        except (UserError, *DAMAGED):
            return None
    normal = np.cross(row, column)
    length = np.linalg.norm(normal)
    return normal / length if 0.5 < length < 2 else None


def slice_positions(paths: Iterable[str]) -> np.ndarray:
    """Return the LPS positions (n, 3) in mm of the first pixels of the slices in n files that `read_series` accepts.

    Unlike the volume from `read_series`, the result contains no interpolated slices.

    Args:
      paths: files with a slice each, which are not scouts.
    """
    tag = "ImagePositionPatient"
    with quiet_pydicom():
        headers = [(path, read_dataset(path, stop_before_pixels=True, specific_tags=[tag])) for path in paths]
        return np.stack([numbers(path, header, tag, 3) for path, header in headers])


def _drop_repeats(slices: list[Slice], normal: np.ndarray) -> list[Slice]:
    """Drop repeated slices from sorted ones. Raise UserError if two at the same depth differ in position or pixels."""
    depths = np.stack([item.position for item in slices]) @ normal
    gaps = np.diff(depths)
    steps = gaps[gaps >= SPACING_MM[0]]  # without those between repeated slices, which may be the most
    same = max(SAME_MM, SAME_SHARE * float(np.median(steps))) if len(steps) else SAME_MM
    kept, clashes = slices[:1], []
    for item in slices[1:]:
        step = item.position - kept[-1].position
        if step @ normal >= same:
            kept.append(item)
        elif np.abs(step).max() >= same or not np.array_equal(item.hu, kept[-1].hu):
            clashes.append((kept[-1], item))
    if clashes:
        raise clash(slices, depths, clashes)
    return kept
