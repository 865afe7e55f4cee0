"""Preparation of a data source: every series becomes a file of stored patches, in parallel and only once.

    <cache>/<source>-<digest>/description.json   everything that determines the records; the digest is computed from it
    <cache>/<source>-<digest>/<series>.npz       the records of one series
    <cache>/<source>-<digest>/failures.json      series that could not be prepared, with the reasons

A series file is written whole or not at all, so an interrupted preparation resumes where it stopped, and a series that
failed is tried again the next time.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from pnsamp_jax.ct.notes import collected
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import Geometry, MarkedNodule, make_record
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path, readable

FORMAT_VERSION = 2  # part of the description: raise it when the content of a record changes

Member = Callable[[np.ndarray], np.ndarray]  # (n, 9, 6) rating counts -> (n,) bool: the nodules to read


class Source(Protocol):
    """A source of nodules. It is pickled for worker processes, so it holds settings and no data."""

    name: str

    def series(self) -> list[str]:
        """Return the keys of the series, each of which is loaded once."""

    def load(self, series: str) -> list[MarkedNodule]:
        """Return the nodules of one series with their voxels; raise UserError if the files are damaged."""

    def description(self) -> dict[str, Any]:
        """Return everything that determines the records, as JSON."""


def make_records(source: Source, series: str, geometry: Geometry) -> schema.Records:
    """Return the records of one series, stacked. They depend only on the arguments and the files these name."""
    records = [make_record(marked, geometry) for marked in source.load(series)]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _prepare_series(source: Source, series: str, geometry: Geometry, path: Path) -> tuple[str | None, list[str]]:
    """Write one series file. Return None, or the reason if the series cannot be read; and notes about its files."""
    with collected() as notes:
        try:
            records = make_records(source, series, geometry)
        except (UserError, OSError) as error:
            return str(error), notes
    with atomic_path(path) as temporary:
        np.savez(temporary, **records)  # type: ignore[arg-type]  # no feature is called allow_pickle
    return None, notes


def _describe(source: Source, geometry: Geometry) -> str:
    """Return everything that determines a source's records, as JSON text."""
    description = {
        "format": FORMAT_VERSION,
        "geometry": dataclasses.asdict(geometry),
        **source.description(),
    }
    return json.dumps(description, indent=2, sort_keys=True)


def folder_name(source: Source, geometry: Geometry) -> str:
    """Return <source>-<digest>, a name that changes whenever the content of the records does."""
    return _name(source, _describe(source, geometry))


def _name(source: Source, description: str) -> str:
    return f"{source.name}-{hashlib.sha256(description.encode()).hexdigest()[:12]}"


def prepare(source: Source, geometry: Geometry, cache: Path, workers: int = 0) -> Path:
    """Write the records of a source to disk unless they are there already.

    Args:
      source: the source of nodules.
      geometry: the patch grid.
      cache: folder of prepared sources.
      workers: number of processes; 0 for one per core, 1 to work in this process.

    Returns:
      The folder of the source's records, for `read_records`.

    Raises:
      UserError: no series could be read; the message gives the first reason.
    """
    description = _describe(source, geometry)  # only once, since it reads the date of every file of a `folder` source
    folder = cache / _name(source, description)
    with atomic_path(folder / "description.json") as temporary:
        temporary.write_text(description)

    paths = {series: folder / f"{hashlib.sha256(series.encode()).hexdigest()[:24]}.npz" for series in source.series()}
    missing = {series: path for series, path in paths.items() if not path.exists()}
    failures = {}
    workers = min(workers or os.cpu_count() or 1, len(missing))
    with tqdm(total=len(paths), initial=len(paths) - len(missing), desc="Preparing", unit="series") as bar:
        for series, failure in _run(source, geometry, missing, workers):
            bar.update()
            if failure is not None:
                failures[series] = failure
    with atomic_path(folder / "failures.json") as temporary:
        temporary.write_text(json.dumps(failures, indent=2, sort_keys=True))
    if failures:
        print(readable(f"Left out {len(failures)} of {len(paths)} series (listed in {folder / 'failures.json'}):"))
        for series, reason in sorted(failures.items()):
            print(readable(f"  {series}: {reason}"))
    if len(failures) == len(paths):
        raise UserError(
            f"no series could be prepared; the first reason: {next(iter(failures.values()), 'none found')}"
        )
    return folder


def _run(source: Source, geometry: Geometry, paths: dict[str, Path], workers: int) -> Iterator[tuple[str, str | None]]:
    """Prepare each series and yield (series, None or the reason why it failed) as it ends."""
    if workers <= 1:
        for series, path in paths.items():
            yield series, _tell(*_prepare_series(source, series, geometry, path))
        return
    # Spawn instead of fork: a fork of a process that runs JAX can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        jobs = {pool.submit(_prepare_series, source, series, geometry, path): series for series, path in paths.items()}
        try:
            for job in as_completed(jobs):
                yield jobs[job], _tell(*job.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _tell(failure: str | None, notes: list[str]) -> str | None:
    """Print the notes about a series between the steps of the bar, and return its failure."""
    for text in notes:
        tqdm.write(readable(text), file=sys.stderr)
    return failure


def _end_with_parent() -> None:
    """End a worker process when its parent is killed; otherwise it would wait for its next series forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only worker processes call this function

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def iter_series(folder: Path, member: Member | None = None) -> Iterator[schema.Records]:
    """Yield the prepared records of each series, so that only one series is in memory at a time.

    Args:
      folder: the folder that `prepare` returned.
      member: selects the nodules to read: (n, 9, 6) rating counts -> (n,) bool; None for all. The voxels of the other
        nodules are not read, and a series without selected nodules is skipped.

    Raises:
      UserError: a file is damaged.
    """
    for path in sorted(folder.glob("[!.]*.npz")):
        try:
            with path.open("rb") as file, np.load(file) as part:  # np.load itself leaves a damaged file open
                rating_counts = part[schema.RATING_COUNTS]
                chosen = np.flatnonzero(member(rating_counts)) if member else np.arange(len(rating_counts))
                records = {name: part[name][chosen] for name in part.files} if len(chosen) else None
        except (zipfile.BadZipFile, ValueError, LookupError, EOFError, OSError, RuntimeError, struct.error) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run again") from error
        if records:
            yield records


def join_records(parts: Iterable[schema.Records]) -> schema.Records:
    """Concatenate stacked records and sort them by nodule id.

    Raises:
      UserError: there are no records, or a nodule id appears twice.
    """
    parts = list(parts)
    if not parts:
        raise UserError(
            "config.data.cohort: no nodule belongs to the cohort; choose another or lower config.data.min_readers"
        )
    ids = np.concatenate([part[schema.NODULE_ID] for part in parts])
    order = np.argsort(ids, kind="stable")
    repeated = ids[order][1:][ids[order][1:] == ids[order][:-1]]
    if len(repeated):
        raise UserError(f"nodule_id '{repeated[0]}' appears in two series; ids must be unique")
    return {name: np.concatenate([part.pop(name) for part in parts])[order] for name in list(parts[0])}


def read_records(folder: Path, member: Member | None = None) -> schema.Records:
    """Read prepared records into memory, sorted by nodule id.

    Args:
      folder: the folder that `prepare` returned.
      member: selects the nodules to read, see `iter_series`.

    Raises:
      UserError: a file is damaged, a nodule id appears twice, or no nodule is selected.
    """
    return join_records(iter_series(folder, member))
