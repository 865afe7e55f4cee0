"""What DICOM objects mark: the segments of a Segmentation, and the ROIs of an RT Structure Set.

A structure set has more than tumours: an isocentre is a point, and a couch reaches beyond the CT. Every name that a
file lists is either yielded or told with the reason why not.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset

from pnsamp_jax.ct.dicom_file import DAMAGED
from pnsamp_jax.ct.notes import note
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.dicom_masks import STRUCTURE_SET, from_header, mask_names, read_dicom_mask
from pnsamp_jax.errors import UserError

POINT = "POINT"  # the type of a contour of one point
# What a point can be for the treatment or the registration, in place of a nodule (RT ROI Interpreted Type).
TECHNICAL = {
    *("ISOCENTER", "REGISTRATION", "MARKER", "CONTROL", "DOSE_MEASUREMENT", "DOSE_REGION", "FIXATION", "SUPPORT"),
    *("BRACHY_CHANNEL", "BRACHY_ACCESSORY", "BRACHY_SRC_APP", "BRACHY_CHNL_SHLD"),
}
ISOCENTRE = re.compile(r"(?<![a-z])iso(?![a-z])|isoc", re.IGNORECASE)  # in names, where no type is stated
MOST_GROUPS = 4  # of reasons in a refusal


class Roi(NamedTuple):
    """An ROI.

    Attributes:
      name: as the file has it.
      kind: its interpreted type, such as GTV; "" if it has none.
      kinds: of its contours, in their order; "" if they cannot be read.
      points: (n, 3) LPS mm of all contours; none if they cannot be read.
    """

    name: str
    kind: str
    kinds: list[str]
    points: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """Return the mean of the points of its contours, (3,) LPS mm."""
        return self.points.mean(axis=0)

    @property
    def is_point(self) -> bool:
        """Return whether it is a single point rather than contours."""
        return self.kinds == [POINT] and len(self.points) == 1

    @property
    def purpose(self) -> str:
        """Return what a point is other than a nodule, "" if it may be one."""
        if self.kind in TECHNICAL:
            return f"of the type {self.kind}"
        return "named as an isocentre" if not self.kind and ISOCENTRE.search(self.name) else ""


def dicom_marks(path: Path, ct: Volume) -> Iterator[tuple[str, int, Volume | np.ndarray]]:
    """Yield the name, the number and the mask of each segment or ROI that can be read on the grid of the CT.

    In place of a mask, a point (3,) in LPS mm stands for an ROI of a single point, which may be a nodule, and for one
    so small that it encloses no voxel's centre. What cannot be read is told in notes, one for each kind of reason.

    Raises:
      UserError: none can be read; says why.
    """
    rois = read_rois(path)
    passed: list[tuple[str, str]] = []  # names and reasons
    tiny, found = [], False
    for number, name in ({number: roi.name for number, roi in rois.items()} | mask_names(path)).items():
        shown, roi = name or f"label_{number}", rois.get(number)
        try:
            mark = _mark(path, ct, number, roi)
        except UserError as error:
            passed.append((shown, str(error).removeprefix(f"{path}: ")))
            continue
        if roi is not None and isinstance(mark, Volume) and not mark.array.any():
            mark = roi.middle
            tiny.append(shown)
        found = True
        yield name, number, mark
    if tiny:
        note(f"{path}: no voxel's centre lies within {_listed(tiny)}, asked about at the middle of the contours")
    groups: dict[str, list[tuple[str, str]]] = {}
    for shown, reason in passed:
        groups.setdefault(re.sub(r"-?\d+(\.\d+)?", "#", reason), []).append((shown, reason))
    texts = [f"{_listed([shown for shown, _ in group])}: {group[0][1]}" for group in groups.values()]
    if found:
        for text in texts:
            note(f"{path}: passed over {text}")
    elif len(groups) == 1:
        raise UserError(f"{path}: {passed[0][1]}")
    elif groups:
        raise UserError(f"{path}: no nodule can be read; {'; '.join(texts[:MOST_GROUPS])}")


def _mark(path: Path, ct: Volume, number: int, roi: Roi | None) -> Volume | np.ndarray:
    """Return the mask of a segment or ROI, or the point of an ROI that is one.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    if roi is not None and not roi.kinds:
        raise UserError(f"{path}: ROI {number} has no contours; draw them if it is a nodule")
    if roi is not None and roi.is_point:
        if roi.purpose:
            raise UserError(f"{path}: ROI {number} is a point {roi.purpose}; draw a contour if it is a nodule")
        return roi.middle
    return read_dicom_mask(path, ct, number)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def read_rois(path: Path) -> dict[int, Roi]:
    """Return the ROIs of a Structure Set by their numbers, with or without contours; none of a Segmentation.

    Raises:
      UserError: the file is damaged.
    """
    return from_header(path, "its ROIs", _rois)


def _rois(ds: Dataset) -> dict[int, Roi]:
    if ds.SOPClassUID != STRUCTURE_SET:
        return {}
    types = {
        int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType") or "").upper()
        for item in ds.get("RTROIObservationsSequence") or []
    }
    drawn = {int(item.ReferencedROINumber): item.get("ContourSequence") or [] for item in ds.ROIContourSequence}
    names = {int(item.ROINumber): str(item.get("ROIName", "")) for item in ds.StructureSetROISequence}
    return {
        number: Roi(names.get(number, ""), types.get(number, ""), *_contours(drawn.get(number, [])))
        for number in (*drawn, *(names.keys() - drawn.keys()))
    }


def _contours(contours: list[Dataset]) -> tuple[list[str], np.ndarray]:
    """Return the types of contours and their points. What is damaged is left to `read_dicom_mask`, which says why."""
    try:
        kinds = [str(contour.ContourGeometricType) for contour in contours]
        return kinds, np.array([value for one in contours for value in one.ContourData], float).reshape(-1, 3)
    except DAMAGED:
        return [""], np.zeros((0, 3))
