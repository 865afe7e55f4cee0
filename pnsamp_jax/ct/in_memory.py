"""A CT that is in memory already: a NumPy array with an affine, a nibabel or a SimpleITK image.

nibabel and SimpleITK are imported only for their own images, so that neither is loaded needlessly.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax.ct.itk_files import itk_affine
from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.stored_voxels import to_int16
from pnsamp_jax.ct.volume import Volume, check_geometry
from pnsamp_jax.errors import UserError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ct_in_memory(image: Any, affine: ArrayLike | None = None) -> Volume:
    """Return the volume of a chest CT that is in memory.

    Args:
      image: 3D NumPy array of HU, nibabel image, or SimpleITK image.
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
    if own is None and affine is None:
        raise UserError("affine: is missing; give the (4, 4) matrix from the array's index to LPS mm")
    array, to_lps = own if own is not None else (np.asarray(image), np.asarray(affine, np.float64))
    name = f"the {type(image).__name__}"
    if array.ndim != 3 or array.dtype.kind not in "iuf" or not array.size:
        shape = " x ".join(map(str, array.shape))
        raise UserError(f"{name} has {shape} voxels of type {array.dtype}; give one 3D image of HU")
    if to_lps.shape != (4, 4) or not np.array_equal(to_lps[3], [0, 0, 0, 1]):
        raise UserError("affine: is not a (4, 4) matrix whose last row is 0, 0, 0, 1")
    volume = Volume(to_int16(array), to_lps)
    check_geometry(name, volume)
    return check_chest(name, volume)


def _of_nibabel(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the array and the affine of a nibabel image, whose header must say where it lies."""
    header = image.header
    if "qform_code" in header and not (header["qform_code"] or header["sform_code"]):
        raise UserError("the NIfTI has neither sform nor qform, so its position is unknown; set its sform in RAS mm")
    if hasattr(header, "get_xyzt_units") and header.get_xyzt_units()[0] not in ("unknown", "mm"):
        raise UserError(f"the NIfTI has units of {header.get_xyzt_units()[0]}; set them to mm")
    return np.asanyarray(image.dataobj), RAS_TO_LPS @ image.affine


def _of_itk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the array (d, h, w) of a SimpleITK image, and its affine."""
    import SimpleITK as sitk

    # An image of another dimension is refused for its shape.
    affine = itk_affine("the SimpleITK image", image) if image.GetDimension() == 3 else np.eye(4)
    return sitk.GetArrayFromImage(image), affine
