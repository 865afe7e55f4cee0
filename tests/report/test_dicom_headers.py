"""The DICOM objects of series whose headers are incomplete or invalid."""

from pathlib import Path

import pytest
from ct_files import edit, refusal
from made_series import assert_frames_are, finding, make_masks, make_series, on_grid, read_report, write_and_read

from pnsamp_jax.report.dicom_objects import write_objects


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
def test_headers_without_the_required_identifiers_are_rejected(tmp_path, change, complaint):
    paths = make_series(tmp_path)
    masks = on_grid(make_masks(paths))
    edit(paths[2], **change)  # only now, since reading the series would reject some of these changes
    out = tmp_path / "out"
    message = refusal(write_objects, [finding()], *masks, paths, out / "seg.dcm", out / "sr.dcm")
    assert message.startswith(f"{paths[2]}: ") and complaint in message
    assert not out.exists()


def test_slices_with_the_same_uid_are_rejected(tmp_path):
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
def test_a_patients_name_is_kept_in_any_character_set(tmp_path, name, charset):
    paths = make_series(tmp_path, PatientName=name, SpecificCharacterSet=charset)
    seg = write_and_read(tmp_path, [finding()], make_masks(paths), paths)
    assert seg.PatientName == read_report(tmp_path).PatientName == name


def test_invalid_or_missing_elements_of_a_header_are_left_empty_without_a_warning(tmp_path, capfd, caplog):
    invalid = {"PatientSex": "X", "StudyDate": "20009999", "StudyTime": "25:00", "PatientBirthDate": "long ago"}
    paths = make_series(tmp_path)
    for path in paths:
        edit(path, **invalid, PatientName="Doe", AccessionNumber=["1", "2"])
    masks = make_masks(paths)
    caplog.clear()
    seg = write_and_read(tmp_path, [finding()], masks, paths)
    assert "Doe" not in "".join([caplog.text, *capfd.readouterr()])
    for made in (seg, read_report(tmp_path)):
        assert not any(made[tag].value for tag in [*invalid, "AccessionNumber", "StudyID"])
        assert made.PatientName == "Doe"


@pytest.mark.parametrize(
    "keyword",
    ["SliceThickness", "SpacingBetweenSlices", "PatientWeight", "LossyImageCompressionRatio", "InstanceNumber"],
)
def test_an_optional_element_that_is_not_a_number_counts_as_missing(tmp_path, keyword):
    paths = make_series(tmp_path, **{keyword: 123456})
    for path in paths:
        data = Path(path).read_bytes()
        assert data.count(b"123456") == 1
        Path(path).write_bytes(data.replace(b"123456", b"thick "))  # pydicom itself would not write this
    masks = make_masks(paths)
    seg = write_and_read(tmp_path, [finding()], masks, paths)
    assert_frames_are(seg, masks, paths)
    (shared,) = seg.SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SliceThickness == 2.5


@pytest.mark.parametrize("thickness", [0, -1, [2, 3]])
def test_an_impossible_slice_thickness_is_replaced_by_the_slice_spacing(tmp_path, thickness):
    paths = make_series(tmp_path, SliceThickness=thickness)
    seg = write_and_read(tmp_path, [finding()], make_masks(paths), paths)
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5
