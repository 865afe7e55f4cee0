"""The meaning of a config: once checked (`config_checks`), it becomes the plain values that the rest works with.

Apart from the modules that load and check a ConfigDict, no other reads it.
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
from ml_collections import ConfigDict

from pnsamp_jax import losses, processes, transforms
from pnsamp_jax.appearance import Appearance
from pnsamp_jax.config_checks import check_choice, check_fields, check_values
from pnsamp_jax.data.background import BackgroundSource
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.luna16 import Luna16Source
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import Source
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import default_cache_folder, user_path
from pnsamp_jax.task import Task, build_model


@dataclass(frozen=True)
class Settings:
    """The plain values of a checked config, for training and testing.

    Attributes:
      fields: the whole config as JSON, by which runs are told apart.
      geometry: of the stored patches.
      cache: folder of prepared patches and compiled programs.
      workers: processes that prepare patches; 0 for one per core.
      beam: options of Apache Beam, whose workers prepare them instead, see `beam.read_options`; "" for none.
      pipeline: one of `input_pipeline.PIPELINES`.
      cohort: which nodules are split into folds, one of `cohort.COHORTS`.
      train_cohort: a wider cohort whose further nodules are added to the training subset; "" for none.
      min_readers: least number of readers of a nodule.
      nominal: how the nominal ratings of several readers become one class, one of `cohort.NOMINAL_RULES`.
      diagnosis: table of the patients' diagnoses, which the evaluation reads; "" for none.
      background: points beside each nodule, from which a fold's answers learn what is no nodule; 0 for none.
      split: one of `folds.SPLITS`.
      init: the networks to start from: "" for random weights, "shipped", or the workdir of a run.
      num_folds, folds: number of folds in the split, and those that the run trains or tests.
      validation_fraction: share of a fold's training nodules that is held out for validation.
      seed: decides the split, the initial weights, the order of the batches and the augmentation.
      batch_size: nodules in a batch, over all devices.
      num_epochs: of each fold.
      learning_rate, schedule: the peak, and one of `state.SCHEDULES`.
      log_every_steps, checkpoint_every_epochs: intervals of logging, and of validation with a checkpoint.
      steps_per_call: training steps that the device takes in one call.
      checkpoint: which checkpoint is tested, "best" or "last".
      refit_copies: augmented copies of each training nodule that the heads are fitted to again; 0 for no such fit.
      fit_threshold: whether each mask has a threshold of its own, see `inference.masks.best_threshold`.
      test_flips: whether the test averages over the eight flips of a patch.
    """

    fields: dict[str, Any]
    geometry: Geometry
    cache: Path
    workers: int
    beam: str
    pipeline: str
    cohort: str
    train_cohort: str
    min_readers: int
    nominal: str
    diagnosis: str
    background: int
    split: str
    init: str
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
    steps_per_call: int
    checkpoint: str
    refit_copies: int
    fit_threshold: bool
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
        field = "dicom_root" if data["source"] == "lidc" else "root"
        folder = os.path.expanduser(data[field])
        if not folder:
            raise UserError(f"config.data.{field}: is empty; source '{data['source']}' needs the path of a folder")
        if not Path(folder).is_dir():
            what = "is a file, not a folder" if Path(folder).is_file() else "no such folder"
            raise UserError(f"config.data.{field}: {what}: {folder}")
        if data["source"] != "lidc":
            return FolderSource(folder) if data["source"] == "folder" else Luna16Source(folder)
        root = str(Path(folder).resolve())
        index = f"dicom-index-{hashlib.sha256(root.encode()).hexdigest()[:12]}.json"
        return LidcSource(root, str(self.cache / index))

    @cached_property
    def background_source(self) -> Source:
        """Return where the points beside the nodules come from; see `source`."""
        return BackgroundSource(self.source, self.background, self.geometry, self.seed)

    @cached_property
    def task(self) -> Task:
        """Return the static settings of the compiled steps.

        Raises:
          UserError: config.model names no model of `models.MODELS`, as for a baseline without a network.
        """
        model, windows = build_model(self.fields["model"])
        return Task(
            model=model,
            patch_size=self.geometry.patch_size,
            windows=windows,
            augmentation=transforms.Augmentation(**self.fields["augment"]),
            labels=self.fields["loss"]["labels"],
            weights=losses.Weights(**{name: self.fields["loss"][name] for name in losses.Weights._fields}),
            nominal=self.nominal,
            appearance=Appearance(**self.fields["appearance"]),
            indeterminate=self.fields["loss"]["indeterminate"],
            average_decay=self.fields["average_decay"],
        )


@dataclass(frozen=True)
class PredictSettings:
    """The plain values of a checked config, for predicting the nodules of a user's CT.

    Attributes:
      image, points, units, series, min_score: see `point_files.read_requests`.
      checkpoint: workdir of a training; "" for the weights that come with the package.
      flips: whether to average over the eight flips of a patch.
      runtime: what computes the networks' answers, one of `ensemble.RUNTIMES`.
      shown: most nodules in the report and the figures.
      batch_size: nodules in a batch.
      cache: folder of compiled programs.
    """

    image: str
    points: str
    units: str
    series: str
    min_score: float
    checkpoint: str
    flips: bool
    runtime: str
    shown: int
    batch_size: int
    cache: Path


def read_settings(config: ConfigDict) -> Settings:
    """Check a config before anything is read or written, and return its values.

    Raises:
      UserError: names the field and what it may be.
    """
    check_fields(config)
    check_values(config)
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
    check_fields(config)
    options = config.predict
    check_choice("predict.units", options.units)
    check_choice("predict.runtime", options.runtime)
    if config.batch_size < 1:
        raise UserError(f"config.batch_size: {config.batch_size} must be positive")
    if options.shown < 0:
        raise UserError(f"config.predict.shown: {options.shown} is negative; give a count, or 0 for no report")
    same = {field.name for field in dataclasses.fields(PredictSettings)} - {"batch_size", "cache"}
    return PredictSettings(
        **{name: options[name] for name in same},  # named as in the config
        batch_size=config.batch_size,
        cache=cache_folder(config),
    )


def connect_processes(config: ConfigDict) -> None:
    """Connect the processes that config.distributed names, before any device is touched; see `processes.connect`."""
    check_fields(config)
    processes.connect(config.distributed)


def read_geometry(config: ConfigDict) -> Geometry:
    """Return the grid of the stored patches."""
    return Geometry(config.patch_size, config.data.margin, config.spacing_mm)


def cache_folder(config: ConfigDict) -> Path:
    """Return the folder of prepared patches and compiled programs."""
    return user_path(config.data.cache) if config.data.cache else default_cache_folder()


def use_compilation_cache(cache: Path) -> None:
    """Keep compiled programs in the cache folder, so that the next process need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
