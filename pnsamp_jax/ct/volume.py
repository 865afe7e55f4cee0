"""A volume of voxels with its geometry.

One convention: arrays are indexed (d, h, w) = (depth, height, width), points are (x, y, z) in mm in the LPS system of
DICOM and ITK, and a (4, 4) affine leads from the first to the second. HU are int16 and never below `AIR`: what lies
outside the scanner's field of view (padding, GE's -2000) becomes air, whichever format it came in.
"""

from dataclasses import dataclass

import numpy as np

from pnsamp_jax.errors import UserError

AIR = -1024  # HU; the lowest value of a volume
SPACING_MM = 0.1, 20.0  # voxels beyond these are of another unit than mm


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
