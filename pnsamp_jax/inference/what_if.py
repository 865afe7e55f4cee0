"""What the networks would say if they had rated an attribute of a nodule differently.

It needs networks whose malignancy is a sum of one term for each attribute (`models.pn_samp_plus`). A term follows from
the features of its attribute, not from the rating alone. So when a rating is moved, the nodule keeps what is its own,
and its term moves as the terms of the validation nodules do, on average, from the one rating to the other. At the
networks' own rating nothing moves, and the answer is the prediction itself. The HTML report does the same sums in the
browser.
"""

from typing import NamedTuple

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.data import schema

FEWEST = 3  # nodules that a class needs; one between two classes counts for both in proportion


class WhatIf(NamedTuple):
    """What is needed to move the ratings of one nodule, for M networks and F flips.

    Attributes:
      logits: (M, F, 5) of the malignancy, divided by the temperature of the network.
      class_terms: (M, 8, 6, 5) of `fit_class_terms`, divided likewise.
      own: (8,) the networks' own ratings: the expected value, or the likeliest class of a nominal attribute.
    """

    logits: np.ndarray
    class_terms: np.ndarray
    own: np.ndarray

    def classes(self, attribute: str) -> np.ndarray:
        """Return the classes to which an attribute can be moved, ascending: those that every network knows.

        There are none if it cannot be moved: only one class is known, or the nodule's own kind is not.
        """
        index = schema.ATTRIBUTE_NAMES.index(attribute)
        known = 1 + np.flatnonzero(np.isfinite(self.class_terms[:, index]).all(axis=(0, 2)))
        movable = len(known) > 1 and (not schema.NOMINAL[index] or self.own[index] in known)
        return known if movable else known[:0]

    def probabilities(self, **ratings: float) -> np.ndarray:
        """Return the probabilities of the malignancy's classes, (5,), if some attributes were rated so.

        Between two classes the mean terms are interpolated; beyond the known ones they stay as they are.

        Args:
          **ratings: by attribute, such as `spiculation=1`.

        Raises:
          ValueError: an attribute cannot be moved, or a nominal one not to this class.
        """
        logits = self.logits.astype(np.float64)
        for name, rating in ratings.items():
            known, nominal = self.classes(name), schema.NOMINAL[schema.ATTRIBUTE_NAMES.index(name)]
            if not len(known) or (nominal and rating not in known):
                raise ValueError(f"{name}: cannot be moved to {rating}; known classes: {known.tolist()}")
            own = self.own[schema.ATTRIBUTE_NAMES.index(name)]
            logits += (self._mean_term(name, rating) - self._mean_term(name, own))[:, None]
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (odds / odds.sum(axis=-1, keepdims=True)).mean(axis=(0, 1))

    def _mean_term(self, attribute: str, rating: float) -> np.ndarray:
        """Return the mean term at a rating, which may lie between two classes: (M, 5)."""
        known = self.classes(attribute)
        [shares] = class_shares(np.array([rating]), known)
        return np.einsum("k,mkt->mt", shares, self.class_terms[:, schema.ATTRIBUTE_NAMES.index(attribute), known - 1])


def class_shares(ratings: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how ratings share in the classes next to them, as in linear interpolation: (N,), (K,) -> (N, K).

    Each row sums to 1; ratings beyond the classes, which are in ascending order, count as the first or last one.
    """
    return np.stack([np.interp(ratings, classes, one) for one in np.eye(len(classes))], axis=1)


def fit_class_terms(terms: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Fit the mean term of each attribute as a function of the network's own rating, linear between two classes.

    Args:
      terms: (N, 8, 5) what each attribute adds to the logits of malignancy, of nodules that the network was not
        trained on.
      probabilities: (N, 9, 6) of their ratings, calibrated.

    Returns:
      (8, 6, 5) mean terms by attribute and class, by least squares; of a nominal attribute the means by the likeliest
      class. NaN for a class with fewer than `FEWEST` nodules.
    """
    found = np.full((len(schema.ATTRIBUTE_NAMES), schema.MAX_CLASSES, terms.shape[-1]), np.nan, np.float32)
    p = probabilities[:, : len(schema.ATTRIBUTE_NAMES)]
    nominal = schema.NOMINAL[: len(schema.ATTRIBUTE_NAMES)]
    ratings = np.where(nominal, metrics.arg_max(p), metrics.expected(p))
    for attribute, own in enumerate(ratings.T):
        classes = np.arange(1, schema.MAX_CLASSES + 1)
        known = classes[class_shares(own, classes).sum(axis=0) >= FEWEST]
        if nominal[attribute]:
            own, those = own[np.isin(own, known)], terms[np.isin(own, known), attribute]
        else:
            those = terms[:, attribute]
        if len(known):
            found[attribute, known - 1] = np.linalg.lstsq(class_shares(own, known), those, rcond=None)[0]
    return found
