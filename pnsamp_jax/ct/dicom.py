"""Read DICOM CT series as HU volumes with their geometry. `dicom_index` finds the files of a series."""

import os
from collections.abc import Iterable
from itertools import groupby
from os import PathLike
from typing import NamedTuple

import numpy as np
import pydicom

from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.volume import AIR, Volume, check_geometry
from pnsamp_jax.errors import UserError

MAX_GAP = 2.5  # times the median slice spacing: one missing slice is interpolated, two in a row are an error
SAME_MM = 1e-3  # points closer than this are the same position
MAX_SHIFT_MM = 0.1  # largest distance of a slice from its position in an evenly spaced series
MAX_SIDE = 4096  # pixels; no CT is larger
PIXEL_FORMAT = (
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
SHARED = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")  # the same in all slices
LUNG_HU, WATER_HU = -900, 0  # the stored values of a chest CT must be able to represent both ...
MAX_STEP_HU = 100  # ... in steps no larger than this


class _Slice(NamedTuple):
    """The content of one DICOM file that is needed to build a volume."""

    path: str
    hu: np.ndarray  # (height, width) int16
    position: np.ndarray  # (3,) LPS mm of the first pixel
    shared: dict[str, str]  # values of the elements in `SHARED`, empty if an element is absent
    orientation: np.ndarray  # (6,): unit vectors along w, then along h
    pixel_spacing: np.ndarray  # (2,): mm along h, w
    acquisition: str  # AcquisitionNumber, empty if absent


def read_series(paths: Iterable[str | PathLike[str]]) -> Volume:
    """Read one DICOM CT series.

    Slices are ordered along their normal (row direction x column direction); in the usual axial series, z increases.
    Repeated slices (same position and pixels) count once. The depth column of the affine is the mean step from one
    slice to the next, so a tilted gantry gives a sheared affine.

    Spacings that differ from their median by more than 1 % and 0.01 mm, or that drift by more than 0.1 mm, are
    resampled by linear interpolation onto an even grid from the first slice to the last, with a spacing as close to
    the median as possible. This also fills in single missing slices.

    Args:
      paths: the files of the series, in any order.

    Returns:
      Volume of int16 HU.

    Raises:
      UserError: a file is damaged, incomplete or not a single CT slice; or the files do not form one volume: several
        series, orientations, shapes or pixel spacings, fewer than two slices, different pixels at one position, a gap
        wider than `MAX_GAP` times the median spacing, or a position more than 0.1 mm off the line through the others.
    """
    slices: list[_Slice] = []
    for path in sorted(os.fspath(path) for path in paths):
        slices.append(_read_slice(path))
        _check_alike(slices[0], slices[-1])
    if not slices:
        raise UserError("no DICOM files given; a CT series needs at least 2 slices")
    _, _, _, shared, orientation, pixel_spacing, _ = slices[0]
    series = shared["SeriesInstanceUID"]
    row, column = orientation.reshape(2, 3)
    normal = np.cross(row, column)
    slices = _drop_repeats(sorted(slices, key=lambda item: item.position @ normal), normal)
    if len(slices) < 2:
        raise UserError(f"{slices[0].path}: the only slice of series {series}; give at least 2")

    _require_one_acquisition(slices, series)
    positions = np.stack([item.position for item in slices])
    extent = positions[-1] - positions[0]
    depths = (positions - positions[0]) @ normal
    shifts = np.linalg.norm(positions - positions[0] - np.outer(depths / depths[-1], extent), axis=1)
    if shifts.max() > MAX_SHIFT_MM:
        raise UserError(
            f"{slices[shifts.argmax()].path}: lies {shifts.max():.2f} mm off the line from the first to the last "
            f"slice of series {series}; split the series where it shifts"
        )
    array = _stack_evenly(slices, depths)
    affine = np.eye(4)
    affine[:3] = np.stack(
        [extent / (len(array) - 1), column * pixel_spacing[0], row * pixel_spacing[1], positions[0]], axis=1
    )
    return check_geometry(slices[0].path, Volume(array, affine))


def _require_one_acquisition(slices: list[_Slice], series: str) -> None:
    """Raise UserError if acquisitions take turns, as of two breaths. One after the other they are a volume."""
    numbered = (item for item in slices if item.acquisition)
    runs = [next(group) for _, group in groupby(numbered, key=lambda item: item.acquisition)]
    if len(runs) > len({run.acquisition for run in runs}):
        first, second = runs[:2]
        raise UserError(
            f"{second.path}: AcquisitionNumber {second.acquisition} lies between slices of {first.acquisition}; "
            f"give one acquisition of series {series}"
        )


def slice_positions(paths: Iterable[str]) -> np.ndarray:
    """Return the LPS positions (n, 3) in mm of the first pixels of the slices in n files that `read_series` accepts.

    Unlike the volume from `read_series`, the result contains no interpolated slices.
    """
    tag = "ImagePositionPatient"
    with quiet_pydicom():
        headers = [(path, read_dataset(path, stop_before_pixels=True, specific_tags=[tag])) for path in paths]
        return np.stack([_numbers(path, header, tag, 3) for path, header in headers])


def _check_alike(first: _Slice, other: _Slice) -> None:
    """Raise UserError unless two files can be slices of one volume."""
    differs = {
        **{name: first.shared[name] not in ("", value) for name, value in other.shared.items() if value},
        "shape": first.hu.shape != other.hu.shape,
        "ImageOrientationPatient": np.abs(first.orientation - other.orientation).max() > 1e-4,
        "PixelSpacing": np.abs(first.pixel_spacing / other.pixel_spacing - 1).max() > 1e-4,
    }
    for name, different in differs.items():
        if different:
            raise UserError(f"{other.path}: {name} differs from that of {first.path}; give the slices of one volume")


def _drop_repeats(slices: list[_Slice], normal: np.ndarray) -> list[_Slice]:
    """Drop repeated slices from sorted ones. Raise UserError if two at the same depth differ in position or pixels."""
    kept = slices[:1]
    for item in slices[1:]:
        step = item.position - kept[-1].position
        if step @ normal >= SAME_MM:
            kept.append(item)
        elif np.abs(step).max() >= SAME_MM or not np.array_equal(item.hu, kept[-1].hu):
            raise UserError(
                f"{item.path}: has the same depth as {kept[-1].path} but is a different image; "
                f"keep only one phase or reconstruction of series {item.shared['SeriesInstanceUID']}"
            )
    return kept


def _stack_evenly(slices: list[_Slice], depths: np.ndarray) -> np.ndarray:
    """Stack slices at increasing depths (mm) into (d, h, w) HU, interpolated where their spacing is uneven.

    Raises:
      UserError: a gap is wider than `MAX_GAP` times the median spacing.
    """
    array = np.stack([item.hu for item in slices])
    gaps = np.diff(depths)
    median = np.sort(gaps)[(len(gaps) - 1) // 2]  # the lower middle value: a spacing that occurs in the series
    drift = np.abs(depths - np.linspace(0, depths[-1], len(depths))).max()
    uneven = np.abs(gaps - median).max() > max(0.01 * median, 0.01) or drift > MAX_SHIFT_MM
    if not uneven:  # or not finite, which `check_geometry` refuses
        return array
    widest = gaps.argmax()
    if gaps[widest] > MAX_GAP * median:
        raise UserError(
            f"{slices[widest].path}: {gaps[widest]:.2f} mm to the next slice {slices[widest + 1].path}, but the usual "
            f"spacing of series {slices[0].shared['SeriesInstanceUID']} is {median:.2f} mm; add the missing slices or "
            "leave out those on one side of the gap"
        )
    return _resample_depth(array, depths, round(depths[-1] / median) + 1)


def _resample_depth(array: np.ndarray, depths: np.ndarray, count: int) -> np.ndarray:
    """Interpolate slices at increasing `depths` (mm) onto `count` even depths from the first to the last."""
    result = np.empty((count, *array.shape[1:]), np.int16)
    for i, depth in enumerate(np.linspace(depths[0], depths[-1], count)):
        below = min(np.searchsorted(depths, depth, side="right") - 1, len(depths) - 2)
        weight = np.float32((depth - depths[below]) / (depths[below + 1] - depths[below]))
        result[i] = np.rint(array[below] * (1 - weight) + array[below + 1] * weight)
    return result


def _read_slice(path: str) -> _Slice:
    """Read and check one DICOM file. Raise UserError unless it is a valid, single CT slice."""
    with quiet_pydicom():
        try:
            ds = read_dataset(path)
            modality = ds.get("Modality")
            shared = {name: " ".join(str(ds.get(name) or "").split()) for name in SHARED}
            acquisition = str(ds.get("AcquisitionNumber") or "")
        except DAMAGED as error:
            raise UserError(f"{path}: cannot be read as DICOM; copy the file again or leave it out") from error
        if modality not in (None, "", "CT"):
            raise UserError(f"{path}: Modality is {modality!r}; give CT, the only one with Hounsfield units")
        for keyword, most in {
            "NumberOfFrames": 1,
            "SamplesPerPixel": 1,
            "Rows": MAX_SIDE,
            "Columns": MAX_SIDE,
        }.items():
            count = _numbers(path, ds, keyword, 1, default=1 if most == 1 else None)[0]
            if not 1 <= count <= most:
                raise UserError(
                    f"{path}: {keyword} is {count:g}, not 1 to {most}; convert the file to single-frame grayscale CT"
                )
        position = _numbers(path, ds, "ImagePositionPatient", 3)
        orientation = _numbers(path, ds, "ImageOrientationPatient", 6)
        pixel_spacing = _numbers(path, ds, "PixelSpacing", 2)
        axes = orientation.reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
            raise UserError(f"{path}: ImageOrientationPatient is not two perpendicular unit vectors; correct it")
        if pixel_spacing.min() <= 0:
            raise UserError(f"{path}: PixelSpacing is not positive; correct it")
        return _Slice(path, _hounsfield(path, ds), position, shared, orientation, pixel_spacing, acquisition)


def _numbers(path: str, ds: pydicom.Dataset, keyword: str, count: int, default: float | None = None) -> np.ndarray:
    """Return the (count,) finite numbers of a DICOM element, or (1,) the default if it is absent or empty.

    Raises:
      UserError: the element is not that many finite numbers, or is absent and has no default.
    """
    try:
        value = ds.get(keyword)
        if default is not None and (value is None or value == ""):
            return np.array([default], np.float64)
        numbers = np.atleast_1d(np.array(value, np.float64))
    except DAMAGED as error:
        raise UserError(f"{path}: {keyword} is not a number; correct it or leave the file out") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(f"{path}: has no valid {keyword}, which a CT slice needs; export the series again")
    return numbers


def _hounsfield(path: str, ds: pydicom.Dataset) -> np.ndarray:
    """Return the pixels of one file as (height, width) int16 HU, with padding and values below `AIR` set to `AIR`.

    Raises:
      UserError: the pixels are missing, damaged or cannot be decoded, or their HU are unknown.
    """
    slope = _numbers(path, ds, "RescaleSlope", 1, default=1)
    intercept = _numbers(path, ds, "RescaleIntercept", 1, default=0)
    if slope == 0:
        raise UserError(f"{path}: RescaleSlope is 0, which makes all pixels equal; export the series again")
    if "PixelData" not in ds:
        raise UserError(f"{path}: has no pixel data; copy the file again or leave it out")
    for keyword, allowed in {"RescaleType": ("HU", "US"), "ModalityLUTSequence": ()}.items():
        if ds.get(keyword) and str(ds.get(keyword)).strip() not in allowed:
            raise UserError(f"{path}: according to its {keyword}, the values are not HU; export the series in HU")
    for keyword in PIXEL_FORMAT:
        if keyword not in ds:
            raise UserError(f"{path}: has no {keyword}, which its pixels need; export the series again")
    if ds.file_meta.get("TransferSyntaxUID") is None:
        raise UserError(f"{path}: has no TransferSyntaxUID, so its compression is unknown; export it again")
    try:
        stored, complete = ds.pixel_array, _is_complete(ds)
    except DAMAGED as error:
        syntax = ds.file_meta.get("TransferSyntaxUID")
        if syntax in (None, *pydicom.uid.UncompressedTransferSyntaxes):
            raise UserError(f"{path}: the pixel data are truncated or damaged; copy the file again") from error
        raise UserError(
            f"{path}: the pixel data cannot be decoded ({getattr(syntax, 'name', syntax)}); "
            'pip install "pnsamp-jax[compressed]", decompress it (gdcmconv --raw), or copy it again if it is damaged'
        ) from error
    if not intercept and ds.get("RescaleIntercept") in (None, "") and stored.dtype.kind == "u":
        raise UserError(f"{path}: has no RescaleIntercept, so the HU are unknown; export the series again")
    if not complete or stored.shape != (ds.Rows, ds.Columns):
        raise UserError(f"{path}: the pixel data are not Rows x Columns, or truncated; copy the file again")
    if ds.get("HighBit", ds.BitsStored - 1) != ds.BitsStored - 1:
        raise UserError(f"{path}: HighBit is {ds.HighBit} for {ds.BitsStored} bits stored; export the series again")
    lowest = 0.0 if stored.dtype.kind == "u" else -(2.0 ** (ds.BitsStored - 1))  # as floats, which do not overflow
    ends = np.array([lowest, lowest + 2.0**ds.BitsStored - 1]) * slope + intercept
    if abs(slope) > MAX_STEP_HU or ends.min() > LUNG_HU or ends.max() < WATER_HU:
        raise UserError(
            f"{path}: RescaleSlope {slope[0]:g} and RescaleIntercept {intercept[0]:g} cannot give the HU of a chest; "
            "export the series again"
        )
    hu = np.clip(np.rint(stored * slope + intercept), AIR, np.iinfo(np.int16).max).astype(np.int16)
    padding = _numbers(path, ds, "PixelPaddingValue", 1, default=np.nan)
    if np.isfinite(padding):
        limit = _numbers(path, ds, "PixelPaddingRangeLimit", 1, default=padding[0])
        # A negative value is often written as its two's complement (63536 for -2000); the cast converts it back.
        low, high = np.sort(np.concatenate([padding, limit]).astype(np.int64).astype(stored.dtype))
        if low * slope + intercept < WATER_HU < high * slope + intercept:
            raise UserError(f"{path}: the range to PixelPaddingRangeLimit includes the body; export the series again")
        hu[(stored >= low) & (stored <= high)] = AIR
    return hu


def _is_complete(ds: pydicom.Dataset) -> bool:
    """Return whether pixel data have the length that the header implies or, if compressed, end with the end marker.

    Decoders ignore excess data, which a wrong width leads to, and fill in what a truncated JPEG lacks.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        needed = ds.Rows * ds.Columns * ds.BitsAllocated // 8
        return len(ds.PixelData) == needed + needed % 2
    if syntax == pydicom.uid.RLELossless:  # has no end marker, but its decoder raises on truncated data
        return True
    return next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)).rstrip(b"\0").endswith(b"\xff\xd9")
