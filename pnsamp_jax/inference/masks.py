"""Predicted masks: from the network's patch to the CT's own grid, and what is measured of them."""

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist

from pnsamp_jax.ct.volume import Volume

SAMPLE_MM = 0.6  # a voxel's share of a mask is averaged over points at most this far apart


def central_component(mask: np.ndarray) -> np.ndarray:
    """The part of a mask (D, H, W) bool that hangs together by faces and lies nearest to the middle.

    Of parts that are equally near the largest; an empty mask stays empty.
    """
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    voxels = np.argwhere(mask)
    away, label = ((voxels - (np.array(mask.shape) - 1) / 2) ** 2).sum(axis=1), labels[mask]
    nearest = ndimage.minimum(away, label, np.arange(1, count + 1))
    size = np.bincount(label, minlength=count + 1)[1:]
    return labels == 1 + np.lexsort((-size, nearest))[0]


def onto_grid(mask: Volume, shape: tuple[int, ...], affine: np.ndarray) -> Volume:
    """Resamples a mask onto another grid and keeps its volume.

    Each voxel of the grid gets the share of it that the mask covers, and the voxels with the greatest shares are
    taken, as many as have the mask's volume: to within half a voxel of the grid, and one voxel at the least. What
    lies beyond the grid is lost, and counts no more.

    Args:
      mask: (d, h, w) bool with its affine.
      shape: (depth, height, width) of the grid.
      affine: (4, 4) from the grid's index to LPS mm, in any orientation.

    Returns:
      Volume of bool with that shape and affine.
    """
    result = Volume(np.zeros(shape, bool), affine)
    marked = np.argwhere(mask.array)
    if not len(marked):
        return result
    # The box of the grid that the mask can touch: where the corners of the mask's box, a voxel wider, come to lie.
    corners = np.stack(np.meshgrid(*np.stack([marked.min(0) - 1, marked.max(0) + 1], 1), indexing="ij"), -1)
    at = result.to_index(mask.to_lps(corners.reshape(-1, 3)))
    low = np.clip(np.floor(at.min(0)).astype(int), 0, shape)
    high = np.clip(np.ceil(at.max(0)).astype(int) + 1, 0, shape)
    if (low >= high).any():
        return result

    splits = np.maximum(1, np.ceil(result.spacing / SAMPLE_MM - 1e-6)).astype(int)
    fine = [low[i] - 0.5 + (np.arange((high - low)[i] * splits[i]) + 0.5) / splits[i] for i in range(3)]
    points = mask.to_index(result.to_lps(np.stack(np.meshgrid(*fine, indexing="ij"), -1)))
    values = ndimage.map_coordinates(
        mask.array.astype(np.float32), np.moveaxis(points, -1, 0), order=1, mode="grid-constant"
    )
    blocks = np.stack([high - low, splits], axis=1).ravel()
    share = values.reshape(blocks).mean(axis=(1, 3, 5))

    covered_mm3 = _voxel_mm3(mask) * marked_inside(mask, result)
    count = min(max(1, round(covered_mm3 / _voxel_mm3(result))), int((share > 0).sum()))
    chosen = np.argsort(-share, axis=None, kind="stable")[:count]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    result.array[box].flat[chosen] = True
    return result


def marked_inside(mask: Volume, grid: Volume) -> int:
    """How many of a mask's voxels have their centre within a grid."""
    at = grid.to_index(mask.to_lps(np.argwhere(mask.array)))
    return int(((at >= -0.5) & (at < np.array(grid.array.shape) - 0.5)).all(axis=1).sum())


def volume_mm3(mask: Volume) -> float:
    """Volume of a mask."""
    return float(mask.array.sum() * _voxel_mm3(mask))


def longest_axial_diameter_mm(mask: np.ndarray, spacing_mm: float) -> float:
    """The longest diameter of a mask in any axial slice, as a radiologist measures it; 0 of an empty one.

    From the centre of one voxel to that of another, and half a voxel at either end.

    Args:
      mask: (d, h, w) bool on an isotropic grid whose first axis is the body's.
      spacing_mm: size of a voxel.
    """
    longest = 0.0
    for plane in mask[mask.any(axis=(1, 2))]:
        rim = np.argwhere(plane & ~ndimage.binary_erosion(plane))
        longest = max(longest, 1 + pdist(rim).max(initial=0.0))
    return float(longest * spacing_mm)


def _voxel_mm3(volume: Volume) -> float:
    return float(abs(np.linalg.det(volume.affine[:3, :3])))
