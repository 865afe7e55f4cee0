"""Reads a CT from any path: NIfTI, NRRD and MetaImage files and DICOM series become HU with their geometry."""

import os

import numpy as np
from pydicom.misc import is_dicom

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_index import only_series
from pnsamp_jax.ct.image_files import read_file
from pnsamp_jax.ct.volume import Volume, check_geometry
from pnsamp_jax.errors import UserError

LUNG = -300  # HU; any piece of a chest CT that holds a nodule and its surroundings has voxels below and above
DENSE_HU, DENSE_SHARE = 10_000, 0.05  # not even metal has so many HU in so many voxels
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_ct(path) -> Volume:
    """Reads a CT as `read_image` does, and refuses what `check_chest` does."""
    return check_chest(path, read_image(path))


def check_chest(path, volume: Volume) -> Volume:
    """Gives the volume back; UserError that names `path` if it is a single plane, or cannot be the HU of a chest.

    That tells what lacks its offset, is normalised, windowed, or of another modality.
    """
    if min(volume.array.shape) < 2:
        shape = " x ".join(map(str, volume.array.shape[::-1]))
        raise UserError(f"{path}: has {shape} voxels; give a volume of at least two in each direction")
    low, high = volume.array.min(), volume.array.max()
    dense = sum(np.count_nonzero(plane > DENSE_HU) for plane in volume.array) / volume.array.size
    if not low < LUNG < high or dense > DENSE_SHARE:
        raise UserError(f"{path}: its values, {low} to {high}, are no HU of a chest; export it again, in HU")
    return volume


def read_image(path) -> Volume:
    """Reads an image from a NIfTI, NRRD or MetaImage file, or from a folder that holds exactly one DICOM CT series.

    An image's axes keep the order and direction that they have in the file; the affine says which way they run.
    Values are rounded to the nearest int16; NaN (outside the field of view) and all below `AIR` become `AIR`.

    Args:
      path: file that ends in one of `IMAGE_SUFFIXES`, or folder.

    Returns:
      Volume of int16, HU if the image is a CT.

    Raises:
      UserError: the file is missing, damaged, of another kind or not one 3D scalar image, or its header lacks or
        contradicts something; or the folder holds no or several CT series, or one that `read_series` refuses.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return read_series(only_series(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; correct the path")
    if not path.lower().endswith(IMAGE_SUFFIXES):
        if path.lower().endswith(".dcm") or (os.access(path, os.R_OK) and is_dicom(path)):
            raise UserError(f"{path}: a single DICOM file; give the folder that holds the whole series")
        raise UserError(f"{path}: not an image; give {', '.join(IMAGE_SUFFIXES)} or a folder of DICOM files")
    array, affine = read_file(path)
    return check_geometry(path, Volume(array, affine))
