"""A volume of voxels and its geometry.

Arrays are indexed (d, h, w) = (depth, height, width). Points are (x, y, z) in mm in the LPS coordinates of DICOM and
ITK. A (4, 4) affine maps array indices to points. HU are int16 and at least `AIR`: in every file format, voxels
outside the scanner's field of view (padding, -2000 in files from GE) become air.
"""

from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax.errors import UserError

AIR = -1024  # HU; the lowest value of a volume
SPACING_MM = 0.1, 20.0  # smallest and largest accepted voxel spacing; others are probably not in mm
MAX_WIDTH_MM = 850  # of a slice; the widest extended fields of view are of 800 to 820 mm
MATRIX_SIDES = 512, 768, 1024  # pixels along both sides of a CT's slices, unless they were cropped or resampled
SAME_SPACING = 0.01  # share by which spacings differ that were rounded


@dataclass(frozen=True)
class Volume:
    """Voxels and their position in the patient.

    Attributes:
      array: (..., depth, height, width).
      affine: (4, 4) float64 that maps the array index (d, h, w, 1) to LPS mm.
    """

    array: np.ndarray
    affine: np.ndarray

    def to_lps(self, index: ArrayLike) -> np.ndarray:
        """Return LPS points (..., 3) in mm as (x, y, z), given array indices (..., 3) as (d, h, w)."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, point_lps: ArrayLike) -> np.ndarray:
        """Return fractional array indices (..., 3) as (d, h, w), given LPS points (..., 3) in mm as (x, y, z)."""
        return (np.asarray(point_lps, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    @property
    def body_axis(self) -> int:
        """Return which axis of the array runs most along the body, from feet to head or back."""
        return int(np.abs(self.affine[2, :3] / self.spacing).argmax())

    def holds(self, point_lps: ArrayLike) -> bool:
        """Return whether a point (3,) in LPS mm lies within a voxel of the volume."""
        if not np.isfinite(point_lps).all():
            return False
        index = self.to_index(point_lps)
        return bool(((index >= -0.5) & (index <= np.array(self.array.shape[-3:]) - 0.5)).all())

    @property
    def spacing(self) -> np.ndarray:
        """Return the distances (3,) in mm between neighbouring voxels along d, h, w."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def check_geometry(path: str | PathLike[str], volume: Volume) -> Volume:
    """Return the volume if its geometry is plausible.

    Args:
      path: file or folder of the volume, named in the error message.
      volume: to check.

    Raises:
      UserError: a spacing is outside `SPACING_MM`, the affine is not finite, the axes are far from perpendicular, or
        the slices are wider than any scanner's field of view, or have two spacings, as after axes were swapped.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = volume.spacing
    low, high = SPACING_MM
    if not (low <= spacing.min() and spacing.max() <= high and np.isfinite(volume.affine).all()):
        sizes = " x ".join(f"{size:.3g}" for size in spacing[::-1])
        raise UserError(
            f"{path}: implausible spacing or origin: voxels of {sizes} mm, but {low:g} to {high:g} mm are accepted; "
            "correct the header"
        )
    if abs(np.linalg.det(volume.affine[:3, :3] / spacing)) < 0.8:  # a gantry tilts by at most 30 degrees: cos is 0.87
        raise UserError(f"{path}: the axes are far from perpendicular; correct the directions in the header")
    sides = np.array(volume.array.shape[-3:])
    along_body = np.abs(volume.affine[:3, :3]).argmax(axis=0) == 2
    width = (spacing * sides)[~along_body].max(initial=0)
    if width > MAX_WIDTH_MM:
        raise UserError(
            f"{path}: its slices are {width:.0f} mm wide, wider than a CT scanner sees, as if the spacing of "
            "two axes was exchanged or is not in mm; correct the header"
        )
    if _are_exchanged(sides, spacing):
        sizes = " x ".join(f"{size:.3g}" for size in spacing[::-1])
        shape = " x ".join(map(str, sides[::-1]))
        raise UserError(
            f"{path}: its header has voxels of {sizes} mm for {shape} of them, as if two axes were exchanged; save it "
            "with the axes of the array in the order of those of the header"
        )
    return volume


def _are_exchanged(sides: np.ndarray, spacing: np.ndarray) -> bool:
    """Return whether the two sides (of 3) of a CT's slices differ in spacing, and the other side has that of one."""
    pair = [axis for axis in range(3) if sides[axis] in MATRIX_SIDES and (sides == sides[axis]).sum() == 2]
    if not pair:
        return False
    ratios = spacing[pair] / spacing[3 - sum(pair)]
    same = np.abs(ratios - 1) < SAME_SPACING
    return bool(same.sum() == 1)


def is_default_geometry(affine: np.ndarray) -> bool:
    """Return whether an affine (4, 4) is the one that libraries write where nothing is known of an array's geometry.

    Its voxels are of 1 mm along the axes of LPS, and its origin is 0.
    """
    axes, spacing = np.abs(affine[:3, :3]), np.linalg.norm(affine[:3, :3], axis=0)
    along_lps = np.allclose(axes.max(axis=0), 1, rtol=0, atol=1e-6)  # and perpendicular, as `check_geometry` found
    return bool(along_lps and np.allclose(spacing, 1, rtol=0, atol=1e-6) and not affine[:3, 3].any())


def require_geometry(path: str | PathLike[str], volume: Volume) -> Volume:
    """Return the volume unless its geometry seems to have been lost when it was saved.

    A CT that was resampled to 1 mm may rightly have the geometry of `is_default_geometry`, but then its slices hardly
    have the pixels of a scanner's. What a prediction finds in such a CT is noted with its findings.

    Args:
      path: file or folder of the volume, named in the error message.
      volume: whose geometry `check_geometry` accepted.

    Raises:
      UserError: two sides are the same one of `MATRIX_SIDES`, and the geometry is that of `is_default_geometry`.
    """
    as_scanned = any(volume.array.shape[-3:].count(side) >= 2 for side in MATRIX_SIDES)
    if as_scanned and is_default_geometry(volume.affine):
        raise UserError(
            f"{path}: its header has no geometry (voxels of 1 mm, origin 0), as if it was lost on saving; "
            "save it again with the spacing, origin and directions of the original CT"
        )
    return volume
