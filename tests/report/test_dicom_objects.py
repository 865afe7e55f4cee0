"""The DICOM objects, read back: positions of voxels, codes of ratings, and conformance to the standard."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest
from ct_files import REAL, edit
from made_series import FRAME, assert_frames_are, finding, make_masks, make_series, read_report, write_and_read
from pydicom.sr.codedict import codes

from pnsamp_jax import __version__
from pnsamp_jax.ct.dicom import read_series, slice_positions
from pnsamp_jax.ct.read import open_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

# The code values in TCIA's conversion of the LIDC-IDRI readings: of the concept, then of the classes 1, 2, ...
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


# The geometry of a series, and the distance between slices along the normal, None if it is not uniform.
GEOMETRIES = {
    "straight": ({}, 2.5),
    "downwards": ({"step": (0, 0, -2.5)}, 2.5),
    "tilted gantry": ({"step": (0, 0.4, 2.5)}, 2.5),
    "oblique": ({"orientation": (0.6, 0.8, 0, -0.8, 0.6, 0)}, 2.5),
    "coronal": ({"orientation": (1, 0, 0, 0, 0, -1), "step": (0, 2, 0)}, 2),
    "a third": ({"step": (0, 0, 1 / 3)}, 0.333333),
    "a missing slice": ({"depths": [0, 1, 2, 3, 5]}, None),
    "uneven": ({"depths": [0, 1, 2.2, 3.3, 4]}, None),
}


@pytest.mark.parametrize(("options", "spacing"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_voxel_of_two_segments_is_read_back_at_the_same_position(tmp_path, options, spacing):
    paths = make_series(tmp_path, names=["4.dcm", "1.dcm", "5.dcm", "2.dcm", "3.dcm"], **options)
    masks = make_masks(paths, 2)
    seg = write_and_read(tmp_path, [finding("a"), finding("b")], masks, paths[::-1])
    assert_frames_are(seg, masks, paths)
    assert seg.SegmentationType == "BINARY" and seg.FrameOfReferenceUID == FRAME
    (shared,) = seg.SharedFunctionalGroupsSequence
    orientation = options.get("orientation", (1, 0, 0, 0, 1, 0))
    assert [*shared.PlaneOrientationSequence[0].ImageOrientationPatient] == [*orientation]
    measures = shared.PixelMeasuresSequence[0]
    assert measures.PixelSpacing == [0.8, 0.5] and measures.get("SpacingBetweenSlices") == spacing


def test_a_repeated_slice_is_marked_once(tmp_path):
    paths = make_series(tmp_path)
    copy = str(shutil.copy(paths[2], tmp_path / "ct" / "z.dcm"))
    edit(copy, SOPInstanceUID="1.2.3.9")
    masks = make_masks([*paths, copy])
    seg = write_and_read(tmp_path, [finding()], masks, [copy, *paths])
    assert_frames_are(seg, masks, paths)


def test_a_zipped_series_gives_the_same_objects(tmp_path):
    paths = make_series(tmp_path, PatientID="P7")
    masks = make_masks(paths, 2)
    image = open_image(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "ct"))
    np.testing.assert_array_equal(image.volume.affine, masks[0].affine)
    seg = write_and_read(tmp_path, [finding("a"), finding("b")], masks, image.files)
    assert_frames_are(seg, masks, paths)
    assert seg.PatientID == "P7" and read_report(tmp_path).PatientID == "P7"


def test_what_a_zipped_series_lacks_is_named_within_the_archive(tmp_path):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 1)
    edit(paths[2], SOPInstanceUID=None)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "ct")
    with pytest.raises(UserError, match=f"{archive}/.*dcm: has no SOPInstanceUID"):
        write_and_read(tmp_path, [finding()], masks, open_image(archive).files)


def test_segments_are_described_with_type_algorithm_and_tracking_id(tmp_path):
    names = ["nodule_1", f"{'1' * 64}_1", f"{'1' * 64}_2"]  # as of nodules named after a series' UID
    paths = make_series(tmp_path)
    seg = write_and_read(tmp_path, [finding(name) for name in names], make_masks(paths, 3), paths)
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
        assert segment.tracking_id == name and len(segment.segment_label) <= 64
        assert segment.segment_label == name or segment.segment_label.endswith(f"11_{number - 1}")


def test_report_holds_ratings_measurements_and_references(tmp_path):
    paths = make_series(tmp_path, PatientID="P7", StudyID="s")
    findings = [finding("nodule_1", 1), finding("nodule_2", 2)]
    masks = make_masks(paths, 2)
    masks[1].array[:4] = False
    seg = write_and_read(tmp_path, findings, masks, paths)
    sr = read_report(tmp_path)
    slices = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths]
    groups = sr.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["nodule_1", "nodule_2"]
    for number, (group, expected) in enumerate(zip(groups, findings, strict=True), 1):
        assert group.tracking_uid == seg.get_segment_description(number).tracking_uid
        assert group.finding_type == codes.SCT.Nodule
        assert [site.value for site in group.finding_sites] == [codes.SCT.Lung]
        volume, long_axis, short_axis, mean, malignancy = group.get_measurements()
        assert (volume.name, volume.unit) == (codes.SCT.Volume, codes.UCUM.CubicMillimeter)
        # SNOMED CT, as DICOM's context group 7470 (linear measurements) has it.
        assert [axis.name.value for axis in (long_axis, short_axis, mean)] == ["103339001", "103340004", "81827009"]
        assert {axis.unit for axis in (long_axis, short_axis, mean)} == {codes.UCUM.Millimeter}
        assert mean.derivation == codes.SCT.Mean
        assert (malignancy.unit, malignancy.derivation) == (codes.UCUM.NoUnits, codes.SCT.Mean)
        assert malignancy.name.value == TCIA["malignancy"][0]
        assert volume.value == pytest.approx(expected.volume_mm3, abs=0.005)
        axes = [expected.diameters.long_mm, expected.diameters.short_mm, expected.diameters.mean_mm]
        assert [long_axis.value, short_axis.value, mean.value] == pytest.approx(axes, abs=0.005)
        assert malignancy.value == pytest.approx(expected.expected[schema.MALIGNANCY], abs=0.0005)
        found = {item.name.value: item.value.value for item in group.get_qualitative_evaluations()}
        classes = dict(zip(schema.RATING_NAMES, expected.arg_max, strict=True))
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


def test_every_class_of_every_rating_has_tcias_code(tmp_path):
    paths = make_series(tmp_path)
    (mask,) = make_masks(paths)
    classes = np.array(
        [[min(k, rating.classes) for rating in schema.RATINGS] for k in range(1, schema.MAX_CLASSES + 1)]
    )
    findings = [finding(f"n{k}", probabilities=np.eye(schema.MAX_CLASSES)[row - 1]) for k, row in enumerate(classes)]
    mask.array[:] = False
    write_and_read(tmp_path, findings, [mask] * len(findings), paths)
    sr = read_report(tmp_path)
    for group, row in zip(sr.content.get_volumetric_roi_measurement_groups(), classes, strict=True):
        items = group.get_qualitative_evaluations()
        for item, (concept, values), k in zip(items, TCIA.values(), row, strict=True):
            assert (item.name.value, item.value.value) == (concept, values.split()[k - 1])
            for code in (item.name, item.value):
                known = {"R": "RadLex", "C": "NCIt"}
                assert code.scheme_designator == known.get(code.value[0], "99LIDCQIICR")


@pytest.mark.parametrize("simulated", [False, True])
def test_lower_bounds_and_simulated_training_are_said(tmp_path, simulated):
    paths = make_series(tmp_path)
    findings = [finding("whole"), finding("cut", truncated=True)]
    seg = write_and_read(tmp_path, findings, make_masks(paths, 2), paths, simulated=simulated)
    sr = read_report(tmp_path)
    whole, cut = (
        {item.name.meaning: item.value.meaning for item in group.get_qualitative_evaluations()}
        for group in sr.content.get_volumetric_roi_measurement_groups()
    )
    assert "lower bounds" in cut["Extent of the segmentation"] and "Extent of the segmentation" not in whole
    for made in (seg, sr):
        assert made.SeriesDescription.startswith("TEST ONLY") == simulated and len(made.SeriesDescription) <= 64
        assert ("simulated voxels" in made.to_json()) == simulated
    if shutil.which("dciodvfy"):
        assert_valid(tmp_path / "out" / "seg.dcm", "Segmentation")
        assert_valid(tmp_path / "out" / "sr.dcm", "Comprehensive3DSR")


def test_intervals_and_the_set_of_classes_are_in_the_report(tmp_path):
    paths = make_series(tmp_path)
    sets = np.zeros((2, 9, 6), bool)
    sets[0, schema.MALIGNANCY, 2:4] = True
    known = finding(class_sets=sets, volume_mm3=100.0, volume_range_mm3=(60.0, 180.0), diameter_range_mm=(0.0, np.inf))
    write_and_read(tmp_path, [known], make_masks(paths, 1), paths)
    (group,) = read_report(tmp_path).content.get_volumetric_roi_measurement_groups()
    volume, long_axis, *_ = group.get_measurements()
    bounds = [item.MeasuredValueSequence[0] for item in volume[0].ContentSequence if item.ValueType == "NUM"]
    assert sorted(float(bound.NumericValue) for bound in bounds) == [40, 80]
    assert {bound.MeasurementUnitsCodeSequence[0].CodeValue for bound in bounds} == {"mm3"}
    assert "NUM" not in [item.ValueType for item in long_axis[0].get("ContentSequence", [])]  # infinite: not known
    may_be = [item.value for item in group.get_qualitative_evaluations() if item.name.value == "malignancy_set"]
    assert [code.value for code in may_be] == ["903", "904"]


@pytest.mark.parametrize(("nodule_like", "unlike"), [(None, []), (0.8125, []), (0.125, ["unlike_nodules"])])
def test_the_likeness_to_a_nodule_is_in_the_report_if_it_is_known(nodule_like, unlike, tmp_path):
    paths = make_series(tmp_path)
    write_and_read(tmp_path, [finding(nodule_like=nodule_like)], make_masks(paths, 1), paths)
    (group,) = read_report(tmp_path).content.get_volumetric_roi_measurement_groups()
    values = [item.value for item in group.get_measurements() if item.name.value == "nodule_like"]
    assert values == ([] if nodule_like is None else [pytest.approx(nodule_like, abs=1e-3)])
    said = [item.value.value for item in group.get_qualitative_evaluations() if item.name.value == "nodule_like"]
    assert said == unlike


def test_a_finding_without_a_voxel_of_the_series_has_a_point_in_the_report_and_no_segment(tmp_path):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 3)
    masks[1].array[:] = False
    seg = write_and_read(tmp_path, [finding(name) for name in "abc"], masks, paths)
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


def test_a_voxel_between_the_slices_makes_no_segment(tmp_path):
    paths = make_series(tmp_path, depths=[0, 1, 2, 3, 5])
    (mask,) = make_masks(paths)
    mask.array[:] = False
    mask.array[4] = True  # an interpolated depth without a slice
    assert write_and_read(tmp_path, [finding()], [mask], paths) is None


def test_without_segments_no_segmentation_is_written_and_an_old_one_is_removed(tmp_path):
    paths = make_series(tmp_path)
    (mask,) = make_masks(paths)
    assert write_and_read(tmp_path, [finding()], [mask], paths)
    mask.array[:] = False
    assert write_and_read(tmp_path, [finding()], [mask], paths) is None
    assert len(read_report(tmp_path).get_evidence()) == len(paths)


def test_uids_are_new_in_every_call(tmp_path):
    paths = make_series(tmp_path)
    first, second = (
        (write_and_read(tmp_path, [finding()], make_masks(paths), paths), read_report(tmp_path)) for _ in range(2)
    )
    for old, new in zip(first, second, strict=True):
        assert old.SOPInstanceUID != new.SOPInstanceUID and old.SeriesInstanceUID != new.SeriesInstanceUID
        assert old.StudyInstanceUID == new.StudyInstanceUID == "1.2.3"


@pytest.mark.parametrize("overlap", [False, True])
def test_segments_may_overlap(tmp_path, overlap):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 3)
    if not overlap:
        masks[1].array[:] &= ~masks[0].array
        masks[2].array[:] &= ~(masks[0].array | masks[1].array)
    seg = write_and_read(tmp_path, [finding(name) for name in "abc"], masks, paths)
    assert seg.SegmentsOverlap == ("YES" if overlap else "NO")
    assert_frames_are(seg, masks, paths)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Write the objects of two balls in twenty slices of a real scan; return (folder, Segmentation, masks, paths)."""
    paths = sorted(map(str, REAL.rglob("*.dcm")))
    paths = [paths[i] for i in np.argsort(slice_positions(paths)[:, 2])[40:60]]
    ct, masks = read_series(paths), []
    axes = np.ogrid[tuple(map(slice, ct.array.shape))]
    for centre in ([5, 300, 120], [14, 250, 400]):
        distance_mm = ((axis - c) * mm for axis, c, mm in zip(axes, centre, ct.spacing, strict=True))
        masks.append(Volume(sum(mm**2 for mm in distance_mm) < 7**2, ct.affine))
    folder = tmp_path_factory.mktemp("real")
    return folder, write_and_read(folder, [finding("a"), finding("b")], masks, paths), masks, paths


def test_a_real_scan(real):
    folder, seg, masks, paths = real
    assert_frames_are(seg, masks, paths)
    assert seg.PatientID == read_report(folder).PatientID == "LIDC-IDRI-0001"


def assert_valid(path, kind):
    """Assert that dciodvfy recognises the kind of a file and finds no error in it."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    assert kind in lines and [line for line in lines if "Error" in line] == []


needs_dciodvfy = pytest.mark.skipif(
    not shutil.which("dciodvfy"), reason="needs the program dciodvfy (Debian package dicom3tools)"
)


@needs_dciodvfy
@pytest.mark.parametrize("count", [0, 1, 2])
def test_dciodvfy_finds_no_error_in_the_objects_of_a_minimal_series(tmp_path, count):
    paths = make_series(tmp_path)
    masks = make_masks(paths, 2)
    for mask in masks[count:]:
        mask.array[:] = False
    if write_and_read(tmp_path, [finding("a"), finding("b")], masks, paths):
        assert_valid(tmp_path / "out" / "seg.dcm", "Segmentation")
    assert_valid(tmp_path / "out" / "sr.dcm", "Comprehensive3DSR")


@needs_dciodvfy
def test_dciodvfy_finds_no_error_in_the_objects_of_a_real_scan(real):
    assert_valid(real[0] / "out" / "seg.dcm", "Segmentation")
    assert_valid(real[0] / "out" / "sr.dcm", "Comprehensive3DSR")
