"""The weights that come with the project: for whole CTs in any spacing, and points some millimetres off the centroid.

    python -m pnsamp_jax.main --config configs/weights.py --workdir runs/weights \\
        --config.data.source=folder --config.data.root=/path/to/nodules
    python -m experiments.export_weights --workdir runs/weights --out pnsamp_jax/weights

What they are good for stands in their model card, beside them.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """PN-SAMP M at full size on every nodule, of which two halves of the patients make an ensemble of two.

    Slabs end where their nodule ends. Networks that see them along random axes do not learn to look for that, and
    outline nodules in whole CTs better (see experiments/RESULTS.md). Two CPU cores do ten epochs in two hours.
    """
    config = base.get_config()
    config.num_folds = 2
    config.data.cohort = "all"
    config.augment.permute = True
    config.augment.translate = 6  # voxels of 0.6 mm: a point is up to 3.6 mm off the centroid along each axis
    config.augment.rotate = 0.0  # slows so short a training
    config.num_epochs = 10
    config.schedule = "cosine"
    config.checkpoint = "last"  # the end of the schedule; the best of ten validations is chance
    config.test_flips = True  # as predict asks them
    return config
