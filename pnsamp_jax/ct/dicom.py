"""CT series from DICOM files into HU with their geometry; `dicom_index` finds the files."""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from pnsamp_jax.ct.volume import AIR, Volume, check_geometry
from pnsamp_jax.errors import UserError

MAX_GAP = 2.5  # of the median slice spacing: one lost slice is interpolated, two in a row are not

SAME_MM = 1e-3  # positions closer than this are one position
_LINE_MM = 0.1  # how far a slice may lie off its place on the series' line
_MAX_SIDE = 4096  # pixels, beyond any CT
_SHARED = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")  # by all slices of a volume
_LUNG_HU, _WATER_HU = -900, 0  # which the stored values of a chest CT must be able to say ...
_STEP_HU = 100  # ... in steps no larger than this
# What pydicom raises on a damaged file. Values are converted when they are first asked for, so not by `dcmread` alone.
DAMAGED = (InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, LookupError,
            AttributeError, RuntimeError, ArithmeticError, struct.error, zlib.error)  # fmt: skip


@contextmanager
def quiet_pydicom():
    """Drops pydicom's remarks on what breaks the standard without harm here: many, and they quote patients' data."""
    loggers = {logging.getLogger(name): logging.getLogger(name).propagate for name in ("pydicom", "openjpeg")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.propagate = False  # `disabled` would not hold for their children
            yield
        finally:
            for logger, propagate in loggers.items():
                logger.propagate = propagate


class _Slice(NamedTuple):
    """One DICOM file: (height, width) int16 HU, the (3,) position of its first pixel, and what all slices share."""

    path: str
    hu: np.ndarray
    position: np.ndarray
    shared: dict[str, str]  # the values of `_SHARED`, empty where there is none
    orientation: np.ndarray  # (6,): unit vectors along w, then along h
    pixel_spacing: np.ndarray  # (2,): mm along h, w


def read_series(paths: Iterable) -> Volume:
    """Reads one DICOM CT series.

    Slices are ordered along their normal (row direction x column direction), which for the usual axial series is
    towards larger z. Repeated slices (same position, same pixels) count once. The affine's depth column is the mean
    step from position to position, so that a tilted gantry gives a sheared affine.

    Spacings that differ from their median by more than 1 % and 0.01 mm, or that drift by more than 0.1 mm, are
    resampled by linear interpolation onto an even grid from the first slice to the last, as near to the median
    spacing as fits. That also fills single lost slices; a gap wider than `MAX_GAP` times the median is refused.

    Args:
      paths: the series' files, in any order.

    Returns:
      Volume of int16 HU.

    Raises:
      UserError: a file is damaged, lacks something or is not a single CT slice; or the files do not form one volume:
        several series, orientations, shapes or pixel spacings, fewer than two slices, different pixels at one
        position, too wide a gap, or a position more than 0.1 mm off the line through the others.
    """
    slices: list[_Slice] = []
    for path in sorted(map(os.fspath, paths)):
        slices.append(_read_slice(path))
        _check_alike(slices[0], slices[-1])
    if not slices:
        raise UserError("no DICOM files given; a CT series needs at least 2 slices")
    _, _, _, shared, orientation, pixel_spacing = slices[0]
    series = shared["SeriesInstanceUID"]
    row, column = orientation.reshape(2, 3)
    normal = np.cross(row, column)
    slices = _drop_repeats(sorted(slices, key=lambda item: item.position @ normal), normal)
    if len(slices) < 2:
        raise UserError(f"{slices[0].path}: the only slice of series {series}; give at least 2")

    positions = np.stack([item.position for item in slices])
    extent = positions[-1] - positions[0]
    along = (positions - positions[0]) @ normal
    aside = np.linalg.norm(positions - positions[0] - np.outer(along / along[-1], extent), axis=1)
    if aside.max() > _LINE_MM:
        raise UserError(
            f"{slices[aside.argmax()].path}: lies {aside.max():.2f} mm beside the line from the first to the last "
            f"slice of series {series}; split the series where it shifts"
        )
    array = np.stack([item.hu for item in slices])
    gaps = np.diff(along)
    median = np.sort(gaps)[(len(gaps) - 1) // 2]  # the lower one of two: a spacing that is really there
    drift = np.abs(along - np.linspace(0, along[-1], len(along))).max()
    if np.abs(gaps - median).max() > max(0.01 * median, 0.01) or drift > _LINE_MM:
        wide = gaps.argmax()
        if gaps[wide] > MAX_GAP * median:
            raise UserError(
                f"{slices[wide].path}: {gaps[wide]:.2f} mm to the next slice {slices[wide + 1].path}, but "
                f"{median:.2f} mm are usual in series {series}; add the missing ones or leave out one side of the gap"
            )
        array = _resample_depth(array, along, round(along[-1] / median) + 1)
    affine = np.eye(4)
    affine[:3] = np.stack(
        [extent / (len(array) - 1), column * pixel_spacing[0], row * pixel_spacing[1], positions[0]], axis=1
    )
    return check_geometry(slices[0].path, Volume(array, affine))


def slice_positions(paths: Iterable) -> np.ndarray:
    """(n, 3) LPS mm: the first pixels of the slices that are really there, of files that `read_series` accepts."""
    tag = "ImagePositionPatient"
    with quiet_pydicom():
        headers = [(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[tag])) for path in paths]
        return np.stack([_numbers(path, header, tag, 3) for path, header in headers])


def _check_alike(first: _Slice, other: _Slice) -> None:
    """Raises UserError unless two files can be slices of one volume."""
    differs = {
        **{name: first.shared[name] not in ("", value) for name, value in other.shared.items() if value},
        "shape": first.hu.shape != other.hu.shape,
        "ImageOrientationPatient": np.abs(first.orientation - other.orientation).max() > 1e-4,
        "PixelSpacing": np.abs(first.pixel_spacing / other.pixel_spacing - 1).max() > 1e-4,
    }
    for name in (name for name, different in differs.items() if different):
        raise UserError(f"{other.path}: {name} differs from that of {first.path}; give the slices of one volume")


def _drop_repeats(slices: list[_Slice], normal: np.ndarray) -> list[_Slice]:
    """Keeps one of each run of sorted slices that are the same; UserError where only their depth is."""
    kept = slices[:1]
    for item in slices[1:]:
        step = item.position - kept[-1].position
        if step @ normal >= SAME_MM:
            kept.append(item)
        elif np.abs(step).max() >= SAME_MM or not np.array_equal(item.hu, kept[-1].hu):
            raise UserError(
                f"{item.path}: lies at the same depth as {kept[-1].path} but is another image; "
                f"keep one phase or reconstruction of series {item.shared['SeriesInstanceUID']}"
            )
    return kept


def _resample_depth(array: np.ndarray, along: np.ndarray, count: int) -> np.ndarray:
    """Interpolates slices at increasing depths `along` (mm) onto `count` even depths from the first to the last."""
    result = np.empty((count, *array.shape[1:]), np.int16)
    for i, depth in enumerate(np.linspace(along[0], along[-1], count)):
        below = min(np.searchsorted(along, depth, side="right") - 1, len(along) - 2)
        weight = np.float32((depth - along[below]) / (along[below + 1] - along[below]))
        result[i] = np.rint(array[below] * (1 - weight) + array[below + 1] * weight)
    return result


def _read_slice(path: str) -> _Slice:
    """Reads and checks one DICOM file; UserError when it is not a sound, single CT slice."""
    with quiet_pydicom():
        try:
            ds = pydicom.dcmread(path)
            modality = ds.get("Modality")
            shared = {name: " ".join(str(ds.get(name) or "").split()) for name in _SHARED}
        except DAMAGED as error:
            raise UserError(f"{path}: cannot be read as DICOM; copy the file again or leave it out") from error
        if modality not in (None, "", "CT"):
            raise UserError(f"{path}: its Modality is {modality!r}; give CT, which alone has Hounsfield units")
        for keyword, most in {
            "NumberOfFrames": 1,
            "SamplesPerPixel": 1,
            "Rows": _MAX_SIDE,
            "Columns": _MAX_SIDE,
        }.items():
            count = _numbers(path, ds, keyword, 1, default=1 if most == 1 else None)[0]
            if not 1 <= count <= most:
                raise UserError(
                    f"{path}: {keyword} is {count:g}, not 1 to {most}; convert it to single-frame grey-scale CT"
                )
        position = _numbers(path, ds, "ImagePositionPatient", 3)
        orientation = _numbers(path, ds, "ImageOrientationPatient", 6)
        pixel_spacing = _numbers(path, ds, "PixelSpacing", 2)
        axes = orientation.reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
            raise UserError(f"{path}: ImageOrientationPatient is not two perpendicular unit vectors; correct it")
        if pixel_spacing.min() <= 0:
            raise UserError(f"{path}: PixelSpacing is not positive; correct it")
        return _Slice(path, _hounsfield(path, ds), position, shared, orientation, pixel_spacing)


def _numbers(path: str, ds: pydicom.Dataset, keyword: str, count: int, default: float | None = None) -> np.ndarray:
    """The (count,) finite numbers of a DICOM element, or the default where it is absent or empty; else UserError."""
    try:
        value = ds.get(keyword)
        if default is not None and (value is None or value == ""):
            return np.array([default], np.float64)
        numbers = np.atleast_1d(np.array(value, np.float64))
    except DAMAGED as error:
        raise UserError(f"{path}: its {keyword} is not a number; correct it or leave the file out") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(f"{path}: has no valid {keyword}, which a CT slice needs; export the series again")
    return numbers


def _hounsfield(path: str, ds: pydicom.Dataset) -> np.ndarray:
    """Decodes the pixels of one file into (height, width) int16 HU, padding and all below `AIR` set to `AIR`."""
    slope = _numbers(path, ds, "RescaleSlope", 1, default=1)
    intercept = _numbers(path, ds, "RescaleIntercept", 1, default=0)
    if slope == 0:
        raise UserError(f"{path}: RescaleSlope is 0, which leaves no image; export the series again")
    if "PixelData" not in ds:
        raise UserError(f"{path}: has no pixel data; copy the file again or leave it out")
    for keyword, allowed in {"RescaleType": ("HU", "US"), "ModalityLUTSequence": ()}.items():
        if ds.get(keyword) and str(ds.get(keyword)).strip() not in allowed:
            raise UserError(f"{path}: its {keyword} says that its values are no HU; export the series in HU")
    try:
        stored, whole = ds.pixel_array, _is_whole(ds)
    except DAMAGED as error:
        syntax = ds.file_meta.get("TransferSyntaxUID")
        if syntax in (None, *pydicom.uid.UncompressedTransferSyntaxes):
            raise UserError(f"{path}: its pixel data are truncated or damaged; copy the file again") from error
        raise UserError(
            f"{path}: its pixel data cannot be decoded ({getattr(syntax, 'name', syntax)}); "
            'pip install "pnsamp-jax[compressed]", decompress it (gdcmconv --raw), or copy it again if it is damaged'
        ) from error
    if not intercept and ds.get("RescaleIntercept") in (None, "") and stored.dtype.kind == "u":
        raise UserError(f"{path}: has no RescaleIntercept, so that its HU are unknown; export the series again")
    if not whole or stored.shape != (ds.Rows, ds.Columns):
        raise UserError(f"{path}: its pixel data are not Rows x Columns, or cut off; copy the file again")
    if ds.get("HighBit", ds.BitsStored - 1) != ds.BitsStored - 1:
        raise UserError(f"{path}: HighBit is {ds.HighBit} for {ds.BitsStored} bits stored; export the series again")
    lowest = 0.0 if stored.dtype.kind == "u" else -(2.0 ** (ds.BitsStored - 1))  # floats, which do not overflow
    ends = np.array([lowest, lowest + 2.0**ds.BitsStored - 1]) * slope + intercept
    if abs(slope) > _STEP_HU or ends.min() > _LUNG_HU or ends.max() < _WATER_HU:
        raise UserError(
            f"{path}: RescaleSlope {slope[0]:g} and RescaleIntercept {intercept[0]:g} do not give the HU of a chest; "
            "export the series again"
        )
    hu = np.clip(np.rint(stored * slope + intercept), AIR, np.iinfo(np.int16).max).astype(np.int16)
    padding = _numbers(path, ds, "PixelPaddingValue", 1, default=np.nan)
    if np.isfinite(padding):
        limit = _numbers(path, ds, "PixelPaddingRangeLimit", 1, default=padding[0])
        # A negative value is often written as its two's complement (63536 for -2000): the cast wraps it round.
        low, high = np.sort(np.concatenate([padding, limit]).astype(np.int64).astype(stored.dtype))
        if low * slope + intercept < _WATER_HU < high * slope + intercept:
            raise UserError(f"{path}: its PixelPaddingRangeLimit takes in the body; export the series again")
        hu[(stored >= low) & (stored <= high)] = AIR
    return hu


def _is_whole(ds: pydicom.Dataset) -> bool:
    """Whether pixel data are as long as the header says, or end with their marker if they are compressed.

    Decoders leave out what is too much, as a wrong width makes it, and make up what a cut JPEG lacks.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        needed = ds.Rows * ds.Columns * ds.BitsAllocated // 8
        return len(ds.PixelData) == needed + needed % 2
    if syntax == pydicom.uid.RLELossless:  # has none, and is decoded strictly
        return True
    return next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)).rstrip(b"\0").endswith(b"\xff\xd9")
