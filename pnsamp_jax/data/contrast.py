"""Whether a mask marks something: a nodule is brighter than what lies around it, at least on one side.

A mask that was shifted or belongs to another image marks lung. Of the masks of 2,298 nodules of LIDC-IDRI, the least
contrast is 26 HU. Two have less than 60 HU, of which one would have three times as much up to 6 voxels aside, and the
other less. A third of these masks are found if they are shifted by 6 voxels, and half by 12; those shifted along the
body or by less than the nodule's size hardly are.
"""

import itertools

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.errors import UserError

SHELL_MM = 1.0, 4.0  # from the mask: what surrounds a nodule
WINDOW_HU = -1000, 200  # beyond which contrast does not count, as that of bone
NONE_HU = 15  # of contrast: less is nothing
LOW_HU = 60  # less is nothing too, if there is much more aside
TIMES = 5  # how much more
ASIDE = 3, 6  # voxels within the slices
LEAST_SHARE = 0.7  # of the mask and of its shell, that has to lie in the image


def require_contrast(what: str, readers: Volume, ct: Volume) -> None:
    """Raise UserError if a mask marks what is no brighter than its surroundings.

    Args:
      what: the mask as the message calls it, after the file or the scan that has it.
      readers: (readers, d, h, w) bool, of which at least one marks a voxel that counts.
      ct: (depth, height, width) HU.
    """
    marked, around = _places(Volume(np.any(readers.array, axis=0), readers.affine), ct)
    here = _contrast(marked, around, ct)
    if here is None or here >= LOW_HU:
        return
    across = np.insert(np.array(list(itertools.product((-1, 0, 1), repeat=2))), ct.body_axis, 0, axis=1)  # (9, 3)
    steps = [size * step for size in ASIDE for step in across]
    aside = max(_contrast(marked + step, around + step, ct) or 0.0 for step in steps)
    if here < NONE_HU or TIMES * here < aside:
        raise UserError(
            f"{what} marks nothing that differs from its surroundings ({here:.0f} HU brighter, and up to {aside:.0f} "
            f"HU within {max(ASIDE)} voxels); check that mask and image belong together"
        )


def _places(mask: Volume, ct: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices in a CT of the voxels that a mask marks and of those around them, (n, 3) and (m, 3)."""
    index = ct.to_index(mask.to_lps(np.argwhere(mask.array)))
    margin = SHELL_MM[1] / ct.spacing + 1
    low = np.maximum(np.floor(index.min(axis=0, initial=np.inf) - margin), 0)
    high = np.minimum(np.ceil(index.max(axis=0, initial=-np.inf) + margin) + 1, ct.array.shape)
    if (high <= low).any():  # an empty mask, or one outside the image
        return np.empty((0, 3), int), np.empty((0, 3), int)
    to_mask = np.linalg.inv(mask.affine) @ ct.affine
    marked = ndimage.affine_transform(
        mask.array.astype(np.uint8),
        to_mask[:3, :3],
        to_mask[:3, :3] @ low + to_mask[:3, 3],
        output_shape=tuple((high - low).astype(int)),
        order=0,
        mode="grid-constant",
    )
    away_mm = ndimage.distance_transform_edt(marked == 0, sampling=ct.spacing)
    around = (away_mm >= SHELL_MM[0]) & (away_mm <= SHELL_MM[1])
    return np.argwhere(marked) + low.astype(int), np.argwhere(around) + low.astype(int)


def _contrast(marked: np.ndarray, around: np.ndarray, ct: Volume) -> float | None:
    """Return the median of what is marked above the lower quartile around it in HU; None if too little is in a CT.

    Args:
      marked: (n, 3) indices.
      around: (m, 3) indices.
      ct: (depth, height, width) HU.
    """
    found = []
    for index in (marked, around):
        inside = ((index >= 0) & (index < ct.array.shape)).all(axis=1)
        if inside.sum() <= LEAST_SHARE * len(index):  # as of none
            return None
        found.append(ct.array[tuple(index[inside].T)].clip(*WINDOW_HU))
    return float(np.median(found[0]) - np.percentile(found[1], 25))
