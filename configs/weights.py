"""Training of the weights that come with the package, for whole CTs and points near the centroid of a nodule.

    python -m pnsamp_jax.main --config weights --workdir runs/weights \\
        --config.data.source=folder --config.data.root=/path/to/nodules
    python -m experiments.export_weights --workdir runs/weights --out pnsamp_jax/weights

How good they are is reported in the model card, pnsamp_jax/weights/README.md.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Return the config: PN-SAMP M at full size on every nodule, trained on either half of the patients.

    A slab ends where its nodule ends. Networks that receive slabs along random axes do not learn to rely on that, and
    outline nodules in whole CTs better (see experiments/RESULTS.md). Two CPU cores take two hours for ten epochs.
    """
    config = base.get_config()
    config.num_folds = 2
    config.data.cohort = "all"
    config.augment.permute = True
    config.augment.translate = 6  # voxels of 0.6 mm: a point may be 3.6 mm off the centroid along each axis
    config.num_epochs = 10
    config.schedule = "cosine"
    config.checkpoint = "last"  # the end of the schedule; the best of ten validations would be left to chance
    config.test_flips = True  # as in predict
    return config
