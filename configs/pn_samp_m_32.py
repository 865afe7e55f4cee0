"""PN-SAMP M on half the grid: 32 voxels of 1.2 mm, the same field of view, a size that two CPU cores can bear.

    python -m pnsamp_jax.main --config configs/pn_samp_m_32.py --workdir runs/m32 \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Its results stand in experiments/RESULTS.md.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """An eighth of the voxels, and what regularises a training set of this size."""
    config = base.get_config()
    config.patch_size = 32
    config.spacing_mm = 1.2
    config.data.margin = 6
    config.augment.translate = 2
    config.model.dropout = 0.3
    config.batch_size = 16
    config.num_epochs = 30
    config.schedule = "cosine"
    return config
