"""A run's workdir: which config it belongs to, which nodules and folds it holds, and who is at work on a fold.

config.json       of the run; decides who may use the workdir again
folds.json        the split, with patient ids
readers.csv       what the readers say of the cohort's nodules
fold_<k>/lock     held by the run that is at work on the fold
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_collections
import numpy as np
from filelock import FileLock, Timeout

from pnsamp_jax import config as settings
from pnsamp_jax import input_pipeline
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.folds import make_folds
from pnsamp_jax.data.prepare import prepare, read_records
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.workdir import tables

Records = dict[str, np.ndarray]
PARTS = ("train", "validation", "test")


def check(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses a workdir that holds a run of another config. Nothing is written.

    Raises:
      UserError: names the first field that differs.
    """
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "folds.json").exists():
            raise UserError(f"{workdir}: holds a run but no config.json; take another --workdir")
        return
    try:
        there = json.loads(path.read_bytes())
        difference = settings.difference(config, there)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it if the workdir is this config's") from error
    if difference:
        way_out = "take another --workdir or the same config"
        raise UserError(f"{workdir} belongs to another config: {difference}; {way_out}")


def claim(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the config into the workdir."""
    with atomic_path(workdir / "config.json") as temporary:
        temporary.write_text(json.dumps(json.loads(config.to_json()), indent=2))


@contextmanager
def sole(fold_folder: Path) -> Iterator[None]:
    """Keeps other processes off a fold until the block ends, or this process does, in whatever way.

    Different folds of one workdir may be trained at the same time. This process may take the same fold once more.

    Raises:
      UserError: another process is at work on it.
    """
    fold_folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(fold_folder.absolute() / "lock", timeout=0, is_singleton=True).acquire()
    except Timeout:
        reason = "another run is at work on it; wait for its end, or take another --workdir"
        raise UserError(f"{fold_folder}: {reason}") from None
    with lock:
        yield


def open_run(config: ml_collections.ConfigDict, workdir: Path) -> tuple[Records, list[dict[str, list[str]]]]:
    """Claims a workdir for a config, and gives its nodules and their split into folds.

    Raises:
      UserError: the settings, the data or the workdir do not fit; nothing that was there is changed.
    """
    settings.check(config)
    check(config, workdir)
    records = load_records(config)
    folds = load_folds(config, records, workdir / "folds.json")
    claim(config, workdir)
    write_readers(config, workdir, records)
    return records, folds


def load_records(config: ml_collections.ConfigDict) -> Records:
    """Prepares the config's data source where that is still to be done, and reads its nodules into memory.

    These are the cohort's, and those of the wider `config.data.train_cohort` if there is one.
    """

    def member(rating_counts: np.ndarray) -> np.ndarray:
        chosen = in_cohort(config, rating_counts)
        if config.data.train_cohort:
            chosen |= cohort.members(rating_counts, config.data.train_cohort, config.data.min_readers)
        return chosen

    source, geometry, cache = settings.source(config), settings.geometry(config), settings.cache_folder(config)
    if config.data.pipeline == "tfdata":
        from pnsamp_jax.datasets.lidc_nodules import read_dataset

        return read_dataset(source, geometry, cache, config.data.workers, member)
    return read_records(prepare(source, geometry, cache, config.data.workers), member)


def place_records(config: ml_collections.ConfigDict, records: Records) -> Records:
    """The records where the config's pipeline has them: on the device, or on the host."""
    return input_pipeline.to_device(records) if config.data.pipeline == "device" else records


def in_cohort(config: ml_collections.ConfigDict, rating_counts: np.ndarray) -> np.ndarray:
    """Which nodules, of (n, 9, 6) rating_counts, the folds are made of: (n,) bool."""
    return cohort.members(rating_counts, config.data.cohort, config.data.min_readers)


def load_folds(config: ml_collections.ConfigDict, records: Records, path: Path) -> list[dict[str, list[str]]]:
    """Reads the split of the cohort from folds.json, or makes and writes it.

    Raises:
      UserError: the file was made for other nodules.
    """
    chosen = in_cohort(config, records[schema.RATING_COUNTS])
    records = {name: records[name][chosen] for name in (schema.NODULE_ID, schema.PATIENT_ID, schema.RATING_COUNTS)}
    patient_of = dict(zip(records[schema.NODULE_ID].tolist(), records[schema.PATIENT_ID].tolist(), strict=True))
    header = {"cohort": config.data.cohort, "split": config.split, "seed": config.seed}
    if path.exists():
        there, folds = _read_folds(path)
        for field, value in {**header, "num_folds": config.num_folds}.items():
            if there[field] != value:
                raise UserError(f"{path}: is of {field} {there[field]!r}, not {value!r}; take another --workdir")
        if {nodule for fold in folds for nodule in fold["test"]} != patient_of.keys():
            raise UserError(f"{path}: was made for other nodules than the data now holds; take another --workdir")
        return folds
    folds = make_folds(
        records[schema.NODULE_ID],
        records[schema.PATIENT_ID],
        cohort.suspicion(records[schema.RATING_COUNTS], config.data.cohort),
        num_folds=config.num_folds,
        validation_fraction=config.validation_fraction,
        split=config.split,
        seed=config.seed,
    )
    described = [
        {part: {"nodules": ids, "patients": sorted({patient_of[i] for i in ids})} for part, ids in fold.items()}
        for fold in folds
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**header, "folds": described}, indent=1))
    return folds


def _read_folds(path: Path) -> tuple[dict, list[dict[str, list[str]]]]:
    """What folds.json says of itself, and the nodule ids of each fold's parts."""
    try:
        content = json.loads(path.read_bytes())
        folds = [{part: fold[part]["nodules"] for part in PARTS} for fold in content.pop("folds")]
        return {field: content[field] for field in ("cohort", "split", "seed")} | {"num_folds": len(folds)}, folds
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it, and the same is made again from the same data and config"
        ) from error


def places_of(records: Records, nodule_ids: list[str]) -> np.ndarray:
    """Where the given nodules stand in the records, ascending."""
    return np.flatnonzero(np.isin(records[schema.NODULE_ID], nodule_ids))


def part_places(
    config: ml_collections.ConfigDict, records: Records, split: dict[str, list[str]]
) -> dict[str, np.ndarray]:
    """Where the nodules of a fold's parts stand in the records.

    Nodules beyond the cohort, of `config.data.train_cohort`, join the training part, except where their patient is
    among those of the other parts.
    """
    places = {part: places_of(records, split[part]) for part in PARTS}
    held_out = records[schema.PATIENT_ID][np.concatenate([places["validation"], places["test"]])]
    further = ~in_cohort(config, np.asarray(records[schema.RATING_COUNTS])) & ~np.isin(
        records[schema.PATIENT_ID], held_out
    )
    places["train"] = np.union1d(places["train"], np.flatnonzero(further))
    return places


def write_readers(config: ml_collections.ConfigDict, workdir: Path, records: Records) -> None:
    """Writes what the readers say of the cohort's nodules to readers.csv."""
    chosen = in_cohort(config, records[schema.RATING_COUNTS])
    table = {name: values[chosen] for name, values in records.items() if name not in (schema.IMAGE, schema.MASK)}
    tables.write_readers(workdir / "readers.csv", table)


def chosen_folds(config: ml_collections.ConfigDict) -> list[int]:
    """The folds that a run is about."""
    return list(range(config.num_folds)) if config.fold == -1 else [config.fold]
