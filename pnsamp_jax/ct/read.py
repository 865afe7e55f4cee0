"""Read a CT from any path: an image file, an enhanced CT, a folder that contains one DICOM series, or an archive."""

import os
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from pnsamp_jax.ct.archives import ARCHIVE_SUFFIXES, unpacked
from pnsamp_jax.ct.dicom import assemble_series
from pnsamp_jax.ct.dicom_file import DAMAGED, quiet_pydicom, read_dataset
from pnsamp_jax.ct.dicom_folder import read_folder
from pnsamp_jax.ct.dicom_frames import is_enhanced, require_placed_frames
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.file_kinds import kind_of, what_it_is
from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES, read_file
from pnsamp_jax.ct.plausibility import histogram, why_displaced, why_not_hounsfield
from pnsamp_jax.ct.slice_jumps import why_rows_differ, why_slices_differ
from pnsamp_jax.ct.slice_order import parts
from pnsamp_jax.ct.volume import Volume, check_geometry, require_geometry
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import walk

MIN_PART = 5  # slices between two steps whose values are looked at by themselves


class Image(NamedTuple):
    """A volume and where it is from.

    Attributes:
      volume: int16, in HU if the image is a CT.
      files: of the slices of a DICOM series, one each and with the same UIDs, to which DICOM objects can refer; else
        None. Of an archive, whose files are gone, the headers.
    """

    volume: Volume
    files: Sequence[str | Dataset] | None


def read_ct(path: str | PathLike[str]) -> Volume:
    """Return the volume of `open_ct`."""
    return open_ct(path).volume


def open_ct(path: str | PathLike[str], series: str = "") -> Image:
    """Read a chest CT.

    Args:
      path: as for `open_image`.
      series: as for `open_image`.

    Returns:
      Its volume in HU, and its files.

    Raises:
      UserError: `open_image` or `check_chest` raises it.
    """
    image = open_image(path, series)
    check_chest(path, image.volume)
    return image


def check_chest(path: str | PathLike[str], volume: Volume) -> Volume:
    """Return the volume if its values can be the HU of a chest.

    The check finds CTs that were stored without their offset, normalized or windowed, and other modalities; see
    `plausibility`. It also finds rows of a wrong length, and slices along the body of different scales or images, in
    the wrong order or lost; see `slice_jumps`. Where the slices make steps, the parts between them are looked at as
    well.

    Args:
      path: file or folder of the volume, named in the error message.
      volume: (d, h, w) to check.

    Raises:
      UserError: the volume is a single plane, its values cannot be the HU of a chest, or its slices are not
        those of one image.
    """
    if min(volume.array.shape) < 2:
        shape = " x ".join(map(str, volume.array.shape[::-1]))
        raise UserError(f"{path}: has {shape} voxels; give a volume with at least two in each direction")
    array, counts = volume.array, histogram(volume.array)
    _require_hounsfield(path, array, why_not_hounsfield(array, counts))
    slices = np.moveaxis(array, volume.body_axis, 0)
    unequal = why_rows_differ(array, volume.spacing) or why_slices_differ(slices)
    if unequal:
        raise UserError(f"{path}: {unequal}; export the CT again")
    _require_hounsfield(path, array, why_displaced(counts))  # after the slices, a few of which may displace all
    for first, end in parts(slices):
        if end - first >= MIN_PART:
            part, of_part = slices[first:end], histogram(slices[first:end])
            reason = why_not_hounsfield(part, of_part) or why_displaced(of_part)
            _require_hounsfield(f"{path}, slices {first + 1} to {end}", part, reason)
    return volume


def _require_hounsfield(name: str | PathLike[str], array: np.ndarray, reason: str | None) -> None:
    """Raise UserError if there is a reason why an array cannot be HU."""
    if reason:
        raise UserError(
            f"{name}: the values, {array.min()} to {array.max()}, are not the HU of a chest: {reason}; "
            "export the CT again in HU"
        )


def read_image(path: str | PathLike[str]) -> Volume:
    """Return the volume of `open_image`."""
    return open_image(path).volume


def open_image(path: str | PathLike[str], series: str = "") -> Image:
    """Read an image from a NIfTI, NRRD or MetaImage file, an enhanced CT, a folder with a DICOM series, or an archive.

    The axes of an image file keep their order and direction, which the affine describes. Values are rounded to the
    nearest int16. NaN (outside the field of view) and values below `AIR` become `AIR`.

    Args:
      path: file that ends in one of `IMAGE_SUFFIXES`, file of an enhanced (multi-frame) CT, folder, or archive that
        ends in one of `ARCHIVE_SUFFIXES` and contains one of these.
      series: SeriesInstanceUID of the CT series to read from a folder or archive; "" for the only one. A file holds
        no other.

    Returns:
      Its volume, and the files of a DICOM series.

    Raises:
      UserError: the file is missing, damaged, of another kind or not a 3D scalar image, or its header is incomplete or
        contradictory; or the folder contains no or several CT series, or a series that `assemble_series` refuses.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return Image(*_read_series(path, series))
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file or folder; correct the path")
    if path.lower().endswith(ARCHIVE_SUFFIXES):
        with unpacked(path) as folder:
            return _open_unpacked(folder, path, series)
    if not path.lower().endswith(IMAGE_SUFFIXES):
        return Image(_read_enhanced(path), None)
    array, affine = read_file(path)
    return Image(require_geometry(path, check_geometry(path, Volume(array, affine))), None)


def _read_series(folder: str, series: str) -> tuple[Volume, list[str] | None]:
    """Read the one CT series in a folder, and return its files if DICOM objects can refer to them."""
    found = read_folder(folder, series)
    volume = require_geometry(folder, found.volume)
    return volume, None if found.multi_frame or found.scattered else found.files


def _open_unpacked(folder: str, archive: str, series: str) -> Image:
    """Read the only image in the folder of an unpacked archive; its headers have their names in the archive."""
    images = sorted(name for name in walk(folder) if name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name))
    found = index_series(folder) if images else {}
    if not images or series in found:
        volume, slices = _read_series(folder, series)
        headers = None if slices is None else [read_dataset(path, stop_before_pixels=True) for path in slices]
        for header in headers or []:
            header.filename = str(header.filename).replace(folder, archive)
        return Image(volume, headers)
    if len(images) > 1 or found:
        shown = ", ".join(os.path.relpath(name, folder) for name in images[:3])
        raise UserError(f"{folder}: contains several images ({shown}, ...); give one that contains exactly one")
    return open_image(images[0])


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")


def _read_enhanced(path: str) -> Volume:
    """Read a file that may be an enhanced CT. Raise UserError, which says what it is, if it is anything else."""
    kinds = ", ".join((*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES))
    enhanced, kind = False, ""
    with quiet_pydicom():
        try:
            header = read_dataset(path, stop_before_pixels=True)
            enhanced, kind = is_enhanced(header), getattr(header.get("SOPClassUID"), "name", "")
            if not enhanced and str(header.get("Modality") or "CT").strip().upper() == "CT":
                require_placed_frames(path, header)
        except InvalidDicomError as error:
            found, give = kind_of(path), f"give {kinds} or a folder of DICOM files"
            if found:
                raise UserError(f"{path}: {what_it_is(found, give)}") from error
            if not path.lower().endswith(".dcm"):
                raise UserError(f"{path}: not an image; {give}") from error
        except PermissionError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
        except DAMAGED:
            pass  # which reading the folder reports
    if "Segmentation" in kind or "RT Structure" in kind:
        raise UserError(
            f"{path}: a DICOM {kind.removesuffix(' Storage')}, which is not read here; convert it to NIfTI"
        )
    if not enhanced:
        raise UserError(f"{path}: a single DICOM file; give the folder that contains the whole series")
    return assemble_series([path]).volume
