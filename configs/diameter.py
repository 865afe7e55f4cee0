"""The data settings of the baseline by size alone (see experiments/diameter.py); no network is trained."""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Size alone on the grid and the data of `config`."""
    config.model = ConfigDict({"name": "diameter", "windows": config.model.windows, "dtype": "float32"})
    return config


def get_config() -> ConfigDict:
    """The full grid without a margin."""
    config = apply_to(base.get_config())
    config.data.margin = 0
    return config
