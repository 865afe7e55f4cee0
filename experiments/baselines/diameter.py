"""The plainest baseline: what a nodule's size alone says of its nine ratings.

    pip install -e ".[experiments]"
    python -m experiments.baselines.diameter --config configs/diameter.py --workdir runs/diameter \\
        --config.data.source=folder --config.data.root=/path/to/nodules

One number of each nodule, the diameter of the ball that has the mask's volume, and a multinomial logistic regression
on its logarithm and the square of that for each rating. The mask is the readers' own (50 % consensus), or with
`--mask_run` a predicted one. What a method says beyond this is what it has learnt from more than size.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from experiments.baselines import second_stage
from experiments.baselines.parts import Part


def diameters(masks: np.ndarray, spacing_mm: float) -> np.ndarray:
    """(n, S, S, S) bool -> (n,) mm, of the balls of equal volume; an empty mask is taken as one voxel."""
    volumes = np.maximum(masks.sum(axis=(1, 2, 3)), 1) * spacing_mm**3
    return np.cbrt(6 * volumes / np.pi)


def classifier():
    """Logistic regression on a quadratic of one feature."""
    quadratic = PolynomialFeatures(2, include_bias=False)
    return make_pipeline(quadratic, StandardScaler(), LogisticRegression(max_iter=1000))


def run(config: ConfigDict, workdir: Path, mask_run: Path | None = None) -> dict:
    """Cross-validates the baseline on the config's nodules; gives the results as in results.json."""

    def predict(train: Part, test: Part, seed: int) -> np.ndarray:
        del seed  # nothing is drawn
        train_x, test_x = (np.log(diameters(part.masks, config.spacing_mm))[:, None] for part in (train, test))
        return second_stage.classify(classifier, train_x, train.labels, test_x)

    return second_stage.cross_validate(config, workdir, predict, {"name": "diameter"}, mask_run=mask_run)


if __name__ == "__main__":
    second_stage.launch(run, "mask_run")
