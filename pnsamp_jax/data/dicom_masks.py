"""Masks as DICOM objects: Segmentations and RT Structure Sets, on the grid of the CT that they belong to.

Nothing is resampled: frames and contours must lie on the CT's own slices, and pixels on its voxels.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom

from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.contours import UnclearContours, enclosed
from pnsamp_jax.data.whole_masks import point_text, require_no_gap
from pnsamp_jax.errors import UserError, list_names
from pnsamp_jax.files import files_under

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # the second holds a label map
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SAME_VOXEL = 0.2  # largest distance, in voxels, of a pixel or a contour's plane from the CT's; rounding of a spacing
Found = TypeVar("Found")
PLANAR, XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"  # types of contours; the second may cross each other


def is_dicom_mask(path: Path) -> bool:
    """Return whether a file, or any file of a folder, is a DICOM Segmentation or RT Structure Set."""
    return bool(_mask_files(path))


def _mask_files(path: Path) -> list[Path]:
    """Return the DICOM masks among the files of a folder, or the file itself if it is one; hidden files are none."""
    if not path.is_dir():
        return [path] if path.is_file() and _is_mask_file(path) else []
    found = []
    for file in files_under(path, ""):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file() and _is_mask_file(file):
            found.append(file)
    return found


def _is_mask_file(file: Path) -> bool:
    """Return whether a file is a DICOM Segmentation or RT Structure Set."""
    with quiet_pydicom():
        try:
            header = read_dataset(file, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            return header.get("SOPClassUID") in (*SEGMENTATIONS, STRUCTURE_SET)
        except DAMAGED:
            return False


def _only_mask(path: Path) -> Path:
    """Return the only DICOM mask of a path for which `is_dicom_mask` holds. Raise UserError if there are several."""
    first, *others = _mask_files(path)
    if others:
        raise UserError(
            f"{path}: holds {1 + len(others)} DICOM masks, such as {first.relative_to(path)} and "
            f"{others[0].relative_to(path)}; name the file"
        )
    return first


def mask_names(path: Path) -> dict[int, str]:
    """Return the names of the segments of a Segmentation, or of the ROIs with contours of a Structure Set, by number.

    Raises:
      UserError: the file is damaged, or one of several in a folder.
    """

    def names(ds: pydicom.Dataset) -> dict[int, str]:
        return _roi_names(ds) if ds.SOPClassUID == STRUCTURE_SET else _segment_names(ds)

    return from_header(path, "the names of its masks", names)


def from_header(path: Path, what: str, read: Callable[[pydicom.Dataset], Found]) -> Found:
    """Return what a function reads from the header of a DICOM mask.

    Args:
      path: for which `is_dicom_mask` holds.
      what: is read, for the error message.
      read: takes all elements but the pixels.

    Raises:
      UserError: the file is damaged, or one of several in a folder.
    """
    file = _only_mask(path)
    with quiet_pydicom():
        try:
            return read(read_dataset(file, stop_before_pixels=True))
        except DAMAGED as error:
            raise UserError(f"{path}: {what} cannot be read ({error}); export it again") from error


def read_dicom_mask(path: Path, ct: Volume, label: int | None) -> Volume:
    """Read one segment of a Segmentation, or one ROI of an RT Structure Set.

    A voxel belongs to an ROI if its centre lies inside an odd number of the ROI's contours on its slice, so that a
    contour within another is a hole. A contour that is stored twice counts once.

    Args:
      path: the file, or a folder that holds no other DICOM mask.
      ct: the CT; no other grid is accepted.
      label: number of the segment or ROI; None if there is only one.

    Returns:
      (d, h, w) bool on the grid of the CT.

    Raises:
      UserError: the file is damaged or of a kind that has no single meaning as a mask; it has several segments or ROIs
        and none is named; it does not lie on the CT's grid; its frames or contours are missing in some slices; or its
        contours cross or lie less than a voxel apart all round.
    """
    file = _only_mask(path)
    with quiet_pydicom():
        try:
            ds = read_dataset(file)
            read = _read_roi if ds.SOPClassUID == STRUCTURE_SET else _read_segment
            return Volume(read(path, ds, ct, label), ct.affine)
        except DAMAGED as error:
            kind = getattr(read_dataset(file, stop_before_pixels=True).SOPClassUID, "name", "")
            reason = re.sub(r"^.*object has", "has", str(error).splitlines()[0] if str(error) else "damaged")
            raise UserError(
                f"{path}: the {kind.removesuffix(' Storage')} cannot be read ({reason}); export it again"
            ) from error


def _choose(path: Path, kind: str, names: dict[int, str], label: int | None) -> int:
    """Return the number of the segment or ROI that a label names, or of the only one."""
    listed = list_names(names)
    if not names:
        raise UserError(f"{path}: holds no {kind}; export it again")
    if label is None and len(names) == 1:
        return next(iter(names))
    if label is None:
        raise UserError(
            f"{path}: holds {len(names)} {kind}s ({listed}); name the nodule's number in a column mask_label of "
            "nodules.csv"
        )
    if label not in names:
        raise UserError(f"{path}: holds no {kind} {label}, as mask_label names it, but {listed}; correct nodules.csv")
    return label


def _off_grid(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: its grid differs from that of the image: {reason}; name the image that it was drawn on")


# Segmentations


def _segment_names(ds: pydicom.Dataset) -> dict[int, str]:
    names = {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in ds.SegmentSequence}
    names.pop(0, None)  # the background of a label map
    return names


def _read_segment(path: Path, ds: pydicom.Dataset, ct: Volume, label: int | None) -> np.ndarray:
    """Return the voxels of a segment: (d, h, w) bool."""
    kind = ds.get("SegmentationType")
    number = _choose(path, "segment", _segment_names(ds), label)
    pixels = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    if kind == "FRACTIONAL":
        if not np.isin(pixels, (0, ds.MaximumFractionalValue)).all():
            raise UserError(
                f"{path}: its SegmentationType is FRACTIONAL, whose edge is not defined; export it as BINARY"
            )
    elif kind not in ("BINARY", "LABELMAP"):
        raise UserError(f"{path}: its SegmentationType is '{kind}', not BINARY; export it again")
    mask, frames = np.zeros(ct.array.shape, bool), ds.PerFrameFunctionalGroupsSequence
    for groups, plane in zip(frames, pixels, strict=True):
        if kind == "LABELMAP":
            plane = plane == number
        elif _group(ds, groups, "SegmentIdentificationSequence").ReferencedSegmentNumber != number:
            continue
        mask[tuple(_voxels_of_frame(path, ds, groups, ct, np.argwhere(plane)).T)] = True
    orientation = np.array(_group(ds, frames[0], "PlaneOrientationSequence").ImageOrientationPatient, float)
    normal = np.linalg.inv(ct.affine[:3, :3]) @ np.cross(*orientation.reshape(2, 3))
    axis = int(np.abs(normal).argmax())
    _require_every_slice(path, mask, axis)
    require_no_gap(path, f"segment {number} marks nothing", Volume(mask, ct.affine), axis)
    return mask


def _group(ds: pydicom.Dataset, groups: pydicom.Dataset, name: str) -> pydicom.Dataset:
    """Return the item of a functional group of a frame, which all frames may share."""
    sequence = groups.get(name) or ds.SharedFunctionalGroupsSequence[0].get(name)
    if not sequence:
        raise ValueError(f"no {name}")
    return sequence[0]


def _voxels_of_frame(
    path: Path, ds: pydicom.Dataset, groups: pydicom.Dataset, ct: Volume, pixels: np.ndarray
) -> np.ndarray:
    """Return the voxels (n, 3) of the CT in which the pixels (n, 2), row and column, of a frame lie.

    Raises:
      UserError: they are no voxels of the CT.
    """
    position = np.array(_group(ds, groups, "PlanePositionSequence").ImagePositionPatient, float)
    orientation = np.array(_group(ds, groups, "PlaneOrientationSequence").ImageOrientationPatient, float)
    spacing = np.array(_group(ds, groups, "PixelMeasuresSequence").PixelSpacing, float)
    along_row, along_column = orientation.reshape(2, 3)
    steps = np.stack([along_column * spacing[0], along_row * spacing[1]])  # from a row to the next, and of a column
    first = ct.to_index(position)
    in_ct = np.stack([ct.to_index(position + step) - first for step in steps])
    whole = np.rint(in_ct)
    # Over the whole frame, no pixel may drift from the CT's.
    if (np.abs(whole).sum(axis=1) != 1).any() or (np.abs(in_ct - whole) * [[ds.Rows], [ds.Columns]]).max() > 0.5:
        size = " x ".join(f"{value:g}" for value in spacing)
        raise _off_grid(path, f"pixels of {size} mm are no voxels of {_spacing(ct)} mm")
    index = first + pixels @ in_ct
    if len(index) and np.abs(index - np.rint(index)).max() > SAME_VOXEL:
        off = np.abs(index - np.rint(index)).max()
        raise _off_grid(path, f"a frame at {point_text(position)} mm lies {off:.2f} voxels beside it")
    index = np.rint(index).astype(int)
    if ((index < 0) | (index >= ct.array.shape)).any():
        raise _off_grid(path, f"the frame at {point_text(position)} mm marks voxels outside of it")
    return index


# RT Structure Sets


def _roi_names(ds: pydicom.Dataset) -> dict[int, str]:
    names = {int(item.ROINumber): str(item.get("ROIName", "")) for item in ds.StructureSetROISequence}
    drawn = [int(item.ReferencedROINumber) for item in ds.ROIContourSequence if item.get("ContourSequence")]
    return {number: names.get(number, "") for number in drawn}


def _read_roi(path: Path, ds: pydicom.Dataset, ct: Volume, label: int | None) -> np.ndarray:
    """Return the voxels inside the contours of an ROI: (d, h, w) bool."""
    drawn = {int(item.ReferencedROINumber): item.get("ContourSequence") for item in ds.ROIContourSequence}
    number = _choose(path, "ROI", _roi_names(ds), label)
    kinds = {str(contour.ContourGeometricType) for contour in drawn[number]}
    if kinds - {PLANAR, XOR}:
        kind = min(kinds - {PLANAR, XOR})
        raise UserError(f"{path}: a contour of ROI {number} is of type {kind}; export it as {PLANAR}")
    outlines = [ct.to_index(np.array(contour.ContourData, float).reshape(-1, 3)) for contour in drawn[number]]
    axis = int(np.sum([np.ptp(points, axis=0) for points in outlines], axis=0).argmin())  # in no slice do they move
    mask = np.zeros(ct.array.shape, bool)
    planes = np.moveaxis(mask, axis, 0)
    slices: dict[int, list[np.ndarray]] = {}
    for points in outlines:
        index = int(np.rint(points[:, axis].mean()))
        where = f"a contour near {point_text(ct.to_lps(points[0]))} mm"
        if np.abs(points[:, axis] - index).max() > SAME_VOXEL or not 0 <= index < len(planes):
            raise _off_grid(path, f"{where} lies on none of its slices")
        in_plane = np.delete(points, axis, axis=1)
        if in_plane.min() < -1 or (in_plane > planes.shape[1:]).any():
            raise _off_grid(path, f"{where} reaches beyond it")
        slices.setdefault(index, []).append(points)
    for index, found in slices.items():
        contours = [np.delete(points, axis, axis=1) for points in found]
        try:
            planes[index] = enclosed(contours, planes.shape[1:], crossing=kinds == {XOR})
        except UnclearContours as error:
            near = point_text(ct.to_lps(found[error.index][0]))
            raise UserError(
                f"{path}: two contours of ROI {number} near {near} mm {error}; keep the one that is meant"
            ) from error
    _require_every_slice(path, mask, axis)
    require_no_gap(path, f"ROI {number} lacks contours", Volume(mask, ct.affine), axis)
    return mask


def _require_every_slice(path: Path, mask: np.ndarray, axis: int) -> None:
    """Raise UserError if a mask lies on every second slice or fewer, which leaves gaps."""
    marked = np.flatnonzero(np.moveaxis(mask, axis, 0).any(axis=(1, 2)))
    if len(marked) > 1 and np.diff(marked).min() > 1:
        step = np.diff(marked).min()
        raise _off_grid(path, f"it marks only one of {step} slices")


def _spacing(ct: Volume) -> str:
    return " x ".join(f"{value:.4g}" for value in ct.spacing[::-1])
