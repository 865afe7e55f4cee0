"""A CT that is in memory already: a NumPy array with an affine, a nibabel or a SimpleITK image.

nibabel and SimpleITK are imported only for their own images, so that neither is loaded needlessly.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax.ct.itk_files import itk_affine
from pnsamp_jax.ct.nifti import header_affine, require_one_spacing
from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.stored_voxels import to_int16
from pnsamp_jax.ct.volume import Volume, check_geometry, require_geometry
from pnsamp_jax.errors import UserError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ct_in_memory(image: Any, affine: ArrayLike | None = None) -> Volume:
    """Return the volume of a chest CT that is in memory.

    Args:
      image: 3D NumPy array of HU, or what NumPy can make one of, nibabel image, or SimpleITK image. Masked voxels
        become air.
      affine: (4, 4) from the array's index to LPS mm; for an array only, since images have their own. nibabel's
        affines are RAS: wrap such an array as `nibabel.Nifti1Image(array, affine)` instead.

    Returns:
      The volume, whose array has the shape and the order of axes of the array, of the nibabel image's, or of
      `SimpleITK.GetArrayFromImage`. Values are rounded to int16 as those of files.

    Raises:
      UserError: the image is of another kind or not 3D, its position is unknown or implausible, or its values cannot
        be the HU of a chest.
    """
    own = _of_nibabel(image) if hasattr(image, "dataobj") else _of_itk(image) if hasattr(image, "GetOrigin") else None
    if own is not None and affine is not None:
        raise UserError("affine: leave it out, because the image has its own")
    name = f"the {type(image).__name__}"
    array = _voxels(name, image if own is None else own[0])
    if not array.ndim:
        raise UserError(f"{name} is no image; give a path, a 3D NumPy array of HU, a nibabel or a SimpleITK image")
    if array.ndim != 3 or array.dtype.kind not in "iuf" or not array.size:
        shape = " x ".join(map(str, array.shape))
        raise UserError(f"{name} has {shape} voxels of type {array.dtype}; give one 3D image of HU")
    if own is None and affine is None:
        raise UserError("affine: is missing; give the (4, 4) matrix from the array's index to LPS mm")
    to_lps = numbers("affine", affine) if own is None else own[1]
    if to_lps.shape != (4, 4) or not np.array_equal(to_lps[3], [0, 0, 0, 1]):
        raise UserError("affine: is not a (4, 4) matrix whose last row is 0, 0, 0, 1")
    volume = Volume(to_int16(array), to_lps)
    check_geometry(name, volume)
    if own is not None:  # an affine that a caller states is no default of a library
        require_geometry(name, volume)
    return check_chest(name, volume)


def numbers(name: str, values: Any) -> np.ndarray:
    """Return an array-like as float64, NaN where it is masked.

    Raises:
      UserError: it holds something else than numbers, or rows of different lengths; the message begins with `name`.
    """
    try:
        return np.asarray(np.ma.filled(np.asanyarray(values, np.float64), np.nan))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as an array of numbers ({error})") from error


def _voxels(name: str, image: Any) -> np.ndarray:
    if isinstance(image, np.ma.MaskedArray):
        return np.asarray(np.ma.filled(image.astype(np.float32), np.nan)) if image.dtype.kind in "iuf" else image.data
    try:
        return np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:  # the last is PyTorch's
        raise UserError(f"{name} cannot be read as a NumPy array ({error})") from error


def _of_nibabel(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the array and the affine of a nibabel image, whose header must say where it lies."""
    header, shape = image.header, image.shape
    if "qform_code" in header:
        header_affine("the NIfTI", header.get_sform(coded=True), header.get_qform(coded=True), shape)
    elif image.affine is None or (
        hasattr(header, "get_base_affine") and np.allclose(image.affine, header.get_base_affine())
    ):
        raise UserError("the image has no position, as in Analyze's format; give the CT as NIfTI or DICOM")
    if hasattr(header, "get_xyzt_units") and header.get_xyzt_units()[0] not in ("unknown", "mm"):
        raise UserError(f"the NIfTI has units of {header.get_xyzt_units()[0]}; set them to mm")
    if "pixdim" in header:
        require_one_spacing("the NIfTI", image.affine, header["pixdim"])
    try:
        voxels = np.asanyarray(image.dataobj)
        while voxels.ndim > 3 and voxels.shape[-1] == 1:  # one volume, stored as a series of them
            voxels = voxels[..., 0]
        return voxels, RAS_TO_LPS @ image.affine
    except (OSError, EOFError, ValueError, zlib.error) as error:  # the voxels are read from their file only now
        raise UserError(f"the nibabel image cannot be read from its file ({error}); copy the file again") from error


def _of_itk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the array (d, h, w) of a SimpleITK image, and its affine."""
    import SimpleITK as sitk

    if not isinstance(image, sitk.Image):
        raise UserError("the image is not one of SimpleITK; give its array and `affine`, or the path of its file")
    if image.GetPixelIDTypeAsString().startswith("label"):  # whose array ends the process
        raise UserError("the SimpleITK image is a label map; give the CT, and of the map its points")
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]  # one volume, stored as a series of them
    # An image of another dimension is refused for its shape.
    affine = itk_affine("the SimpleITK image", image) if image.GetDimension() == 3 else np.eye(4)
    return sitk.GetArrayFromImage(image), affine
