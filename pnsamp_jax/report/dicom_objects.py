"""Findings as DICOM objects: a Segmentation and a structured report that viewers and archives read beside the CT.

The ratings are coded as in TCIA's DICOM version of the LIDC-IDRI readings (Fedorov et al., *DICOM re-encoding of
volumetrically annotated Lung Imaging Database Consortium (LIDC) nodules*, Medical Physics 2020), so that what finds
those finds these.
"""

import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import Code, codes
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from pnsamp_jax import __version__
from pnsamp_jax.ct.dicom import SAME_MM, quiet_pydicom
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference.finding import Finding

NAME = "PN-SAMP"
_UTF8 = "ISO_IR 192"


def _codes_of(scheme: str) -> Callable[[str, str], Code]:
    return lambda value, meaning: Code(value, scheme, meaning)


_lidc, _ncit, _radlex = map(_codes_of, ("99LIDCQIICR", "NCIt", "RadLex"))
_2, _3, _4 = _lidc("002", "2 out of 5"), _lidc("003", "3 out of 5"), _lidc("004", "4 out of 5")

# What each of `schema.RATINGS` is called, and its classes 1, 2, ...
RATING_CODES: dict[str, tuple[Code, tuple[Code, ...]]] = {
    "subtlety": (_ncit("C45992", "Subtlety score"), (
        _lidc("101", "1 out of 5 (Extremely subtle)"), _lidc("102", "2 out of 5 (Moderately subtle)"),
        _lidc("103", "3 out of 5 (Fairly subtle)"), _lidc("104", "4 out of 5 (Moderately obvious)"),
        _lidc("105", "5 out of 5 (Obvious)"))),
    "internal_structure": (_lidc("200", "Internal structure"), (
        _ncit("C12471", "Soft tissue"), _ncit("C25278", "Fluid"), _ncit("C12472", "Adipose tissue"),
        _ncit("C73434", "Air"))),
    "calcification": (_ncit("C3672", "Calcification"), (
        _radlex("RID35453", "Popcorn calcification sign"), _lidc("302", "Laminated appearance"),
        _radlex("RID5741", "Solid appearance"), _lidc("304", "Non-central appearance"),
        _radlex("RID5827", "Central calcification"), _radlex("RID28473", "Absent"))),
    "sphericity": (_lidc("400", "Sphericity"), (
        _radlex("RID5811", "linear"), _2, _radlex("RID5800", "ovoid"), _4, _radlex("RID5799", "round"))),
    "margin": (_ncit("C25563", "Margin"), (
        _radlex("RID5709", "Indistinct margin"), _2, _3, _4, _radlex("RID5707", "Circumscribed margin"))),
    "lobulation": (_ncit("C62175", "Lobular Pattern"), (
        _lidc("601", "1 out of 5 (No lobulation)"), _2, _3, _4, _lidc("605", "5 out of 5 (Marked lobulation)"))),
    "spiculation": (_ncit("C28749", "Spiculation"), (
        _lidc("701", "1 out of 5 (No spiculation)"), _2, _3, _4, _lidc("705", "5 out of 5 (Marked spiculation)"))),
    "texture": (_ncit("C41144", "Texture"), (
        _radlex("RID50153", "non-solid pulmonary nodule"), _2, _radlex("RID50152", "part-solid pulmonary nodule"),
        _4, _radlex("RID50151", "solid pulmonary nodule"))),
    "malignancy": (_radlex("RID36042", "Malignancy"), (
        _lidc("901", "1 out of 5 (Highly Unlikely for Cancer)"),
        _lidc("902", "2 out of 5 (Moderately Unlikely for Cancer)"),
        _lidc("903", "3 out of 5 (Indeterminate Likelihood)"),
        _lidc("904", "4 out of 5 (Moderately Suspicious for Cancer)"),
        _lidc("905", "5 out of 5 (Highly Suspicious for Cancer)"))),
}  # fmt: skip

_SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", *_SHARED)
# What highdicom wants to find in a header, if only empty, and what makes a value one that it can take.
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


# What pydicom raises, not before it is asked for, on a value that is not of its kind.
_UNSOUND = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError, struct.error)


def write_objects(
    findings: list[Finding],
    marked: list[np.ndarray],
    affine: np.ndarray,
    paths: list[str],
    seg_path: Path,
    sr_path: Path,
) -> None:
    """Writes what was found in one CT series as a DICOM Segmentation and a DICOM structured report.

    The Segmentation (binary) has a segment for each finding whose mask marks a voxel of a slice that is really there,
    numbered from 1 in the order of the findings. The report (TID 1500, Comprehensive 3D SR, not verified) has a
    measurement group for every finding: the likeliest class of the nine ratings, the expected malignancy and, where
    there is a segment, its volume and diameter; where there is none, `point_mm` stands for it. Both objects carry the
    patient and the study of the CT and share its frame of reference; all other UIDs are new each time, save that of
    the program as the observer.

    Args:
      findings: at least one; a `nodule_id` becomes the tracking identifier in both objects. Their patches are not
        read and may be empty.
      marked: (V, 3) int of each finding, the index (d, h, w) on the grid of `read_series(paths)` of the V voxels that
        its mask marks. Where that grid was resampled along depth, a slice takes what lies nearest to it.
      affine: (4, 4) of that grid.
      paths: the series' files in any order, of which `read_series` has made a volume.
      seg_path: where to write the Segmentation. If there is no segment none is written, and one of an earlier call
        is removed.
      sr_path: where to write the report.

    Raises:
      UserError: a file's header lacks what the objects must refer to, or the files do not share it.
    """
    with quiet_pydicom():
        headers, depths = _read_headers(paths, affine)
        uids = [hd.UID() for _ in findings]
        touched = np.array([np.isin(depths, voxels[:, 0]) for voxels in marked])  # (finding, slice)
        shown, used = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        seg, segments = None, {}
        if len(shown):
            planes = _planes([marked[i] for i in shown], depths[used], (headers[0].Rows, headers[0].Columns))
            names = [(findings[i].nodule_id, uids[i]) for i in shown]
            seg = _segmentation(names, planes, [headers[k] for k in used])
            for number, i in enumerate(shown, 1):
                segments[i] = _segment(seg, number, [headers[k] for k in np.flatnonzero(touched[i])])
        groups = [
            _measurement_group(finding, uid, segments.get(i), headers[0])
            for i, (finding, uid) in enumerate(zip(findings, uids, strict=True))
        ]
        report = _report(groups, [*headers, seg] if seg else headers)
        if not seg:
            seg_path.unlink(missing_ok=True)
        for path, dataset in ((seg_path, seg), (sr_path, report)):
            if dataset:
                dataset.SpecificCharacterSet = _UTF8  # which not every highdicom takes from the headers
                with atomic_path(path) as temporary:
                    dataset.save_as(temporary, enforce_file_format=True)


def _planes(marked: list[np.ndarray], depths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Slices at these depths of segments, each given as the (V, 3) index of its voxels.

    Returns:
      (slice, h, w) with the numbers of the segments, from 1; or, only where a voxel is of two segments, since memory
      then grows with slices times segments, (slice, h, w, segment) bool.
    """
    apart = len(np.unique(np.concatenate(marked), axis=0)) == sum(map(len, marked))
    labels = np.min_scalar_type(len(marked))
    planes = np.zeros((len(depths), *shape), labels) if apart else np.zeros((len(depths), *shape, len(marked)), bool)
    for place, voxels in enumerate(marked):
        for plane, depth in zip(planes, depths, strict=True):
            at = tuple(voxels[voxels[:, 0] == depth, 1:].T)
            if apart:
                plane[at] = place + 1
            else:
                plane[(*at, place)] = True
    return planes


def _read_headers(paths: Iterable, affine: np.ndarray) -> tuple[list[Dataset], np.ndarray]:
    """Headers of the slices that `read_series` keeps, by depth, and the depth index on its grid nearest to each."""
    paths = sorted(map(os.fspath, paths))
    headers = [_read_header(path) for path in paths]
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        for tag in _SHARED:
            if header[tag].value != first[tag].value:
                raise UserError(f"{path}: {tag} differs from that of {paths[0]}; give the slices of one volume")
        header.ImageOrientationPatient = first.ImageOrientationPatient  # `read_series` lets it differ by a rounding

    # The same order, and the same slices taken for repeats, as in `read_series`.
    depth, height, width = affine[:3, :3].T
    normal = np.cross(width, height) / np.linalg.norm(np.cross(width, height))
    step = depth @ normal
    positions = np.array([header.ImagePositionPatient for header in headers], np.float64)
    along = (positions - affine[:3, 3]) @ normal
    order = np.argsort(along, kind="stable")
    order = order[np.diff(along[order], prepend=-np.inf) >= SAME_MM]

    even = np.allclose(np.diff(along[order]), step, rtol=0.01)
    owners = {}
    for i in order:
        if headers[i].SOPInstanceUID in owners:
            other = owners[headers[i].SOPInstanceUID]
            raise UserError(f"{paths[i]}: SOPInstanceUID is also that of {other}; export the series again")
        owners[headers[i].SOPInstanceUID] = paths[i]
        thickness = headers[i].get("SliceThickness")
        sound = isinstance(thickness, float) and 0 < thickness < np.inf
        headers[i].SliceThickness = thickness if sound else round(step, 6)
        headers[i].SpacingBetweenSlices = round(step, 6) if even else None
    return [headers[i] for i in order], np.rint(along[order] / step).astype(int)


def _read_header(path: str) -> Dataset:
    """A slice's header with all that highdicom reads, empty where need be; UserError where it must not be empty.

    An element whose value is not of its kind, such as a SliceThickness that is no number, counts as absent.
    """
    header = pydicom.dcmread(path, stop_before_pixels=True)
    for tag in list(header.keys()):
        try:
            header[tag]
        except _UNSOUND:
            del header[tag]
    header.SpecificCharacterSet = _UTF8
    for keyword in _NEEDED:
        value = header.get(keyword)
        if not value or not isinstance(value, str):
            raise UserError(f"{path}: has no {keyword}, which a DICOM object must refer to; export the series again")
    if header.SOPClassUID.is_private:
        raise UserError(f"{path}: is of a private kind (its SOPClassUID); export the series as CT images")
    for keyword, kind in _MAY_BE_EMPTY.items():
        value = header.get(keyword)
        try:
            kind(value)
        except (TypeError, ValueError):
            value = None
        if value is None or isinstance(value, MultiValue):
            setattr(header, keyword, None)
    return header


def _segmentation(names: list[tuple[str, str]], planes: np.ndarray, headers: list[Dataset]) -> hd.seg.Segmentation:
    """Makes segments of what `_planes` gives, given their (tracking id, tracking UID) and the slices."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name=NAME, family=codes.cid7162.ArtificialIntelligence, version=__version__
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=nodule_id[:64],  # as long as a label may be
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=uid,
            tracking_id=nodule_id,
            anatomic_regions=[codes.SCT.Lung],
        )
        for number, (nodule_id, uid) in enumerate(names, 1)
    ]
    return hd.seg.Segmentation(
        source_images=headers,
        pixel_array=planes,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        content_label="NODULES",
        content_description="Lung nodule segmentation",
        **_instance(1000, "Lung nodule segmentation"),
    )


def _segment(seg: hd.seg.Segmentation, number: int, headers: list[Dataset]) -> hd.sr.ReferencedSegment:
    """Refers to a segment and to the slices that it marks."""
    return hd.sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=number,
        source_images=[hd.sr.SourceImageForSegmentation.from_source_image(header) for header in headers],
    )


def _measurement_group(
    finding: Finding, uid: str, segment: hd.sr.ReferencedSegment | None, header: Dataset
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """What is known of a finding, of its segment or, where it has none, of its point."""
    measurements = []
    if segment is None:
        point = hd.sr.VolumeSurface(
            "POINT",
            np.array([finding.point_mm], np.float64),
            header.FrameOfReferenceUID,
            source_series=hd.sr.SourceSeriesForSegmentation.from_source_image(header),
        )
        region = {"referenced_volume_surface": point}
    else:
        measurements += [
            hd.sr.Measurement(codes.SCT.Volume, round(float(finding.volume_mm3), 2), codes.UCUM.CubicMillimeter),
            hd.sr.Measurement(codes.SCT.Diameter, round(float(finding.diameter_mm), 2), codes.UCUM.Millimeter),
        ]
        region = {"referenced_segment": segment}
    expected = round(float(finding.expected[schema.MALIGNANCY]), 3)
    concept, _ = RATING_CODES["malignancy"]
    measurements.append(hd.sr.Measurement(concept, expected, codes.UCUM.NoUnits, derivation=codes.SCT.Mean))
    evaluations = []
    for name, k in zip(schema.RATING_NAMES, finding.arg_max, strict=True):
        concept, classes = RATING_CODES[name]
        evaluations.append(hd.sr.QualitativeEvaluation(concept, classes[k - 1]))
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid, finding.nodule_id),
        finding_type=codes.SCT.Nodule,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=hd.sr.AlgorithmIdentification(NAME, __version__),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        **region,
    )


def _report(groups: list, evidence: list[Dataset]) -> hd.sr.Comprehensive3DSR:
    """The structured report of measurement groups."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[NAME, __version__]),  # of the program, so the same each time
        name=NAME,
        manufacturer_name="pnsamp_jax",
        model_name=NAME,
        serial_number=__version__,
    )
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=evidence,
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **_instance(1001, "Lung nodule measurements and ratings"),
    )


def _instance(series_number: int, description: str) -> dict:
    """What both objects say of themselves: each is the only one of a new series."""
    return {
        "series_instance_uid": hd.UID(),
        "series_number": series_number,
        "series_description": description,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "pnsamp_jax",
        "manufacturer_model_name": NAME,
        "software_versions": __version__,
        "device_serial_number": __version__,
    }
