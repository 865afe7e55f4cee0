"""pnsamp_jax.ct.dicom: series are read with the correct HU and positions, or refused with one clear line."""

import logging
import warnings
from base64 import b85decode
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_files import HU, REAL, UID, edit, refusal, write_series, write_slice
from pydicom.uid import JPEG2000Lossless, RLELossless

from pnsamp_jax.ct.dicom import read_series, slice_positions
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.ct.volume import AIR
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_slices_are_ordered_by_position_and_not_by_file_name(tmp_path, order):
    names = [f"{'abcde'[i]}/{9 - i}/im" for i in order]
    volume = read_series(reversed(write_series(tmp_path, names=names)))
    np.testing.assert_array_equal(volume.array, HU)
    assert volume.array.dtype == np.int16 and volume.affine.dtype == np.float64
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.5))
    np.testing.assert_allclose(volume.to_lps((0, 0, 0)), (-10, 20, -300))
    np.testing.assert_allclose(volume.to_lps((2, 3, 5)), (-10 + 5 * 0.5, 20 + 3 * 0.8, -300 + 2 * 2.5))


ROOT = np.sqrt(0.5)


@pytest.mark.parametrize(
    "orientation",
    [
        (-1, 0, 0, 0, 1, 0),
        (1, 0, 0, 0, 0, -1),
        (0, 1, 0, 0, 0, -1),
        (ROOT, ROOT, 0, -ROOT / 2, ROOT / 2, -(0.75**0.5)),
    ],
    ids=["flipped", "coronal", "sagittal", "oblique"],
)
def test_depth_runs_along_the_normal_in_any_orientation(tmp_path, orientation):
    row, column = np.reshape(orientation, (2, 3))
    normal = np.cross(row, column)
    volume = read_series(write_series(tmp_path, HU[::-1], step=-1.5 * normal, orientation=orientation))
    np.testing.assert_array_equal(volume.array, HU)
    origin = np.array((-10, 20, -300)) - 4 * 1.5 * normal
    expected = origin + 3 * 1.5 * normal + 2 * 0.8 * column + 4 * 0.5 * row
    np.testing.assert_allclose(volume.to_lps((3, 2, 4)), expected, atol=1e-6)


def test_tilted_gantry_gives_a_sheared_affine(tmp_path):
    tilt = np.array((0, 0.7, 2.4))  # the step from slice to slice is not along the normal (0, 0, 1)
    volume = read_series(write_series(tmp_path, step=tilt))
    np.testing.assert_allclose(volume.affine[:3, 0], tilt, atol=1e-9)
    np.testing.assert_allclose(
        volume.to_lps((4, 1, 1)), np.array((-10, 20, -300)) + 4 * tilt + (0.5, 0.8, 0), atol=1e-9
    )
    np.testing.assert_array_equal(volume.array, HU)


def test_slice_off_the_line_is_refused(tmp_path):
    paths = write_series(tmp_path)
    edit(paths[2], ImagePositionPatient=[-10.05, 20, -295])
    read_series(paths)
    edit(paths[2], ImagePositionPatient=[-10.2, 20, -295])
    message = refusal(read_series, paths)
    assert paths[2] in message and "0.20 mm off the line" in message


def test_each_slice_has_its_own_rescale(tmp_path):
    rescale = [(1, -1024), (2, 0), (0.5, -1000), (-1, 5), (1, 0)]
    paths = [
        write_slice(tmp_path / f"{i}.dcm", HU[i], (0, 0, i), slope=slope, intercept=intercept)
        for i, (slope, intercept) in enumerate(rescale)
    ]
    np.testing.assert_array_equal(read_series(paths).array, HU)


def test_missing_rescale_is_accepted_for_signed_pixels_only(tmp_path):
    paths = write_series(tmp_path, intercept=0, RescaleSlope=None, RescaleIntercept=None)
    np.testing.assert_array_equal(read_series(paths).array, HU)
    edit(paths[3], PixelRepresentation=0)
    message = refusal(read_series, paths)
    assert paths[3] in message and "RescaleIntercept" in message


@pytest.mark.parametrize(
    ("padding", "limit", "stored"),
    [
        (-2000, None, -2000),
        (63536, None, -2000),
        (65512, None, -24),
        (None, None, -2000),
        (1124, None, 1124),
        (1100, 1200, 1124),
        (1200, 1100, 1124),
    ],
)
def test_outside_the_field_of_view_is_air(tmp_path, padding, limit, stored):
    elements = {"PixelPaddingValue": padding, "PixelPaddingRangeLimit": limit}
    hu = np.full((2, 3, 4), 40, np.int16)
    hu[:, 0, :2] = stored
    paths = write_series(tmp_path, hu, intercept=0)
    for path in paths:
        ds = pydicom.dcmread(path)
        for name, value in elements.items():
            if value is not None:
                ds.add_new(name, "SS" if value < 32768 else "US", value)
        ds.save_as(path)
    expected = np.full((2, 3, 4), 40)
    expected[:, 0, :2] = AIR
    np.testing.assert_array_equal(read_series(paths).array, expected)


@pytest.mark.parametrize("value", [-950, -24, 0, 1124])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (-1, 100), (0.5, 0)])
def test_padding_with_the_value_of_tissue_is_sought_from_the_corners_only(tmp_path, value, slope, intercept):
    hu = np.full((2, 9, 9), 41, np.int16)
    y, x = np.indices(hu.shape[1:]) - 4
    outside = x**2 + y**2 > 20  # of the round field of view; the four corners do not touch
    hu[:, outside] = value
    hu[:, 3:5, 3:6] = value  # tissue of that value
    paths = write_series(tmp_path, hu, slope=slope, intercept=intercept)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "SS", round((value - intercept) / slope))
        ds.save_as(path)
    np.testing.assert_array_equal(read_series(paths).array, np.where(outside, AIR, hu))
    hu[:, outside] = -1000  # no padding at all, as where the element was never set
    for path, plane in zip(paths, hu, strict=True):
        edit(path, PixelData=np.rint((np.float64(plane) - intercept) / slope).astype("<i2").tobytes())
    np.testing.assert_array_equal(read_series(paths).array, hu)


@pytest.mark.parametrize("value", [-2000, -1024, -1001, 1501, 3000])
def test_padding_that_no_tissue_looks_like_is_air_wherever_it_lies(tmp_path, value):
    hu = np.full((2, 5, 5), 41, np.int16)
    hu[:, 2, 2] = value
    paths = write_series(tmp_path, hu, intercept=0)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "SS", value)
        ds.save_as(path)
    assert read_series(paths).array[0, 2, 2] == AIR


@pytest.mark.parametrize("limit", [-500, -900])
def test_a_range_of_padding_that_includes_the_lung_spares_the_lung(tmp_path, limit):
    hu = np.full((2, 5, 5), -2000, np.int16)
    hu[:, 1:4, 1:4] = 40
    hu[:, 2, 2] = -920
    paths = write_series(tmp_path, hu, intercept=0)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.add_new("PixelPaddingRangeLimit", "SS", limit)
        ds.save_as(path)
    np.testing.assert_array_equal(read_series(paths).array, np.maximum(hu, AIR))


def test_values_beyond_int16_are_clipped(tmp_path):
    paths = write_series(tmp_path, np.array([[[0, 30000]]] * 2), slope=1, intercept=0)
    for path in paths:
        edit(path, RescaleSlope=2)
    assert read_series(paths).array.tolist() == [[[0, 32767]]] * 2


def test_exact_duplicates_are_dropped(tmp_path):
    paths = write_series(tmp_path) + write_series(tmp_path / "again") + write_series(tmp_path / "and again")
    volume = read_series(paths)
    np.testing.assert_array_equal(volume.array, HU)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.5))


def test_two_images_at_one_position_are_refused(tmp_path):
    paths = write_series(tmp_path)
    other = write_slice(tmp_path / "other.dcm", HU[0], (-10, 20, -297.5))
    message = refusal(read_series, [*paths, other])
    assert paths[1] in message and other in message and UID in message


def test_two_positions_at_one_depth_are_refused(tmp_path):
    paths = write_series(tmp_path)
    shifted = write_slice(tmp_path / "shifted.dcm", HU[1], (-9.95, 20, -297.5))
    assert shifted in refusal(read_series, [*paths, shifted])


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_single_missing_slice_is_interpolated(tmp_path, missing):
    paths = write_series(tmp_path)
    volume = read_series(paths[:missing] + paths[missing + 1 :])
    expected = HU.copy()
    expected[missing] = np.rint(HU[missing - 1] / 2 + HU[missing + 1] / 2)
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.5))
    np.testing.assert_allclose(volume.to_lps((4, 0, 0)), (-10, 20, -290))


def test_slice_positions_exclude_interpolated_slices(tmp_path):
    paths = write_series(tmp_path)
    del paths[2]
    expected = [(-10, 20, -300 + 2.5 * depth) for depth in (0, 1, 3, 4)]
    np.testing.assert_allclose(slice_positions(paths), expected)
    assert len(read_series(paths).array) == 5


def test_wide_gap_is_refused_with_the_slices_on_both_sides(tmp_path):
    hu = np.stack([*HU, *HU])
    paths = write_series(tmp_path, hu)
    message = refusal(read_series, paths[:4] + paths[6:])
    assert paths[3] in message and paths[6] in message and "7.50 mm" in message and "2.50 mm" in message


def test_uneven_slices_are_resampled_onto_an_even_grid(tmp_path):
    depths = np.array([0, 1.2, 1.9, 3, 4])
    ramp = np.broadcast_to((100 * depths)[:, None, None], (5, 2, 3))
    volume = read_series(write_series(tmp_path, ramp, depths=depths, step=(0, 0.3, 2)))
    np.testing.assert_allclose(volume.array[:, 0, 0], [0, 100, 200, 300, 400], atol=1)
    np.testing.assert_allclose(volume.affine[:3, 0], (0, 0.3, 2), atol=1e-9)


@pytest.mark.parametrize(("jitter", "resampled"), [(0.02, False), (0.03, True)])
def test_spacing_is_resampled_beyond_one_percent_only(tmp_path, jitter, resampled):
    volume = read_series(write_series(tmp_path, depths=[0, 1 + jitter / 2.5, 2, 3, 4]))
    assert (volume.array != HU).any() == resampled


def test_small_steps_that_drift_are_resampled(tmp_path):
    steps = np.concatenate([np.full(60, 0.995), np.full(60, 1.0)])
    depths = np.concatenate([[0], np.cumsum(steps)])
    ramp = np.broadcast_to((20 * depths)[:, None, None], (121, 1, 2))
    volume = read_series(write_series(tmp_path, ramp, depths=depths, step=(0, 0, 1)))
    np.testing.assert_allclose(volume.array[:, 0, 0], np.linspace(0, 20 * depths[-1], 121), atol=1.01)
    np.testing.assert_allclose(volume.spacing[0], depths[-1] / 120)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"SeriesInstanceUID": "1.9"}, "SeriesInstanceUID differs"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9998, 0.02]}, "ImageOrientationPatient differs"),
        ({"PixelSpacing": [0.8, 0.51]}, "PixelSpacing differs"),
        ({"Rows": 7, "Columns": 6}, "shape differs"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient"),
        ({"ImagePositionPatient": [1, 2]}, "ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "ImageOrientationPatient"),
        ({"PixelSpacing": None}, "PixelSpacing"),
        ({"PixelSpacing": [0, 0.5]}, "PixelSpacing"),
        ({"PixelSpacing": [-0.8, 0.5]}, "PixelSpacing"),
        ({"PixelSpacing": ["nan", "0.5"]}, "PixelSpacing"),
        ({"PixelSpacing": ""}, "PixelSpacing"),
        ({"RescaleSlope": 0}, "RescaleSlope"),
        ({"RescaleSlope": "inf"}, "RescaleSlope"),
        ({"PixelData": None}, "no pixel data"),
        ({"PixelData": b"\0\0"}, "truncated"),
        ({"BitsAllocated": None}, "has no BitsAllocated"),
        ({"NumberOfFrames": 2}, "NumberOfFrames"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"Modality": "MR"}, "MR"),
        ({"RescaleType": "MGML"}, "RescaleType"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "ModalityLUTSequence"),
        ({"RescaleSlope": "1e9"}, "RescaleSlope"),
        ({"RescaleIntercept": "1e6"}, "RescaleIntercept"),
        ({"RescaleIntercept": 0, "PixelRepresentation": 0}, "RescaleIntercept"),
        ({"HighBit": 14}, "HighBit"),
        ({"Rows": 0}, "Rows"),
        ({"Columns": 65535}, "Columns"),
        ({"Columns": 6}, "Rows x Columns"),
        ({"PatientID": "another"}, "PatientID differs"),
        ({"FrameOfReferenceUID": "1.2.4"}, "FrameOfReferenceUID differs"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else None,
)
def test_invalid_slice_is_refused_with_its_path(tmp_path, change, expected):
    paths = write_series(tmp_path, PatientID="one", FrameOfReferenceUID="1.2.3")
    edit(paths[3], **change)
    message = refusal(read_series, paths)
    assert message.startswith(paths[3]) and expected in message


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_spacing_in_another_unit_than_mm_is_refused(tmp_path, factor):
    paths = write_series(tmp_path, step=(0, 0, 2.5 * factor), spacing=(0.8 * factor, 0.5 * factor))
    assert "spacing" in refusal(read_series, paths)


@pytest.mark.parametrize("text", [b"0.8\\half", b"0.8\\    ", b"1e9999\\1 "])
def test_garbled_number_is_refused(tmp_path, text):
    paths = write_series(tmp_path, spacing=("1.234567", "1.2345"))
    data = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(data.replace(b"1.234567\\1.2345 ", text.ljust(16)))
    message = refusal(read_series, paths)
    assert message.startswith(paths[2]) and "PixelSpacing" in message


def test_empty_optional_elements_take_their_defaults(tmp_path):
    paths = write_series(tmp_path)
    for path in paths:
        edit(path, NumberOfFrames="", RescaleSlope="")
    np.testing.assert_array_equal(read_series(paths).array, HU)


def test_file_truncated_anywhere_is_refused_with_its_path(tmp_path):
    paths = write_series(tmp_path)
    whole = Path(paths[1]).read_bytes()
    for length in range(0, len(whole), 11):
        Path(paths[1]).write_bytes(whole[:length])
        assert refusal(read_series, paths).startswith(paths[1])


def test_damaged_bytes_never_end_in_a_traceback(tmp_path):
    paths = write_series(tmp_path, HU[:2])
    whole = np.frombuffer(Path(paths[1]).read_bytes(), np.uint8)
    random = np.random.default_rng(2)
    refused = 0
    for _ in range(400):
        damaged = whole.copy()
        indices = random.integers(132, len(whole), 4)
        damaged[indices] = random.integers(0, 256, 4)
        Path(paths[1]).write_bytes(damaged.tobytes())
        try:
            index_series(tmp_path)
            read_series(paths)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_files_that_are_not_dicom_are_refused(tmp_path):
    paths = write_series(tmp_path)
    (tmp_path / "note.xml").write_text("<x/>" * 99)
    for path in (str(tmp_path / "note.xml"), str(tmp_path / "nowhere.dcm"), str(tmp_path)):
        assert refusal(read_series, [*paths, path]).startswith(path)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_slices_are_refused(tmp_path, count):
    paths = write_series(tmp_path)[:count]
    assert "at least 2" in refusal(read_series, [*paths, *paths])


def test_harmless_violations_of_the_standard_cause_no_warnings(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = write_series(tmp_path, StudyDate="yesterday", PatientID="x" * 99, StudyInstanceUID="1.02.x")
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path).array, HU)
        assert index_series(tmp_path) == {UID: paths}
    assert not caplog.records and logging.getLogger("pydicom").propagate


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["rle", "jpeg2000"])
def test_compressed_series_decodes(tmp_path, caplog, syntax):
    if not pydicom.pixels.get_encoder(syntax).is_available:
        pytest.skip(f"needs an encoder of {syntax.name} for pydicom")
    hu = np.tile(HU, (1, 10, 10))  # JPEG 2000 halves the image several times, so it needs some size
    paths = write_series(tmp_path, hu)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path)
    np.testing.assert_array_equal(read_series(paths).array, hu)
    data = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(data[:-100])
    assert refusal(read_series, paths).startswith(paths[2])
    assert not caplog.records


# (16, 16) int16 of 40 h + 7 w - 900, encoded by OpenJPH through imagecodecs.htj2k_encode(..., reversible=True).
HTJ2K = b85decode(
    "|4;u>04YEK0000G0000G00000000000000G0000G000000000000EBy0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh=~7"
    "W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000cmM(alfVEbS^WZsbN~Rr0206e69E1Ihjaki{sISd0KfnezyK3~-T(r00BqU*0Ao}DzyK4#02M"
    "&)?x3f_bpWz5ne4zJ0qnK_zyK=X02YWONs{Nlr>CbvcmPhvaU92S{{4g?d-f24?79H|*#"
)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"])
def test_high_throughput_jpeg_2000_decodes(tmp_path, caplog, uid):
    pytest.importorskip("openjpeg", reason="needs the extra compressed")
    expected = (np.indices((16, 16)).T @ (40, 7) - 900).T
    paths = write_series(tmp_path, np.stack([expected] * 3), intercept=0)
    for path in paths[::2]:
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
        ds.PixelData = pydicom.encaps.encapsulate([HTJ2K])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path, implicit_vr=False, little_endian=True)
    np.testing.assert_array_equal(read_series(paths).array, [expected] * 3)
    data = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(data[:-100])
    assert refusal(read_series, paths).startswith(paths[2])
    assert not caplog.records


@pytest.mark.parametrize(
    ("syntax", "name"),
    [(JPEG2000Lossless, "JPEG 2000"), ("1.2.840.10008.1.2.4.100", "MPEG2"), ("1.2.3.4.5.6", "1.2.3.4.5.6")],
)
def test_undecodable_transfer_syntax_is_named_with_the_remedy(tmp_path, caplog, syntax, name):
    paths = write_series(tmp_path)
    ds = pydicom.dcmread(paths[0])
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ds.PixelData = pydicom.encaps.encapsulate([ds.PixelData])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(paths[0], implicit_vr=False, little_endian=True)
    message = refusal(read_series, paths)
    assert message.startswith(paths[0]) and name in message and 'pip install "pnsamp-jax[compressed]"' in message
    assert not caplog.records


@pytest.mark.data
def test_real_scan_has_its_known_grid_and_plausible_hu(scan):
    assert scan.array.shape == (133, 512, 512) and scan.array.dtype == np.int16
    np.testing.assert_allclose(scan.spacing, (2.5, 0.703125, 0.703125))
    np.testing.assert_allclose(scan.to_lps((0, 0, 0)), (-166, -171.699997, -340))
    np.testing.assert_allclose(scan.to_lps((132, 511, 511))[2], -10)
    assert scan.array.min() == AIR  # -2000 outside the field of view
    middle = scan.array[66]
    inside = middle[100:400, 50:460]
    lung = np.median(inside[(inside > -980) & (inside < -600)])
    assert -950 < lung < -750
    soft = inside[(inside > -50) & (inside < 150)]
    assert 0 < np.median(soft) < 100 and soft.size > 20000
    assert -1024 < np.median(middle[40:60, 246:266]) < -980  # air in front of the chest, within the field of view


@pytest.mark.data
def test_real_scan_agrees_with_itk(scan):
    ((_, paths),) = index_series(REAL).items()
    positions = {path: pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2] for path in paths}
    image = sitk.ReadImage(sorted(paths, key=lambda path: positions[path])[40:44])
    np.testing.assert_array_equal(scan.array[40:44], np.maximum(sitk.GetArrayFromImage(image), AIR))
    point = image.TransformContinuousIndexToPhysicalPoint((100.5, 20.25, 2.5))
    np.testing.assert_allclose(scan.to_lps((42.5, 20.25, 100.5)), point, atol=1e-6)
