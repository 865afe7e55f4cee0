"""What is known of one nodule, in the form that every file that shows it reads."""

from dataclasses import dataclass, replace

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.data import schema


@dataclass(frozen=True)
class Finding:
    """What the network says of one nodule, and the voxels round it.

    A patch is a cube (S, S, S) of isotropic voxels centred on the point; its axes run towards S(uperior),
    P(osterior), L(eft), as `data.patches` has it: index 0 is the most inferior, anterior and right voxel.

    Attributes:
      nodule_id: of letters, digits, ".", "_" and "-"; unique among the findings that are shown together.
      image: the CT, as the user named it.
      point_mm: (3,) LPS mm, where the nodule was said to be.
      spacing_mm: size of a patch's voxel.
      hu: patch of int16.
      mask: patch of bool, the predicted segmentation.
      probabilities: (9, 6) in the order of `schema.RATINGS`, class k at index k-1; 0 where a rating lacks the class.
      ensemble_spread: standard deviation of the expected malignancy over the networks of the ensemble, NaN for one.
      flip_spread: the same over the flips of the patch, NaN without.
      contributions: by how much each part raises the expected malignancy above what it would be if that part were
        an average nodule's: the eight attributes by name, then "image", what is read off the image directly.
      saliency: patch of float32, by how much the voxels there raise the expected malignancy; None if not computed.
      volume_mm3: of the mask.
      diameter_mm: the longest in any axial slice of the mask.
      readers_mask: patch of bool, the readers' consensus; None if not known.
      truth: (9,) int, the rounded mean of the readers, 0 where there is none; None if not known.
    """

    nodule_id: str
    image: str
    point_mm: np.ndarray
    spacing_mm: float
    hu: np.ndarray
    mask: np.ndarray
    probabilities: np.ndarray
    ensemble_spread: float
    flip_spread: float
    contributions: dict[str, float]
    saliency: np.ndarray | None
    volume_mm3: float
    diameter_mm: float
    readers_mask: np.ndarray | None = None
    truth: np.ndarray | None = None

    def without_patches(self) -> "Finding":
        """The same with empty patches: of many nodules these are nearly all of the memory."""
        nothing = np.zeros((0, 0, 0))
        return replace(self, hu=nothing, mask=nothing, saliency=None, readers_mask=None)

    @property
    def arg_max(self) -> np.ndarray:
        """(9,) int: the likeliest class of each rating."""
        return metrics.arg_max(self.probabilities)

    @property
    def within_one(self) -> np.ndarray:
        """(9,) int: the class of each rating that is best within one."""
        return metrics.best_within_one(self.probabilities)

    @property
    def expected(self) -> np.ndarray:
        """(9,) float: the mean of each rating; of little meaning for calcification, whose classes have no order."""
        return metrics.expected(self.probabilities)

    @property
    def suspicion(self) -> float:
        """P(4) + P(5) of malignancy, given that it is not 3."""
        p = self.probabilities[schema.MALIGNANCY]
        return float(p[3:].sum() / max(p[3:].sum() + p[:2].sum(), 1e-9))
