"""Read NIfTI files with nibabel, and write masks as NIfTI.

nibabel fills in what a header lacks, and voxels that a truncated file lacks. A wrong scale or position would give a
prediction for another part of the body, so such a file is refused, before memory for its voxels is allocated.
"""

import gzip
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pnsamp_jax.ct.stored_voxels import check_size, stored_bytes, to_int16
from pnsamp_jax.ct.volume import SAME_SPACING, Volume
from pnsamp_jax.errors import UserError

SAME_MM = 0.1  # largest distance between a voxel's positions by sform and by qform


def read_nifti(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI as `read_file` does. A damaged file may also raise other errors than UserError."""
    compressed = _is_gzip(path)
    if compressed and _is_gzip_twice(path):
        raise UserError(f"{path}: is compressed twice; decompress it once, as by gunzip")
    with _named(path, ".nii.gz" if compressed else ".nii") as file:  # nibabel believes the name
        return _read_named_nifti(path, file, compressed)


def _read_named_nifti(path: str, file: str, compressed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI from `file`, whose name says whether it is compressed; `path` is how the user named it."""
    import nibabel  # slow to import; used because ITK reads NaN, and voxels missing from the file, as 0

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # errors that matter are raised
    try:
        with nibabel.imageglobals.ErrorLevel(30), np.errstate(all="ignore"):  # 30: raise for a size of 0, not use 1
            image = nibabel.load(file, mmap=False)
            if not isinstance(image, nibabel.Nifti1Image):
                raise UserError(f"{path}: is of type {type(image).__name__}; give one 3D NIfTI of HU")
            sform, qform = image.header.get_sform(coded=True), image.header.get_qform(coded=True)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ValueError(str(error).replace(file, path)) from error
    voxels, dtype = image.dataobj, image.get_data_dtype()
    assert isinstance(voxels, nibabel.arrayproxy.ArrayProxy)  # as in every image that was loaded from a file
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: has voxels of type {dtype}; give one 3D NIfTI of HU")
    if voxels.offset < image.header.single_vox_offset:
        raise UserError(f"{path}: vox_offset points into the header; correct it")
    available = stored_bytes(path, 0, compressed) - voxels.offset
    check_size(path, image.shape, dtype.itemsize, available)
    if int(image.header["xyzt_units"]) & 7 not in (0, 2):  # unknown, mm
        raise UserError(f"{path}: xyzt_units are not mm; save the image in mm")
    affine = header_affine(path, sform, qform, image.shape)
    require_one_spacing(path, affine, image.header["pixdim"])
    with np.errstate(invalid="ignore"):  # `check_geometry` refuses infinite values
        to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    stored = voxels.get_unscaled().reshape(image.shape[:3], order="F").T
    return to_int16(stored, voxels.slope, voxels.inter), to_lps


def header_affine(
    name: str, sform: tuple[np.ndarray | None, int], qform: tuple[np.ndarray | None, int], shape: tuple[int, ...]
) -> np.ndarray:
    """Return the affine of a NIfTI's header, (4, 4) from the index (i, j, k) to RAS mm: the sform, or else the qform.

    Args:
      name: of the image, for the error message.
      sform: as `header.get_sform(coded=True)` gives it, with its code.
      qform: likewise.
      shape: of the image, from i on.

    Raises:
      UserError: there is neither, or they are of different places.
    """
    forms = [form for form, code in (sform, qform) if form is not None and code > 0]
    if not forms:
        raise UserError(f"{name}: has neither sform nor qform, so its position is unknown; export it again")
    with np.errstate(invalid="ignore"):  # `check_geometry` refuses infinite values
        distance = np.abs((forms[0] - forms[-1]) * [*shape[:3], 1]).max()
    if distance > SAME_MM and not _is_rotation_of(forms[-1], forms[0]):
        raise UserError(f"{name}: sform and qform differ; keep the right one and set the code of the other to 0")
    return forms[0]


def nifti_beyond_int16(path: str) -> Iterator[np.ndarray]:
    """Yield the planes (h, w) of a NIfTI as `values_beyond_int16` does."""
    import nibabel  # slow to import

    with _named(path, ".nii.gz" if _is_gzip(path) else ".nii") as file, np.errstate(all="ignore"):
        image = nibabel.load(file, mmap=False)
        assert isinstance(image, nibabel.Nifti1Image)  # as `read_nifti` found
        voxels = image.dataobj
        assert isinstance(voxels, nibabel.arrayproxy.ArrayProxy)
        if np.can_cast(image.get_data_dtype(), np.int16) and (voxels.slope, voxels.inter) == (1, 0):
            return
        for plane in voxels.get_unscaled().reshape(image.shape[:3], order="F").T:
            yield plane * np.float64(voxels.slope) + voxels.inter


def require_one_spacing(name: str, affine: np.ndarray, pixdim: np.ndarray) -> None:
    """Raise UserError if the spacing of a NIfTI's affine and that of its `pixdim` contradict each other.

    Along the axis that a tilted gantry shears, `pixdim` may be the distance of the slices. A `pixdim` of 1 mm
    throughout says nothing: that is what a header begins with.

    Args:
      name: of the image, for the error message.
      affine: (4, 4) of the axes i, j, k.
      pixdim: (8,) of the header.
    """
    stated, spacing = np.abs(np.asarray(pixdim, np.float64)[1:4]), np.linalg.norm(affine[:3, :3], axis=0)
    if not (spacing > 0).all() or not np.isfinite(spacing).all():
        return  # `check_geometry` refuses them
    if (stated == 1).all():
        return
    with np.errstate(divide="ignore"):
        factor = np.abs(np.log(spacing / stated)).max()
    if not factor <= -np.log(np.cos(_shear(affine[:3, :3] / spacing))) + SAME_SPACING:
        sizes, others = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (spacing, stated))
        raise UserError(
            f"{name}: has voxels of {sizes} mm by its sform, but of {others} mm by its pixdim; correct the wrong one"
        )


def _shear(axes: np.ndarray) -> float:
    """Return by how much (radians) axes, the unit vectors in the columns of (3, 3), deviate from perpendicular."""
    return float(np.arcsin(np.clip(np.abs(axes.T @ axes - np.eye(3)).max(), 0, 1)))


def _is_rotation_of(qform: np.ndarray, sform: np.ndarray) -> bool:
    """Return whether a qform is as near to a sheared sform, as of a tilted gantry, as a rotation can be.

    A qform cannot shear. Its axes may therefore deviate from those of the sform, but by no more than the axes of the
    sform deviate from being perpendicular.
    """
    spacing, other_spacing = (np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform))
    if not (spacing > 0).all() or not (other_spacing > 0).all() or not np.isfinite([sform, qform]).all():
        return False
    axes, other_axes = sform[:3, :3] / spacing, qform[:3, :3] / other_spacing
    shear = _shear(axes)
    deviation = np.arccos(np.clip((axes * other_axes).sum(axis=0), -1, 1)).max()
    same_origin = np.abs(sform[:3, 3] - qform[:3, 3]).max() <= SAME_MM
    same_spacing = np.abs(np.log(spacing / other_spacing)).max() <= -np.log(np.cos(shear)) + 1e-3
    return bool(same_origin and same_spacing and deviation <= shear + 1e-3)


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _is_gzip_twice(path: str) -> bool:
    with gzip.open(path) as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def _named(path: str, suffix: str) -> Iterator[str]:
    """Yield a path to the file that ends in the suffix, in lower case: the file's own, or a link."""
    if path.endswith(suffix):  # nibabel takes .Nii for another file's name
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "image" + suffix)
        os.symlink(os.path.abspath(path), link)
        yield link


def write_mask(mask: Volume, path: str | os.PathLike[str]) -> None:
    """Write a mask as NIfTI in its own grid, which may be sheared.

    Args:
      mask: (d, h, w) of 0 and 1, written as uint8.
      path: file that ends in .nii or .nii.gz.
    """
    import nibabel  # ITK cannot store the sheared grid of a tilted gantry and would drop the shear

    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(mask.array.transpose(2, 1, 0).astype(np.uint8), to_ras)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
