"""PN-SAMP Seg: segmentation alone.

The paper: Dice 70.23 (4.19).
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """This form at the size and on the data of `config`, which holds form M."""
    config.model.rate = False
    return config


def get_config() -> ConfigDict:
    """Both windows, no ratings."""
    return apply_to(base.get_config())
