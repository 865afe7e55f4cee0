"""The network of SHC-DCNN (Buty et al., MICCAI 2016): all nine ratings, from three orthogonal planes.

Its second stage, a random forest that also reads spherical harmonics of the surface, is `experiments/shc_dcnn.py`.
The paper: malignancy off-by-one 82.4.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """SHC-DCNN's network at the size and on the data of `config`."""
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "shc_dcnn", "windows": windows, "dtype": dtype})
    return config


def get_config() -> ConfigDict:
    """Both windows, all ratings, no segmentation."""
    return apply_to(base.get_config())
