"""Names and shapes that every other module agrees on: the nine ratings and the features of a record."""

from typing import NamedTuple

import numpy as np


class Rating(NamedTuple):
    """One of the nine characteristics that LIDC-IDRI readers rate, on the integers 1..classes."""

    name: str
    classes: int


RATINGS = (
    Rating("subtlety", 5),
    Rating("internal_structure", 4),
    Rating("calcification", 6),  # nominal; 6 = absent
    Rating("sphericity", 5),
    Rating("margin", 5),
    Rating("lobulation", 5),
    Rating("spiculation", 5),
    Rating("texture", 5),
    Rating("malignancy", 5),
)
RATING_NAMES = tuple(rating.name for rating in RATINGS)
MALIGNANCY = RATING_NAMES.index("malignancy")
MAX_CLASSES = max(rating.classes for rating in RATINGS)

# (9, 6) bool: which classes each rating has. Arrays of (..., 9, 6) hold all ratings at once, class k at index k-1.
CLASS_EXISTS = np.array([[k < rating.classes for k in range(MAX_CLASSES)] for rating in RATINGS])

# Features of a record, and of a batch (which adds a leading axis).
IMAGE = "image"  # int16 (S, S, S): HU on an isotropic grid; axes run towards S(uperior), P(osterior), L(eft)
MASK = "mask"  # uint8 (S, S, S): share of the readers who marked the voxel, times MASK_UNIT
RATING_COUNTS = "rating_counts"  # uint8 (9, 6): how many readers gave each class; an all-zero row is a missing rating
NODULE_ID = "nodule_id"
PATIENT_ID = "patient_id"
CONTEXT = "context"  # where the voxels come from: "ct", "slab", "cube" or "simulated"
READER_DICE = "reader_dice"  # float32: a reader against the 50 % consensus of the others, NaN below 3 readers
DIAMETER = "diameter_mm"  # float32: of the ball that has the consensus' volume

# A share of 1/2, 1/3 or 1/4 of the readers is a whole number of these units, so that ties survive the rounding.
MASK_UNIT = 252
