"""CNN-MTL (Hussein et al., IPMI 2017): seven ratings, each from a 3D network of its own.

The second stage, a multi-task regression, is `experiments/baselines/cnn_mtl.py`. The paper reports a malignancy
off-by-one accuracy of 91.26.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config to CNN-MTL's networks; size and data stay."""
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "cnn_mtl", "windows": windows, "dtype": dtype})
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, seven ratings, no segmentation."""
    return apply_to(base.get_config())
