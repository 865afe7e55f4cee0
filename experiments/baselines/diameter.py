"""The simplest baseline: the nine ratings from a nodule's size alone.

    pip install -e ".[experiments]"
    python -m experiments.baselines.diameter --config diameter --workdir runs/diameter \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Each nodule is one number, the diameter of the ball with the volume of the mask. Each rating is predicted by a
multinomial logistic regression on the logarithm of the diameter and its square. The mask is the readers' own (50 %
consensus), or with `--mask_run` a predicted one. A method that beats this baseline has learnt more than size.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from experiments.baselines import second_stage
from experiments.baselines.subsets import Subset


def diameters(masks: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the diameters of balls of equal volume: (n, S, S, S) bool -> (n,) mm. An empty mask counts as a voxel."""
    volumes = np.maximum(masks.sum(axis=(1, 2, 3)), 1) * spacing_mm**3
    return np.cbrt(6 * volumes / np.pi)


def classifier() -> Pipeline:
    """Return a logistic regression on a quadratic of one feature."""
    quadratic = PolynomialFeatures(2, include_bias=False)
    return make_pipeline(quadratic, StandardScaler(), LogisticRegression(max_iter=1000))


def run(config: ConfigDict, workdir: Path, mask_run: Path | None = None) -> dict:
    """Cross-validate the baseline on the config's nodules, and return the content of results.json."""

    def predict(train: Subset, test: Subset, seed: int) -> np.ndarray:
        del seed  # nothing is random
        train_x, test_x = (np.log(diameters(subset.masks, config.spacing_mm))[:, None] for subset in (train, test))
        return second_stage.classify(classifier, train_x, train.labels, test_x)

    return second_stage.cross_validate(config, workdir, predict, {"name": "diameter"}, mask_run=mask_run)


if __name__ == "__main__":
    second_stage.launch_method(run, "mask_run")
