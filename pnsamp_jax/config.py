"""The meaning of a config: every field is checked here, and turned into the plain values that the rest works with.

No other module of the package reads a ConfigDict.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pnsamp_jax import losses, models, steps, transforms
from pnsamp_jax.configs import base
from pnsamp_jax.data.cohort import COHORTS
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.folds import SPLITS
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import Source
from pnsamp_jax.errors import UsageError, UserError
from pnsamp_jax.files import user_path
from pnsamp_jax.inference.requests import POINT_COLUMNS
from pnsamp_jax.input_pipeline import PIPELINES
from pnsamp_jax.state import SCHEDULES
from pnsamp_jax.workdir.layout import flatten

CHOICES = {
    "data.source": ("phantom", "lidc", "folder"),
    "data.cohort": COHORTS,
    "data.train_cohort": ("", *COHORTS),
    "data.pipeline": PIPELINES,
    "split": SPLITS,
    "schedule": SCHEDULES,
    "checkpoint": ("best", "last"),
    "loss.labels": transforms.LABELS,
    "model.dtype": ("float32", "bfloat16"),
    "predict.units": tuple(POINT_COLUMNS),
}
POSITIVE = (
    "patch_size",
    "spacing_mm",
    "batch_size",
    "num_epochs",
    "learning_rate",
    "checkpoint_every_epochs",
    "log_every_steps",
)
NOT_NEGATIVE = ("seed", "data.margin", "data.min_readers", "data.workers", "augment.translate", "augment.rotate")


@dataclass(frozen=True)
class Settings:
    """The plain values of a checked config, for training and testing.

    Attributes:
      fields: the whole config as JSON, by which runs are told apart.
      geometry: of the stored patches.
      cache: folder of prepared patches and compiled programs.
      workers: processes that prepare patches; 0 for one per core.
      pipeline: one of `input_pipeline.PIPELINES`.
      cohort: which nodules are split into folds, one of `cohort.COHORTS`.
      train_cohort: a wider cohort whose further nodules are added to the training subset; "" for none.
      min_readers: least number of readers of a nodule.
      split: one of `folds.SPLITS`.
      num_folds, folds: number of folds in the split, and those that the run trains or tests.
      validation_fraction: share of a fold's training nodules that is held out for validation.
      seed: decides the split, the initial weights, the order of the batches and the augmentation.
      batch_size: nodules in a batch, over all devices.
      num_epochs: of each fold.
      learning_rate, schedule: the peak, and one of `state.SCHEDULES`.
      log_every_steps, checkpoint_every_epochs: intervals of logging, and of validation with a checkpoint.
      checkpoint: which checkpoint is tested, "best" or "last".
      test_flips: whether the test averages over the eight flips of a patch.
    """

    fields: dict[str, Any]
    geometry: Geometry
    cache: Path
    workers: int
    pipeline: str
    cohort: str
    train_cohort: str
    min_readers: int
    split: str
    num_folds: int
    folds: tuple[int, ...]
    validation_fraction: float
    seed: int
    batch_size: int
    num_epochs: int
    learning_rate: float
    schedule: str
    log_every_steps: int
    checkpoint_every_epochs: int
    checkpoint: str
    test_flips: bool

    @cached_property
    def source(self) -> Source:
        """Return where the nodules come from.

        Raises:
          UserError: the folder that the source needs is not given or does not exist.
        """
        data = self.fields["data"]
        if data["source"] == "phantom":
            return PhantomSource(
                data["phantom_nodules"], self.seed, self.train_cohort or self.cohort, self.min_readers
            )
        field = {"lidc": "dicom_root", "folder": "root"}[data["source"]]
        folder = os.path.expanduser(data[field])
        if not folder:
            raise UserError(f"config.data.{field}: is empty; source '{data['source']}' needs the path of a folder")
        if not Path(folder).is_dir():
            raise UserError(f"config.data.{field}: no such folder: {folder}")
        if data["source"] == "folder":
            return FolderSource(folder)
        root = str(Path(folder).resolve())
        index = f"dicom-index-{hashlib.sha256(root.encode()).hexdigest()[:12]}.json"
        return LidcSource(root, str(self.cache / index))

    @cached_property
    def task(self) -> steps.Task:
        """Return the static settings of the compiled steps.

        Raises:
          UserError: config.model names no model of `models.MODELS`, as for a baseline without a network.
        """
        model, windows = steps.build_model(self.fields["model"])
        return steps.Task(
            model=model,
            patch_size=self.geometry.patch_size,
            windows=windows,
            augmentation=transforms.Augmentation(**self.fields["augment"]),
            labels=self.fields["loss"]["labels"],
            weights=losses.Weights(
                **{name: self.fields["loss"][name] for name in ("segmentation", "attributes", "malignancy")}
            ),
        )


@dataclass(frozen=True)
class PredictSettings:
    """The plain values of a checked config, for predicting the nodules of a user's CT.

    Attributes:
      image, points, units, series: see `requests.read_requests`.
      checkpoint: workdir of a training; "" for the weights that come with the package.
      flips: whether to average over the eight flips of a patch.
      max_shown: most nodules in the report and the figures.
      batch_size: nodules in a batch.
      cache: folder of compiled programs.
    """

    image: str
    points: str
    units: str
    series: str
    checkpoint: str
    flips: bool
    max_shown: int
    batch_size: int
    cache: Path


def read_settings(config: ConfigDict) -> Settings:
    """Check a config before anything is read or written, and return its values.

    Raises:
      UserError: names the field and what it may be.
    """
    _check_fields(config)
    _check_values(config)
    same = {field.name for field in dataclasses.fields(Settings)} - {"cache"}  # named as in the config
    return Settings(
        **{name: value for name, value in {**config, **config.data}.items() if name in same},
        fields=json.loads(config.to_json()),
        geometry=read_geometry(config),
        cache=cache_folder(config),
        folds=tuple(range(config.num_folds)) if config.fold == -1 else (config.fold,),
    )


def read_predict_settings(config: ConfigDict) -> PredictSettings:
    """Check the fields of a config that a prediction uses, and return their values.

    Raises:
      UserError: names the field and what it may be.
    """
    _check_fields(config)
    options = config.predict
    _check_choice("predict.units", options.units)
    if config.batch_size < 1:
        raise UserError(f"config.batch_size: {config.batch_size} must be positive")
    if options.shown < 0:
        raise UserError(f"config.predict.shown: {options.shown} is negative; give a count, or 0 for no report")
    same = ("image", "points", "units", "series", "checkpoint", "flips")  # named as in the config
    return PredictSettings(
        **{name: options[name] for name in same},
        max_shown=options.shown,
        batch_size=config.batch_size,
        cache=cache_folder(config),
    )


def read_geometry(config: ConfigDict) -> Geometry:
    """Return the grid of the stored patches."""
    return Geometry(config.patch_size, config.data.margin, config.spacing_mm)


def cache_folder(config: ConfigDict) -> Path:
    """Return the folder of prepared patches and compiled programs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnsamp_jax"
    return user_path(config.data.cache) if config.data.cache else default


def use_compilation_cache(cache: Path) -> None:
    """Keep compiled programs in the cache folder, so that the next process need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))


def _check_fields(config: ConfigDict) -> None:
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


def _check_values(config: ConfigDict) -> None:
    flat = flatten(config.to_dict())
    for field in CHOICES:
        if field in flat:
            _check_choice(field, flat[field])
    for field in POSITIVE:
        if not 0 < flat[field] < np.inf:
            raise UserError(f"config.{field}: {flat[field]} must be positive")
    for field in NOT_NEGATIVE:
        if not 0 <= flat[field] < np.inf:
            raise UserError(f"config.{field}: {flat[field]} is negative; give 0 or more")
    _check_windows(config.model.windows)
    # A baseline without a network takes any size.
    multiple = getattr(models.MODELS.get(config.model.name), "PATCH_MULTIPLE", 1)
    if config.patch_size % multiple:
        raise UserError(
            f"config.patch_size: {config.patch_size} is not divisible by {multiple}, as {config.model.name} needs"
        )
    devices = jax.local_device_count()
    if config.batch_size % devices:
        raise UserError(f"config.batch_size: {config.batch_size} is not divisible by the number of devices, {devices}")
    if not -1 <= config.fold < config.num_folds:
        raise UserError(f"config.fold: {config.fold} is not -1 (all) or 0..{config.num_folds - 1}")
    if not (flat.get("model.segment", True) or flat.get("model.rate", True)):
        raise UserError("config.model: segment and rate are both False, so there is nothing to learn")
    if not 0 < config.validation_fraction < 1:
        raise UserError(f"config.validation_fraction: {config.validation_fraction} is not between 0 and 1")


def _check_choice(field: str, value: str) -> None:
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
