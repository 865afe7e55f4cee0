"""Prepares a data source once: every series becomes a file of stored patches, in parallel and resumably.

    <cache>/<source>-<digest>/description.json   what decides the content; the digest is of this
    <cache>/<source>-<digest>/<series>.npz       the records of one series
    <cache>/<source>-<digest>/failures.json      series left out, each with its reason

A series file is written whole or not at all, so an interrupted preparation goes on where it stopped, and a series that
failed is tried again the next time.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import struct
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import Geometry, MarkedNodule, make_record
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path, readable

FORMAT_VERSION = 2  # part of the digest: raise it when the content of a record changes

Member = Callable[[np.ndarray], np.ndarray]  # (n, 9, 6) rating_counts -> (n,) bool: which nodules to read


class Source(Protocol):
    """Where nodules come from. It travels to worker processes, so it holds settings, not data."""

    name: str

    def series(self) -> list[str]:
        """Keys of the units of work, each read once."""

    def load(self, series: str) -> list[MarkedNodule]:
        """The nodules of one series, with voxels; raises UserError where the files are broken."""

    def description(self) -> dict:
        """Everything that decides the content, as JSON."""


def make_records(source: Source, series: str, geometry: Geometry) -> dict[str, np.ndarray]:
    """The records of one series, stacked: a pure function of its arguments and the files that they name."""
    records = [make_record(marked, geometry) for marked in source.load(series)]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _prepare_series(source: Source, series: str, geometry: Geometry, path: Path) -> str | None:
    """Writes one series file; returns the reason where that is not possible."""
    try:
        records = make_records(source, series, geometry)
    except (UserError, OSError) as error:
        return str(error)
    with atomic_path(path) as temporary:
        np.savez(temporary, **records)
    return None


def _describe(source: Source, geometry: Geometry) -> str:
    """What decides the content of a source's records, as JSON text."""
    description = {
        "format": FORMAT_VERSION,
        "geometry": dataclasses.asdict(geometry),
        **source.description(),
    }
    return json.dumps(description, indent=2, sort_keys=True)


def folder_name(source: Source, geometry: Geometry) -> str:
    """<source>-<digest>: a name for the records that changes whenever their content does."""
    return _name(source, _describe(source, geometry))


def _name(source: Source, description: str) -> str:
    return f"{source.name}-{hashlib.sha256(description.encode()).hexdigest()[:12]}"


def prepare(source: Source, geometry: Geometry, cache: Path, workers: int = 0) -> Path:
    """Makes sure that all records of a source are on disk.

    Args:
      source: where nodules come from.
      geometry: the patch grid.
      cache: folder that holds prepared sources.
      workers: processes; 0 for one per core, 1 for none beside this one.

    Returns:
      The folder of this source's records, for `read_records`.

    Raises:
      UserError: no series could be read at all; the first reason is given.
    """
    description = _describe(source, geometry)  # once: it looks at every file of a folder
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
    """Yields (series, reason or None) as each is done."""
    if workers <= 1:
        for series, path in paths.items():
            yield series, _prepare_series(source, series, geometry, path)
        return
    # Spawned, not forked: a fork of a process that runs JAX can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        jobs = {pool.submit(_prepare_series, source, series, geometry, path): series for series, path in paths.items()}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends a worker process when the one that it works for is killed; it would wait for its next series for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def iter_series(folder: Path, member: Member | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Yields prepared records, stacked series by series, so that one series at a time is in memory.

    Args:
      folder: what `prepare` returned.
      member: (n, 9, 6) rating_counts -> (n,) bool, which nodules to read; all by default. Voxels of the others are not read,
        and a series without members is passed over.

    Raises:
      UserError: a file is damaged.
    """
    for path in sorted(folder.glob("[!.]*.npz")):
        try:
            with path.open("rb") as file, np.load(file) as part:  # np.load itself leaves a damaged file open
                chosen = (
                    np.flatnonzero(member(part[schema.RATING_COUNTS]))
                    if member
                    else np.arange(len(part[schema.RATING_COUNTS]))
                )
                records = {name: part[name][chosen] for name in part.files} if len(chosen) else None
        except (zipfile.BadZipFile, ValueError, LookupError, EOFError, OSError, RuntimeError, struct.error) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run again to prepare it anew") from error
        if records:
            yield records


def join_records(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins stacked records into one stack, sorted by nodule id.

    Raises:
      UserError: there is no part, or a nodule id appears twice.
    """
    parts = list(parts)
    if not parts:
        raise UserError("config.data.cohort: no nodule belongs to the cohort; take another, or fewer min_readers")
    ids = np.concatenate([part[schema.NODULE_ID] for part in parts])
    order = np.argsort(ids, kind="stable")
    repeated = ids[order][1:][ids[order][1:] == ids[order][:-1]]
    if len(repeated):
        raise UserError(f"nodule_id '{repeated[0]}' appears in two series; ids must be unique")
    return {name: np.concatenate([part.pop(name) for part in parts])[order] for name in list(parts[0])}


def read_records(folder: Path, member: Member | None = None) -> dict[str, np.ndarray]:
    """Reads prepared records into memory, sorted by nodule id.

    Args:
      folder: what `prepare` returned.
      member: which nodules to read, as in `iter_series`.

    Returns:
      Arrays under the names of `schema`, with N nodules on the leading axis.

    Raises:
      UserError: a file is damaged, a nodule id appears twice, or no nodule is a member.
    """
    return join_records(iter_series(folder, member))
