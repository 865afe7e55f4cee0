"""PN-SAMP Seg: segmentation alone.

The paper reports a Dice of 70.23 (4.19).
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config of variant M to this variant; size and data stay."""
    config.model.rate = False
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, no ratings."""
    return apply_to(base.get_config())
