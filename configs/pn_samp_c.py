"""PN-SAMP C: ratings alone, from the encoder.

The paper: malignancy off-by-one 94.87 (1.03).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Both windows, no segmentation."""
    config = base.get_config()
    config.model.segment = False
    return config
