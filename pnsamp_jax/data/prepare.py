"""Preparation of a data source: every series becomes a file of stored patches, in parallel and only once.

    <cache>/<source>-<digest>/description.json         the settings that all series share, of which this is the digest
    <cache>/<source>-<digest>/<series>-<digest>.npz    the records of one series; the digest is that of its inputs
    <cache>/<source>-<digest>/failures.json            series and nodules that could not be prepared, with the reasons

A series is prepared again when its inputs change: a slice that came or went, a voxel file that was written again, a
reading. The others stay. A series file is written whole or not at all, so an interrupted preparation resumes where it
stopped, and a series that failed is tried again the next time.

A nodule that cannot be used, as one without its mask, costs no other. Its series is prepared without it, and the file
of the series keeps the reason, which every run tells; it is tried again with its series. Notes about the files of a
series, as of a slice that was interpolated, are kept and told in the same way.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from pnsamp_jax.ct.notes import collected
from pnsamp_jax.data import beam, schema
from pnsamp_jax.data.patches import Geometry, MarkedNodule, Unusable, make_record
from pnsamp_jax.data.series_files import read_remarks, write_series
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable, write_text

FORMAT_VERSION = 6  # part of the description: raise it when the content of a series file changes
REPEATED = 5  # notes about series that were prepared before


class Source(Protocol):
    """A source of nodules. It is pickled for worker processes, so it holds settings and no data."""

    name: str

    def series(self) -> list[str]:
        """Look at the files anew, and return the keys of the series, each of which is loaded once."""

    def load(self, series: str) -> Sequence[MarkedNodule | Unusable]:
        """Return the nodules of one series with their voxels; raise UserError if its image is damaged."""

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
      nodule_failures: the reason for each nodule of the other series that could not, by id.
    """

    folder: Path
    files: list[Path]
    failures: dict[str, str]
    nodule_failures: dict[str, str]


def make_records(source: Source, series: str, geometry: Geometry) -> tuple[schema.Records, dict[str, str]]:
    """Make the records of one series. They depend only on the arguments and the files these name.

    Returns:
      The records, stacked, and the reason for each nodule that has none, by id. A series without nodules, as a
      `background` source may have, gives empty rating counts alone.

    Raises:
      UserError: the series cannot be loaded, or none of its nodules can be used.
    """
    records: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for found in source.load(series):
        if isinstance(found, Unusable):
            failures[found.nodule_id] = found.reason
            continue
        try:
            records.append(make_record(found, geometry))
        except UserError as error:
            failures[found.nodule.nodule_id] = str(error)
    if records:
        return {name: np.stack([record[name] for record in records]) for name in records[0]}, failures
    if failures:
        first, reason = next(iter(failures.items()))
        several = f"none of its {len(failures)} nodules can be used; the first, {first}: "
        raise UserError(several * (len(failures) > 1) + reason)
    return {schema.RATING_COUNTS: np.zeros((0, *schema.CLASS_EXISTS.shape), np.uint8)}, {}


def _prepare_series(source: Source, geometry: Geometry, series: str, path: Path) -> tuple[str | None, list[str]]:
    """Write one series file. Return None, or the reason if the series cannot be read; and notes about its files."""
    with collected() as notes:
        try:
            records, failures = make_records(source, series, geometry)
        except (UserError, OSError) as error:
            return str(error), notes
        except MemoryError:
            return f"{series}: takes more memory than there is; close other programs or leave it out", notes
    write_series(path, records, failures, notes)
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
    files = sorted(path for series, path in paths.items() if series not in failures)
    remarks = {series: read_remarks(path) for series, path in paths.items() if series not in failures}
    _repeat_notes([text for series, one in remarks.items() if series not in missing for text in one.notes])
    nodules = sum(one.nodules for one in remarks.values())
    nodule_failures = {name: reason for one in remarks.values() for name, reason in one.failures.items()}
    report = folder / "failures.json"
    write_text(report, json.dumps({"series": failures, "nodules": nodule_failures}, indent=2, sort_keys=True))
    _tell(failures, f"{len(paths)} series (listed in {report})")
    when = "tried again when their files or rows change"
    _tell(nodule_failures, f"{nodules} nodules{' of other series' * bool(failures)} (listed in {report}; {when})")
    if len(failures) == len(paths):
        raise UserError(
            f"no series could be prepared; the first reason: {next(iter(failures.values()), 'none found')}"
        )
    return Prepared(folder, files, failures, nodule_failures)


def _repeat_notes(notes: list[str]) -> None:
    """Print the first notes about series that earlier runs prepared, and how many more there are."""
    for text in notes[:REPEATED]:
        print(readable(text), file=sys.stderr)
    if len(notes) > REPEATED:
        print(f"... and {len(notes) - REPEATED} more notes about series that were prepared before", file=sys.stderr)


def _tell(failures: Mapping[str, str], total: str) -> None:
    """Print what was left out, with the reasons, after a line that counts it."""
    if failures:
        print(readable(f"Left out {len(failures)} of {total}:"))
    for name, reason in sorted(failures.items()):
        print(readable(f"  {name}: {reason}"))


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
