"""Predicted masks: resample them from the network's patch to the CT's own grid, and measure them."""

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume

THRESHOLD = 0.5  # a voxel belongs to the mask if its probability is higher
RIM = 2  # voxels around a mask in which its probability falls off
LEAST_THRESHOLD = 0.05  # below, nothing is segmented: the expected Dice would be under 0.1
# Of ground glass and of large nodules, networks mark too little. What corrects it was chosen on validation nodules
# (experiments/RESULTS.md, "Masks by density and size").
THIN_TEXTURE = 3.0  # expected class of the texture from which a nodule is part-solid or solid
THIN_SHIFT = 2.5  # of the logits, for each class that the texture lies below
SIZE_SHIFT = 0.3  # for each factor of e by which the volume is larger than
TYPICAL_MM3 = 100.0
SAMPLE_MM = 0.6  # largest distance between the points over which a voxel's share of a mask is averaged


def best_threshold(probability: np.ndarray) -> float:
    """Return the threshold above which the voxels have the largest expected Dice, at least `LEAST_THRESHOLD`.

    If the probabilities hold, the n most probable voxels have an expected Dice of about 2 s_n / (n + s), where s_n is
    the sum of their probabilities and s that of all. Half of the largest value is the threshold that gives it (Lipton,
    Elkan and Narayanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", ECML PKDD 2014). So where a
    network is in doubt about all of a nodule, as with ground glass, it is outlined all the same.

    Args:
      probability: of each voxel, in any shape.
    """
    ordered = np.sort(probability, axis=None)[::-1].astype(np.float64)
    halves = np.cumsum(ordered) / (np.arange(1, ordered.size + 1) + ordered.sum())
    return max(LEAST_THRESHOLD, float(halves.max()))


def at_one_half(probability: np.ndarray) -> np.ndarray:
    """Shift the logits of a mask's probabilities so that its `best_threshold` becomes one half."""
    return with_threshold(probability, best_threshold(probability)).astype(np.float32)


def with_threshold(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Shift the logits of probabilities so that a threshold becomes one half."""
    return shift_logits(probability, np.log((1 - threshold) / threshold))


def adapted(probability: np.ndarray, texture: float, spacing_mm: float, share: float) -> np.ndarray:
    """Raise the logits of a mask for ground glass and for a large nodule, and lower them for a small one.

    A mask in which nothing is segmented stays as it is.

    Args:
      probability: of each voxel, in any shape.
      texture: expected class of the nodule's texture, from 1 for ground glass to 5 for solid.
      spacing_mm: size of a voxel.
      share: of the shift that is added; 0 changes nothing.
    """
    if not share or probability.max() <= LEAST_THRESHOLD:
        return probability
    volume_mm3 = float(probability.sum(dtype=np.float64)) * spacing_mm**3
    shift = THIN_SHIFT * max(0.0, THIN_TEXTURE - texture) + SIZE_SHIFT * np.log(volume_mm3 / TYPICAL_MM3)
    return shift_logits(probability, share * shift)


def shift_logits(probability: np.ndarray, shift: float) -> np.ndarray:
    """Add a number to the logits of probabilities; those of 0 and 1 stay."""
    likelier = probability * np.exp(shift)
    return likelier / (likelier + 1 - probability)


def central_component(mask: np.ndarray) -> np.ndarray:
    """Return the face-connected component of a mask (D, H, W) bool that lies nearest to the centre of the array.

    If several components are equally near, the largest is returned. An empty mask stays empty.
    """
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    voxels = np.argwhere(mask)
    squared_distance = ((voxels - (np.array(mask.shape) - 1) / 2) ** 2).sum(axis=1)
    nearest = ndimage.minimum(squared_distance, labels[mask], np.arange(1, count + 1))
    size = np.bincount(labels[mask], minlength=count + 1)[1:]
    return labels == 1 + np.lexsort((-size, nearest))[0]


def onto_grid(
    mask: Volume, shape: tuple[int, ...], affine: np.ndarray, probability: np.ndarray | None = None
) -> Volume:
    """Resample a mask onto another grid without changing its volume.

    Compute which share of each voxel of the grid the mask covers, then mark the voxels with the largest shares, as
    many as make up the mask's volume. The volume is therefore kept to within half a voxel of the grid, and at least
    one voxel is marked. Parts of the mask outside the grid are dropped and do not count towards the volume.

    If the probability is given of which the mask is a part above a threshold, the voxels with the largest mean
    probability are marked instead. The outline then runs between the voxels of the patch.

    Args:
      mask: (d, h, w) bool with its affine.
      shape: (depth, height, width) of the grid.
      affine: (4, 4) from the grid's index to LPS mm, in any orientation.
      probability: (d, h, w) that a voxel belongs to the nodule; None if only the mask is known.

    Returns:
      Volume of bool with that shape and affine.
    """
    result = Volume(np.zeros(shape, bool), affine)
    marked = np.argwhere(mask.array)
    if not len(marked):
        return result
    # Work only on the part of the grid that the mask can touch: the bounding box, on the grid, of the corners of the
    # mask's own bounding box, which is first enlarged by the rim.
    corners = np.stack(np.meshgrid(*np.stack([marked.min(0) - RIM, marked.max(0) + RIM], 1), indexing="ij"), -1)
    grid_index = result.to_index(mask.to_lps(corners.reshape(-1, 3)))
    low = np.clip(np.floor(grid_index.min(0)).astype(int), 0, shape)
    high = np.clip(np.ceil(grid_index.max(0)).astype(int) + 1, 0, shape)
    if (low >= high).any():
        return result

    samples = np.maximum(1, np.ceil(result.spacing / SAMPLE_MM - 1e-6)).astype(int)  # per voxel, along each axis
    fine = [low[i] - 0.5 + (np.arange((high - low)[i] * samples[i]) + 0.5) / samples[i] for i in range(3)]
    points = mask.to_index(result.to_lps(np.stack(np.meshgrid(*fine, indexing="ij"), -1)))
    field = mask.array.astype(np.float32) if probability is None else _with_rim(mask.array, probability)
    values = ndimage.map_coordinates(field, np.moveaxis(points, -1, 0), order=1, mode="grid-constant")
    blocks = np.stack([high - low, samples], axis=1).ravel()
    share = values.reshape(blocks).mean(axis=(1, 3, 5))

    covered_mm3 = _voxel_mm3(mask) * marked_inside(mask, result)
    count = min(max(1, round(covered_mm3 / _voxel_mm3(result))), int((share > 0).sum()))
    chosen = np.argsort(-share, axis=None, kind="stable")[:count]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    result.array[box].flat[chosen] = True
    return result


def _with_rim(mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the probability in a mask and in a rim around it, without other nodules as probable."""
    rim = ndimage.binary_dilation(mask, iterations=RIM) & (probability < probability[mask].min())
    return np.where(mask | rim, probability, 0).astype(np.float32)


def marked_inside(mask: Volume, grid: Volume) -> int:
    """Count the marked voxels of a mask whose centres lie inside a grid."""
    return int((inside(mask, grid.array.shape, grid.affine) & (mask.array > 0)).sum())


def inside(patch: Volume, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return which voxels of a patch (d, h, w) have their centre in an image: bool of that shape.

    Args:
      patch: with its affine.
      shape: (depth, height, width) of the image.
      affine: (4, 4) from the image's index to LPS mm.
    """
    points = patch.to_lps(np.moveaxis(np.indices(patch.array.shape), 0, -1))
    index = Volume(patch.array, affine).to_index(points)
    return np.all((index >= -0.5) & (index < np.array(shape) - 0.5), axis=-1)


def volume_mm3(mask: Volume) -> float:
    """Return the volume of a mask in mm^3."""
    return float(mask.array.sum() * _voxel_mm3(mask))


def is_truncated(patch: Volume, shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Return whether a mask reaches the outermost voxels of its patch or of the image, beyond which it may go on.

    Args:
      patch: (d, h, w) bool with its affine.
      shape: (depth, height, width) of the image.
      affine: (4, 4) from the image's index to LPS mm.
    """
    marked = np.argwhere(patch.array)
    to_image = np.linalg.inv(affine) @ patch.affine
    in_image = np.rint(marked @ to_image[:3, :3].T + to_image[:3, 3])
    grids = ((marked, patch.array.shape), (in_image, shape))
    return any(bool(((index <= 0) | (index >= np.array(size) - 1)).any()) for index, size in grids)


def distance_mm(mask: np.ndarray, spacing_mm: float, move: tuple[int, ...] = (0, 0, 0)) -> float:
    """Return the distance of a point from the nearest marked voxel of a cube (S, S, S); 0 if there is none.

    A point within or between the voxels of the mask counts as inside: 0.

    Args:
      mask: bool.
      spacing_mm: size of a voxel.
      move: voxels along each axis from the point to the centre of the cube.
    """
    point = (np.array(mask.shape) - 1) / 2 - np.array(move)
    away = np.maximum(np.abs(np.argwhere(mask) - point) - 0.5, 0)
    return float(spacing_mm * np.linalg.norm(away, axis=1).min(initial=np.inf)) if mask.any() else 0.0


def _voxel_mm3(volume: Volume) -> float:
    return float(abs(np.linalg.det(volume.affine[:3, :3])))
