"""Findings as DICOM objects: a Segmentation and a structured report, for viewers and archives that hold the CT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import Code, codes
from pydicom.uid import generate_uid

from pnsamp_jax import __version__
from pnsamp_jax.ct.dicom_file import quiet_pydicom
from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.report import SIMULATED
from pnsamp_jax.report.dicom_codes import EXTENT, LIKENESS, LOWER_BOUNDS, MALIGNANCY_SET, RATING_CODES, UNLIKE_NODULES
from pnsamp_jax.report.dicom_headers import UTF8, read_headers

NAME = "PN-SAMP"


def write_objects(
    findings: list[Finding],
    marked: list[np.ndarray],
    affine: np.ndarray,
    files: Sequence[str | Dataset],
    seg_path: Path,
    sr_path: Path,
    simulated: bool = False,
) -> None:
    """Write the findings in one CT series as a DICOM Segmentation and a DICOM structured report.

    The Segmentation (binary) has one segment for each finding whose mask marks a voxel in one of the series' slices,
    numbered from 1 in the order of the findings. The report (TID 1500, Comprehensive 3D SR, unverified) has a
    measurement group for every finding, with the likeliest class of each rating and the expected malignancy. If the
    finding has a segment, the group refers to it and gives the volume, the long and the short axis and the mean
    diameter, and says so if these are lower bounds; otherwise it refers to `point_mm`. Both objects carry the patient
    and the study of the CT and use its frame of reference. All other UIDs are new in every call, except the one that
    identifies this program as the observer.

    Args:
      findings: at least one, all segmented; a `nodule_id` becomes the tracking identifier in both objects. The patches
        are not read and may be empty.
      marked: for each finding (V, 3) int, the index (d, h, w) on the grid of `read_series(files)` of the V voxels
        that its mask marks. If `read_series` resampled along depth, each slice takes the mask at the nearest depth.
      affine: (4, 4) of that grid.
      files: of the series in any order, already read by `read_series` without error; or their headers.
      seg_path: where to write the Segmentation. If there is no segment, an existing file is removed instead.
      sr_path: where to write the report.
      simulated: whether the networks were trained on simulated voxels, which both objects then say.

    Raises:
      UserError: a header lacks an identifier that the objects must refer to, or the files do not share it.
    """
    with quiet_pydicom():
        headers, depths = read_headers(files, affine)
        uids = [hd.UID() for _ in findings]
        touched = np.array([np.isin(depths, voxels[:, 0]) for voxels in marked])  # (finding, slice)
        shown, used = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        seg: hd.seg.Segmentation | None = None
        segments: dict[int, hd.sr.ReferencedSegment] = {}
        if len(shown):
            planes = _planes([marked[i] for i in shown], depths[used], (headers[0].Rows, headers[0].Columns))
            names = [(findings[i].nodule_id, uids[i]) for i in shown]
            seg = _segmentation(names, planes, [headers[k] for k in used], simulated)
            for number, i in enumerate(shown.tolist(), 1):
                segments[i] = _segment(seg, number, [headers[k] for k in np.flatnonzero(touched[i])])
        groups = [
            _measurement_group(finding, uid, segments.get(i), headers[0], simulated)
            for i, (finding, uid) in enumerate(zip(findings, uids, strict=True))
        ]
        report = _report(groups, [*headers, seg] if seg else headers, simulated)
        if not seg:
            seg_path.unlink(missing_ok=True)
        for path, dataset in ((seg_path, seg), (sr_path, report)):
            if dataset:
                dataset.SpecificCharacterSet = UTF8  # not every version of highdicom copies it from the headers
                with atomic_path(path) as temporary:
                    dataset.save_as(temporary, enforce_file_format=True)


def _planes(marked: list[np.ndarray], depths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draw segments, each given as the (V, 3) index of its voxels, into the slices at these depths.

    Returns:
      (slice, h, w) with the numbers of the segments, from 1. If segments overlap, (slice, h, w, segment) bool, which
      takes as many times the memory as there are segments.
    """
    disjoint = len(np.unique(np.concatenate(marked), axis=0)) == sum(map(len, marked))
    if disjoint:
        planes = np.zeros((len(depths), *shape), np.min_scalar_type(len(marked)))
    else:
        planes = np.zeros((len(depths), *shape, len(marked)), bool)
    for index, voxels in enumerate(marked):
        for plane, depth in zip(planes, depths, strict=True):
            pixels = tuple(voxels[voxels[:, 0] == depth, 1:].T)
            if disjoint:
                plane[pixels] = index + 1
            else:
                plane[(*pixels, index)] = True
    return planes


def _segmentation(
    names: list[tuple[str, hd.UID]], planes: np.ndarray, headers: list[Dataset], simulated: bool
) -> hd.seg.Segmentation:
    """Build the Segmentation.

    Args:
      names: (tracking id, tracking UID) of each segment.
      planes: of `_planes`.
      headers: of the slices, one for each plane.
      simulated: whether the networks were trained on simulated voxels.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name=NAME,
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        parameters={"training": SIMULATED} if simulated else None,
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_label(nodule_id),
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
        **_instance(1000, "Lung nodule segmentation", simulated),
    )


def _label(nodule_id: str) -> str:
    """Return an id in the 64 letters that DICOM allows, with its end, where the number of a nodule stands."""
    return nodule_id if len(nodule_id) <= 64 else f"{nodule_id[:31]}..{nodule_id[-31:]}"


def _segment(seg: hd.seg.Segmentation, number: int, headers: list[Dataset]) -> hd.sr.ReferencedSegment:
    """Build a reference to a segment and to the slices that it marks."""
    return hd.sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=number,
        source_images=[hd.sr.SourceImageForSegmentation.from_source_image(header) for header in headers],
    )


def _measurement_group(
    finding: Finding, uid: str, segment: hd.sr.ReferencedSegment | None, header: Dataset, simulated: bool
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Build the measurement group of a finding: for its segment or, if it has none, for its point."""
    measurements, evaluations, point = [], [], None
    if segment is None:
        point = hd.sr.VolumeSurface(
            "POINT",
            np.array([finding.point_mm], np.float64),
            header.FrameOfReferenceUID,
            source_series=hd.sr.SourceSeriesForSegmentation.from_source_image(header),
        )
    else:
        mm, axes = codes.UCUM.Millimeter, finding.diameters
        mm3, volume_mm3 = codes.UCUM.CubicMillimeter, float(finding.volume_mm3)
        measurements += [
            _measurement(codes.SCT.Volume, volume_mm3, mm3, finding.volume_range_mm3),
            _measurement(codes.SCT.LongAxis, axes.long_mm, mm, finding.diameter_range_mm),
            hd.sr.Measurement(codes.SCT.ShortAxis, round(axes.short_mm, 2), mm),
            hd.sr.Measurement(codes.SCT.Diameter, round(axes.mean_mm, 2), mm, derivation=codes.SCT.Mean),
        ]
        if finding.truncated:
            evaluations.append(hd.sr.QualitativeEvaluation(EXTENT, LOWER_BOUNDS))
    if finding.nodule_like is not None:
        measurements.append(hd.sr.Measurement(LIKENESS, round(finding.nodule_like, 3), codes.UCUM.NoUnits))
    if finding.unlike_nodules:
        evaluations.append(hd.sr.QualitativeEvaluation(LIKENESS, UNLIKE_NODULES))
    expected = round(float(finding.expected[schema.MALIGNANCY]), 3)
    concept, classes = RATING_CODES["malignancy"]
    evaluations += [hd.sr.QualitativeEvaluation(MALIGNANCY_SET, classes[k - 1]) for k in finding.malignancy_set]
    measurements.append(hd.sr.Measurement(concept, expected, codes.UCUM.NoUnits, derivation=codes.SCT.Mean))
    for name, k in zip(schema.RATING_NAMES, finding.arg_max, strict=True):
        concept, classes = RATING_CODES[name]
        evaluations.append(hd.sr.QualitativeEvaluation(concept, classes[k - 1]))
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid, finding.nodule_id),
        finding_type=codes.SCT.Nodule,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=hd.sr.AlgorithmIdentification(NAME, __version__, [SIMULATED] if simulated else None),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        referenced_volume_surface=point,
        referenced_segment=segment,
    )


def _measurement(name: Code, value: float, unit: Code, interval: tuple[float, float] | None) -> hd.sr.Measurement:
    """Build a measurement, with what may be missing below and above it if its interval is known."""
    properties = None
    if interval is not None and np.isfinite(interval).all():
        below, above = (round(abs(value - end), 2) for end in interval)
        properties = hd.sr.MeasurementProperties(
            lower_measurement_uncertainty=below, upper_measurement_uncertainty=above
        )
        for end in properties:  # highdicom gives both no unit
            [number] = end.MeasuredValueSequence
            number.MeasurementUnitsCodeSequence = [hd.sr.CodedConcept.from_code(unit)]
    return hd.sr.Measurement(name, round(value, 2), unit, properties=properties)


def _report(groups: list, evidence: list[Dataset], simulated: bool) -> hd.sr.Comprehensive3DSR:
    """Build the structured report from its measurement groups."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[NAME, __version__]),  # identifies the program, so it is always the same
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
        **_instance(1001, "Lung nodule measurements and ratings", simulated),
    )


def _instance(series_number: int, description: str, simulated: bool) -> dict[str, Any]:
    """Return the elements that identify an object: each is the only instance of a new series."""
    if simulated:
        description = f"TEST ONLY: {description}"  # at most 64 letters
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
