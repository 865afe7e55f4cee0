"""Where in the CT a nodule is: a small view of the whole axial slice through its point, for the report."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import AIR, Volume

LARGEST = 128  # pixels on a side: 16 kB for each nodule, and enough to recognise the slice
LOW, HIGH = -1400, 200  # HU: the lung window of width 1600 and level -600


class Locator(NamedTuple):
    """An axial slice of a CT as radiologists see it: anterior on top, the patient's right on the left.

    Attributes:
      grey: (H, W) uint8 in the lung window, at most `LARGEST` on a side.
      corner_mm: (2,) LPS x and y of the outer corner of the upper left pixel.
      pixel_mm: edge length of a pixel.
    """

    grey: np.ndarray
    corner_mm: np.ndarray
    pixel_mm: float


def make_locator(ct: Volume, point_mm: np.ndarray) -> Locator:
    """Return the axial slice through a point (3,) in LPS mm of a CT in any orientation; air surrounds the CT."""
    last = np.array(ct.array.shape) - 1
    corners = np.stack(np.meshgrid(*([-0.5, end + 0.5] for end in last)), axis=-1).reshape(-1, 3)
    corners_mm = ct.to_lps(corners)[:, :2]
    corner_mm, sides_mm = corners_mm.min(axis=0), np.ptp(corners_mm, axis=0)
    voxel_mm = float(ct.spacing.min())
    pixel_mm = max(voxel_mm, float(sides_mm.max()) / LARGEST)
    columns, rows = np.clip(np.rint(sides_mm / pixel_mm), 1, LARGEST).astype(int)
    splits = max(1, round(pixel_mm / voxel_mm))  # pixels are means over the CT's finer voxels
    z_mm = ct.to_lps(np.clip(ct.to_index(point_mm), 0, last))[2]  # half a voxel beyond the last slice shows the last
    step = pixel_mm / splits
    to_mm = np.array(  # from the index (0, row, column) of the finer pixels
        [[0, 0, step, corner_mm[0] + step / 2], [0, step, 0, corner_mm[1] + step / 2], [1, 0, 0, z_mm], [0, 0, 0, 1]]
    )
    to_index = np.linalg.inv(ct.affine) @ to_mm
    hu = ndimage.affine_transform(
        ct.array,
        to_index[:3, :3],
        to_index[:3, 3],
        output_shape=(1, rows * splits, columns * splits),
        output=np.float32,
        order=1,
        mode="grid-constant",
        cval=AIR,
    )
    means = hu.reshape(rows, splits, columns, splits).mean(axis=(1, 3))
    grey = np.clip(np.rint((means - LOW) * (255 / (HIGH - LOW))), 0, 255).astype(np.uint8)
    return Locator(grey, corner_mm, pixel_mm)
