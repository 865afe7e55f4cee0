"""The headers of a CT series, prepared for the DICOM objects that refer to its slices."""

import copy
import os
import struct
from collections.abc import Iterable
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM

from pnsamp_jax.ct.dicom import SAME_MM
from pnsamp_jax.ct.dicom_file import read_dataset
from pnsamp_jax.errors import UserError

UTF8 = "ISO_IR 192"
_SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", *_SHARED)
# Elements that highdicom requires in a header but that may be empty, with the type that a valid value converts to.
_MAY_BE_EMPTY = {
    "PatientID": str,
    "PatientName": str,
    "PatientBirthDate": DA,
    "PatientSex": hd.PatientSexValues,
    "AccessionNumber": str,
    "StudyID": str,
    "StudyDate": DA,
    "StudyTime": TM,
    "ReferringPhysicianName": str,
}
# What pydicom raises for a value that is invalid for its element; it converts values only when they are accessed.
_INVALID = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError, struct.error)


def read_headers(
    files: Iterable[str | os.PathLike[str] | Dataset], affine: np.ndarray
) -> tuple[list[Dataset], np.ndarray]:
    """Read the headers of the slices of a series, with everything that highdicom requires.

    Args:
      files: of the series in any order, already read by `read_series` without error; or their headers.
      affine: (4, 4) of the volume that `read_series` made of them.

    Returns:
      Headers of the slices that `read_series` keeps, sorted by depth, and for each (slice,) int, the nearest depth
      index of the volume.

    Raises:
      UserError: a header lacks an identifier that DICOM objects must refer to, or the files do not share it.
    """
    by_name = {os.fspath(file.filename if isinstance(file, Dataset) else file): file for file in files}
    paths = sorted(by_name)
    headers = [_read_header(path, by_name[path]) for path in paths]
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        for tag in _SHARED:
            if header[tag].value != first[tag].value:
                raise UserError(f"{path}: {tag} differs from that of {paths[0]}; give the slices of one volume")
        header.ImageOrientationPatient = first.ImageOrientationPatient  # `read_series` allows for rounding differences

    # Order the slices and drop repeated ones exactly as `read_series` does.
    depth, height, width = affine[:3, :3].T
    normal = np.cross(width, height) / np.linalg.norm(np.cross(width, height))
    step = depth @ normal
    positions = np.array([header.ImagePositionPatient for header in headers], np.float64)
    along = (positions - affine[:3, 3]) @ normal
    order = np.argsort(along, kind="stable")
    order = order[np.diff(along[order], prepend=-np.inf) >= SAME_MM]

    even = np.allclose(np.diff(along[order]), step, rtol=0.01)
    path_of: dict[str, str] = {}
    for i in order:
        uid = headers[i].SOPInstanceUID
        if uid in path_of:
            raise UserError(f"{paths[i]}: SOPInstanceUID is also that of {path_of[uid]}; export the series again")
        path_of[uid] = paths[i]
        thickness = headers[i].get("SliceThickness")
        valid = isinstance(thickness, float) and 0 < thickness < np.inf
        headers[i].SliceThickness = thickness if valid else round(step, 6)
        headers[i].SpacingBetweenSlices = round(step, 6) if even else None
    return [headers[i] for i in order], np.rint(along[order] / step).astype(int)


def _read_header(path: str, file: Any) -> Dataset:
    """Return a slice's header, fit for highdicom. Raise UserError if it lacks a required element.

    Missing optional elements are added, empty. An element with an invalid value counts as missing, such as a
    SliceThickness that is not a number.
    """
    header = copy.deepcopy(file) if isinstance(file, Dataset) else read_dataset(path, stop_before_pixels=True)
    for tag in list(header.keys()):
        try:
            header[tag]
        except _INVALID:
            del header[tag]
    header.SpecificCharacterSet = UTF8
    for keyword in _NEEDED:
        value = header.get(keyword)
        if not value or not isinstance(value, str):
            raise UserError(f"{path}: has no {keyword}, which DICOM objects must refer to; export the series again")
    if header.SOPClassUID.is_private:
        raise UserError(f"{path}: its SOPClassUID is private; export the series as CT images")
    for keyword, convert in _MAY_BE_EMPTY.items():
        value = header.get(keyword)
        try:
            convert(value)
        except (TypeError, ValueError):
            value = None
        if value is None or isinstance(value, MultiValue):
            setattr(header, keyword, None)
    return header
