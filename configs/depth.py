"""Data of the baseline that uses the depth of the image file alone; it has no network.

See `experiments/baselines/depth.py`.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config to the depth alone; grid and data stay."""
    config.model = ConfigDict({"name": "depth", "windows": config.model.windows, "dtype": "float32"})
    return config


def get_config() -> ConfigDict:
    """Return the config: the full-size grid without a margin."""
    config = apply_to(base.get_config())
    config.data.margin = 0
    return config
