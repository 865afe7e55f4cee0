"""The data settings of the radiomics forest (see experiments/radiomics.py); there is nothing to train by gradient."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The full grid without a margin."""
    config = base.get_config()
    config.model.name = "radiomics_forest"
    config.data.margin = 0
    return config
