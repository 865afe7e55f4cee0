"""The network of MCNN (Shen et al., IPMI 2015): malignancy alone, from three scales.

Its second stage, a random forest for benign against malignant, is `experiments/mcnn.py`. The paper: 86.84, binary.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """MCNN on the data of `config`, with half as much again round the nodule.

    The middle one of its cubes is then about the patch of `config`: of 64 voxels of 0.6 mm the three are 57.6, 38.4
    and 19.2 mm wide. No margin is stored beyond: what augmentation brings in lies far from the nodule, and there the
    edge is extended.
    """
    windows, dtype = config.model.windows, config.model.dtype
    config.model = ConfigDict({"name": "mcnn", "windows": windows, "dtype": dtype})
    config.patch_size = config.patch_size * 3 // 2
    config.data.margin = 0
    config.loss.attributes = 0.0
    return config


def get_config() -> ConfigDict:
    """Both windows, malignancy."""
    return apply_to(base.get_config())
