"""PN-SAMP S1: the window 1600/-600 alone.

The paper: Dice 74.05 (3.57), malignancy off-by-one 92.03 (7.55).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """One window, all three tasks."""
    config = base.get_config()
    config.model.windows = ((1600.0, -600.0),)
    return config
