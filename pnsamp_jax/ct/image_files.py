"""Read an image file in the format that its suffix names."""

import re
import zlib
from collections.abc import Iterator

import numpy as np

from pnsamp_jax.ct.file_kinds import METAIMAGE, NIFTI, NRRD, kind_of, what_it_is
from pnsamp_jax.ct.itk_files import itk_beyond_int16, read_itk
from pnsamp_jax.ct.nifti import nifti_beyond_int16, read_nifti
from pnsamp_jax.errors import UserError

KINDS = {".nii": NIFTI, ".nii.gz": NIFTI, ".nrrd": NRRD, ".nhdr": NRRD, ".mha": METAIMAGE, ".mhd": METAIMAGE}
IMAGE_SUFFIXES = tuple(KINDS)


def read_file(path: str, layer: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read an image file in the format that its suffix names.

    Args:
      path: the file, or its header if the voxels are in a separate file.
      layer: which one to read of an NRRD that has several, as of overlapping segments; None for an image.

    Returns:
      (d, h, w) int16, with NaN and values below `AIR` set to `AIR`; and the (4, 4) affine that maps the index
      (d, h, w, 1) to LPS mm.

    Raises:
      UserError: the file is damaged or not a 3D scalar image, or its header is incomplete or contradictory.
    """
    try:
        _require_kind(path)
        return read_nifti(path) if path.lower().endswith((".nii", ".nii.gz")) else read_itk(path, layer)
    except (RuntimeError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if re.search(r"[a-z]{3}", line)]  # not of a matrix
        lines = [line for line in lines if not line.startswith("Reason:")]
        reason = re.sub(r"^.*ERROR: |\w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else type(error).__name__)
        advice = "check that it is complete"
        if path.lower().endswith((".mhd", ".nhdr")):
            advice += " and that its data file is in the same folder"
        raise UserError(f"{path}: cannot be read ({reason}); {advice}") from error


def values_beyond_int16(path: str) -> Iterator[np.ndarray]:
    """Yield the values of an image file as they are, before `read_file` rounds and clips them.

    Args:
      path: a file that `read_file` has read, with one layer.

    Yields:
      (h, w) of each plane; nothing if int16 holds all values that the file can have.
    """
    yield from nifti_beyond_int16(path) if path.lower().endswith((".nii", ".nii.gz")) else itk_beyond_int16(path)


def _require_kind(path: str) -> None:
    """Raise UserError if a file is of another kind than its suffix says."""
    kind = kind_of(path)
    expected = {KINDS[suffix] for suffix in IMAGE_SUFFIXES if path.lower().endswith(suffix)}
    if kind and kind not in expected:
        raise UserError(f"{path}: {what_it_is(kind, 'give the image itself')}")
