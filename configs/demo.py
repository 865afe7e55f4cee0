"""The demo: real contours and ratings, simulated voxels, small patches; five folds in some three minutes on two cores.

python -m pnsamp_jax.main --config configs/demo.py --workdir runs/demo
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """PN-SAMP M, 32 voxels of 1.2 mm, on 75 simulated nodules."""
    config = base.get_config()
    config.patch_size = 32
    config.spacing_mm = 1.2
    config.data.phantom_nodules = 75
    config.data.margin = 4
    config.num_epochs = 3
    return config
