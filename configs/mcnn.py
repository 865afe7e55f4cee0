"""MCNN (Shen et al., IPMI 2015): malignancy alone, from three scales.

The second stage, a random forest for benign against malignant, is `experiments/baselines/mcnn.py`. The paper reports
a binary accuracy of 86.84.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Change a config to MCNN; the data stay, and the patch becomes half as wide again.

    The middle one of MCNN's three cubes then has about the size of the config's patch: for 64 voxels of 0.6 mm the
    cubes are 57.6, 38.4 and 19.2 mm wide. No margin is stored around the patch. Augmentation therefore extends the
    edge of the patch, which is far from the nodule.
    """
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "mcnn", "windows": windows, "dtype": dtype})
    # A plain number, not a reference: it is computed from the field's own earlier value. An override that comes before
    # `apply_to`, as in a comparison protocol, is enlarged; --config.patch_size of this config is the final size.
    config.patch_size = config.patch_size * 3 // 2
    config.data.margin = 0
    config.loss.attributes = 0.0
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, malignancy alone."""
    return apply_to(base.get_config())
