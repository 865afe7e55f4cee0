"""Protocol of the comparison tables on two CPU cores: 32 voxels of 1.2 mm, equally many epochs for every system.

    python -m experiments.table2 --config table_32 --workdir runs/tables \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The results are in experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Return the config: an eighth of the voxels, twelve epochs, and only flips and turns as augmentation.

    With dropout, translation and rotation in addition, so short a training ends underfitted (tried on fold 0, see
    experiments/RESULTS.md).
    """
    config = base.get_config()
    config.patch_size = 32
    config.spacing_mm = 1.2
    config.data.margin = 6  # the same as in pn_samp_m_32, so that both read the same prepared patches
    config.augment.translate = 0
    config.num_epochs = 12
    config.schedule = "cosine"
    config.checkpoint_every_epochs = 2
    return config
