"""SHC-DCNN (Buty et al., MICCAI 2016): all nine ratings, from three orthogonal planes.

The second stage, a random forest that also receives spherical harmonics of the surface, is
`experiments/baselines/shc_dcnn.py`. The paper reports a malignancy off-by-one accuracy of 82.4.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config to SHC-DCNN's network; size and data stay."""
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "shc_dcnn", "windows": windows, "dtype": dtype})
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, all ratings, no segmentation."""
    return apply_to(base.get_config())
