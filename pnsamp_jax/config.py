"""What a config means: checks it, and turns it into the objects that the rest of the package works with.

Models, losses and data never see a ConfigDict; they take plain arguments.
"""

import hashlib
import json
import os
from pathlib import Path

import jax
import ml_collections

from pnsamp_jax.data.cohort import COHORTS
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.folds import SPLITS
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import Source
from pnsamp_jax.errors import UserError
from pnsamp_jax.input_pipeline import PIPELINES
from pnsamp_jax.models import MODELS
from pnsamp_jax.state import SCHEDULES
from pnsamp_jax.transforms import LABELS

# Fields that do not decide what a run computes; they may differ when a workdir is used again.
FREE_FIELDS = ("fold", "checkpoint", "test_flips", "log_every_steps", "data.cache", "data.workers", "data.pipeline")
FREE_PARTS = ("predict.",)  # nor do the fields of these
ADDED_FIELDS = {"augment.permute": False}  # since 0.1.0 was begun, and what runs without them did

CHOICES = {
    "data.source": ("phantom", "lidc", "folder"),
    "data.cohort": COHORTS,
    "data.train_cohort": ("", *COHORTS),
    "data.pipeline": PIPELINES,
    "split": SPLITS,
    "schedule": SCHEDULES,
    "checkpoint": ("best", "last"),
    "loss.labels": LABELS,
    "model.dtype": ("float32", "bfloat16"),
}
POSITIVE_FIELDS = (
    "patch_size",
    "spacing_mm",
    "batch_size",
    "num_epochs",
    "learning_rate",
    "checkpoint_every_epochs",
    "log_every_steps",
)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot work, before anything is read or written.

    Raises:
      UserError: names the field and what it may be.
    """
    flat = _flatten(config.to_dict())
    for field, choices in CHOICES.items():
        if flat[field] not in choices:
            named = ", ".join(choice or "'' (none)" for choice in choices)
            raise UserError(f"config.{field}: '{flat[field]}' is none of {named}")
    for field in POSITIVE_FIELDS:
        if not flat[field] > 0:
            raise UserError(f"config.{field}: {flat[field]} must be positive")
    # A method without a network takes any size.
    multiple = getattr(MODELS.get(config.model.name), "PATCH_MULTIPLE", 1)
    if config.patch_size % multiple:
        raise UserError(
            f"config.patch_size: {config.patch_size} is not divisible by {multiple}, as {config.model.name} needs"
        )
    devices = jax.local_device_count()
    if config.batch_size % devices:
        raise UserError(f"config.batch_size: {config.batch_size} does not divide by the {devices} devices here")
    if not -1 <= config.fold < config.num_folds:
        raise UserError(f"config.fold: {config.fold} is not -1 (all) or 0..{config.num_folds - 1}")
    if config.seed < 0:
        raise UserError(f"config.seed: {config.seed} is negative; give a whole number from 0")
    if not flat.get("model.segment", True) and not flat.get("model.rate", True):
        raise UserError("config.model: segment and rate are both False, so there is nothing to learn")
    if not config.model.windows:
        raise UserError("config.model.windows: needs at least one (width, centre) pair")
    if config.data.margin < 0:
        raise UserError(f"config.data.margin: {config.data.margin} is negative")
    if not 0 < config.validation_fraction < 1:
        raise UserError(f"config.validation_fraction: {config.validation_fraction} is not between 0 and 1")


def geometry(config: ml_collections.ConfigDict) -> Geometry:
    """The grid of stored patches."""
    return Geometry(config.patch_size, config.data.margin, config.spacing_mm)


def cache_folder(config: ml_collections.ConfigDict) -> Path:
    """Where prepared patches are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnsamp_jax"
    return Path(config.data.cache) if config.data.cache else default


def source(config: ml_collections.ConfigDict) -> Source:
    """The data source that the config names.

    Raises:
      UserError: the folder that the source needs is not given or not there.
    """
    data = config.data
    if data.source == "phantom":
        widest = data.train_cohort or data.cohort
        return PhantomSource(data.phantom_nodules, config.seed, widest, data.min_readers)
    field = {"lidc": "dicom_root", "folder": "root"}[data.source]
    if not data[field]:
        raise UserError(f"config.data.{field}: is empty; source '{data.source}' needs it, the path of a folder")
    if not Path(data[field]).is_dir():
        raise UserError(f"config.data.{field}: no such folder: {data[field]}")
    if data.source == "folder":
        return FolderSource(data.root)
    root = str(Path(data.dicom_root).resolve())
    index = f"dicom-index-{hashlib.sha256(root.encode()).hexdigest()[:12]}.json"
    return LidcSource(root, str(cache_folder(config) / index))


def difference(config: ml_collections.ConfigDict, there: dict) -> str | None:
    """The first field, as text, in which a config computes something else than another one as JSON; or None."""
    there = ADDED_FIELDS | _flatten(there)
    here = _flatten(json.loads(config.to_json()))
    for field in sorted(here.keys() | there.keys()):
        free = field in FREE_FIELDS or field.startswith(FREE_PARTS)
        if not free and here.get(field) != there.get(field):
            return f"there config.{field} is {there.get(field)!r}, here {here.get(field)!r}"
    return None


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
