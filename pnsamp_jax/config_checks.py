"""Whether a config is one: its fields and their types, the values that they may have, and how they fit together."""

from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pnsamp_jax import models, processes, transforms
from pnsamp_jax.appearance import SMALLEST_FACTOR
from pnsamp_jax.configs import base
from pnsamp_jax.data.cohort import COHORTS, NOMINAL_RULES
from pnsamp_jax.data.folds import SPLITS
from pnsamp_jax.errors import UsageError, UserError
from pnsamp_jax.inference.ensemble import RUNTIMES
from pnsamp_jax.inference.requests import UNITS
from pnsamp_jax.input_pipeline import PIPELINES
from pnsamp_jax.state import SCHEDULES
from pnsamp_jax.workdir.checkpoint import WHICH
from pnsamp_jax.workdir.layout import flatten

CHOICES = {
    "data.source": ("phantom", "lidc", "luna16", "folder"),
    "data.cohort": COHORTS,
    "data.train_cohort": ("", *COHORTS),
    "data.nominal": NOMINAL_RULES,
    "data.pipeline": PIPELINES,
    "split": SPLITS,
    "schedule": SCHEDULES,
    "checkpoint": WHICH,
    "loss.labels": transforms.LABELS,
    "model.dtype": ("float32", "bfloat16"),
    "predict.units": UNITS,
    "predict.runtime": RUNTIMES,
}
POSITIVE = (
    "patch_size",
    "spacing_mm",
    "batch_size",
    "num_epochs",
    "learning_rate",
    "checkpoint_every_epochs",
    "log_every_steps",
    "steps_per_call",
)
NOT_NEGATIVE = (
    *("seed", "refit_copies", "data.margin", "data.min_readers", "data.background", "data.workers"),
    *("augment.translate", "augment.rotate"),
    *("appearance.noise", "appearance.uneven"),
    *("loss.segmentation", "loss.voxels", "loss.attributes", "loss.malignancy"),
)
PROBABILITIES = ("appearance.fade", "appearance.enlarge", "appearance.enlarge_faded", "appearance.smear")


def check_fields(config: ConfigDict) -> None:
    """Raise UsageError unless a config has the fields of configs/base.py, with values of their types.

    The command line already refuses other types; a config file of one's own may hold anything.
    """
    given, defaults = flatten(config.to_dict()), flatten(base.get_config().to_dict())
    for field, default in defaults.items():
        if field.startswith("model.") and field not in ("model.name", "model.windows"):
            continue  # every model has fields of its own, which `models.create` checks
        if field not in given:
            raise UsageError(f"config.{field}: is missing; start a config from pnsamp_jax.configs.base.get_config()")
        if not _same_kind(given[field], default):
            raise UsageError(f"config.{field}: {given[field]!r} has the wrong type; give a value such as {default!r}")


def _same_kind(value: Any, default: Any) -> bool:
    """Return whether a value may replace a default: has its type, or is an int for a float or a list for a tuple."""
    if isinstance(value, bool) != isinstance(default, bool):
        return False
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (list, tuple)}
    return isinstance(value, kinds.get(type(default), (type(default),)))


def check_values(config: ConfigDict) -> None:
    """Raise UserError unless every field has a value that it may have, and the fields fit together."""
    flat = flatten(config.to_dict())
    for field in CHOICES:
        if field in flat:
            check_choice(field, flat[field])
    for field in POSITIVE:
        if not 0 < flat[field] < np.inf:
            raise UserError(f"config.{field}: {flat[field]} is not a positive number")
    for field in NOT_NEGATIVE:
        if not 0 <= flat[field] < np.inf:
            raise UserError(f"config.{field}: {flat[field]} is not a number of 0 or more")
    for field in PROBABILITIES:
        if not 0 <= flat[field] <= 1:
            raise UserError(f"config.{field}: {flat[field]} is not a probability; give 0 to 1")
    if not 0 <= config.average_decay < 1:
        raise UserError(f"config.average_decay: {config.average_decay} is not 0 (no average) or between 0 and 1")
    if not 0 <= flat.get("model.dropout", 0.0) < 1:
        raise UserError(f"config.model.dropout: {config.model.dropout} is not a share from 0 to below 1")
    if config.appearance.largest < SMALLEST_FACTOR:
        raise UserError(
            f"config.appearance.largest: {config.appearance.largest} is below {SMALLEST_FACTOR}, the smallest"
        )
    if config.data.pipeline == "tfdata" and find_spec("tensorflow") is None:
        raise UserError("config.data.pipeline: 'tfdata' needs TensorFlow; pip install 'pnsamp-jax[tf]'")
    if config.steps_per_call > 1 and config.data.pipeline != "device":
        raise UserError(
            f"config.steps_per_call: {config.steps_per_call} steps in one call need config.data.pipeline=device; "
            "give 1 to read each batch from disk"
        )
    _check_windows(config.model.windows)
    # A baseline without a network takes any size.
    multiple = getattr(models.MODELS.get(config.model.name), "PATCH_MULTIPLE", 1)
    if config.patch_size % multiple:
        raise UserError(
            f"config.patch_size: {config.patch_size} is not divisible by {multiple}, as {config.model.name} needs"
        )
    if config.distributed:
        processes.read_place(config.distributed)
    devices = jax.device_count()  # of all processes
    if config.batch_size % devices:
        raise UserError(f"config.batch_size: {config.batch_size} is not divisible by the number of devices, {devices}")
    if not -1 <= config.fold < config.num_folds:
        raise UserError(f"config.fold: {config.fold} is not -1 (all) or 0..{config.num_folds - 1}")
    if not (flat.get("model.segment", True) or flat.get("model.rate", True)):
        raise UserError("config.model: segment and rate are both False, so there is nothing to learn")
    if config.refit_copies and not (config.model.name in ("pn_samp", "pn_samp_plus") and flat.get("model.rate", True)):
        raise UserError(f"config.refit_copies: {config.model.name} has no heads of ratings to fit again; give 0")
    if not 0 < config.validation_fraction < 1:
        raise UserError(f"config.validation_fraction: {config.validation_fraction} is not between 0 and 1")


def check_choice(field: str, value: str) -> None:
    """Raise UserError unless a field, named as in `CHOICES`, has one of its values."""
    if value not in CHOICES[field]:
        named = ", ".join(choice or "'' (none)" for choice in CHOICES[field])
        raise UserError(f"config.{field}: '{value}' is none of {named}")


def _check_windows(windows: Any) -> None:
    """Raise UsageError unless the windows are at least one pair of a positive width and a centre."""
    try:
        pairs = np.array([[float(value) for value in window] for window in windows])
    except (TypeError, ValueError):
        pairs = np.array([])
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all() or (pairs[:, 0] <= 0).any():
        raise UsageError(
            f"config.model.windows: {windows!r}: give one or more (width, centre) pairs in HU, such as "
            "((1600, -600), (700, -600))"
        )
