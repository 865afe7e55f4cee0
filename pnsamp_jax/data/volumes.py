"""CT scans with their geometry: NIfTI, NRRD, MetaImage and (by way of `dicom`) DICOM series become HU.

One convention: arrays are indexed (d, h, w) = (depth, height, width), points are (x, y, z) in mm in the LPS system of
DICOM and ITK, and a (4, 4) affine leads from the first to the second. HU are int16 and never below `AIR`: what lies
outside the scanner's field of view (padding, GE's -2000) becomes air, whichever format it came in.
"""

import os
from dataclasses import dataclass

import numpy as np
from pydicom.misc import is_dicom

from pnsamp_jax.errors import UserError

AIR = -1024  # HU; the lowest value of a volume
LUNG = -300  # HU; any piece of a chest CT that holds a nodule and its surroundings has voxels below and above
DENSE_HU, DENSE_SHARE = 10_000, 0.05  # not even metal has so many HU in so many voxels
SPACING_MM = 0.1, 20.0  # voxels beyond these are of another unit than mm
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Volume:
    """Voxels and where they lie.

    Attributes:
      array: (..., depth, height, width).
      affine: (4, 4) float64 that maps the array index (d, h, w, 1) to LPS mm.
    """

    array: np.ndarray
    affine: np.ndarray

    def to_lps(self, index) -> np.ndarray:
        """Array index (..., 3) as (d, h, w), fractions allowed -> LPS mm (..., 3) as (x, y, z)."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, point_lps) -> np.ndarray:
        """LPS mm (..., 3) as (x, y, z) -> fractional array index (..., 3) as (d, h, w)."""
        return (np.asarray(point_lps, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def holds(self, point_lps) -> bool:
        """Whether a point (3,) in LPS mm lies within one of the voxels."""
        if not np.isfinite(point_lps).all():
            return False
        index = self.to_index(point_lps)
        return bool(((index >= -0.5) & (index <= np.array(self.array.shape[-3:]) - 0.5)).all())

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm from one voxel to the next along d, h, w."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


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
        from pnsamp_jax.data.dicom import read_series  # which itself needs `Volume`
        from pnsamp_jax.data.dicom_index import only_series

        return read_series(only_series(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; correct the path")
    if not path.lower().endswith(IMAGE_SUFFIXES):
        if path.lower().endswith(".dcm") or (os.access(path, os.R_OK) and is_dicom(path)):
            raise UserError(f"{path}: a single DICOM file; give the folder that holds the whole series")
        raise UserError(f"{path}: not an image; give {', '.join(IMAGE_SUFFIXES)} or a folder of DICOM files")
    from pnsamp_jax.data.image_files import read_file  # which itself needs `AIR`

    array, affine = read_file(path)
    return check_geometry(path, Volume(array, affine))


def check_geometry(path: str, volume: Volume) -> Volume:
    """Gives the volume back; UserError that names `path` unless its axes are about perpendicular and in mm."""
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = volume.spacing
    low, high = SPACING_MM
    if not (low <= spacing.min() and spacing.max() <= high and np.isfinite(volume.affine).all()):
        sizes = " x ".join(f"{size:.3g}" for size in spacing[::-1])
        raise UserError(
            f"{path}: spacing or origin make no sense: {sizes} mm from voxel to voxel, where {low:g} to {high:g} do; "
            "correct its header"
        )
    if abs(np.linalg.det(volume.affine[:3, :3] / spacing)) < 0.8:  # a gantry tilts by 30 degrees, which is 0.87
        raise UserError(f"{path}: its axes are far from perpendicular; correct its direction")
    return volume


def write_mask(mask: Volume, path) -> None:
    """Writes a mask (d, h, w) as NIfTI (.nii or .nii.gz) of 0 and 1, with its geometry, a sheared one too."""
    import nibabel  # ITK would write a tilted gantry's sheared grid as another one, without shear

    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(mask.array.transpose(2, 1, 0).astype(np.uint8), to_ras)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
