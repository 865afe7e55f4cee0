"""Random ratings for tests."""

import numpy as np


def random_cohort(seed, nodules=200, classes=5, patients=60):
    """Return predictions, truths (some 0) that correlate with them, and patients."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes + 1, nodules)
    predicted = np.clip(truth + rng.integers(-2, 3, nodules), 1, classes)
    return predicted, truth, rng.integers(0, patients, nodules)
