"""Do contributions follow the ratings that they are named after?

A network whose malignancy is built upon the attributes' features may put into the features of one attribute what has
nothing to do with its rating, such as the size of the nodule ("concept leakage", Mahinpei et al., 2021). What the
report calls the contribution of an attribute then is that of its features.
"""

import numpy as np
from scipy import stats

from pnsamp_jax import metrics, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.inference import attribution, ensemble


def check(networks: ensemble.Networks, stored: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the contributions and the ratings of the eight attributes, as the networks give them: (N, 8) each.

    Args:
      networks: of one member.
      stored: (N, T, T, T) HU, T at least the patch size.
      batch_size: nodules that are asked about together.

    Returns:
      The contributions, and the expected ratings; of a nominal attribute the probability of the class that is
      likeliest in most of the nodules.
    """
    images = np.stack([np.asarray(transforms.crop(image, networks.patch_size)) for image in stored]).astype(np.int16)
    contributions, probabilities = [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        predictions = ensemble.predict(networks, np.resize(batch, (batch_size, *batch.shape[1:])), flips=False)
        contributions.append(attribution.mean_contributions(networks, predictions)[: len(batch), : schema.MALIGNANCY])
        probabilities.append(predictions.mean_probabilities[: len(batch), : schema.MALIGNANCY])
    return np.concatenate(contributions), ratings_of(np.concatenate(probabilities))


def ratings_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the ratings of attributes, see `check`: (N, 8, 6) -> (N, 8)."""
    ratings = metrics.expected(probabilities)
    for attribute in np.flatnonzero(schema.NOMINAL[: schema.MALIGNANCY]):
        commonest = np.bincount(probabilities[:, attribute].argmax(axis=1)).argmax()
        ratings[:, attribute] = probabilities[:, attribute, commonest]
    return ratings


def follow(contributions: np.ndarray, ratings: np.ndarray) -> dict[str, dict[str, float]]:
    """Return by attribute the spread of its contributions, and their rank correlation with its ratings: (N, 8) each.

    The correlation is given without its sign, 1 where an attribute contributes according to its rating alone and 0
    where its rating says nothing about its contribution; 0 for ratings that are all the same.
    """
    found = {}
    for index, name in enumerate(schema.RATING_NAMES[: schema.MALIGNANCY]):
        one, other = contributions[:, index], ratings[:, index]
        varied = len(one) > 2 and np.ptp(one) > 0 and np.ptp(other) > 0
        correlation = abs(float(stats.spearmanr(one, other).statistic)) if varied else 0.0
        found[name] = {"spread": float(one.std()), "rank_correlation": correlation}
    return found
