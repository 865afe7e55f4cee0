"""A config for whole runs in a test."""

from configs import base


def tiny_config(**changes):
    """A run of seconds: 24 nodules of ten patients, 16 voxels, a thin network."""
    config = base.get_config()
    config.patch_size, config.spacing_mm = 16, 2.0
    config.num_folds, config.num_epochs, config.batch_size, config.validation_fraction = 3, 2, 8, 0.3
    config.data.phantom_nodules, config.data.margin, config.data.workers = 24, 2, 1
    config.model.kernels, config.model.mask_kernels = (2, 2, 4, 4), (2, 2, 2, 2)
    config.log_every_steps = 1
    config.update_from_flattened_dict(changes)
    return config
