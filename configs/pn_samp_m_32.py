"""PN-SAMP M with 32 voxels of 1.2 mm: the same field of view, small enough for two CPU cores.

    python -m pnsamp_jax.main --config pn_samp_m_32 --workdir runs/m32 \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The results are in experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Return the config: an eighth of the voxels, and the regularisation that about a thousand nodules need."""
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
