"""Folders as people have them: what is beside a series, what is mixed into it, and several series to choose from."""

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_files import HU, UID, edit, refusal, write_series, write_slice

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_folder import only_series
from pnsamp_jax.ct.notes import LOGGER, collected
from pnsamp_jax.ct.read import open_image, read_image
from pnsamp_jax.errors import UserError

CORONAL, SAGITTAL = (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
MANY = np.resize(HU, (12, *HU.shape[1:]))


def read_with_notes(path, **options):
    with collected() as notes:
        image = open_image(path, **options)
    return image, notes


# Scouts


@pytest.mark.parametrize("names", [["a_scout", "b_scout"], ["z1", "z2"]], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(6, 7), (9, 4)])
def test_scouts_under_the_uid_of_the_series_are_passed_over_and_named(tmp_path, names, shape):
    write_series(tmp_path, MANY, names=[f"m{i:02}" for i in range(12)])
    for name, orientation in zip(names, (CORONAL, SAGITTAL), strict=True):
        write_slice(tmp_path / name, np.zeros(shape, np.int16), (-166, 0, 60), orientation=orientation, spacing=(1, 1))
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array, MANY)
    assert notes == [f"{tmp_path}: 12 slices read; passed over: 2 scouts ({', '.join(names)})"]
    assert len(image.files) == 12 and not {str(tmp_path / name) for name in names} & set(image.files)


@pytest.mark.parametrize("across", [2, 5, 12])
def test_without_a_clear_majority_images_across_the_slices_are_refused(tmp_path, across):
    paths = write_series(tmp_path, HU if across < 12 else MANY)
    paths += write_series(
        tmp_path / "more", np.resize(HU, (across, 6, 7)), step=(0, 2.5, 0), orientation=CORONAL, origin=(-10, 0, -290)
    )
    assert "ImageOrientationPatient differs" in refusal(read_series, paths)


# Series of a single image beside the CT


def write_single(path, position=(0, 0, 0), **elements):
    return write_slice(path, HU[0], position, SeriesInstanceUID=f"1.2.9.{Path(path).name[0]}", **elements)


@pytest.mark.parametrize(
    "elements",
    [{"orientation": CORONAL}, {}, {"ImageType": ["DERIVED", "SECONDARY", "PROT"]}, {"ImagePositionPatient": None}],
    ids=["scout", "page", "secondary page", "without a position"],
)
def test_series_of_a_single_image_are_no_choice(tmp_path, elements):
    paths = write_series(tmp_path, MANY)
    write_single(tmp_path / "7.dcm", **elements)
    write_single(tmp_path / "8.dcm", **elements)
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array, MANY)
    assert image.files == paths
    assert len(notes) == 1 and "12 slices read; passed over: 2 " in notes[0] and "(7.dcm, 8.dcm)" in notes[0]


def test_a_scan_in_one_slice_is_passed_over_where_the_volume_has_that_slice(tmp_path):
    write_series(tmp_path, MANY)
    write_single(tmp_path / "7.dcm", (-10, 20, -295))  # as of a scan before the contrast medium came
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array, MANY)
    assert notes == [f"{tmp_path}: 12 slices read; passed over: 1 series of a single image (7.dcm)"]


@pytest.mark.parametrize("lost", [0, 6, 11])
def test_a_slice_that_came_under_a_uid_of_its_own_is_not_passed_over(tmp_path, lost):
    paths = write_series(tmp_path, MANY)
    edit(paths[lost], SeriesInstanceUID="1.2.9")
    assert refusal(read_image, tmp_path) == (
        f"{tmp_path}: contains 2 DICOM CT series, of which one is a single image ({lost:03}.dcm) that seems to be a "
        f"slice which another lacks ({UID}); give a folder that contains exactly one"
    )


@pytest.mark.parametrize(("slices", "singles"), [(12, 4), (5, 2), (3, 1)])
def test_many_series_of_a_single_image_are_several_series(tmp_path, slices, singles):
    write_series(tmp_path, MANY[:slices])
    for number in range(singles):
        write_single(tmp_path / f"{number}_single")
    assert f"contains {singles + 1} DICOM CT series" in refusal(read_image, tmp_path)


def test_a_series_that_is_not_there_can_be_corrected_or_left_out(tmp_path):
    write_series(tmp_path)
    message = refusal(open_image, tmp_path, "1.2.8")
    assert "contains 1 DICOM CT series, none with the SeriesInstanceUID 1.2.8: 1.2.3.4 (5 slices)" in message
    assert message.endswith("; correct the series or leave it out")
    write_series(tmp_path / "other", SeriesInstanceUID="1.2.9")
    assert refusal(open_image, tmp_path, "1.2.8").endswith("; correct the series")


# UIDs that an anonymizer gave to every slice

EACH = [["SeriesInstanceUID"], ["FrameOfReferenceUID"], ["SeriesInstanceUID", "FrameOfReferenceUID"]]
EACH += [["SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"]]


def scatter(paths, names):
    for path in paths:
        edit(path, **{name: pydicom.uid.generate_uid() for name in names})


@pytest.mark.parametrize("names", EACH, ids=" ".join)
def test_uids_that_differ_in_every_slice_of_an_even_row_count_as_one(tmp_path, names):
    scatter(write_series(tmp_path, PatientID="one"), names)
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array, HU)
    assert image.files is None  # no DICOM object can refer to them as one series
    assert len(notes) == 1 and f"although {names[0]} differs in each" in notes[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PatientID": "two"}, "PatientID differs"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9998, 0.02]}, "ImageOrientationPatient differs"),
        ({"Rows": 7, "Columns": 6}, "shape differs"),
        ({"PixelSpacing": [0.8, 0.6]}, "PixelSpacing differs"),
        ({"ImagePositionPatient": [-10, 20, -296]}, "not evenly spaced"),
        ({"ImagePositionPatient": [-10, 20, -297.5]}, "same depth"),
        ({"ImagePositionPatient": [-9, 20, -295]}, "off the line"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_scattered_slices_that_are_no_even_row_are_refused_with_what_the_folder_holds(tmp_path, change, reason):
    paths = write_series(tmp_path, PatientID="one")
    scatter(paths, ["SeriesInstanceUID"])
    edit(paths[2], **change)
    message = refusal(read_image, tmp_path)
    assert "contains 5 DICOM CT series of one slice each" in message and reason in message


def test_a_gap_between_scattered_slices_is_not_interpolated(tmp_path):
    paths = write_series(tmp_path)
    scatter(paths, ["SeriesInstanceUID"])
    Path(paths[2]).unlink()
    assert "not evenly spaced" in refusal(read_image, tmp_path)


def test_uids_of_two_halves_are_not_those_of_every_slice(tmp_path):
    paths = write_series(tmp_path, FrameOfReferenceUID="1.2.5")
    for path in paths[3:]:
        edit(path, FrameOfReferenceUID="1.2.6")
    assert "FrameOfReferenceUID differs" in refusal(read_image, tmp_path)


def test_a_slice_that_lost_its_series_uid_is_not_lost(tmp_path):
    paths = write_series(tmp_path)
    edit(paths[4], SeriesInstanceUID=None)
    np.testing.assert_array_equal(read_image(tmp_path).array, HU)
    for path in paths[:4]:
        edit(path, SeriesInstanceUID="")
    np.testing.assert_array_equal(read_image(tmp_path).array, HU)


# What is passed over


def test_what_is_usual_beside_a_series_is_not_worth_a_word(tmp_path):
    write_series(tmp_path)
    for name in ("DICOMDIR", ".DS_Store", "._000.dcm", "Thumbs.db", "069.xml", "notes.txt", "report.pdf", "VERSION"):
        (tmp_path / name).write_bytes(b"x" * 200)
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array, HU)
    assert notes == []


def test_other_files_are_counted_and_named_in_one_line(tmp_path):
    write_series(tmp_path)
    for i in range(5):
        (tmp_path / f"part{i}.bin").write_bytes(b"x")
    write_slice(tmp_path / "t.dcm", HU[0], (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(tmp_path / "mr.dcm", HU[0], (0, 0, 0), Modality="MR", SeriesInstanceUID="1.5")
    write_slice(tmp_path / "sr.dcm", HU[0], (0, 0, 0), Modality="SR")
    notes = read_with_notes(tmp_path)[1]
    assert notes == [
        f"{tmp_path}: 5 slices read; passed over: 1 MR file (mr.dcm), 1 SR file (sr.dcm), 5 files that are not DICOM "
        "(part0.bin, part1.bin, part2.bin, ...), 1 scout (t.dcm)"
    ]


def test_notes_are_shown_unless_they_are_collected(tmp_path, caplog):
    write_series(tmp_path)
    (tmp_path / "part.bin").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        read_image(tmp_path)
        assert "1 file that is not DICOM (part.bin)" in caplog.text
        caplog.clear()
        read_with_notes(tmp_path)
    assert not caplog.text and not LOGGER.filters


def empty(path):
    path.write_bytes(b"")


def web_page(path):
    path.write_bytes(b"<!DOCTYPE html><html>Please log in</html>" * 9)


def cut_header(path):
    path.write_bytes(path.read_bytes()[:250])


def zero_header(path):
    data = path.read_bytes()
    path.write_bytes(data[:132] + bytes(300) + data[432:])


def other_modality(path):
    edit(path, Modality="OT")


def lost(path):
    """Neither modality nor position: no sign of a slice but its UID."""
    edit(path, Modality=None, ImagePositionPatient=None)


LOSSES = [empty, web_page, cut_header, zero_header, other_modality, lost]


@pytest.mark.parametrize("named", ["{:03}.dcm", "IM{:04}", "1.2.840.{}", "{:03}.dcm.gz"])
@pytest.mark.parametrize("which", [[0], [4], [0, 1], [1, 3]], ids=["first", "last", "first two", "every second"])
@pytest.mark.parametrize("lose", LOSSES)
def test_an_unreadable_slice_that_no_gap_explains_is_refused_by_name(tmp_path, lose, which, named):
    paths = write_series(tmp_path, names=[named.format(i) for i in range(5)])
    for i in which:
        lose(Path(paths[i]))
    assert refusal(read_image, tmp_path).startswith(paths[which[0]])


@pytest.mark.parametrize("lose", LOSSES)
def test_an_unreadable_slice_between_two_others_is_interpolated_and_told(tmp_path, lose):
    paths = write_series(tmp_path, MANY)
    lose(Path(paths[5]))
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array[5], np.rint(MANY[4] / 2 + MANY[6] / 2))
    assert len(notes) == 1 and "11 slices read, 1 missing between them and interpolated; passed over" in notes[0]
    assert "005.dcm" in notes[0]


def test_a_missing_slice_is_told(tmp_path):
    paths = write_series(tmp_path, MANY)
    Path(paths[5]).unlink()
    assert read_with_notes(tmp_path)[1] == [f"{tmp_path}: 11 slices read, 1 missing between them and interpolated"]


def test_a_folder_without_a_series_is_refused_with_what_it_holds(tmp_path):
    write_slice(tmp_path / "mr.dcm", HU[0], (0, 0, 0), Modality="MR")
    (tmp_path / "x.bin").touch()
    message = refusal(read_image, tmp_path)
    assert "contains 0 DICOM CT series but 1 MR file (mr.dcm), 1 file that is not DICOM (x.bin); give" in message


# Several series


@pytest.fixture
def two(tmp_path):
    write_series(tmp_path, names=[f"a{i}" for i in range(5)], SeriesDescription="Lung  1.25", SliceThickness="2.5")
    write_series(tmp_path, MANY[:7], names=[f"b{i}" for i in range(7)], SeriesInstanceUID="1.2.9")
    return tmp_path


def test_one_of_several_series_is_chosen_by_its_uid(two):
    np.testing.assert_array_equal(open_image(two, "1.2.9").volume.array, MANY[:7])
    image = open_image(two, UID)
    np.testing.assert_array_equal(image.volume.array, HU)
    assert image.files == only_series(two, UID) and len(image.files) == 5


def test_several_series_are_listed_if_none_or_another_is_chosen(two):
    for chosen in ("", "1.2.7", UID[:-1]):
        message = refusal(open_image, two, chosen)
        assert "contains 2 DICOM CT series" in message
        assert f"{UID} (Lung 1.25, 5 slices of 2.5 mm)" in message and "1.2.9 (7 slices)" in message
        assert not chosen or f"none with the SeriesInstanceUID {chosen}" in message


@pytest.mark.parametrize("seed", range(3))
def test_odd_values_in_headers_never_end_in_a_traceback(tmp_path, seed):
    paths = write_series(tmp_path, FrameOfReferenceUID="1.2.3", AcquisitionNumber=1, SeriesDescription="x")
    random = np.random.default_rng(seed)
    values = ["", "NaN", "inf", [], "x", ["1", "2"], None, "1e300", "-1", "1\\2\\3\\4\\5\\6\\7", 0, 65535, b"\xff" * 7]
    names = [element.keyword for element in pydicom.dcmread(paths[0]) if element.keyword]
    whole, refused = Path(paths[1]).read_bytes(), 0
    for _ in range(60):
        try:
            edit(paths[1], **{str(random.choice(names)): values[random.integers(len(values))]})
        except Exception:  # pydicom refuses to write some values
            Path(paths[1]).write_bytes(whole)
        try:
            read_with_notes(tmp_path)
            read_with_notes(tmp_path, series=UID)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        Path(paths[1]).write_bytes(whole)
    assert refused > 5


def test_pages_and_coloured_captures_under_the_uid_of_the_series_are_passed_over(tmp_path):
    write_series(tmp_path, MANY)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "ImageType": ["DERIVED", "SECONDARY"]}
    write_slice(tmp_path / "colour.dcm", HU[0], (-10, 20, -300), **colour)
    page = write_slice(tmp_path / "page.dcm", HU[1], (0, 0, 0), ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    edit(page, ImagePositionPatient=None, ImageOrientationPatient=None)
    image, notes = read_with_notes(tmp_path)
    np.testing.assert_array_equal(image.volume.array, MANY)
    (note,) = notes
    assert "1 color image (colour.dcm)" in note and "1 derived image without a position (page.dcm)" in note


def test_derived_images_that_all_lack_a_position_are_called_that(tmp_path):
    for path in write_series(tmp_path, ImageType=["DERIVED", "SECONDARY"]):
        edit(path, ImagePositionPatient=None)
    assert "contains 0 DICOM CT series but 5 derived images without a position" in refusal(read_image, tmp_path)


@pytest.mark.parametrize("name", ["ct.nii.gz", "inner.zip"])
def test_a_folder_that_holds_an_image_file_says_to_give_the_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    assert refusal(read_image, tmp_path).endswith(f"; give {tmp_path / name} itself")


@pytest.mark.parametrize("kind", ["MIP", "CT_SOM5 MIP", "MIN_IP"])
def test_projections_of_several_slices_are_refused(tmp_path, kind):
    write_series(tmp_path, ImageType=["DERIVED", "SECONDARY", "AXIAL", kind])
    assert f"a projection of several slices ({kind.split()[-1]})" in refusal(read_image, tmp_path)


def test_rescale_type_may_be_in_lower_case_and_another_one_is_named(tmp_path):
    write_series(tmp_path / "lower", RescaleType="hu")
    np.testing.assert_array_equal(read_image(tmp_path / "lower").array, HU)
    write_series(tmp_path / "other", RescaleType="MGML")
    assert "RescaleType 'MGML'" in refusal(read_image, tmp_path / "other")
