"""Whole runs for tests: of seconds, or made up in less."""

import jax
import numpy as np
from ml_collections import ConfigDict

from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.data import schema
from pnsamp_jax.inference import calibration, conformal
from pnsamp_jax.inference.what_if import fit_class_terms
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


def tiny_plus_config():
    """The same with PN-SAMP Plus."""
    config = tiny_config()
    widths = {name: config.model[name] for name in ("windows", "dropout", "dtype", "features", "mask_features")}
    config.model = ConfigDict({"name": "pn_samp_plus", **widths})
    return config


def made_up_run(folder, folds, config=None, mask_shift=0.0, likeness=False):
    """Writes what a training of these folds leaves for those who predict: random networks that mark some voxels.

    With `likeness`, they have random heads too that tell nodules from others.
    """
    config = config or tiny_config()
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
        truth, terms = random.integers(1, 5, (40, 9)), random.normal(size=(40, 8, 5))
        fitted = calibration.Calibration(
            temperatures=calibration.fit_temperatures(probabilities, truth),
            features=features.mean(axis=0),
            checkpoint=config.checkpoint,
            step=1,
            mask_shift=mask_shift,
            class_limits=conformal.fit_limits(probabilities, truth, np.arange(40)),
            extent_limits=np.array([[-0.5, 0.4], [-0.2, 0.2]]),
            class_terms=fit_class_terms(terms, probabilities) if config.model.name == "pn_samp_plus" else None,
            likeness=random.normal(0, 0.3, 1 + features.shape[1]) if likeness else None,
        )
        calibration.write(folder / f"fold_{fold}" / "calibration.json", fitted, nodules=40)
    return folder
