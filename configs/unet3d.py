"""3D U-Net (Çiçek et al., MICCAI 2016): segmentation alone. Its up-poolings stand for up-convolutions, as in the paper
that PN-SAMP is of; `--config.model.up=convolution` gives the original.

The paper: Dice 71.97 (4.96).
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """3D U-Net at the size and on the data of `config`."""
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "unet3d", "windows": windows, "dtype": dtype, "up": "pool"})
    return config


def get_config() -> ConfigDict:
    """Both windows, no ratings."""
    return apply_to(base.get_config())
