"""Read a CT from any path: a NIfTI, NRRD or MetaImage file, or a folder that contains one DICOM series."""

import os
from os import PathLike

from pydicom.misc import is_dicom

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.dicom_index import only_series
from pnsamp_jax.ct.image_files import read_file
from pnsamp_jax.ct.plausibility import why_not_hounsfield
from pnsamp_jax.ct.volume import Volume, check_geometry
from pnsamp_jax.errors import UserError

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_ct(path: str | PathLike[str]) -> Volume:
    """Read a chest CT.

    Args:
      path: file that ends in one of `IMAGE_SUFFIXES`, or folder.

    Returns:
      Volume of int16 HU.

    Raises:
      UserError: `read_image` or `check_chest` raises it.
    """
    return check_chest(path, read_image(path))


def check_chest(path: str | PathLike[str], volume: Volume) -> Volume:
    """Return the volume if its values can be the HU of a chest.

    The check finds CTs that were stored without their offset, normalized or windowed, and other modalities; see
    `plausibility`.

    Args:
      path: file or folder of the volume, named in the error message.
      volume: (d, h, w) to check.

    Raises:
      UserError: the volume is a single plane, or its values cannot be the HU of a chest.
    """
    if min(volume.array.shape) < 2:
        shape = " x ".join(map(str, volume.array.shape[::-1]))
        raise UserError(f"{path}: has {shape} voxels; give a volume with at least two in each direction")
    reason = why_not_hounsfield(volume.array)
    if reason:
        low, high = volume.array.min(), volume.array.max()
        raise UserError(
            f"{path}: the values, {low} to {high}, are not the HU of a chest: {reason}; export the CT again in HU"
        )
    return volume


def read_image(path: str | PathLike[str]) -> Volume:
    """Read an image from a NIfTI, NRRD or MetaImage file, or from a folder that contains exactly one DICOM CT series.

    The axes of an image file keep their order and direction, which the affine describes. Values are rounded to the
    nearest int16. NaN (outside the field of view) and values below `AIR` become `AIR`.

    Args:
      path: file that ends in one of `IMAGE_SUFFIXES`, or folder.

    Returns:
      Volume of int16, in HU if the image is a CT.

    Raises:
      UserError: the file is missing, damaged, of another kind or not a 3D scalar image, or its header is incomplete or
        contradictory; or the folder contains no or several CT series, or a series that `read_series` refuses.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return read_series(only_series(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; correct the path")
    if not path.lower().endswith(IMAGE_SUFFIXES):
        if path.lower().endswith(".dcm") or (os.access(path, os.R_OK) and is_dicom(path)):
            raise UserError(_why_not_one_dicom_file(path))
        raise UserError(f"{path}: not an image; give {', '.join(IMAGE_SUFFIXES)} or a folder of DICOM files")
    array, affine = read_file(path)
    return check_geometry(path, Volume(array, affine))


def _why_not_one_dicom_file(path: str) -> str:
    """Return the message for a single DICOM file, which names what it is unless it is a slice."""
    with quiet_pydicom():
        try:
            header = read_dataset(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            kind = getattr(header.get("SOPClassUID"), "name", "")
        except DAMAGED:
            kind = ""
    if "Segmentation" in kind or "RT Structure" in kind:
        return f"{path}: a DICOM {kind.removesuffix(' Storage')}, which is not read here; convert it to NIfTI"
    return f"{path}: a single DICOM file; give the folder that contains the whole series"
