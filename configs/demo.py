"""Demo: a small PN-SAMP M on 75 simulated nodules, five folds in about three minutes on two cores.

The contours and ratings are LIDC-IDRI's; the voxels are simulated, so that no CT has to be downloaded. Three epochs
are enough to see that everything works, not to learn: scores below the best constant are to be expected. What trained
networks predict of a real nodule is shown by `pnsamp predict --example --out runs/example`.

    python -m pnsamp_jax.main --config demo --workdir runs/demo
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Return the config: patches of 32 voxels of 1.2 mm."""
    config = base.get_config()
    config.patch_size = 32
    config.spacing_mm = 1.2
    config.data.phantom_nodules = 75
    config.data.margin = 4
    config.num_epochs = 3
    return config
