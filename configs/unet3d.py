"""3D U-Net (Çiçek et al., MICCAI 2016): segmentation alone.

Up-pooling replaces the original's up-convolutions, as in the PN-SAMP paper; `--config.model.up=convolution` restores
them. The PN-SAMP paper reports a Dice of 71.97 (4.96).
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config to 3D U-Net; size and data stay."""
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "unet3d", "windows": windows, "dtype": dtype, "up": "pool"})
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, no ratings."""
    return apply_to(base.get_config())
