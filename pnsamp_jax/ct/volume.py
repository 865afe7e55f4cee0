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
      UserError: a spacing is outside `SPACING_MM`, the affine is not finite, or the axes are far from perpendicular.
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
    return volume
