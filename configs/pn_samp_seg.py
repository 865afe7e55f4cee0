"""PN-SAMP Seg: segmentation alone.

The paper: Dice 70.23 (4.19).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Both windows, no ratings."""
    config = base.get_config()
    config.model.rate = False
    return config
