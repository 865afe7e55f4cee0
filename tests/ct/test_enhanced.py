"""Enhanced (multi-frame) CT: the frames of one file are the slices of a volume, wherever the file describes them."""

import contextlib
import copy
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_files import HU, REAL, edit, refusal, write_series, write_slice
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, RLELossless

from pnsamp_jax.ct.read import open_image, read_image
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")
GEOMETRY = np.array([[0, 0, 0.5, -10], [0, 0.8, 0, 20], [2.5, 0, 0, -300], [0, 0, 0, 1]])
ORDER = [3, 0, 2, 4, 1]  # of the slices in the file


def item(**elements):
    ds = Dataset()
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def groups(depth, intercept=-1024):
    """The functional groups of a frame, by keyword."""
    return {
        "FrameContentSequence": [item(StackID="1", InStackPositionNumber=depth + 1, FrameAcquisitionNumber=1)],
        "PlanePositionSequence": [item(ImagePositionPatient=[-10, 20, -300 + 2.5 * depth])],
        "PlaneOrientationSequence": [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        "PixelMeasuresSequence": [item(PixelSpacing=[0.8, 0.5], SliceThickness=2.5)],
        "PixelValueTransformationSequence": [item(RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU")],
    }


def write_enhanced(path, hu=HU, order=ORDER, shared=("PlaneOrientationSequence", "PixelMeasuresSequence"), **elements):
    """Write slices as frames, with an intercept of its own each unless the rescale is shared."""
    alike = "PixelValueTransformationSequence" in shared
    frames = [groups(depth, -1024 if alike else -1000 - depth) for depth in order]
    template = pydicom.dcmread(write_slice(path, hu[0], (0, 0, 0)))
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(template, name)
    template.SOPClassUID = template.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    template.NumberOfFrames = len(frames)
    template.SharedFunctionalGroupsSequence = [item(**{name: frames[0][name] for name in shared})]
    template.PerFrameFunctionalGroupsSequence = [
        item(**{name: value for name, value in frame.items() if name not in shared}) for frame in frames
    ]
    intercepts = [frame["PixelValueTransformationSequence"][0].RescaleIntercept for frame in frames]
    stored = [hu[depth] - int(intercept) for depth, intercept in zip(order, intercepts, strict=True)]
    template.PixelData = np.stack(stored).astype("<i2").tobytes()
    for name, value in elements.items():
        setattr(template, name, value)
    template.save_as(path)
    return path


def change(path, edit_frame, which=slice(None)):
    """Apply a function to the groups of frames of a file."""
    ds = pydicom.dcmread(path)
    for frame in ds.PerFrameFunctionalGroupsSequence[which]:
        edit_frame(frame)
    ds.save_as(path)


@pytest.mark.parametrize("kind", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize(
    "shared",
    [(), ("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence")],
    ids=["all per frame", "shared"],
)
def test_frames_in_any_order_are_the_slices_of_a_volume(tmp_path, what, shared, kind):
    path = write_enhanced(tmp_path / "ct" / "IM1", shared=shared, SOPClassUID=kind)
    image = open_image(path if what == "file" else path.parent)
    np.testing.assert_array_equal(image.volume.array, HU)
    np.testing.assert_allclose(image.volume.affine, GEOMETRY)


def test_a_group_of_a_frame_goes_before_the_shared_one(tmp_path):
    path = write_enhanced(tmp_path / "ct.dcm", shared=("PixelValueTransformationSequence",))
    change(path, lambda frame: setattr(frame, "PixelValueTransformationSequence", [item(RescaleIntercept=-1034)]))
    np.testing.assert_array_equal(read_image(path).array, np.maximum(HU.astype(int) - 10, -1024))


def test_compressed_frames_are_decoded_one_by_one(tmp_path):
    path = write_enhanced(tmp_path / "ct.dcm")
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(path)
    np.testing.assert_array_equal(read_image(path).array, HU)
    path.write_bytes(path.read_bytes()[:-120])
    assert refusal(read_image, path).startswith(str(path))


def test_several_files_of_one_series_are_one_volume(tmp_path):
    write_enhanced(tmp_path / "a.dcm", order=[4, 2])
    write_enhanced(tmp_path / "b.dcm", order=[1, 0, 3])
    np.testing.assert_array_equal(read_image(tmp_path).array, HU)


def second(keyword, value):
    """Return a change of the content of a frame."""
    return lambda frame: setattr(frame.FrameContentSequence[0], keyword, value)


@pytest.mark.parametrize(
    ("edit_frame", "expected"),
    [
        (second("StackID", "2"), "2 volumes (StackID 1, 2)"),
        (second("TemporalPositionIndex", 2), "2 volumes (TemporalPositionIndex"),
        (lambda frame: frame.update(groups(0)), "frame 2"),  # two images at one position
        (second("FrameAcquisitionNumber", 2), "AcquisitionNumber 2 lies between"),
        (lambda frame: delattr(frame, "PlanePositionSequence"), "frame 3: has no valid PlanePositionSequence"),
        (lambda frame: setattr(frame, "PlanePositionSequence", []), "frame 3: has no valid PlanePositionSequence"),
        (lambda frame: frame.PlanePositionSequence.append(item()), "frame 3: has no valid PlanePositionSequence"),
        (lambda frame: setattr(frame, "PlanePositionSequence", [item()]), "frame 3: has no valid ImagePositionPat"),
        (
            lambda frame: setattr(frame, "PixelValueTransformationSequence", [item(RescaleSlope=0)]),
            "frame 3: RescaleS",
        ),
        (
            lambda frame: setattr(frame, "PixelValueTransformationSequence", [item(RescaleType="MGML")]),
            "frame 3: according to its RescaleType",
        ),
        (lambda frame: setattr(frame, "PixelMeasuresSequence", [item(PixelSpacing=[1, 1])]), "frame 3: PixelSpacing"),
    ],
)
def test_frames_that_are_not_one_volume_are_refused_by_name(tmp_path, edit_frame, expected):
    path = write_enhanced(tmp_path / "ct.dcm")
    change(path, edit_frame, slice(2, 3))
    message = refusal(read_image, path)
    assert str(path) in message and expected in message


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"NumberOfFrames": 4}, "NumberOfFrames is 4, but PerFrameFunctionalGroupsSequence describes 5"),
        ({"PerFrameFunctionalGroupsSequence": []}, "describes 0"),
        ({"SharedFunctionalGroupsSequence": []}, "frame 1: has no valid PlaneOrientationSequence"),
        ({"PixelData": b"\0" * 99}, "truncated"),
        ({"PixelData": b"\0" * (6 * 420)}, "Rows x Columns"),
        ({"Modality": "MR"}, "Modality"),
    ],
)
def test_a_header_that_contradicts_its_frames_is_refused(tmp_path, elements, expected):
    path = write_enhanced(tmp_path / "ct.dcm", **elements)
    message = refusal(read_image, path)
    assert message.startswith(str(path)) and expected in message


def test_garbled_groups_never_end_in_a_traceback(tmp_path):
    path = write_enhanced(tmp_path / "ct.dcm")
    valid = pydicom.dcmread(path)
    values = ["", "NaN", [], [1], [1, 2, 3, 4], "x", None, 1e300, "1\\2", [item()], [item(), item()], b"\0\1", -1]
    random = np.random.default_rng(4)
    refused = 0
    for _ in range(150):
        ds = copy.deepcopy(valid)
        places = [
            ds,
            *ds.PerFrameFunctionalGroupsSequence,
            *ds.SharedFunctionalGroupsSequence,
            *(part[0] for frame in ds.PerFrameFunctionalGroupsSequence for part in (e.value for e in frame) if part),
        ]
        place = places[random.integers(len(places))]
        names = [e.keyword for e in place if e.keyword not in ("SOPClassUID", "PixelData")]
        with contextlib.suppress(Exception):  # pydicom refuses to set or to write some of them
            setattr(place, names[random.integers(len(names))], values[random.integers(len(values))])
            ds.save_as(path)
        try:
            read_image(path)
            read_image(tmp_path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


def test_one_ordinary_slice_is_still_too_few(tmp_path):
    path = write_series(tmp_path)[0]
    assert "a single DICOM file; give the folder that contains the whole series" in refusal(read_image, path)
    edit(path, NumberOfFrames=1)
    assert "a single DICOM file" in refusal(read_image, path)


@pytest.mark.data
def test_a_real_scan_converted_by_highdicom_reads_as_its_slices_do(scan, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    from highdicom import legacy

    slices = sorted((pydicom.dcmread(path) for path in REAL.rglob("*.dcm")), key=lambda ds: -ds.InstanceNumber)[:8]
    for ds in slices:
        ds.PatientName, ds.StudyID, ds.StudyTime, ds.AcquisitionNumber = "Doe^Jane", "1", "120000", 1
    made = legacy.LegacyConvertedEnhancedCTImage(slices, highdicom.UID(), 2, highdicom.UID(), 1)
    made.save_as(tmp_path / "ct.dcm")
    volume = read_image(tmp_path / "ct.dcm")
    first = round(scan.to_index(volume.to_lps((0, 0, 0)))[0])
    np.testing.assert_array_equal(volume.array, scan.array[first : first + 8])
    np.testing.assert_allclose(volume.to_lps((7, 3, 5)), scan.to_lps((first + 7, 3, 5)), atol=1e-3)


# A scan in several files, and frames without positions


def write_parts(folder, numbers=(1, 2), uid="1.2.9", total=2):
    """Write parts of a scan of five slices: the first has two, the second three."""
    for number, order in {1: [0, 1], 2: [4, 3, 2]}.items():
        if number in numbers:
            ds = pydicom.dcmread(write_enhanced(folder / f"{number}.dcm", order=order))
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
            ds.InConcatenationNumber, ds.ConcatenationFrameOffsetNumber = number, 2 * number - 2
            if uid:
                ds.ConcatenationUID = uid
            if total:
                ds.InConcatenationTotalNumber = total
            ds.save_as(folder / f"{number}.dcm")
    return folder


@pytest.mark.parametrize("uid", ["1.2.9", ""])
@pytest.mark.parametrize("total", [2, None])
def test_all_parts_of_a_concatenation_are_one_volume(tmp_path, uid, total):
    volume = read_image(write_parts(tmp_path, uid=uid, total=total))
    np.testing.assert_array_equal(volume.array, HU)
    np.testing.assert_allclose(volume.affine, GEOMETRY)


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize(
    ("here", "uid", "total", "lacks"),
    [(1, "1.2.9", 2, "2"), (2, "1.2.9", 2, "1"), (1, "", 2, "2"), (2, "1.2.9", None, "1"), (1, "1.2.9", 3, "2 and 3")],
)
def test_a_part_of_a_concatenation_is_not_taken_for_the_whole_scan(tmp_path, what, here, uid, total, lacks):
    write_parts(tmp_path, [here], uid, total)
    message = refusal(read_image, tmp_path / f"{here}.dcm" if what == "file" else tmp_path)
    assert message.startswith(f"{tmp_path}/{here}.dcm: is one of {total or here} files of an enhanced CT, of which ")
    assert f"number {lacks} (InConcatenationNumber) is missing" in message


@pytest.mark.parametrize("what", ["file", "folder"])
def test_frames_without_positions_are_called_that(tmp_path, what):
    path = Path(write_slice(tmp_path / "ct.dcm", HU[0], (0, 0, 0), NumberOfFrames=5, PixelData=bytes(2 * HU.size)))
    message = refusal(read_image, path if what == "file" else tmp_path)
    assert message.startswith(f"{path}: NumberOfFrames is 5, but nothing tells the positions of the frames")
    assert message.endswith("export it as enhanced CT or as single slices")


def test_frames_of_another_modality_are_not_taken_for_those_of_a_ct(tmp_path):
    path = write_slice(tmp_path / "dose.dcm", HU[0], (0, 0, 0), NumberOfFrames=5, Modality="RTDOSE")
    assert "a single DICOM file" in refusal(read_image, path)
