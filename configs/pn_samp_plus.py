"""PN-SAMP Plus, the architecture of the shipped networks: an extension of the paper for whole CTs.

    python -m pnsamp_jax.main --config pn_samp_plus --workdir runs/plus \\
        --config.data.source=folder --config.data.root=/path/to/nodules
    python -m experiments.export_weights --workdir runs/plus --out pnsamp_jax/weights

How good they are is reported in the model card, pnsamp_jax/weights/README.md; what was tried, in
experiments/RESULTS.md. A fold takes a fast CPU core half an hour, and an older one up to two hours.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Return the config: 32 voxels of 1.2 mm, all nodules, and a training that teaches ground glass."""
    config = base.get_config()
    config.patch_size = 32
    config.spacing_mm = 1.2
    config.data.margin = 4
    config.data.cohort = "all"
    config.data.background = 2
    config.augment.permute = True
    config.augment.translate = 2  # a point may be 2.4 mm off the centroid along each axis
    config.augment.rotate = 0.0
    config.appearance.fade = 0.35
    config.appearance.uneven = 1.0
    config.appearance.enlarge = 0.15
    config.appearance.enlarge_faded = 0.5
    config.appearance.largest = 3.0
    config.appearance.noise = 40.0
    config.appearance.smear = 0.2
    config.model = ConfigDict(
        {"name": "pn_samp_plus", "windows": config.model.windows, "dropout": 0.2, "dtype": config.model.dtype}
    )
    config.loss.voxels = 1.0
    config.loss.labels = "distribution"
    config.loss.indeterminate = False
    config.batch_size = 8
    config.num_epochs = 14
    config.learning_rate = 2e-3
    config.schedule = "one_cycle"
    config.average_decay = 0.998
    config.checkpoint = "last"
    config.checkpoint_every_epochs = 2
    config.refit_copies = 4
    config.fit_threshold = True
    config.test_flips = True
    return config
