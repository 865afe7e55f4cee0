"""PN-SAMP S2: the window 700/-600 alone.

The paper: Dice 74.01 (4.14), malignancy off-by-one 95.30 (3.99).
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """This form at the size and on the data of `config`, which holds form M."""
    config.model.windows = ((700.0, -600.0),)
    return config


def get_config() -> ConfigDict:
    """One window, all three tasks."""
    return apply_to(base.get_config())
