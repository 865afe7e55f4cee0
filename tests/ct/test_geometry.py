"""Headers whose geometry was lost, contradicts itself, or is that of no CT; and the sound ones beside them."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import refusal, write_itk, write_series

from pnsamp_jax.ct.in_memory import ct_in_memory
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.ct.volume import Volume, check_geometry

AXIAL = np.eye(4)[:, [2, 1, 0, 3]]
LOST = "its header has no geometry (voxels of 1 mm, origin 0), as if it was lost"


def blank(*shape):
    return np.zeros(shape, np.int16)


def hu(*shape):
    """Lung, fat and soft tissue."""
    return np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mha", "ct.mhd", "ct.nrrd"])
@pytest.mark.parametrize("shape", [(3, 512, 512), (768, 4, 768)])
def test_an_array_that_was_saved_without_geometry_is_refused(tmp_path, name, shape):
    path = write_itk(tmp_path / name, blank(*shape))
    assert f"{path}: {LOST}" in refusal(read_image, path)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, 1), (-1, 1, -1)])
def test_a_nifti_with_the_identity_up_to_signs_is_refused(tmp_path, signs):
    nibabel.save(nibabel.Nifti1Image(blank(512, 512, 3), np.diag([*signs, 1])), tmp_path / "ct.nii")
    assert LOST in refusal(read_image, tmp_path / "ct.nii")


def test_a_dicom_series_without_geometry_is_refused(tmp_path):
    write_series(tmp_path, blank(3, 512, 512), step=(0, 0, 1), origin=(0, 0, 0), spacing=(1, 1))
    assert f"{tmp_path}: {LOST}" in refusal(read_image, tmp_path)
    write_series(tmp_path, blank(3, 512, 512), step=(0, 0, 1), origin=(-256, -256, 0), spacing=(1, 1))
    assert read_image(tmp_path).spacing.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ((51, 51, 51), lambda affine: affine),  # a cube that was resampled around a nodule
        ((3, 350, 350), lambda affine: affine),  # a chest that was resampled
        ((3, 512, 512), lambda affine: affine + np.array([[0, 0, 0, -180]] + [[0] * 4] * 3)),  # resampled in place
        ((3, 512, 512), lambda affine: affine @ np.diag([2.5, 1, 1, 1])),
        ((3, 512, 512), lambda affine: affine @ np.diag([1, 0.7, 0.7, 1])),
    ],
)
@pytest.mark.parametrize("name", ["ct.nii", "ct.mha"])
def test_voxels_of_one_mm_or_an_origin_of_zero_alone_are_read(tmp_path, name, shape, change):
    affine = change(AXIAL)
    volume = read_image(write_itk(tmp_path / name, blank(*shape), affine))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


def test_an_image_in_memory_must_have_its_geometry_but_a_caller_may_state_any():
    voxels = hu(2, 512, 512)
    assert f"the Image: {LOST}" in refusal(ct_in_memory, sitk.GetImageFromArray(voxels))
    assert f"the Nifti1Image: {LOST}" in refusal(ct_in_memory, nibabel.Nifti1Image(voxels.T, np.eye(4)))
    np.testing.assert_array_equal(ct_in_memory(voxels, AXIAL).affine, AXIAL)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.7, 0.7, 2.5))
    assert ct_in_memory(image).spacing.tolist() == [2.5, 0.7, 0.7]


def nifti(sform, pixdim, shape=(7, 6, 5)):
    image = nibabel.Nifti1Image(hu(*shape), np.asarray(sform, np.float64))
    image.header["pixdim"][1:4] = pixdim
    return image


SHEARED = np.array([[0.7, 0, 0, 9], [0, 0.7, 1.0, 9], [0, 0, 2.5, 9], [0, 0, 0, 1]])  # by 22 degrees


@pytest.mark.parametrize(
    ("sform", "pixdim", "expected"),
    [
        (
            np.eye(4),
            (0.7, 0.7, 2.5),
            "of 1 x 1 x 1 mm by its sform, but of 0.7 x 0.7 x 2.5 mm by its pixdim",
        ),
        (np.diag([0.7, 0.7, 1, 1]), (0.7, 0.7, 2.5), "of 0.7 x 0.7 x 1 mm by its sform, but of 0.7 x 0.7 x 2.5 mm"),
        (np.diag([0.7, 0.7, 2.5, 1]), (1, 1, 2), "of 0.7 x 0.7 x 2.5 mm by its sform, but of 1 x 1 x 2 mm"),
        (
            np.diag([-0.7, -0.7, 2.5, 1]),
            (0.7, 0.7, 2.55),
            "2.5 mm by its sform, but of 0.7 x 0.7 x 2.55 mm",
        ),
        (SHEARED, (0.7, 0.7, 5), "of 0.7 x 0.7 x 2.693 mm by its sform, but of 0.7 x 0.7 x 5 mm"),
    ],
)
def test_a_sform_that_contradicts_pixdim_is_refused(tmp_path, sform, pixdim, expected):
    image = nifti(sform, pixdim)
    assert image.header["qform_code"] == 0
    in_memory = refusal(ct_in_memory, image)
    assert in_memory.startswith("the NIfTI: has voxels of ") and expected in in_memory
    nibabel.save(image, tmp_path / "ct.nii")
    message = refusal(read_image, tmp_path / "ct.nii")
    assert expected in message and message.endswith("correct the wrong one")


@pytest.mark.parametrize(
    ("sform", "pixdim"),
    [
        (np.diag([-0.7, -0.7, 2.5, 1]), (0.7, 0.7, 2.5)),
        (np.diag([0.703125, 0.703125, 2.5, 1]), (0.703, 0.703, 2.5)),  # rounded
        (np.diag([0.7, 0.7, 2.5, 1]), (1, 1, 1)),  # never set
        (SHEARED, (0.7, 0.7, 2.5)),  # the distance of the slices
        (SHEARED, (0.7, 0.7, 2.6926)),  # the length of the step from one to the next
    ],
)
def test_a_sform_and_pixdim_that_agree_are_read(tmp_path, sform, pixdim):
    nibabel.save(nifti(sform, pixdim), tmp_path / "ct.nii")
    np.testing.assert_allclose(
        read_image(tmp_path / "ct.nii").spacing[::-1], np.linalg.norm(sform[:3, :3], axis=0), rtol=1e-5
    )
    ct_in_memory(nifti(sform, pixdim))


def along(axes, spacing):
    """Affine whose array axes lie along the axes of LPS that are named, as "zyx"."""
    affine = np.zeros((4, 4))
    affine[["xyz".index(axis) for axis in axes], range(3)] = spacing
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "width"),
    [
        ((100, 400, 400), along("zyx", (0.7, 0.7, 2.5)), 1000),  # the spacing was reversed
        ((100, 400, 400), along("zyx", (2.5, 7, 7)), 2800),  # tenths of a mm
        ((300, 300, 100), along("xyz", (3, 0.7, 0.7)), 900),
        ((300, 100, 400), along("zxy", (1, 1, 2.2)), 880),  # stored as coronal planes
    ],
)
def test_slices_wider_than_a_scanner_are_refused(shape, affine, width):
    assert f"ct: its slices are {width} mm wide" in refusal(check_geometry, "ct", Volume(blank(*shape), affine))


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((400, 512, 512), along("zyx", (5, 1.52, 1.52))),  # head to foot, in an extended field of view
        ((128, 128, 400), along("xyz", (5, 5, 5))),
        ((400, 128, 128), along("zxy", (5, 5, 5))),
    ],
)
def test_a_scan_may_be_as_long_as_a_body(shape, affine):
    volume = Volume(blank(*shape), affine)
    assert check_geometry("ct", volume) is volume
    tilted = affine.copy()
    turn = np.deg2rad(30)
    tilted[:3] = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]) @ affine[:3]
    check_geometry("ct", Volume(volume.array, tilted))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_slices_with_the_spacing_of_another_axis_are_refused(order):
    sides, sound, wrong = np.array([60, 512, 512]), np.array([1.25, 0.7, 0.7]), np.array([0.7, 0.7, 1.25])
    shape, axes = sides[list(order)], "".join("zyx"[axis] for axis in order)
    check_geometry("ct", Volume(blank(*shape), along(axes, sound[list(order)])))
    message = refusal(check_geometry, "ct", Volume(blank(*shape), along(axes, wrong[list(order)])))
    assert "as if two axes were exchanged" in message and "60" in message and "1.25" in message


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((512, 512, 400), (0.8, 0.8, 0.8)),  # cropped
        ((512, 512, 512), (1.25, 0.7, 0.7)),
        ((300, 300, 200), (1.25, 0.7, 0.7)),  # no matrix of a scanner
        ((60, 512, 512), (2.5, 0.7, 0.9)),  # pixels that are not square
    ],
)
def test_other_sides_and_spacings_are_accepted(shape, spacing):
    check_geometry("ct", Volume(blank(*shape), along("zyx", spacing)))
