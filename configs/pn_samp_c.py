"""PN-SAMP C: ratings alone, from the encoder.

The paper: malignancy off-by-one 94.87 (1.03).
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """This form at the size and on the data of `config`, which holds form M."""
    config.model.segment = False
    return config


def get_config() -> ConfigDict:
    """Both windows, no segmentation."""
    return apply_to(base.get_config())
