"""Image files as they really come: longer than their header, compressed or not whatever their name, moved, sheared."""

import gzip

import nibabel
import numpy as np
import pytest
from ct_files import HU, refusal, write_itk

from pnsamp_jax.ct.read import read_image


def edited(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize("extra", [1, 100, 2 * 7 * 6])  # the last is a slice
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mha", "ct.mhd", "ct.nrrd", "ct.nhdr"])
def test_more_bytes_than_the_header_claims_are_refused(tmp_path, name, extra):
    path = write_itk(tmp_path / name, HU)
    data = tmp_path / "ct.raw" if name in ("ct.mhd", "ct.nhdr") else path
    content = data.read_bytes()
    if name.endswith(".gz"):
        data.write_bytes(gzip.compress(gzip.decompress(content) + bytes(extra)))
    else:
        data.write_bytes(content + bytes(extra))
    assert f"{path}: holds {extra} bytes more than the 7 x 6 x 5 voxels" in refusal(read_image, path)


@pytest.mark.parametrize("name", ["ct.mha", "ct.mhd", "ct.nrrd"])
def test_a_size_that_is_too_small_by_one_column_is_refused(tmp_path, name):
    path = write_itk(tmp_path / name, HU)
    edited(path, b" 7 6 5\n", b" 6 6 5\n")
    assert "holds 60 bytes more than the 6 x 6 x 5 voxels" in refusal(read_image, path)


@pytest.mark.parametrize("stated", [b"HeaderSize = 100", b"HeaderSize = -1"])
def test_a_header_of_the_data_file_that_is_stated_is_skipped(tmp_path, stated):
    path = write_itk(tmp_path / "ct.mhd", HU)
    data = tmp_path / "ct.raw"
    data.write_bytes(b"\x7f" * 100 + data.read_bytes())
    edited(path, b"ElementType", stated + b"\nElementType")
    np.testing.assert_array_equal(read_image(path).array, HU)
    data.write_bytes(data.read_bytes()[:200])
    assert "truncated" in refusal(read_image, path)


@pytest.mark.parametrize(("written", "named"), [("ct.nii.gz", "ct.nii"), ("ct.nii", "ct.nii.gz")])
def test_a_nifti_is_read_whether_its_name_says_that_it_is_compressed_or_not(tmp_path, written, named):
    expected = read_image(write_itk(tmp_path / written, HU))
    (tmp_path / written).rename(tmp_path / named)
    volume = read_image(tmp_path / named)
    np.testing.assert_array_equal(volume.array, HU)
    np.testing.assert_array_equal(volume.affine, expected.affine)


@pytest.mark.parametrize("name", ["ct.mhd", "ct.nhdr"])
@pytest.mark.parametrize("folder", [b"C:\\data\\subset0\\", b"/data/subset0/", b"../elsewhere/"])
def test_a_data_file_that_lost_its_folder_is_read_next_to_its_header(tmp_path, name, folder):
    path = write_itk(tmp_path / name, HU)
    edited(path, b"ct.raw", folder + b"ct.raw")
    np.testing.assert_array_equal(read_image(path).array, HU)


def test_a_data_file_that_is_where_the_header_says_is_preferred(tmp_path):
    path = write_itk(tmp_path / "ct.mhd", HU)
    (tmp_path / "moved").mkdir()
    (tmp_path / "ct.raw").rename(tmp_path / "moved" / "ct.raw")
    (tmp_path / "ct.raw").write_bytes(bytes(2 * HU.size))
    edited(path, b"ct.raw", b"moved/ct.raw")
    np.testing.assert_array_equal(read_image(path).array, HU)


def sheared(degrees, turn=0.0):
    """A RAS affine with a gantry tilt, turned about the axis of the body."""
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    affine[1, 2] = -2.5 * np.tan(np.deg2rad(degrees))
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ affine
    affine[:3, 3] = -20, 30, -100
    return affine


def write_forms(path, sform, qform):
    image = nibabel.Nifti1Image(HU.transpose(2, 1, 0), sform)
    image.header.set_xyzt_units("mm")
    image.set_qform(qform, 1, strip_shears=True)
    image.set_sform(sform, 1)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("turn", [0.0, 0.3])
@pytest.mark.parametrize("degrees", [0.5, 10, -25])
def test_a_tilted_gantry_is_read_by_the_sform_although_the_qform_cannot_shear(tmp_path, degrees, turn):
    affine = sheared(degrees, turn)
    volume = read_image(write_forms(tmp_path / "ct.nii.gz", affine, affine))
    expected = np.diag([-1, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-4)  # NIfTI holds float32


@pytest.mark.parametrize(
    "qform",
    [sheared(10, turn=0.5), sheared(10) + [[0, 0, 0, 1], [0] * 4, [0] * 4, [0] * 4], np.diag([-0.7, 0.8, 2.5, 1])],
)
def test_a_qform_that_is_elsewhere_or_turned_is_refused(tmp_path, qform):
    path = write_forms(tmp_path / "ct.nii", sheared(10), qform)
    assert "sform and qform differ" in refusal(read_image, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "is a web page"),
    ],
)
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mha", "ct.nrrd"])
def test_a_text_in_place_of_an_image_is_called_what_it_is(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text)
    assert f"{name}: {expected}" in refusal(read_image, tmp_path / name)


def with_space(path, line):
    return edited(write_itk(path, HU), b"space: left-posterior-superior\n", line)


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        (b"space: right-anterior-superior\n", (-1, -1, 1)),
        (b"space: RAS\n", (-1, -1, 1)),
        (b"space: LPS\n", (1, 1, 1)),
    ],
)
def test_an_nrrd_lies_in_the_space_that_it_names(tmp_path, line, sign):
    volume = read_image(with_space(tmp_path / "ct.nrrd", line))
    np.testing.assert_array_equal(np.abs(volume.affine[:3, :3]).sum(axis=0), 1)
    np.testing.assert_array_equal(volume.to_lps((1, 2, 3)), np.array([3, 2, 1]) * sign)


@pytest.mark.parametrize(
    ("line", "stated"),
    [(b"space: scanner-xyz\n", "is 'scanner-xyz'"), (b"space: 3D-right-handed\n", "is '3D-right-handed'")]
    + [(b"space dimension: 3\n", "is missing")],
)
def test_an_nrrd_that_could_lie_in_lps_or_ras_is_refused(tmp_path, line, stated):
    path = with_space(tmp_path / "ct.nrrd", line)
    assert f"{path}: the space {stated}, so the position is unknown" in refusal(read_image, path)


def test_a_nifti_that_is_compressed_twice_is_called_so(tmp_path):
    path = write_itk(tmp_path / "ct.nii.gz", HU)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert refusal(read_image, path) == f"{path}: is compressed twice; decompress it once, as by gunzip"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    np.testing.assert_array_equal(read_image(path).array, HU)


def test_a_compressed_size_that_is_missing_is_told_from_one_that_is_wrong(tmp_path):
    path = write_itk(tmp_path / "ct.mha", HU, compress=True)
    lines = path.read_bytes().split(b"\n")
    (stated,) = [line for line in lines if line.startswith(b"CompressedDataSize")]
    edited(path, stated + b"\n", b"")
    assert "lacks CompressedDataSize; export" in refusal(read_image, path)
    edited(path, b"CompressedData = True\n", b"CompressedData = True\nCompressedDataSize = 7\n")
    assert "CompressedDataSize is not the size" in refusal(read_image, path)
