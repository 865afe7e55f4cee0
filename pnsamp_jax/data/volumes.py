"""CT scans with their geometry: NIfTI, NRRD, MetaImage and (by way of `dicom`) DICOM series become HU.

One convention: arrays are indexed (d, h, w) = (depth, height, width), points are (x, y, z) in mm in the LPS system of
DICOM and ITK, and a (4, 4) affine leads from the first to the second. HU are int16 and never below `AIR`: what lies
outside the scanner's field of view (padding, GE's -2000) becomes air, whichever format it came in.
"""

import gzip
import os
import re
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from pydicom.misc import is_dicom

from pnsamp_jax.errors import UserError

AIR = -1024  # HU; the lowest value of a volume
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
        index = self.to_index(point_lps)
        return bool(((index >= -0.5) & (index <= np.array(self.array.shape[-3:]) - 0.5)).all())

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm from one voxel to the next along d, h, w."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_image(path) -> Volume:
    """Reads a CT from a NIfTI, NRRD or MetaImage file, or from a folder that holds exactly one DICOM CT series.

    An image's axes keep the order and direction that they have in the file; the affine says which way they run.
    Values are taken as HU, rounded to the nearest int16; NaN (outside the field of view) and all below `AIR` become
    `AIR`.

    Args:
      path: file that ends in one of `IMAGE_SUFFIXES`, or folder.

    Returns:
      Volume of int16 HU.

    Raises:
      UserError: the file is missing, damaged, of another kind or not one 3D scalar image; or the folder holds no or
        several CT series, or one that `read_series` refuses.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        from pnsamp_jax.data.dicom import only_series, read_series  # which itself needs `Volume`

        return read_series(only_series(path))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; correct the path")
    if not path.lower().endswith(IMAGE_SUFFIXES):
        if path.lower().endswith(".dcm") or (os.access(path, os.R_OK) and is_dicom(path)):
            raise UserError(f"{path}: a single DICOM file; give the folder that holds the whole series")
        raise UserError(f"{path}: not an image; give {', '.join(IMAGE_SUFFIXES)} or a folder of DICOM files")
    voxels, spacing, origin, direction = _read_itk(path)
    if voxels.dtype == np.int16:
        array = np.maximum(voxels, np.int16(AIR), out=voxels)
    else:
        floats = voxels if voxels.dtype.kind == "f" else voxels.astype(np.float32)
        array = np.rint(np.clip(np.nan_to_num(floats, nan=AIR), AIR, np.iinfo(np.int16).max)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = (direction * spacing)[:, ::-1]  # ITK counts w, h, d
    affine[:3, 3] = origin
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise UserError(f"{path}: its spacing, origin or direction make no sense; correct its header")
    return Volume(array, affine)


def write_mask(mask: Volume, path) -> None:
    """Writes a mask (d, h, w) as NIfTI (.nii or .nii.gz) of 0 and 1, with its geometry, a sheared one too."""
    import nibabel  # ITK would write a tilted gantry's sheared grid as another one, without shear

    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(mask.array.transpose(2, 1, 0).astype(np.uint8), to_ras)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _read_itk(path: str) -> tuple[np.ndarray, ...]:
    """(d, h, w) voxels, and (3,) spacing, (3,) origin, (3, 3) direction as ITK has them; UserError as `read_image`."""
    import SimpleITK as sitk  # slow to import, and not needed for DICOM

    try:
        with _silent_itk(sitk):
            image = sitk.ReadImage(path)
        components, dimension, size = image.GetNumberOfComponentsPerPixel(), image.GetDimension(), image.GetSize()
        kind = image.GetPixelIDTypeAsString()
        if components != 1 or "complex" in kind or dimension < 3 or any(extent != 1 for extent in size[3:]):
            raise UserError(f"{path}: has {' x '.join(map(str, size))} voxels, {kind}; give one 3D image of HU")
        # ITK fills up what is missing from a truncated NIfTI without a word, so count its bytes.
        if path.lower().endswith((".nii", ".nii.gz")):
            needed = float(image.GetMetaData("vox_offset")) + np.prod(size) * int(image.GetMetaData("bitpix")) // 8
            if _unpacked_size(path) < needed:
                raise UserError(f"{path}: truncated, has fewer voxels than its header says; copy it again")
    except (RuntimeError, OSError, EOFError, zlib.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Reason:")]
        reason = re.sub(r"^.*ERROR: |\w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else type(error).__name__)
        advice = "check that it is complete and, for .mhd and .nhdr, that its data file lies beside it"
        raise UserError(f"{path}: cannot be read ({reason}); {advice}") from error
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    voxels = sitk.GetArrayFromImage(image).reshape(size[2::-1])
    return voxels, np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3]), direction


def _unpacked_size(path: str) -> int:
    """Bytes of a file, after decompression if it is gzip (which also checks its checksum)."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return os.path.getsize(path)
    with gzip.open(path) as file:
        return sum(map(len, iter(lambda: file.read(1 << 22), b"")))


@contextmanager
def _silent_itk(sitk):
    """Keeps ITK from printing: its readers write to file descriptor 2 itself, whatever its settings are."""
    shown, saved = sitk.ProcessObject.GetGlobalWarningDisplay(), os.dup(2)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
