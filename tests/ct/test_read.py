"""pnsamp_jax.ct.read and ct.volume: images are read with the correct HU and positions, or refused with one line."""

import itertools
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import HU, UID, refusal, write_itk, write_series, write_slice

from pnsamp_jax.ct.image_files import values_beyond_int16
from pnsamp_jax.ct.read import read_ct, read_image
from pnsamp_jax.ct.volume import AIR, Volume

pytestmark = pytest.mark.filterwarnings("error")


def test_to_index_inverts_to_lps_and_spacing_is_the_length_of_a_step():
    affine = np.array([[0.1, 0, 0.7, -5], [0.2, 0.6, 0.1, 7], [2.5, 0.1, 0, 3], [0, 0, 0, 1]])
    volume = Volume(np.zeros((2, 3, 4), np.int16), affine)
    index = np.random.default_rng(1).normal(size=(2, 5, 3)) * 10
    assert volume.to_lps(index).shape == (2, 5, 3)
    np.testing.assert_allclose(volume.to_index(volume.to_lps(index)), index, atol=1e-9)
    np.testing.assert_allclose(volume.to_lps((1, 0, 0)) - volume.to_lps((0, 0, 0)), (0.1, 0.2, 2.5))
    np.testing.assert_allclose(volume.spacing, np.sqrt([0.01 + 0.04 + 6.25, 0.37, 0.5]))


@pytest.mark.parametrize("point", [(np.nan, 0, 0), (0, np.inf, 0), (0, 0, 1e300)])
def test_volume_does_not_hold_a_point_that_is_infinite_or_nan_or_far_away(point):
    volume = Volume(np.zeros((2, 3, 4), np.int16), np.eye(4))
    assert not volume.holds(np.array(point)) and volume.holds(np.zeros(3))


AFFINE = np.array([[0, 0, 0.5, -10], [0, 0.8, 0, 20], [2.5, 0, 0, -300], [0, 0, 0, 1]])
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_hu_has_its_position_in_every_axis_orientation(tmp_path, axes, signs):
    # The same voxels at the same positions, stored with permuted and reversed axes.
    flips = tuple(slice(None, None, sign) for sign in signs)
    stored = np.ascontiguousarray(HU.transpose(axes)[flips])
    affine = np.eye(4)
    affine[:3, :3] = AFFINE[:3, list(axes)] * signs
    first = np.array([0 if sign > 0 else size - 1 for sign, size in zip(signs, HU.transpose(axes).shape, strict=True)])
    affine[:3, 3] = AFFINE[:3, 3] + AFFINE[:3, list(axes)] @ first
    volume = read_image(write_itk(tmp_path / "ct.nii", stored, affine))
    np.testing.assert_array_equal(volume.array, stored)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    indices = np.moveaxis(np.indices(HU.shape), 0, -1).reshape(-1, 3)
    points = indices @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    found = volume.to_index(points)
    np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
    np.testing.assert_array_equal(volume.array[tuple(np.rint(found).astype(int).T)], HU.ravel())


def test_all_48_orientations_are_tested():
    assert len(ORIENTATIONS) == 48


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0] * (2.5, 0.8, 0.5)
OBLIQUE[:3, 3] = 11.5, -20.25, 300.125


SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("spelt", [str.upper, str.title])
@pytest.mark.parametrize("compress", [False, True])
def test_a_suffix_may_have_capitals(tmp_path, suffix, spelt, compress):
    path = write_itk(tmp_path / f"ct{suffix}", HU, compress=compress)
    plain = read_image(path)
    capital = path.rename(tmp_path / f"ct{spelt(suffix)}")
    found = read_image(capital)
    np.testing.assert_array_equal(found.array, HU)
    np.testing.assert_array_equal(found.affine, plain.affine)
    assert not list(values_beyond_int16(str(capital)))


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "c t.nrrd", "ct.nhdr", "ct.mha", "ct.mhd", "ct.NRRD"])
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["axial", "oblique"])
def test_formats_agree(tmp_path, name, affine):
    volume = read_image(write_itk(tmp_path / name, HU, affine, compress=name.endswith("a")))
    np.testing.assert_array_equal(volume.array, HU)
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_every_pixel_type_becomes_int16(tmp_path, kind):
    array = read_image(write_itk(tmp_path / "ct.nrrd", (np.arange(24).reshape(2, 3, 4) * 5).astype(kind))).array
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, np.arange(24).reshape(2, 3, 4) * 5)


def test_extremes_are_rounded_clipped_and_nan_is_air(tmp_path):
    values = [np.nan, -np.inf, np.inf, -2000, 40.4, 40.6, -40.6, 1e30]
    array = read_image(write_itk(tmp_path / "ct.mha", np.reshape(values, (2, 2, 2)))).array
    assert array.ravel().tolist() == [AIR, AIR, 32767, AIR, 40, 41, -41, 32767]
    array = read_image(write_itk(tmp_path / "ct.nii", np.array([[[-3024, 65]]], np.int16))).array
    assert array.tolist() == [[[AIR, 65]]]
    assert read_image(write_itk(tmp_path / "ct.nii", np.array([[[60000]]], np.uint16))).array.item() == 32767


def test_one_frame_of_4d_is_3d_and_more_are_refused(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(HU)])
    image.SetSpacing((0.5, 0.8, 2.5, 3))
    image.SetOrigin((-10, 20, -300, 7))
    for name in ("one.nrrd", "one.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        volume = read_image(tmp_path / name)
        np.testing.assert_array_equal(volume.array, HU)
        np.testing.assert_allclose(volume.affine, AFFINE)
    for name in ("two.nii", "two.nrrd"):
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(HU)] * 2), str(tmp_path / name))
        message = refusal(read_image, tmp_path / name)
        assert name in message and "7 x 6 x 5 x 2" in message


@pytest.mark.parametrize("name", ["x.nii", "x.nrrd", "x.mha"])
@pytest.mark.parametrize("pixel", [sitk.sitkVectorUInt8, sitk.sitkComplexFloat32, None], ids=["rgb", "complex", "2d"])
def test_images_that_are_not_3d_scalar_are_refused(tmp_path, name, pixel):
    if pixel is None:
        image = sitk.Image([4, 5], sitk.sitkInt16)
    elif pixel == sitk.sitkVectorUInt8:
        image = sitk.Image([4, 5, 6], pixel, 3)
    else:
        image = sitk.Image([4, 5, 6], pixel)
    try:
        sitk.WriteImage(image, str(tmp_path / name))
    except RuntimeError:
        pytest.skip("ITK cannot write this kind of voxel to this format")
    assert str(tmp_path / name) in refusal(read_image, tmp_path / name)


@pytest.mark.parametrize("kept", [0, 40, 300, 0.5, -1])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "x.mha", "x.mhd", "x.nhdr"])
def test_truncated_image_is_refused_in_one_line_without_other_output(tmp_path, capfd, name, kept):
    noise = np.random.default_rng(3).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    write_itk(tmp_path / name, noise, compress=name == "x.mhd")
    path = max(tmp_path.iterdir(), key=lambda part: part.stat().st_size)  # the file with the voxels
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if 0 < kept < 1 else kept])
    assert str(tmp_path / name) in refusal(read_image, tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_scaled_8_bit_nifti_is_not_taken_for_truncated(tmp_path):
    path = write_itk(tmp_path / "ct.nii", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    header = bytearray(path.read_bytes())
    header[112:120] = np.array([40, -1000], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(header)
    np.testing.assert_array_equal(read_image(path).array.ravel(), np.arange(24) * 40 - 1000)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "x.nhdr", "x.mha", "x.mhd"])
@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 9])
def test_garbage_is_refused_in_one_line_without_other_output(tmp_path, capfd, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(read_image, tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_missing_voxel_file_is_refused(tmp_path):
    for name, voxels in (("x.mhd", "x.raw"), ("x.nhdr", "x.raw")):
        write_itk(tmp_path / name, HU)
        (tmp_path / voxels).unlink()
        message = refusal(read_image, tmp_path / name)
        assert name in message and "in the same folder" in message


def test_paths_that_are_not_images_are_refused_with_the_accepted_formats(tmp_path):
    assert "nowhere.nii" in refusal(read_image, tmp_path / "nowhere.nii")
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    message = refusal(read_image, tmp_path / "x.png")
    assert all(suffix in message for suffix in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", "x.png"))
    for name in ("x.dcm", "IM001"):
        write_slice(tmp_path / name, HU[0], (0, 0, 0))
        message = refusal(read_image, tmp_path / name)
        assert str(tmp_path / name) in message and "folder" in message


def test_folder_must_hold_exactly_one_series(tmp_path):
    (tmp_path / "note.xml").write_text("x")
    assert "0 DICOM CT series; give" in refusal(read_image, tmp_path)
    write_series(tmp_path / "a", HU)
    volume = read_image(tmp_path)
    np.testing.assert_array_equal(volume.array, HU)
    np.testing.assert_allclose(volume.affine, AFFINE)
    write_series(tmp_path / "b", HU, SeriesInstanceUID="1.2.9")
    message = refusal(read_image, str(tmp_path))
    assert "2 DICOM CT series" in message and UID in message and "1.2.9" in message


def write_nifti(path, array=HU, sform=AFFINE, qform=AFFINE, **fields):
    """Write (d, h, w) voxels as NIfTI and return the path; a form that is None gets the code 0, for absent."""
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), None)
    for form, set_form in ((sform, image.set_sform), (qform, image.set_qform)):
        set_form(None if form is None else np.diag([-1, -1, 1, 1]) @ form[:, [2, 1, 0, 3]], int(form is not None))
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_cifti_is_refused(tmp_path):
    brain = nibabel.cifti2.BrainModelAxis.from_mask(np.ones((2, 3, 4), bool), affine=np.eye(4), name="thalamus_left")
    header = nibabel.cifti2.ScalarAxis(["one"]), brain
    nibabel.cifti2.Cifti2Image(np.zeros((1, 24), np.float32), header).to_filename(tmp_path / "x.nii")
    assert "Cifti2Image" in refusal(read_image, tmp_path / "x.nii")


def test_nan_in_a_nifti_is_air(tmp_path):
    floats = HU.astype(np.float32)
    floats[2, 3] = np.nan
    array = read_image(write_nifti(tmp_path / "ct.nii.gz", floats)).array
    assert (array[2, 3] == AIR).all()
    np.testing.assert_array_equal(array[3:], HU[3:])


@pytest.mark.parametrize("absent", ["sform", "qform"])
def test_one_form_of_a_nifti_is_enough(tmp_path, absent):
    volume = read_image(write_nifti(tmp_path / "ct.nii", **{absent: None}))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)


MOVED = AFFINE + [[0, 0, 0, 5], [0] * 4, [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sform": None, "qform": None}, "sform"),
        ({"sform": MOVED}, "sform and qform differ"),
        ({"sform": AFFINE * 0, "qform": None}, "spacing"),
        ({"sform": AFFINE * 1e-3, "qform": None}, "spacing"),
        ({"xyzt_units": 3}, "xyzt_units"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_nifti_without_a_valid_position_is_refused(tmp_path, change, expected):
    path = write_nifti(tmp_path / "ct.nii", **change)
    message = refusal(read_image, path)
    assert message.startswith(str(path)) and expected in message


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("ct.mha", b"ElementSpacing = 1 1 1\n", b"", "lacks ElementSpacing"),
        ("ct.mha", b"Offset = 0 0 0", b"Offset = nan 0 0", "Offset is 'nan 0 0'"),
        ("ct.mha", b"DimSize = 7 6 5", b"DimSize = 0 6 5", "claims 0 x 6 x 5 voxels"),
        ("ct.mha", b"DimSize = 7 6 5", b"DimSize = 99999 99999 99999", "claims"),
        ("ct.mha", b"DimSize = 7 6 5", b"DimSize = 900 900 900", "truncated"),
        ("ct.mha", b"NDims = 3", b"NDims = 99", "header"),
        ("ct.mha", b"NDims = 3", b"NDims = 4", "DimSize"),
        ("ct.mha", b"TransformMatrix = 1", b"TransformMatrix = 2", "unit vectors"),
        ("ct.mhd", b"ElementDataFile = ct.raw", b"ElementDataFile = %s%n.raw 0 4 1", "ElementDataFile"),
        ("ct.nrrd", b"space origin: (0,0,0)\n", b"", "lacks space origin"),
        ("ct.nrrd", b"sizes: 7 6 5", b"sizes: 900 900 900", "truncated"),
        ("ct.nrrd", b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:', "space units"),
    ],
)
def test_text_header_that_itk_would_fill_in_is_refused(tmp_path, name, old, new, expected):
    path = write_itk(tmp_path / name, HU)
    valid = path.read_bytes()
    assert old in valid
    path.write_bytes(valid.replace(old, new))
    message = refusal(read_image, path)
    assert message.startswith(str(path)) and expected in message


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.mha"])
def test_flipped_byte_in_compressed_voxels_is_detected(tmp_path, name):
    path = write_itk(tmp_path / name, np.random.default_rng(3).integers(-1000, 1000, (9, 9, 9)), compress=True)
    data = bytearray(path.read_bytes())
    data[-999] ^= 255
    path.write_bytes(data)
    assert "cannot be read" in refusal(read_image, path)


def test_file_name_that_is_not_utf8_is_read_as_nifti_and_refused_by_itk(tmp_path):
    name = os.fsdecode(b"\xff")
    np.testing.assert_array_equal(read_image(write_nifti(tmp_path / f"{name}.nii")).array, HU)
    os.rename(write_itk(tmp_path / "ct.mha", HU), tmp_path / f"{name}.mha")
    assert "UTF-8" in refusal(read_image, tmp_path / f"{name}.mha")


def test_read_ct_refuses_values_that_are_not_hu(tmp_path):
    np.testing.assert_array_equal(read_ct(write_itk(tmp_path / "ct.nii", HU, AFFINE)).array, HU)
    not_hu = {
        "without offset": HU + 1024,
        "windowed": np.clip(HU / 6 + 90, 0, 255).astype(np.uint8),
        "air": HU * 0 + AIR,
    }
    for name, values in not_hu.items():
        path = write_itk(tmp_path / f"{name}.nii", values, AFFINE)
        assert "not the HU of a chest" in refusal(read_ct, path)
        assert read_image(path).array.dtype == np.int16
    assert "at least two" in refusal(read_ct, write_itk(tmp_path / "plane.nii", HU[:1], AFFINE))


def test_itk_prints_and_warns_again_afterwards(tmp_path, capfd):
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    (tmp_path / "x.nii").write_bytes(b"x")
    refusal(read_image, tmp_path / "x.nii")
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here" and sitk.ProcessObject.GetGlobalWarningDisplay() == shown


@pytest.mark.data
@pytest.mark.parametrize("name", ["ct.nii", "ct.nrrd", "ct.mha"])
def test_real_scan_written_as_an_image_reads_back_the_same(scan, tmp_path, name):
    crop = Volume(scan.array[40:80], scan.affine.copy())
    crop.affine[:3, 3] = scan.to_lps((40, 0, 0))
    volume = read_image(write_itk(tmp_path / name, crop.array, crop.affine))
    np.testing.assert_array_equal(volume.array, crop.array)
    np.testing.assert_allclose(volume.affine, crop.affine, atol=1e-3)
