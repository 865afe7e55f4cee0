"""The finding: everything predicted and known about one nodule, from which all output files are written."""

from dataclasses import dataclass, replace

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import patch_affine
from pnsamp_jax.inference import likeness
from pnsamp_jax.inference.diameters import Diameters
from pnsamp_jax.inference.locator import Locator
from pnsamp_jax.inference.masks import onto_grid
from pnsamp_jax.inference.what_if import WhatIf

# A ball of 3 mm: LIDC-IDRI's readers were asked to outline no smaller nodules. On 28 of them that PN-SAMP M at 0.6 mm
# segmented smaller, Dice was 0.49; just above, 0.64 on 43.
SMALL_MM3 = 14.1
# Of 187 nodules whose centroid was given, 5 masks began further away: none of them was of the nodule (Dice 0 to 0.06).
FAR_MM = 1.0
OK, NOTHING = "ok", "nothing segmented"  # the status of a finding


@dataclass(frozen=True)
class Finding:
    """The network's predictions for one nodule, and the voxels around it.

    A patch is a cube (S, S, S) of isotropic voxels around the point or, where the outline lay off its middle, around
    the outline. As in `data.patches`, its axes run towards S(uperior), P(osterior) and L(eft): index 0 is the most
    inferior, anterior and right voxel.

    Attributes:
      nodule_id: of letters, digits, ".", "_" and "-"; unique among the findings that are shown together.
      image: the CT, as the user named it.
      point_mm: (3,) LPS mm, the position of the nodule as given by the user.
      spacing_mm: edge length of a patch's voxel.
      hu: patch of int16.
      mask: patch of bool, the predicted segmentation.
      probabilities: (9, 6) in the order of `schema.RATINGS`, class k at index k-1; 0 where a rating lacks the class.
      ensemble_spread: standard deviation of the expected malignancy over the networks of the ensemble; NaN if there
        is only one network.
      flip_spread: the same over the flips of the patch; NaN without flips.
      contributions: by how much each part raises the expected malignancy, compared with the same nodule with that
        part replaced by an average nodule's: the eight attributes by name, then "image", which is the contribution
        of the image features that bypass the attributes.
      saliency: patch of float32, by how much each voxel raises the expected malignancy; None if not computed.
      volume_mm3: of the mask; 0 if nothing is segmented, and the predicted ratings then mean nothing.
      diameters: the axes in the axial slice in which the mask is longest.
      truncated: whether the mask reaches the border of the patch or of the image, so that volume and diameters are
        lower bounds.
      probability: patch of float32 of which the mask is the central component above one half; None if not kept.
      distance_mm: from the point to the nearest voxel of the mask.
      hint: what may be wrong with a point at which nothing is segmented; "" if nothing is known.
      readers_mask: patch of bool, the readers' consensus; None if unknown.
      truth: (9,) int, the readers' class (`cohort.labels`), 0 for a rating that they did not give; None if unknown.
      locator: the axial slice of the CT through the point; None where the CT is not known.
      class_sets: (2, 9, 6) bool, the sets of classes by `conformal.COVERAGES`; None if not known.
      volume_range_mm3: interval of the volume, see `extent`; None if not known.
      diameter_range_mm: that of the long axis.
      average_malignancy: expected malignancy of an average nodule, which the contributions add up from; None where
        they do not add up.
      what_if: for moving the ratings of the attributes; None where the networks do not allow it.
      nodule_like: how much this looks like the nodules that the networks learnt from, 0 to 1; None if not known.
      centre_mm: (3,) LPS mm, the centre of the patches; None for the point.
      default_geometry: whether the CT has the voxels and the origin that libraries write where they know none.
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
    diameters: Diameters
    truncated: bool = False
    probability: np.ndarray | None = None
    distance_mm: float = 0.0
    hint: str = ""
    readers_mask: np.ndarray | None = None
    truth: np.ndarray | None = None
    locator: Locator | None = None
    class_sets: np.ndarray | None = None
    volume_range_mm3: tuple[float, float] | None = None
    diameter_range_mm: tuple[float, float] | None = None
    average_malignancy: float | None = None
    what_if: WhatIf | None = None
    nodule_like: float | None = None
    centre_mm: np.ndarray | None = None
    default_geometry: bool = False

    def without_patches(self) -> "Finding":
        """Return a copy with empty patches and no locator, which take up nearly all of a finding's memory."""
        nothing = np.zeros((0, 0, 0))
        empty = replace(self, hu=nothing, mask=nothing, saliency=None, probability=None, readers_mask=None)
        return replace(empty, locator=None)

    def mask_on(self, shape: tuple[int, ...], affine: np.ndarray) -> Volume:
        """Return the mask on the grid of the CT; see `masks.onto_grid`."""
        patch = Volume(self.mask, patch_affine(self.patch_centre_mm, len(self.mask), self.spacing_mm))
        return onto_grid(patch, shape, affine, self.probability)

    @property
    def patch_centre_mm(self) -> np.ndarray:
        """Return the centre of the patches, (3,) LPS mm."""
        return self.point_mm if self.centre_mm is None else self.centre_mm

    @property
    def segmented(self) -> bool:
        """Return whether the mask marks a voxel. If not, there is no answer: the network rates what it outlines."""
        return self.volume_mm3 > 0

    @property
    def status(self) -> str:
        """Return the status in predictions.csv."""
        return OK if self.segmented else NOTHING

    @property
    def uncertain(self) -> bool:
        """Return whether the mask may be of something else than a nodule at the point."""
        return self.unlike_nodules or self.volume_mm3 < SMALL_MM3 or self.distance_mm > FAR_MM

    @property
    def unlike_nodules(self) -> bool:
        """Return whether this does not look like the nodules that the networks learnt from, as far as they know."""
        return self.nodule_like is not None and self.nodule_like < likeness.LEAST

    @property
    def note(self) -> str:
        """Return what a reader of the prediction must know, in words; "" if there is nothing to note."""
        if not self.segmented:
            return "; ".join(filter(None, ("nothing is segmented at this point", self.hint)))
        notes = []
        if self.unlike_nodules:
            notes.append("uncertain: this does not look like the nodules that the network learnt from")
        if self.truncated:
            notes.append("the mask reaches the border of the patch or image: volume and diameters are lower bounds")
        if self.volume_mm3 < SMALL_MM3:
            notes.append(f"uncertain: only {self.volume_mm3:.0f} mm3 are segmented, less than a ball of 3 mm")
        if self.distance_mm > FAR_MM:
            notes.append(f"uncertain: the mask begins {self.distance_mm:.0f} mm away from the point")
        if self.default_geometry:
            notes.append("unless the CT was resampled to 1 mm, all sizes are wrong: its header has no geometry")
        if self.unsure:
            first, *_, last = self.malignancy_set
            notes.append(f"unsure: radiologists may rate the malignancy anything from {first} to {last}")
        return "; ".join(notes)

    @property
    def arg_max(self) -> np.ndarray:
        """Return the likeliest class of each rating, (9,) int."""
        return metrics.arg_max(self.probabilities)

    @property
    def within_one(self) -> np.ndarray:
        """Return the best class within one of each rating, (9,) int, 0 for a nominal one.

        See `metrics.best_within_one`; classes without an order are not one apart.
        """
        return np.where(schema.NOMINAL, 0, metrics.best_within_one(self.probabilities))

    @property
    def words(self) -> tuple[str, ...]:
        """Return the meaning of the likeliest class of each of the nine ratings."""
        return tuple(rating.words[k - 1] for rating, k in zip(schema.RATINGS, self.arg_max, strict=True))

    @property
    def expected(self) -> np.ndarray:
        """Return the mean of each rating, (9,) float, NaN for a nominal one: classes without an order have no mean."""
        return np.where(schema.NOMINAL, np.nan, metrics.expected(self.probabilities))

    @property
    def malignancy_set(self) -> tuple[int, ...]:
        """Return the malignancy classes that hold the readers' in 8 of 10 nodules; () if not known."""
        if self.class_sets is None:
            return ()
        return tuple(int(k) + 1 for k in np.flatnonzero(self.class_sets[0, schema.MALIGNANCY]))

    @property
    def unsure(self) -> bool | None:
        """Return whether the malignancy set reaches from the unsuspicious to the suspicious; None if not known."""
        classes = self.malignancy_set
        return min(classes) <= 2 and max(classes) >= 4 if classes else None

    @property
    def malignant_probability(self) -> float:
        """Return P(4) + P(5) of malignancy, given that the class is not 3."""
        return float(metrics.malignant_probability(self.probabilities[schema.MALIGNANCY]))
