"""The DICOM objects, read back: every voxel at its place, every rating in its code, nothing that a validator bars."""

import os
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from ct_files import HU, REAL, edit, refusal, write_series
from findings import make_finding
from pydicom.sr.codedict import codes

from pnsamp_jax import __version__
from pnsamp_jax.ct.dicom import read_series, slice_positions
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.report.dicom_objects import write_objects

FRAME = "1.2.3.5"

# The code values of TCIA's conversion of the LIDC-IDRI readings: of the concept, then of the classes 1, 2, ...
TCIA = {
    "subtlety": ("C45992", "101 102 103 104 105"),
    "internal_structure": ("200", "C12471 C25278 C12472 C73434"),
    "calcification": ("C3672", "RID35453 302 RID5741 304 RID5827 RID28473"),
    "sphericity": ("400", "RID5811 002 RID5800 004 RID5799"),
    "margin": ("C25563", "RID5709 002 003 004 RID5707"),
    "lobulation": ("C62175", "601 002 003 004 605"),
    "spiculation": ("C28749", "701 002 003 004 705"),
    "texture": ("C41144", "RID50153 002 RID50152 004 RID50151"),
    "malignancy": ("RID36042", "901 902 903 904 905"),
}


def make_series(folder, hu=HU, **how):
    return write_series(folder / "ct", hu, **{"FrameOfReferenceUID": FRAME} | how)


def finding(name="nodule_1", seed=0, **changes):
    return make_finding(name, seed, size=8, **changes)


def make_masks(paths, count=1):
    """Random masks, which overlap, on the grid of a series; the lowest slice is free so that an offset shows."""
    ct = read_series(paths)
    masks = np.random.default_rng(1).random((count, *ct.array.shape)) < 0.2
    masks[:, 0] = False
    return [Volume(mask, ct.affine) for mask in masks]


def on_grid(masks):
    """The marked voxels of masks, and the affine of their grid."""
    return [np.argwhere(mask.array) for mask in masks], masks[0].affine


def write(folder, findings, masks, paths):
    """Writes both objects into folder/out; returns the Segmentation as read back, None if there is no file."""
    seg_path, sr_path = folder / "out" / "seg.dcm", folder / "out" / "sr.dcm"
    write_objects(findings, *on_grid(masks), paths, seg_path, sr_path)
    assert {"sr.dcm"} <= {*os.listdir(folder / "out")} <= {"seg.dcm", "sr.dcm"}
    return hd.seg.segread(seg_path) if seg_path.exists() else None


def read_report(folder):
    return hd.sr.srread(folder / "out" / "sr.dcm")


def frames_of(seg):
    """(segment, UID of the source slice) -> (position, pixels), of nothing but the elements of the file."""
    (shared,), frames = seg.SharedFunctionalGroupsSequence, {}
    stack = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, stack, strict=True):
        identification = (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        place = identification[0].ReferencedSegmentNumber, source.ReferencedSOPInstanceUID
        frames[place] = list(group.PlanePositionSequence[0].ImagePositionPatient), pixels
    assert len(frames) == seg.NumberOfFrames
    return frames


def assert_frames_are(seg, masks, paths):
    """Each slice holds, at its own position, what the masks have at the nearest depth, and only where that is any."""
    frames = frames_of(seg)
    for path in paths:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        depths = masks[0].to_lps([[d, 0, 0] for d in range(len(masks[0].array))])
        nearest = np.linalg.norm(depths - np.array(header.ImagePositionPatient), axis=1).argmin()
        for number, mask in enumerate(masks, 1):
            frame = frames.pop((number, header.SOPInstanceUID), None)
            assert (frame is not None) == mask.array[nearest].any()
            if frame is not None:
                assert frame[0] == header.ImagePositionPatient
                np.testing.assert_array_equal(frame[1], mask.array[nearest])
    assert not frames


# How a series lies, and the distance from slice to slice along its normal, None where there is not one.
GEOMETRIES = {
    "straight": ({}, 2.5),
    "downwards": ({"step": (0, 0, -2.5)}, 2.5),
    "tilted gantry": ({"step": (0, 0.4, 2.5)}, 2.5),
    "oblique": ({"orientation": (0.6, 0.8, 0, -0.8, 0.6, 0)}, 2.5),
    "coronal": ({"orientation": (1, 0, 0, 0, 0, -1), "step": (0, 2, 0)}, 2),
    "a third": ({"step": (0, 0, 1 / 3)}, 0.333333),
    "a slice lost": ({"depths": [0, 1, 2, 3, 5]}, None),
    "uneven": ({"depths": [0, 1, 2.2, 3.3, 4]}, None),
}


@pytest.mark.parametrize(("how", "spacing"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_voxel_of_two_segments_comes_back_at_its_place(tmp_path, how, spacing):
    paths = make_series(tmp_path, names=["4.dcm", "1.dcm", "5.dcm", "2.dcm", "3.dcm"], **how)
    masks = make_masks(paths, 2)
    seg = write(tmp_path, [finding("a"), finding("b")], masks, paths[::-1])
    assert_frames_are(seg, masks, paths)
    assert seg.SegmentationType == "BINARY" and seg.FrameOfReferenceUID == FRAME
    (shared,) = seg.SharedFunctionalGroupsSequence
    orientation = how.get("orientation", (1, 0, 0, 0, 1, 0))
    assert [*shared.PlaneOrientationSequence[0].ImageOrientationPatient] == [*orientation]
    measures = shared.PixelMeasuresSequence[0]
    assert measures.PixelSpacing == [0.8, 0.5] and measures.get("SpacingBetweenSlices") == spacing


def test_a_slice_that_is_there_twice_is_marked_once(tmp_path):
    paths = make_series(tmp_path)
    copy = str(shutil.copy(paths[2], tmp_path / "ct" / "z.dcm"))
    edit(copy, SOPInstanceUID="1.2.3.9")
    masks = make_masks([*paths, copy])
    seg = write(tmp_path, [finding()], masks, [copy, *paths])
    assert_frames_are(seg, masks, paths)


def test_segments_say_what_they_are_and_who_made_them(tmp_path):
    names = ["nodule_1", "n" * 99]
    paths = make_series(tmp_path)
    seg = write(tmp_path, [finding(name) for name in names], make_masks(paths, 2), paths)
    for number, name in enumerate(names, 1):
        segment = seg.get_segment_description(number)
        assert segment.segmented_property_category == codes.SCT.MorphologicallyAbnormalStructure
        assert segment.segmented_property_type == codes.SCT.Nodule
        assert segment.anatomic_regions == [codes.SCT.Lung]
        assert segment.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        assert (segment.algorithm_identification.name, segment.algorithm_identification.version) == (
            "PN-SAMP",
            __version__,
        )
        assert segment.tracking_id == name and segment.segment_label == name[:64]


def test_report_holds_ratings_measurements_and_references(tmp_path):
    paths = make_series(tmp_path, PatientID="P7", StudyID="s")
    findings = [finding("nodule_1", 1), finding("nodule_2", 2)]
    masks = make_masks(paths, 2)
    masks[1].array[:4] = False
    seg = write(tmp_path, findings, masks, paths)
    sr = read_report(tmp_path)
    slices = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths]
    groups = sr.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["nodule_1", "nodule_2"]
    for number, (group, one) in enumerate(zip(groups, findings, strict=True), 1):
        assert group.tracking_uid == seg.get_segment_description(number).tracking_uid
        assert group.finding_type == codes.SCT.Nodule
        assert [site.value for site in group.finding_sites] == [codes.SCT.Lung]
        volume, diameter, malignancy = group.get_measurements()
        assert (volume.name, volume.unit) == (codes.SCT.Volume, codes.UCUM.CubicMillimeter)
        assert (diameter.name, diameter.unit) == (codes.SCT.Diameter, codes.UCUM.Millimeter)
        assert (malignancy.unit, malignancy.derivation) == (codes.UCUM.NoUnits, codes.SCT.Mean)
        assert malignancy.name.value == TCIA["malignancy"][0]
        assert volume.value == pytest.approx(one.volume_mm3, abs=0.005)
        assert diameter.value == pytest.approx(one.diameter_mm, abs=0.005)
        assert malignancy.value == pytest.approx(one.expected[schema.MALIGNANCY], abs=0.0005)
        found = {item.name.value: item.value.value for item in group.get_qualitative_evaluations()}
        classes = dict(zip(schema.RATING_NAMES, one.arg_max, strict=True))
        assert found == {concept: values.split()[classes[name] - 1] for name, (concept, values) in TCIA.items()}
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert reference.referenced_segment_numbers == [number]
        sources = [item.referenced_sop_instance_uid for item in reference.source_images_for_segmentation]
        assert sources == (slices[1:] if number == 1 else slices[4:])

    assert {instance for _, _, instance, _ in sr.get_evidence()} == {*slices, seg.SOPInstanceUID}
    assert (sr.CompletionFlag, sr.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    (observer,) = sr.content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    assert observer.observer_identifying_attributes.name == "PN-SAMP"
    for made in (seg, sr):
        assert (made.PatientName, made.PatientID, made.StudyInstanceUID) == ("Doe^Jane", "P7", "1.2.3")


def test_every_class_of_every_rating_has_the_code_of_tcia(tmp_path):
    paths = make_series(tmp_path)
    (mask,) = make_masks(paths)
    classes = np.array(
        [[min(k, rating.classes) for rating in schema.RATINGS] for k in range(1, schema.MAX_CLASSES + 1)]
    )
    findings = [finding(f"n{k}", probabilities=np.eye(schema.MAX_CLASSES)[row - 1]) for k, row in enumerate(classes)]
    mask.array[:] = False
    write(tmp_path, findings, [mask] * len(findings), paths)
    sr = read_report(tmp_path)
    for group, row in zip(sr.content.get_volumetric_roi_measurement_groups(), classes, strict=True):
        items = group.get_qualitative_evaluations()
        for item, (concept, values), k in zip(items, TCIA.values(), row, strict=True):
            assert (item.name.value, item.value.value) == (concept, values.split()[k - 1])
            for code in (item.name, item.value):
                known = {"R": "RadLex", "C": "NCIt"}
                assert code.scheme_designator == known.get(code.value[0], "99LIDCQIICR")


def test_a_finding_without_a_voxel_has_its_point_in_the_report_and_no_segment(tmp_path):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 3)
    masks[1].array[:] = False
    seg = write(tmp_path, [finding(name) for name in "abc"], masks, paths)
    assert_frames_are(seg, [masks[0], masks[2]], paths)
    first, without, last = read_report(tmp_path).content.get_volumetric_roi_measurement_groups()
    assert first.referenced_segment.referenced_segment_numbers == [1]
    assert last.referenced_segment.referenced_segment_numbers == [2]
    assert without.referenced_segment is None
    assert without.roi.graphic_type == hd.sr.GraphicTypeValues3D.POINT
    np.testing.assert_array_equal(without.roi.graphic_data[0], finding().point_mm)
    assert without.roi.frame_of_reference_uid == FRAME
    assert len(without.get_qualitative_evaluations()) == len(schema.RATINGS)
    assert [item.name.value for item in without.get_measurements()] == [TCIA["malignancy"][0]]


def test_a_voxel_between_the_slices_that_are_there_makes_no_segment(tmp_path):
    paths = make_series(tmp_path, depths=[0, 1, 2, 3, 5])
    (mask,) = make_masks(paths)
    mask.array[:] = False
    mask.array[4] = True  # interpolated: nothing to mark
    assert write(tmp_path, [finding()], [mask], paths) is None


def test_without_segments_there_is_no_segmentation_nor_is_an_old_one_left(tmp_path):
    paths = make_series(tmp_path)
    (mask,) = make_masks(paths)
    assert write(tmp_path, [finding()], [mask], paths)
    mask.array[:] = False
    assert write(tmp_path, [finding()], [mask], paths) is None
    assert len(read_report(tmp_path).get_evidence()) == len(paths)


def test_uids_are_new_each_time(tmp_path):
    paths = make_series(tmp_path)
    first, second = ((write(tmp_path, [finding()], make_masks(paths), paths), read_report(tmp_path)) for _ in range(2))
    for old, new in zip(first, second, strict=True):
        assert old.SOPInstanceUID != new.SOPInstanceUID and old.SeriesInstanceUID != new.SeriesInstanceUID
        assert old.StudyInstanceUID == new.StudyInstanceUID == "1.2.3"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"StudyInstanceUID": None}, "has no StudyInstanceUID"),
        ({"SOPInstanceUID": None}, "has no SOPInstanceUID"),
        ({"SOPClassUID": None}, "has no SOPClassUID"),
        ({"FrameOfReferenceUID": None}, "has no FrameOfReferenceUID"),
        ({"FrameOfReferenceUID": ""}, "has no FrameOfReferenceUID"),
        ({"FrameOfReferenceUID": "1.2.9"}, "FrameOfReferenceUID differs"),
        ({"StudyInstanceUID": "1.2.9"}, "StudyInstanceUID differs"),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, "private"),
    ],
)
def test_headers_that_objects_cannot_refer_to_are_refused(tmp_path, change, complaint):
    paths = make_series(tmp_path)
    masks = on_grid(make_masks(paths))
    edit(paths[2], **change)  # after the series was read, which would refuse some of it
    out = tmp_path / "out"
    message = refusal(write_objects, [finding()], *masks, paths, out / "seg.dcm", out / "sr.dcm")
    assert message.startswith(f"{paths[2]}: ") and complaint in message
    assert not out.exists()


def test_slices_of_one_uid_are_refused(tmp_path):
    paths = make_series(tmp_path, SOPInstanceUID="1.2.3.9")
    masks = on_grid(make_masks(paths))
    message = refusal(write_objects, [finding()], *masks, paths, tmp_path / "seg", tmp_path / "sr")
    assert message.startswith(f"{paths[1]}: SOPInstanceUID") and paths[0] in message


@pytest.mark.parametrize(
    ("name", "charset"),
    [
        ("Müller^Jörg", "ISO_IR 100"),
        ("Люкceмбypг", "ISO_IR 144"),
        ("Yamada^Tarou=山田^太郎", ["", "ISO 2022 IR 87"]),
        ("Doe^Jane", ""),
    ],
)
def test_a_patients_name_keeps_its_letters(tmp_path, name, charset):
    paths = make_series(tmp_path, PatientName=name, SpecificCharacterSet=charset)
    seg = write(tmp_path, [finding()], make_masks(paths), paths)
    assert seg.PatientName == read_report(tmp_path).PatientName == name


def test_what_is_broken_or_missing_in_a_header_is_left_empty_and_nobody_hears_of_it(tmp_path, capfd, caplog):
    broken = {"PatientSex": "X", "StudyDate": "20009999", "StudyTime": "25:00", "PatientBirthDate": "long ago"}
    paths = make_series(tmp_path)
    for path in paths:
        edit(path, **broken, PatientName="Doe", AccessionNumber=["1", "2"])
    masks = make_masks(paths)
    caplog.clear()
    seg = write(tmp_path, [finding()], masks, paths)
    assert "Doe" not in "".join([caplog.text, *capfd.readouterr()])
    for made in (seg, read_report(tmp_path)):
        assert not any(made[tag].value for tag in [*broken, "AccessionNumber", "StudyID"])
        assert made.PatientName == "Doe"


@pytest.mark.parametrize(
    "keyword",
    ["SliceThickness", "SpacingBetweenSlices", "PatientWeight", "LossyImageCompressionRatio", "InstanceNumber"],
)
def test_an_optional_number_that_is_none_counts_as_absent(tmp_path, keyword):
    paths = make_series(tmp_path, **{keyword: 123456})
    for path in paths:
        data = Path(path).read_bytes()
        assert data.count(b"123456") == 1
        Path(path).write_bytes(data.replace(b"123456", b"thick "))  # which pydicom itself would not write
    masks = make_masks(paths)
    seg = write(tmp_path, [finding()], masks, paths)
    assert_frames_are(seg, masks, paths)
    (shared,) = seg.SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SliceThickness == 2.5


@pytest.mark.parametrize("thickness", [0, -1, [2, 3]])
def test_a_slice_thickness_that_none_can_have_is_the_distance_of_the_slices(tmp_path, thickness):
    paths = make_series(tmp_path, SliceThickness=thickness)
    seg = write(tmp_path, [finding()], make_masks(paths), paths)
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5


@pytest.mark.parametrize("overlap", [False, True])
def test_segments_may_overlap(tmp_path, overlap):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 3)
    if not overlap:
        masks[1].array[:] &= ~masks[0].array
        masks[2].array[:] &= ~(masks[0].array | masks[1].array)
    seg = write(tmp_path, [finding(name) for name in "abc"], masks, paths)
    assert seg.SegmentsOverlap == ("YES" if overlap else "NO")
    assert_frames_are(seg, masks, paths)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The objects of two balls in twenty slices of a real scan: (folder, Segmentation, masks, paths)."""
    if not REAL.is_dir():
        pytest.skip("the real scan of LIDC-IDRI is not at hand")
    paths = sorted(map(str, REAL.rglob("*.dcm")))
    paths = [paths[i] for i in np.argsort(slice_positions(paths)[:, 2])[40:60]]
    ct, masks = read_series(paths), []
    axes = np.ogrid[tuple(map(slice, ct.array.shape))]
    for centre in ([5, 300, 120], [14, 250, 400]):
        away_mm = ((axis - c) * mm for axis, c, mm in zip(axes, centre, ct.spacing, strict=True))
        masks.append(Volume(sum(mm**2 for mm in away_mm) < 7**2, ct.affine))
    folder = tmp_path_factory.mktemp("real")
    return folder, write(folder, [finding("a"), finding("b")], masks, paths), masks, paths


def test_a_real_scan(real):
    folder, seg, masks, paths = real
    assert_frames_are(seg, masks, paths)
    assert seg.PatientID == read_report(folder).PatientID == "LIDC-IDRI-0001"


def assert_valid(path, kind):
    """That dciodvfy knows what a file is and finds no error in it."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    assert kind in lines and [line for line in lines if "Error" in line] == []


needs_dciodvfy = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian: dicom3tools) is absent")


@needs_dciodvfy
@pytest.mark.parametrize("count", [0, 1, 2])
def test_dciodvfy_finds_no_error_in_the_objects_of_a_bare_series(tmp_path, count):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 2)
    for mask in masks[count:]:
        mask.array[:] = False
    if write(tmp_path, [finding("a"), finding("b")], masks, paths):
        assert_valid(tmp_path / "out" / "seg.dcm", "Segmentation")
    assert_valid(tmp_path / "out" / "sr.dcm", "Comprehensive3DSR")


@needs_dciodvfy
def test_dciodvfy_finds_no_error_in_the_objects_of_a_real_scan(real):
    assert_valid(real[0] / "out" / "seg.dcm", "Segmentation")
    assert_valid(real[0] / "out" / "sr.dcm", "Comprehensive3DSR")
