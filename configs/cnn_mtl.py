"""The networks of CNN-MTL (Hussein et al., IPMI 2017): seven ratings, a 3D network for each.

Its second stage, a multi-task regression, is `experiments/cnn_mtl.py`. The paper: malignancy off-by-one 91.26.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """CNN-MTL's networks at the size and on the data of `config`."""
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "cnn_mtl", "windows": windows, "dtype": dtype})
    return config


def get_config() -> ConfigDict:
    """Both windows, seven ratings, no segmentation."""
    return apply_to(base.get_config())
