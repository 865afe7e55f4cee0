"""What a mask has to be before its voxels are counted: of whole numbers, and without slices that were lost."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pnsamp_jax.ct.archives import ARCHIVE_SUFFIXES, unpacked
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.file_kinds import WAYS_OUT, kind_of
from pnsamp_jax.ct.image_files import IMAGE_SUFFIXES, values_beyond_int16
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under

WHOLE = 1e-3  # largest distance of a value from a whole number, as after a step through single precision
MAX_LABEL = int(np.iinfo(np.int16).max)
ADVICE = (
    "give the mask as NIfTI, NRRD or MetaImage with the geometry of its image, or as a DICOM Segmentation or RT "
    "Structure Set"
)
MOST_LOST = 3  # empty slices between two whose regions overlap; what is farther apart may be two nodules


def read_mask(path: Path) -> Volume:
    """Read an image file with labels, or an archive with one.

    Returns:
      (d, h, w) int16; NaN is `AIR`.

    Raises:
      UserError: `read_image` raises it, or a value is no label, as in a map of probabilities.
    """
    _require_mask(path)
    mask = read_image(path)
    name = path.name.lower()
    if name.endswith(IMAGE_SUFFIXES):
        _require_labels(path, values_beyond_int16(str(path)))
    elif name.endswith(ARCHIVE_SUFFIXES):
        with unpacked(str(path)) as folder:
            for file in files_under(folder, *IMAGE_SUFFIXES):
                _require_labels(path, values_beyond_int16(str(file)))
    return mask


def _require_mask(path: Path) -> None:
    """Raise UserError, with the advice for masks, if what a path names cannot be one; `read_image` speaks of CTs."""
    found = ""
    if path.is_dir():
        found = "" if index_series(path) else "a folder without a DICOM mask or slices"
    elif path.is_file() and not path.name.lower().endswith((*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES)):
        kind = kind_of(path)
        if path.suffix.lower() == ".npz":
            found = "an archive of NumPy"
        elif kind not in WAYS_OUT:
            found = kind or "no image"
    if found:
        raise UserError(f"{path}: is {found}; {ADVICE}")


def _require_labels(path: Path, planes: Iterable[np.ndarray]) -> None:
    """Raise UserError if values are no whole numbers, which rounding would hide, or beyond those of int16."""
    for plane in planes:
        values = plane[np.isfinite(plane)]
        rest = np.abs(values - np.rint(values)) > WHOLE
        if rest.any():
            raise UserError(
                f"{path}: contains {values[rest][0]:.4g}, as a map of probabilities does; a mask has whole numbers: "
                "threshold it, as at a probability of 0.5, and save 1 where the nodule is and 0 elsewhere"
            )
        if (plane > MAX_LABEL).any():
            raise UserError(f"{path}: contains {plane[plane > MAX_LABEL][0]:g}; give labels of at most {MAX_LABEL}")


def require_no_gap(path: Path, what: str, mask: Volume, axis: int) -> None:
    """Raise UserError if a mask is empty on a few slices between two that show the same part of it.

    Args:
      path: of the mask.
      what: is missing there, such as "ROI 3 lacks contours".
      mask: (d, h, w).
      axis: across its slices.
    """
    planes = np.moveaxis(mask.array > 0, axis, 0)
    marked = np.flatnonzero(planes.any(axis=(1, 2)))
    for below, above in zip(marked[:-1], marked[1:], strict=True):
        both = planes[below] & planes[above]
        smaller = min(planes[below].sum(), planes[above].sum())
        lost = int(above - below - 1)
        if 0 < lost <= MOST_LOST and 2 * both.sum() >= smaller:
            first = np.insert(np.argwhere(both)[0], axis, below + 1)
            raise UserError(
                f"{path}: {what} near {point_text(mask.to_lps(first))} mm, on {lost} slice{'s' * (lost > 1)} between "
                "two that overlap, as if they were lost; draw them or export it again"
            )


def point_text(point: np.ndarray) -> str:
    """Return a point (3,) in mm as a message shows it."""
    return ", ".join(f"{value:.1f}" for value in point)
