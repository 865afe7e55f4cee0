"""PN-SAMP C: ratings alone, from the encoder.

The paper reports a malignancy off-by-one accuracy of 94.87 (1.03).
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config of variant M to this variant; size and data stay."""
    config.model.segment = False
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, no segmentation."""
    return apply_to(base.get_config())
