"""The pixels of a DICOM CT as HU: what is needed to decode and to scale them, and what makes them doubtful."""

import re
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.pixels import iter_pixels
from scipy import ndimage

from pnsamp_jax.ct.dicom_file import DAMAGED, numbers
from pnsamp_jax.ct.volume import AIR
from pnsamp_jax.errors import UserError

PIXEL_FORMAT = (
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
FLOATS = ("FloatPixelData", "DoubleFloatPixelData")
# RescaleType as people write it; US is "unspecified".
HOUNSFIELD = re.compile(r"(HU|H\.U\.|HOUNSFIELDS?)([ _-]*UNITS?)?|US", re.IGNORECASE)
LUNG_HU, WATER_HU = -900, 0  # the stored values of a chest CT must be able to represent both ...
MAX_STEP_HU = 100  # ... in steps no larger than this
AIR_HU, BONE_HU = -1000, 1500  # between air and dense bone, voxels with the value of padding may be tissue


def decode_frames(path: str, ds: pydicom.Dataset) -> Iterator[np.ndarray]:
    """Yield the stored values of each frame, (height, width), decoded one at a time.

    Args:
      path: of the file, named in the error message.
      ds: its dataset, whose Rows and Columns are valid.

    Raises:
      UserError: the pixels are missing, damaged or cannot be decoded.
    """
    floats = next((keyword for keyword in FLOATS if keyword in ds), None)
    if floats:
        raise UserError(
            f"{path}: its pixels are {floats}, which is not read here; export them as integers (PixelData)"
        )
    if "PixelData" not in ds:
        raise UserError(f"{path}: has no pixel data; copy the file again or leave it out")
    for keyword in PIXEL_FORMAT:
        if keyword not in ds:
            raise UserError(f"{path}: has no {keyword}, which its pixels need; export the series again")
    syntax = ds.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UserError(f"{path}: has no TransferSyntaxUID, so its compression is unknown; export it again")
    if ds.get("NumberOfFrames") in (None, ""):
        ds.NumberOfFrames = 1  # the default; pydicom does not take an empty one for it
    try:
        complete = _is_complete(ds)
        for stored in iter_pixels(ds, raw=True):
            if not complete or stored.shape != (ds.Rows, ds.Columns):
                raise UserError(f"{path}: the pixel data are not Rows x Columns, or truncated; copy the file again")
            yield stored
    except DAMAGED as error:
        if syntax in pydicom.uid.UncompressedTransferSyntaxes:
            raise UserError(f"{path}: the pixel data are truncated or damaged; copy the file again") from error
        raise UserError(
            f"{path}: the pixel data cannot be decoded ({getattr(syntax, 'name', syntax)}); "
            'pip install "pnsamp-jax[compressed]", decompress it (gdcmconv --raw), or copy it again if it is damaged'
        ) from error


def to_hounsfield(where: str, stored: np.ndarray, ds: pydicom.Dataset, rescale: pydicom.Dataset) -> np.ndarray:
    """Return stored values as (height, width) int16 HU, with padding and values below `AIR` set to `AIR`.

    Args:
      where: the file, and the frame if it has several; named in the error message.
      stored: (height, width).
      ds: the file's dataset, with the format of the pixels and the padding.
      rescale: the dataset with RescaleSlope and RescaleIntercept: `ds`, or an item of a frame's functional groups.

    Raises:
      UserError: the HU are unknown, or cannot be those of a chest.
    """
    slope = numbers(where, rescale, "RescaleSlope", 1, default=1)
    intercept = numbers(where, rescale, "RescaleIntercept", 1, default=0)
    if slope == 0:
        raise UserError(f"{where}: RescaleSlope is 0, which makes all pixels equal; export the series again")
    unit = " ".join(str(rescale.get("RescaleType") or "").split())
    other = f"RescaleType '{unit[:16]}'" if unit and not HOUNSFIELD.fullmatch(unit) else ""
    if other or rescale.get("ModalityLUTSequence"):
        stated = other or "ModalityLUTSequence"
        raise UserError(f"{where}: according to its {stated}, the values are not HU; export them in HU")
    if not intercept and rescale.get("RescaleIntercept") in (None, "") and stored.dtype.kind == "u":
        raise UserError(f"{where}: has no RescaleIntercept, so the HU are unknown; export the series again")
    if ds.get("HighBit", ds.BitsStored - 1) != ds.BitsStored - 1:
        raise UserError(f"{where}: HighBit is {ds.HighBit} for {ds.BitsStored} bits stored; export the series again")
    lowest = 0.0 if stored.dtype.kind == "u" else -(2.0 ** (ds.BitsStored - 1))  # as floats, which do not overflow
    ends = np.array([lowest, lowest + 2.0**ds.BitsStored - 1]) * slope + intercept
    if abs(slope) > MAX_STEP_HU or ends.min() > LUNG_HU or ends.max() < WATER_HU:
        raise UserError(
            f"{where}: RescaleSlope {slope[0]:g} and RescaleIntercept {intercept[0]:g} cannot give the HU of a chest; "
            "export the series again"
        )
    hu = np.clip(np.rint(stored * slope + intercept), AIR, np.iinfo(np.int16).max).astype(np.int16)
    hu[_padding(where, stored, ds, slope, intercept)] = AIR
    return hu


def _padding(
    where: str, stored: np.ndarray, ds: pydicom.Dataset, slope: np.ndarray, intercept: np.ndarray
) -> np.ndarray:
    """Return which pixels are padding: (height, width) bool.

    A PixelPaddingValue that is no number, or several, counts as absent, as it may be.

    Where tissue may have the value of the padding, as 0 HU if PixelPaddingValue was never set, only pixels that are
    connected with a corner of the slice through others of that value count. Padding lies there: around the round
    field of view, a rotated slice, or a mask.
    """
    value = _optional(ds, "PixelPaddingValue", np.nan)
    if not np.isfinite(value):
        return np.zeros(stored.shape, bool)
    limit = _optional(ds, "PixelPaddingRangeLimit", value)
    # A negative value is often written as its two's complement (63536 for -2000); the cast converts it back.
    with np.errstate(invalid="ignore"):
        first, last = np.sort(np.array([value, limit]).astype(np.int64).astype(stored.dtype))
    low, high = np.sort(np.array([first, last]) * slope + intercept)
    if low < WATER_HU < high:
        raise UserError(f"{where}: the range to PixelPaddingRangeLimit includes the body; export the series again")
    padded = (stored >= first) & (stored <= last)
    if high <= AIR_HU or low >= BONE_HU:
        return padded
    regions, _ = ndimage.label(padded)
    corners = regions[[0, 0, -1, -1], [0, -1, 0, -1]]
    return np.isin(regions, corners[corners > 0])


def _optional(ds: pydicom.Dataset, keyword: str, default: float) -> float:
    """Return the number of an element, or the default if it is absent, no number or several different ones."""
    try:
        values = np.unique(np.array(ds.get(keyword), np.float64))
    except DAMAGED:
        return default
    return float(values[0]) if len(values) == 1 and np.isfinite(values[0]) else default


def _is_complete(ds: pydicom.Dataset) -> bool:
    """Return whether pixel data have the length that the header implies or, if compressed, end with the end marker.

    Decoders ignore excess data, which a wrong width leads to, and fill in what a truncated JPEG lacks. Padding may
    follow (PS3.5, 8.1.1), but fewer bytes than one row or column more would take.
    """
    syntax, frames = ds.file_meta.TransferSyntaxUID, int(ds.NumberOfFrames)
    if not syntax.is_encapsulated:
        bits = ds.Rows * ds.Columns * ds.BitsAllocated
        line = min(ds.Rows, ds.Columns) * ds.BitsAllocated // 8
        return 0 <= len(ds.PixelData) - bits * frames // 8 < max(line, 2)
    if syntax == pydicom.uid.RLELossless:  # has no end marker, but its decoder raises on truncated data
        return True
    encoded = pydicom.encaps.generate_frames(
        ds.PixelData, number_of_frames=frames, extended_offsets=_extended_offsets(ds)
    )
    return all(frame.rstrip(b"\0").endswith(b"\xff\xd9") for frame in encoded)


def _extended_offsets(ds: pydicom.Dataset) -> tuple[bytes, bytes] | None:
    """Return the tables that say where the frames of compressed pixels begin and end, if the file has them."""
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        return ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths
    return None
