"""Whole runs for tests: of seconds, or made up in less."""

import jax
import numpy as np

from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.data import schema
from pnsamp_jax.inference import calibration
from pnsamp_jax.state import state_shapes
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.checkpoint import Checkpoints


def tiny_config(**changes):
    """A run of seconds: 24 nodules of ten patients, 16 voxels, a thin network."""
    config = base.get_config()
    config.patch_size, config.spacing_mm = 16, 2.0
    config.num_folds, config.num_epochs, config.batch_size, config.validation_fraction = 3, 2, 2, 0.3
    config.data.phantom_nodules, config.data.margin, config.data.workers = 24, 2, 1
    config.model.features, config.model.mask_features = (2, 2, 4, 4), (2, 2, 2, 2)
    config.log_every_steps = 1
    config.update_from_flattened_dict(changes)
    return config


def made_up_run(folder, folds, additive=False):
    """Writes what a training of these folds leaves for those who predict: random networks that mark some voxels.

    They are of PN-SAMP M or, where the malignancy is to be a sum over the attributes, of PN-SAMP Plus.
    """
    config = tiny_config()
    if additive:
        config.model.name = "pn_samp_plus"
        del config.model.segment, config.model.rate
    settings = read_settings(config)
    task = settings.task
    layout.write_config(folder, settings.fields)
    layout.write_fold_of_patients(folder / "folds.json", {f"patient_{fold}": fold for fold in folds})
    for fold in folds:
        random = np.random.default_rng(fold)
        like = state_shapes(task.model, task.patch_size, len(task.windows))
        state = jax.tree.map(lambda leaf, r=random: r.normal(0, 0.4, leaf.shape).astype(leaf.dtype), like)
        variances = jax.tree.map(lambda leaf: 0.5 + np.abs(leaf), state.batch_stats)
        state = state.replace(step=np.int32(1), batch_stats=variances)
        with Checkpoints(folder / f"fold_{fold}" / "checkpoints") as checkpoints:
            checkpoints.save(state, settings.fields, loss=1.0)
        probabilities = random.dirichlet(np.ones(6), (40, 9)) * schema.CLASS_EXISTS
        features = random.normal(size=(40, state.params["heads"]["fusion"]["kernel"].shape[0]))
        path = folder / f"fold_{fold}" / "calibration.json"
        truth, terms = random.integers(1, 5, (40, 9)), random.normal(size=(40, 8, 5)) if additive else None
        written = probabilities, truth, features, config.checkpoint
        calibration.write(path, *written, step=1, terms=terms)
    return folder
