"""One slice of a DICOM CT, with its place in the patient: a file, or a frame of an enhanced (multi-frame) CT."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pydicom

from pnsamp_jax.ct.dicom_file import DAMAGED, numbers, quiet_pydicom, read_dataset
from pnsamp_jax.ct.dicom_frames import Frame, is_enhanced, read_frames, require_placed_frames
from pnsamp_jax.ct.dicom_pixels import decode_frames, to_hounsfield
from pnsamp_jax.errors import UserError

MAX_SIDE = 4096  # pixels; no CT is larger
# What tells volumes of which one is wanted; `dicom_agreement` says when they take turns.
ACQUISITION = "AcquisitionNumber"  # which the frames of an enhanced CT may have themselves
IN_TURNS = (
    *(ACQUISITION, "SeriesNumber", "ConvolutionKernel", "KVP", "ContrastBolusAgent", "SeriesDescription"),
    *("SeriesTime", "AcquisitionTime", "TemporalPositionIdentifier"),
)
MEASURES = ("SliceThickness", "SpacingBetweenSlices", "SliceLocation", "ReconstructionDiameter")  # all in mm
PROJECTIONS = {"MIP", "MINIP", "MAX_IP", "MIN_IP"}  # words of ImageType
SHARED = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")  # the same in all slices


class Slice(NamedTuple):
    """What is needed to build a volume.

    Attributes:
      path: of the file.
      name: the path, and the number of the frame if the file holds several.
      hu: (height, width) int16.
      position: (3,) LPS mm of the first pixel.
      shared: values of the elements in `SHARED`, empty if an element is absent.
      orientation: (6,) unit vectors along w, then along h.
      pixel_spacing: (2,) mm along h, w.
      marks: values of the elements in `IN_TURNS`, numbers in one form, empty if an element is absent.
      measures: values of the elements in `MEASURES`, NaN if an element is absent or no number; often they are wrong.
    """

    path: str
    name: str
    hu: np.ndarray
    position: np.ndarray
    shared: dict[str, str]
    orientation: np.ndarray
    pixel_spacing: np.ndarray
    marks: dict[str, str]
    measures: dict[str, float]


def read_slices(path: str) -> Iterator[Slice]:
    """Read and check the slices of one DICOM file, in the order in which it stores them.

    Raises:
      UserError: the file is not a CT slice, or an enhanced CT whose frames are; or something in it is not valid.
    """
    with quiet_pydicom():
        try:
            ds = read_dataset(path)
            modality = ds.get("Modality")
            shared = {name: " ".join(str(ds.get(name) or "").split()) for name in SHARED}
            marks = {name: _mark(ds, name) for name in IN_TURNS}
            enhanced = is_enhanced(ds)
            image_type = str(ds.get("ImageType") or "").upper()
        except DAMAGED as error:
            raise UserError(f"{path}: cannot be read as DICOM; copy the file again or leave it out") from error
        if str(modality or "CT").strip().upper() != "CT":
            raise UserError(f"{path}: Modality is {modality!r}; give CT, the only one with Hounsfield units")
        projection = PROJECTIONS & set(re.findall(r"\w+", image_type))
        if projection:
            raise UserError(
                f"{path}: according to its ImageType, a projection of several slices ({min(projection)}); give the "
                "slices themselves"
            )
        if not enhanced:
            require_placed_frames(path, ds)
        for keyword, most in {"SamplesPerPixel": 1, "Rows": MAX_SIDE, "Columns": MAX_SIDE}.items():
            count = numbers(path, ds, keyword, 1, default=1 if most == 1 else None)[0]
            if not 1 <= count <= most:
                raise UserError(
                    f"{path}: {keyword} is {count:g}, not 1 to {most}; convert the file to single-frame grayscale CT"
                )
        frames = read_frames(path, ds) if enhanced else [Frame(path, ds, ds, ds, ds, marks[ACQUISITION])]
        for frame, stored in zip(frames, decode_frames(path, ds), strict=True):
            try:
                item = _slice(path, frame, stored, ds, shared)._replace(
                    marks={**marks, ACQUISITION: _in_one_form(frame.acquisition)}
                )
            except DAMAGED as error:
                raise UserError(f"{frame.name}: an element has a value of the wrong type; export it again") from error
            yield item


def _slice(path: str, frame: Frame, stored: np.ndarray, ds: pydicom.Dataset, shared: dict[str, str]) -> Slice:
    """Return a slice, given the elements that describe it and its stored values."""
    position = numbers(frame.name, frame.position, "ImagePositionPatient", 3)
    orientation = numbers(frame.name, frame.orientation, "ImageOrientationPatient", 6)
    pixel_spacing = numbers(frame.name, frame.measures, "PixelSpacing", 2)
    axes = orientation.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
        raise UserError(f"{frame.name}: ImageOrientationPatient is not two perpendicular unit vectors; correct it")
    if pixel_spacing.min() <= 0:
        raise UserError(f"{frame.name}: PixelSpacing is not positive; correct it")
    hu = to_hounsfield(frame.name, stored, ds, frame.rescale)
    measures = {name: _measure(frame.measures, name) for name in MEASURES}
    return Slice(path, frame.name, hu, position, shared, orientation, pixel_spacing, {}, measures)


def _mark(ds: pydicom.Dataset, keyword: str) -> str:
    """Return the value of an element that may be absent or damaged, and is empty then."""
    try:
        return _in_one_form(ds.get(keyword) or "")  # a 0 is often written for what is unknown
    except DAMAGED:
        return ""


def _in_one_form(value: object) -> str:
    """Return a value as text: a number without the zeros at its end (120.0 is 120), words with single blanks."""
    text = " ".join(str(value).split())
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


def _measure(ds: pydicom.Dataset, keyword: str) -> float:
    """Return a number that an element may state; NaN if it does not."""
    try:
        value = float(ds.get(keyword, np.nan))
    except DAMAGED:
        return float("nan")
    return value if np.isfinite(value) else float("nan")
