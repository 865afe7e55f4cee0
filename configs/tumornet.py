"""The network of TumorNet (Hussein et al., ISBI 2017): malignancy alone, from median-intensity projections.

Its second stage, a Gaussian process, is `experiments/tumornet.py`. The paper: malignancy off-by-one 82.47, and 92.31
with the readers' attributes beside the features.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """TumorNet at the size and on the data of `config`."""
    windows, dtype = config.model.windows[:1], config.model.dtype  # it reads one window
    config.model = ConfigDict({"name": "tumornet", "windows": windows, "dtype": dtype})
    config.loss.labels = "distribution"  # the mean rating is what it regresses
    config.loss.attributes = 0.0
    return config


def get_config() -> ConfigDict:
    """One window, malignancy."""
    return apply_to(base.get_config())
