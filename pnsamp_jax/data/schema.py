"""The nine ratings and the features of a record: names and shapes that all other modules share."""

from typing import NamedTuple

import numpy as np


class Rating(NamedTuple):
    """One of the nine characteristics that LIDC-IDRI's readers rate.

    Attributes:
      name: as in columns and messages.
      words: the meaning of the classes 1, 2, ..., as LIDC-IDRI explained them to its readers.
      nominal: whether the classes are kinds without an order, so that neither their mean nor "off by one" means
        anything.
    """

    name: str
    words: tuple[str, ...]
    nominal: bool = False

    @property
    def classes(self) -> int:
        """Return the number of classes; readers give an integer from 1 to it."""
        return len(self.words)


RATINGS = (
    Rating("subtlety", ("extremely subtle", "moderately subtle", "fairly subtle", "moderately obvious", "obvious")),
    Rating("internal_structure", ("soft tissue", "fluid", "fat", "air"), nominal=True),
    Rating("calcification", ("popcorn", "laminated", "solid", "non-central", "central", "absent"), nominal=True),
    Rating("sphericity", ("linear", "ovoid/linear", "ovoid", "ovoid/round", "round")),
    Rating("margin", ("poorly defined", "near poorly defined", "medium", "near sharp", "sharp")),
    Rating("lobulation", ("none", "nearly none", "medium", "near marked", "marked")),
    Rating("spiculation", ("none", "nearly none", "medium", "near marked", "marked")),
    Rating("texture", ("non-solid", "non-solid/mixed", "part solid", "solid/mixed", "solid")),
    Rating(
        "malignancy",
        (
            "highly unlikely",
            "moderately unlikely",
            "indeterminate",
            "moderately suspicious",
            "highly suspicious",
        ),
    ),
)
RATING_NAMES = tuple(rating.name for rating in RATINGS)
MALIGNANCY = RATING_NAMES.index("malignancy")
NODULE_LIKE = "nodule_like"  # column of tables: the score of `inference.likeness`
ATTRIBUTES = RATINGS[:MALIGNANCY]  # the ratings other than malignancy
ATTRIBUTE_NAMES = RATING_NAMES[:MALIGNANCY]
TEXTURE = RATING_NAMES.index("texture")
NOMINAL = np.array([rating.nominal for rating in RATINGS])  # (9,) bool
MAX_CLASSES = max(rating.classes for rating in RATINGS)

# (9, 6) bool: which classes each rating has. Arrays (..., 9, 6) hold all ratings, with class k at index k - 1.
CLASS_EXISTS = np.array([[k < rating.classes for k in range(MAX_CLASSES)] for rating in RATINGS])

# Stacked records: arrays under the names below with the nodules on the leading axis.
Records = dict[str, np.ndarray]

# Features of a record. The axes of the volumes run towards S(uperior), P(osterior) and L(eft).
IMAGE = "image"  # int16 (S, S, S): HU on an isotropic grid
MASK = "mask"  # uint8 (S, S, S): share of the readers who marked the voxel, times MASK_UNIT
RATING_COUNTS = "rating_counts"  # uint8 (9, 6): readers per class; a row of zeros is a missing rating
NODULE_ID = "nodule_id"
PATIENT_ID = "patient_id"
CONTEXT = "context"  # "ct", "cube" (a small crop), "slab" (a scan cut off a slice beyond the nodule) or "simulated"
READER_DICE = "reader_dice"  # float32: a reader against the consensus of the others, on average; NaN below 3 readers
DIAMETER = "diameter_mm"  # float32: of the ball with the volume of the readers' consensus

# Divisible by 2, 3 and 4, so shares of two, three or four readers are stored exactly and ties stay ties.
MASK_UNIT = 252
