"""PN-SAMP S1: the window 1600/-600 alone.

The paper: Dice 74.05 (3.57), malignancy off-by-one 92.03 (7.55).
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """This form at the size and on the data of `config`, which holds form M."""
    config.model.windows = ((1600.0, -600.0),)
    return config


def get_config() -> ConfigDict:
    """One window, all three tasks."""
    return apply_to(base.get_config())
