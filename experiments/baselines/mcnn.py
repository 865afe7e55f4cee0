"""MCNN's second stage: benign or malignant, by a random forest on the features of three scales.

Shen et al., "Multi-scale convolutional neural networks for lung nodule classification", IPMI 2015.

    pip install -e ".[experiments]"
    python -m experiments.baselines.mcnn --config mcnn --workdir runs/mcnn \\
        --config.data.source=folder --config.data.root=/path/to/nodules

From the paper: the network of three scales (`pnsamp_jax/models/mcnn.py`), the two classes (rated under 3 and over 3),
and the random forest on the network's features. Chosen here: the size of the forest, the same as for every forest
here.

P(malignant) = p is written as P(1) = 1 - p and P(5) = p. A prediction of 1 is off by at most one for exactly the
benign nodules, and 5 for exactly the malignant ones, in either decoding; so in a cohort without class 3, the
off-by-one accuracy is the binary accuracy that the paper reports. (With P(2) and P(4), the best class within one would
always be the 3 between them.) The exact accuracy, kappa and mean absolute error of malignancy are meaningless for this
method.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.baselines import second_stage
from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema

UNDECIDED = 3  # neither benign nor malignant; left out of training if a cohort has it


def predict(train: Subset, test: Subset, seed: int) -> np.ndarray:
    """Predict malignancy alone, (m, 9, 6) probabilities; see `second_stage.cross_validate`."""
    label = train.labels[:, schema.MALIGNANCY]
    decided = (label > 0) & (label != UNDECIDED)
    forest = second_stage.forest(seed).fit(train.features[decided], label[decided] > UNDECIDED)
    malignant = forest.predict_proba(test.features) @ forest.classes_
    probabilities = second_stage.no_answers(len(test.features))
    probabilities[:, schema.MALIGNANCY] = 0.0
    probabilities[:, schema.MALIGNANCY, 0] = 1 - malignant
    probabilities[:, schema.MALIGNANCY, 4] = malignant
    return probabilities


def run(config: ConfigDict, workdir: Path, network_workdir: Path | None = None) -> dict:
    """Cross-validate MCNN on the config's nodules, and return the content of results.json."""
    network = network_workdir or workdir
    return second_stage.cross_validate(config, workdir, predict, {"name": "mcnn"}, network=network)


if __name__ == "__main__":
    second_stage.launch_method(run, "network_workdir")
