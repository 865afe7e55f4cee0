"""Preparation of a data source: every series becomes a file of stored patches, in parallel and only once.

    <cache>/<source>-<digest>/description.json         the settings that all series share, of which this is the digest
    <cache>/<source>-<digest>/<series>-<digest>.npz    the records of one series; the digest is that of its inputs
    <cache>/<source>-<digest>/failures.json            series that could not be prepared, with the reasons

A series is prepared again when its inputs change: a slice that came or went, a voxel file that was written again, a
reading. The others stay. A series file is written whole or not at all, so an interrupted preparation resumes where it
stopped, and a series that failed is tried again the next time.
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
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from pnsamp_jax.ct.notes import collected
from pnsamp_jax.data import beam, schema
from pnsamp_jax.data.patches import Geometry, MarkedNodule, make_record
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path, readable, write_text

FORMAT_VERSION = 4  # part of the description: raise it when the content of a record changes
NO_MEMBER = "config.data.cohort: no nodule belongs to the cohort; choose another or lower config.data.min_readers"

ReadField = Callable[[BinaryIO, np.lib.npyio.NpzFile, str, np.ndarray], np.ndarray]  # see `read_field`
Member = Callable[[np.ndarray], np.ndarray]  # (n, 9, 6) rating counts -> (n,) bool: the nodules to read


class Source(Protocol):
    """A source of nodules. It is pickled for worker processes, so it holds settings and no data."""

    name: str

    def series(self) -> list[str]:
        """Look at the files anew, and return the keys of the series, each of which is loaded once."""

    def load(self, series: str) -> list[MarkedNodule]:
        """Return the nodules of one series with their voxels; raise UserError if the files are damaged."""

    def description(self) -> dict[str, Any]:
        """Return the settings that determine the records of every series, as JSON."""

    def inputs(self, series: str) -> Any:
        """Return what else determines the records of one series, as JSON: its files (see `stamp`) and readings."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The prepared records of a source.

    Attributes:
      folder: in which they lie.
      files: one for each series that could be prepared; other files in the folder are out of date.
      failures: the reason for each series that could not.
    """

    folder: Path
    files: list[Path]
    failures: dict[str, str]


def make_records(source: Source, series: str, geometry: Geometry) -> schema.Records:
    """Return the records of one series, stacked. They depend only on the arguments and the files these name.

    A series without nodules, as a `background` source may have, gives empty rating counts alone.
    """
    records = [make_record(marked, geometry) for marked in source.load(series)]
    if not records:
        return {schema.RATING_COUNTS: np.zeros((0, *schema.CLASS_EXISTS.shape), np.uint8)}
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _prepare_series(source: Source, geometry: Geometry, series: str, path: Path) -> tuple[str | None, list[str]]:
    """Write one series file. Return None, or the reason if the series cannot be read; and notes about its files."""
    with collected() as notes:
        try:
            records = make_records(source, series, geometry)
        except (UserError, OSError) as error:
            return str(error), notes
        except MemoryError:
            return f"{series}: takes more memory than there is; close other programs or leave it out", notes
    with atomic_path(path) as temporary:
        np.savez(temporary, **records)  # type: ignore[arg-type]  # no feature is called allow_pickle
    return None, notes


def _describe(source: Source, geometry: Geometry) -> str:
    """Return the settings that all series of a source share, as JSON text."""
    description = {
        "format": FORMAT_VERSION,
        "geometry": dataclasses.asdict(geometry),
        **source.description(),
    }
    return json.dumps(description, indent=2, sort_keys=True)


def _digest(text: str) -> str:
    """Return 24 hexadecimal digits by which texts are told apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _series_files(source: Source) -> dict[str, str]:
    """Return the name of the file of each series, which changes with the inputs of the series."""
    return {
        series: f"{_digest(series)}-{_digest(json.dumps(source.inputs(series), sort_keys=True))}.npz"
        for series in source.series()
    }


def dataset_name(source: Source, geometry: Geometry) -> str:
    """Return <source>-<digest>, a name that changes whenever the content of any record does."""
    return _name(source, json.dumps([_describe(source, geometry), _series_files(source)]))


def _name(source: Source, content: str) -> str:
    return f"{source.name}-{_digest(content)[:12]}"


def prepare(
    source: Source, geometry: Geometry, cache: Path, workers: int = 0, beam_options: Any | None = None
) -> Prepared:
    """Write the records of a source to disk unless they are there already.

    Args:
      source: the source of nodules.
      geometry: the patch grid.
      cache: folder of prepared sources.
      workers: number of processes; 0 for one per core, 1 to work in this process.
      beam_options: of Apache Beam, whose workers prepare instead (see `beam`); None for the processes of this machine.

    Raises:
      UserError: no series could be read; the message gives the first reason.
    """
    description, names = _describe(source, geometry), _series_files(source)
    folder = cache / _name(source, description)
    write_text(folder / "description.json", description)
    _remove_outdated(folder, names.values())

    paths = {series: folder / name for series, name in names.items()}
    missing = {series: path for series, path in paths.items() if not path.exists()}
    job, failures = partial(_prepare_series, source, geometry), {}
    jobs = _run(job, missing, workers) if beam_options is None else beam.run(job, missing, beam_options)
    with tqdm(total=len(paths), initial=len(paths) - len(missing), desc="Preparing", unit="series") as bar:
        for series, failure, notes in jobs:
            for text in notes:
                tqdm.write(readable(text), file=sys.stderr)
            bar.update()
            if failure is not None:
                failures[series] = failure
    write_text(folder / "failures.json", json.dumps(failures, indent=2, sort_keys=True))
    if failures:
        print(readable(f"Left out {len(failures)} of {len(paths)} series (listed in {folder / 'failures.json'}):"))
        for series, reason in sorted(failures.items()):
            print(readable(f"  {series}: {reason}"))
    if len(failures) == len(paths):
        raise UserError(
            f"no series could be prepared; the first reason: {next(iter(failures.values()), 'none found')}"
        )
    return Prepared(folder, sorted(path for series, path in paths.items() if series not in failures), failures)


def _remove_outdated(folder: Path, names: Collection[str]) -> None:
    """Remove the records of earlier inputs of these series. Those of series that are gone stay: they may come back."""
    current = {name.partition("-")[0]: name for name in names}
    for path in folder.glob("[!.]*.npz"):
        if current.get(path.name.partition("-")[0], path.name) != path.name:
            path.unlink(missing_ok=True)


def _run(job: beam.Job, paths: dict[str, Path], workers: int) -> Iterator[tuple[str, str | None, list[str]]]:
    """Prepare each series and yield (series, None or the reason why it failed, notes) as it ends."""
    workers = min(workers or os.cpu_count() or 1, len(paths))
    if workers <= 1:
        for series, path in paths.items():
            yield series, *job(series, path)
        return
    # Spawn instead of fork: a fork of a process that runs JAX can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        running = {pool.submit(job, series, path): series for series, path in paths.items()}
        try:
            for ended in as_completed(running):
                yield running[ended], *ended.result()
        except BrokenProcessPool as error:
            raise UserError(
                "config.data.workers: a process was ended, probably because memory ran out; give fewer workers. The "
                "series that were prepared stay"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End a worker process when its parent is killed; otherwise it would wait for its next series forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only worker processes call this function

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def read_field(file: BinaryIO, series: np.lib.npyio.NpzFile, name: str, chosen: np.ndarray) -> np.ndarray:
    """Return a field of the chosen nodules of an open series file."""
    return series[name][chosen]


def iter_series(
    files: Iterable[Path], member: Member | None = None, read: ReadField = read_field
) -> Iterator[schema.Records]:
    """Yield the prepared records of each series, so that only one series is in memory at a time.

    Args:
      files: of the series, see `Prepared`.
      member: selects the nodules to read: (n, 9, 6) rating counts -> (n,) bool; None for all. The voxels of the other
        nodules are not read, and a series without selected nodules is skipped.
      read: returns a field of the selected nodules.

    Raises:
      UserError: a file is damaged.
    """
    for path in files:
        try:
            with path.open("rb") as file, np.load(file) as part:  # np.load itself leaves a damaged file open
                rating_counts = part[schema.RATING_COUNTS]
                chosen = np.flatnonzero(member(rating_counts)) if member else np.arange(len(rating_counts))
                records = {name: read(file, part, name, chosen) for name in part.files} if len(chosen) else None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (zipfile.BadZipFile, ValueError, LookupError, EOFError, RuntimeError, struct.error) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run again") from error
        if records:
            yield records


def iter_nodules(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (nodule id, record) for each nodule of a series file.

    Raises:
      UserError: the file is damaged.
    """
    for series in iter_series([path]):
        for index, nodule_id in enumerate(series[schema.NODULE_ID].tolist()):
            yield nodule_id, {name: values[index] for name, values in series.items()}


def join_records(parts: Iterable[schema.Records]) -> schema.Records:
    """Concatenate stacked records and sort them by nodule id.

    Args:
      parts: of one or more nodules each.

    Raises:
      UserError: there are no records, or a nodule id appears twice.
    """
    parts = list(parts)
    if not parts:
        raise UserError(NO_MEMBER)
    ids = np.concatenate([part[schema.NODULE_ID] for part in parts])
    order = np.argsort(ids, kind="stable")
    repeated = ids[order][1:][ids[order][1:] == ids[order][:-1]]
    if len(repeated):
        raise UserError(f"nodule_id '{repeated[0]}' appears in two series; ids must be unique")
    return {name: np.concatenate([part.pop(name) for part in parts])[order] for name in list(parts[0])}


def read_records(files: Iterable[Path], member: Member | None = None) -> schema.Records:
    """Read prepared records into memory, sorted by nodule id.

    Args:
      files: of the series, see `Prepared`.
      member: selects the nodules to read, see `iter_series`.

    Raises:
      UserError: a file is damaged, a nodule id appears twice, or no nodule is selected.
    """
    return join_records(iter_series(files, member))
