"""Image files as masks: labels are read as they are, and what is no label is refused before it is rounded."""

import zipfile

import nibabel
import numpy as np
import pytest
from ct_files import refusal, write_itk, write_series
from scipy import ndimage

from pnsamp_jax.data.whole_masks import read_mask
from pnsamp_jax.inference.point_files import read_requests

BALL = np.square(np.indices((20, 20, 20)).T - 10).sum(axis=-1) <= 25
CHANCES = ndimage.gaussian_filter(BALL.astype(float), 1.5)  # 0 to 1


def write_nifti(path, array, slope=None):
    """Write (d, h, w) as NIfTI, scaled if a slope is given, and return the path."""
    image = nibabel.Nifti1Image(array.T, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header.set_slope_inter(slope, 0 if slope else None)
    nibabel.save(image, path)
    return path


def write(path, array):
    write = write_nifti if path.name.endswith((".nii", ".nii.gz")) else write_itk
    return write(path, array)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.nrrd", "m.mha"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("most", [1.0, 0.45, 5.0])  # the second would round to nothing, the third to labels
def test_probabilities_are_refused_before_they_are_rounded(name, dtype, most, tmp_path):
    path = write(tmp_path / name, (CHANCES / CHANCES.max() * most).astype(dtype))
    for reason in (refusal(read_mask, path), refusal(read_requests, "none.nii", str(path), "mm")):
        assert reason.startswith(f"{path}: contains ")
        assert (
            "as a map of probabilities does; a mask has whole numbers: threshold it, as at a probability of 0.5, and"
            in reason
        )
        assert 0.001 < float(reason.split("contains ")[1].split(",")[0]) < most


def test_probabilities_that_are_scaled_to_whole_numbers_are_refused(tmp_path):
    path = write_nifti(tmp_path / "m.nii.gz", np.rint(CHANCES * 255).astype(np.uint8), slope=1 / 255)
    assert "as a map of probabilities does" in refusal(read_mask, path)
    np.testing.assert_array_equal(
        read_mask(write_nifti(tmp_path / "m.nii.gz", BALL.astype(np.uint8), slope=2.0)).array, BALL * 2
    )


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd"])
def test_a_zipped_map_of_probabilities_is_refused(name, tmp_path):
    path = write(tmp_path / name, CHANCES.astype(np.float32))
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(path, "folder/" + name)
    assert refusal(read_mask, tmp_path / "m.zip").startswith(f"{tmp_path / 'm.zip'}: contains ")


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.mha"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_labels_of_any_type_are_read(name, dtype, tmp_path):
    labels = (BALL * 100 + CHANCES.round()).astype(dtype)
    np.testing.assert_array_equal(read_mask(write(tmp_path / name, labels)).array, labels)


def test_labels_may_have_lost_a_little_in_single_precision_and_nan_is_none(tmp_path):
    labels = np.where(BALL, np.float32(1 / 3) * 3 + np.float32(5e-4), np.float32(2e-4))
    labels[0] = np.nan
    array = read_mask(write(tmp_path / "m.nii.gz", labels.astype(np.float32))).array
    np.testing.assert_array_equal(array > 0, BALL)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd"])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_labels_that_would_become_one_are_refused(name, dtype, tmp_path):
    labels = np.where(BALL, 40000, 0).astype(dtype)
    labels[0, 0, 0] = 32767
    assert "m.n" in (reason := refusal(read_mask, write(tmp_path / name, labels)))
    assert reason.endswith("contains 40000; give labels of at most 32767")


def test_what_is_no_mask_is_refused_with_the_advice_for_masks(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("pictures/1.png", "m.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n" + bytes(100))
    np.savez(tmp_path / "m.npz", BALL)
    np.save(tmp_path / "m.npy", BALL)
    (tmp_path / "m.txt").write_text("0 0 1")
    found = {
        "pictures": "a folder without a DICOM mask or slices",
        "m.png": "a .png picture",
        "m.npz": "an archive of NumPy",
        "m.npy": "an array of NumPy",
        "m.txt": "no image",
    }
    for name, what in found.items():
        path = tmp_path / name
        assert refusal(read_mask, path).startswith(
            f"{path}: is {what}; give the mask as NIfTI, NRRD or MetaImage with "
        )
    write_nifti(tmp_path / "m.nii", BALL.astype(np.uint8)).rename(tmp_path / "m.img")
    assert "m.img: is a NIfTI image; rename it" in refusal(read_mask, tmp_path / "m.img")


def test_a_mask_may_be_a_series_of_dicom_slices(tmp_path):
    write_series(tmp_path / "mask", BALL.astype(np.int16), intercept=0)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask").array, BALL)
