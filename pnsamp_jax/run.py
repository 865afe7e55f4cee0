"""A run: the nodules of a config and their folds, opened once and handed on as one value."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from pnsamp_jax import input_pipeline, processes
from pnsamp_jax.config import Settings, read_settings
from pnsamp_jax.data import beam, cohort, schema
from pnsamp_jax.data.background import APART_MM
from pnsamp_jax.data.copies import require_no_copies
from pnsamp_jax.data.diagnosis import read_diagnoses, require_some
from pnsamp_jax.data.omissions import describe_omissions
from pnsamp_jax.data.on_disk import open_records
from pnsamp_jax.data.prepare import Prepared, Source, prepare
from pnsamp_jax.data.series_files import iter_series, read_records
from pnsamp_jax.files import user_path
from pnsamp_jax.input_pipeline import Arrays
from pnsamp_jax.workdir import layout, split, tables


@dataclass(frozen=True)
class Run:
    """A cross-validation that is open for work.

    Attributes:
      workdir: where its files lie, see `workdir.layout`.
      settings: the values of its config.
      records: the nodules of the cohort, and those of the wider `settings.train_cohort` if there is one; arrays under
        the names of `schema`, on the host or the device.
      folds: the nodule ids of each fold's subsets, for all folds of the split.
      background: records of points beside the nodules (see `data.background`), their voxels on disk; None for none.
    """

    workdir: Path
    settings: Settings
    records: Arrays
    folds: list[layout.Fold]
    background: Arrays | None = None

    def fold_folder(self, fold: int) -> Path:
        """Return the folder of a fold."""
        return layout.fold_folder(self.workdir, fold)

    def seed(self, fold: int) -> int:
        """Return a seed for each fold, so that folds differ in their initial weights and batches too."""
        return int(np.random.SeedSequence((self.settings.seed, fold)).generate_state(1)[0])

    def indices(self, fold: int) -> dict[str, np.ndarray]:
        """Return the indices in the records of the nodules of each subset of a fold, in ascending order.

        Nodules outside the cohort, which come from `settings.train_cohort`, join the training subset unless their
        patient is in one of the other subsets.
        """
        ids, patients = self.records[schema.NODULE_ID], self.records[schema.PATIENT_ID]
        found = {subset: np.flatnonzero(np.isin(ids, self.folds[fold][subset])) for subset in layout.SUBSETS}
        held_out = patients[np.concatenate([found["validation"], found["test"]])]
        added = ~in_cohort(self.settings, self.records) & ~np.isin(patients, held_out)
        found["train"] = np.union1d(found["train"], np.flatnonzero(added))
        return found

    def beside(self, fold: int, subset: str) -> np.ndarray:
        """Return the indices in the background of the points of a fold's subset: those of its patients alone."""
        assert self.background is not None, "the run has no background"
        patients, indices = self.records[schema.PATIENT_ID], self.indices(fold)
        own = patients[indices.pop(subset)]
        others = patients[np.concatenate(list(indices.values()))]
        of_points = self.background[schema.PATIENT_ID]
        return np.flatnonzero(np.isin(of_points, own) & ~np.isin(of_points, others))

    def on_device(self) -> "Run":
        """Return the run with its records where the pipeline wants them: on the device, or still on the host."""
        if self.settings.pipeline != "device":
            return self
        return replace(self, records=input_pipeline.to_device(self.records))


def open_run(config: ConfigDict, workdir: Path, longer: bool = False) -> Run:
    """Claim a workdir for a config, prepare and read its nodules, and read or make their folds.

    Args:
      config: of the run.
      workdir: its own.
      longer: whether the run may go on for more epochs than the workdir was trained, see `layout.difference`.

    Raises:
      UserError: the config, the data or the workdir do not fit; nothing in the workdir is changed.
    """
    settings = read_settings(config)
    processes.on_primary(partial(layout.check_config, workdir, settings.fields, longer))
    table = user_path(settings.diagnosis) if settings.diagnosis else None
    diagnoses = read_diagnoses(table) if table else {}  # which the evaluation needs, hours later
    records = load_records(settings)
    if table:
        require_some(table, diagnoses, _cohort_records(settings, records)[schema.PATIENT_ID].tolist())
    background = load_background(settings)
    folds = processes.from_primary(processes.on_primary(partial(_claim, workdir, settings, records, longer)))
    shared = {name: value for name, value in layout.flatten(settings.fields).items() if not layout.is_own(name)}
    held = {"config": shared, "fold": settings.folds, "nodules": records[schema.NODULE_ID].tolist()}
    processes.require_same(json.dumps(held, sort_keys=True), "configs or nodules")
    return Run(workdir, settings, records, folds, background)


def _claim(workdir: Path, settings: Settings, records: Arrays, longer: bool) -> list[layout.Fold]:
    """Claim a workdir, and return its folds."""
    folds = load_folds(settings, records, workdir / "folds.json")
    layout.claim(workdir, settings.fields, longer)
    tables.write_readers(workdir / "readers.csv", _cohort_records(settings, records))
    return folds


def prepare_run(config: ConfigDict, workdir: Path) -> None:
    """Prepare the data source, and write the readers' ratings of the cohort's nodules to readers.csv.

    Raises:
      UserError: as `open_run`.
    """
    settings = read_settings(config)
    layout.check_config(workdir, settings.fields)
    records, _ = load_records(settings), load_background(settings)
    tables.write_readers(workdir / "readers.csv", _cohort_records(settings, records))
    widest = settings.train_cohort or settings.cohort
    print(f"Prepared {len(records[schema.NODULE_ID])} nodules of the cohort {widest}")


def load_records(settings: Settings) -> Arrays:
    """Prepare the data source as far as it is not prepared, read its nodules, and tell which are left out.

    The pipeline "tfdata" leaves their voxels on disk until they are asked for.
    These are the nodules of the cohort, and those of the wider `settings.train_cohort` if there is one.

    Raises:
      UserError: no nodule can be read, none belongs to the cohort, or one is there twice, see `copies`.
    """
    read: list[np.ndarray] = []

    def member(rating_counts: np.ndarray) -> np.ndarray:
        read.append(rating_counts)
        chosen = cohort.members(rating_counts, settings.cohort, settings.min_readers)
        if settings.train_cohort:
            chosen |= cohort.members(rating_counts, settings.train_cohort, settings.min_readers)
        return chosen

    prepared = _prepare(settings, settings.source)
    take = open_records if settings.pipeline == "tfdata" else read_records
    try:
        records = take(prepared.files, member)
        require_no_copies(records)
        return records
    finally:  # also where none is left
        omissions = read and describe_omissions(
            np.concatenate(read), settings.cohort, settings.min_readers, settings.train_cohort
        )
        if omissions:
            print(omissions)


def load_background(settings: Settings) -> Arrays | None:
    """Prepare the points beside the nodules as far as they are not prepared, and open them.

    Returns:
      Their records, or None if none are wanted, or if no image has room for one, which is told in a line.
    """
    if not settings.background:
        return None
    geometry, files = settings.geometry, _prepare(settings, settings.background_source).files
    if next(iter_series(files, read=lambda file, series, name, chosen: chosen), None) is None:
        side_mm = geometry.patch_size * geometry.spacing_mm
        print(
            f"config.data.background: no image has room for a patch of {side_mm:g} mm {APART_MM:g} mm beside its "
            "nodules, so nodule_like stays blank"
        )
        return None
    return open_records(files)


def _prepare(settings: Settings, source: Source) -> Prepared:
    beam_options = beam.read_options(settings.beam) if settings.beam else None
    return prepare(source, settings.geometry, settings.cache, settings.workers, beam_options)


def load_folds(settings: Settings, records: Arrays, path: Path) -> list[layout.Fold]:
    """Read the folds of the cohort's nodules from a file, or make them and write it; see `split.load_folds`."""
    chosen = _cohort_records(settings, records)
    return split.load_folds(
        path,
        chosen[schema.NODULE_ID],
        chosen[schema.PATIENT_ID],
        cohort.malignancy_sign(chosen[schema.RATING_COUNTS], settings.cohort),
        cohort=settings.cohort,
        split=settings.split,
        seed=settings.seed,
        num_folds=settings.num_folds,
        validation_fraction=settings.validation_fraction,
    )


def in_cohort(settings: Settings, records: Arrays) -> np.ndarray:
    """Return which of the N nodules the folds are made of: (N,) bool."""
    return cohort.members(np.asarray(records[schema.RATING_COUNTS]), settings.cohort, settings.min_readers)


def _cohort_records(settings: Settings, records: Arrays) -> Arrays:
    """Return the records of the cohort's nodules, without their voxels."""
    chosen = in_cohort(settings, records)
    return {name: values[chosen] for name, values in records.items() if name not in (schema.IMAGE, schema.MASK)}
