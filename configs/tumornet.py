"""TumorNet (Hussein et al., ISBI 2017): malignancy alone, from median-intensity projections.

The second stage, a Gaussian process, is `experiments/baselines/tumornet.py`. The paper reports a malignancy off-by-one
accuracy of 82.47, and of 92.31 with the readers' attributes in addition to the features.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config to TumorNet; size and data stay."""
    windows, dtype = config.model.windows[:1], config.model.dtype  # the network receives one window
    config.model = ConfigDict({"name": "tumornet", "windows": windows, "dtype": dtype})
    config.model.depth = 0.25  # share of the patch through which the median runs: 9.6 of 38.4 mm
    config.loss.labels = "distribution"  # TumorNet regresses the mean rating
    config.loss.attributes = 0.0
    return config


def get_config() -> ConfigDict:
    """Return the config: one window, malignancy alone."""
    return apply_to(base.get_config())
