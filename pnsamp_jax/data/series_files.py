"""The files of prepared series: the records of a series' nodules, and what is told of the others.

A file is an uncompressed .npz with a stacked array for each field of `schema`, and one of text, `REMARKS`, with JSON:
`failures`, the reason for each nodule of the series that has no record, by id; and `notes` about the series.
"""

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path

REMARKS = "remarks"
NO_MEMBER = "config.data.cohort: no nodule belongs to the cohort; choose another or lower config.data.min_readers"
# What NumPy and zipfile raise for bytes that are not as they were written; the last two, for the header of an array.
DAMAGED = (zipfile.BadZipFile, ValueError, LookupError, EOFError, RuntimeError, struct.error, SyntaxError, TokenError)

ReadField = Callable[[BinaryIO, np.lib.npyio.NpzFile, str, np.ndarray], np.ndarray]  # see `read_field`
Member = Callable[[np.ndarray], np.ndarray]  # (n, 9, 6) rating counts -> (n,) bool: the nodules to read


@dataclass(frozen=True)
class Remarks:
    """What every run tells of a prepared series.

    Attributes:
      nodules: how many it has, also without a record.
      failures: the reason for each of them that has no record, by id.
      notes: about its files, see `ct.notes`.
    """

    nodules: int
    failures: dict[str, str]
    notes: list[str]


def write_series(path: Path, records: schema.Records, failures: dict[str, str], notes: list[str]) -> None:
    """Write the file of a series, completely or not at all.

    Args:
      path: of the file.
      records: of its nodules, stacked.
      failures: the reason for each nodule that has no record, by id.
      notes: about its files.
    """
    remarks = np.array(json.dumps({"failures": failures, "notes": notes}))
    with atomic_path(path) as temporary:
        np.savez(temporary, **records, **{REMARKS: remarks})  # type: ignore[arg-type]  # none is called allow_pickle


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, np.lib.npyio.NpzFile]]:
    """Open a series file, and raise UserError if it is damaged; also where the block finds it so."""
    try:
        with path.open("rb") as file, np.load(file) as series:  # np.load itself leaves a damaged file open
            yield file, series
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DAMAGED as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run again") from error


def read_remarks(path: Path) -> Remarks:
    """Return the remarks of a series file.

    Raises:
      UserError: the file is damaged.
    """
    with _opened(path) as (_, series):
        remarks = json.loads(str(series[REMARKS]))
        nodules = len(series[schema.RATING_COUNTS]) + len(remarks["failures"])
        return Remarks(nodules, remarks["failures"], remarks["notes"])


def read_field(file: BinaryIO, series: np.lib.npyio.NpzFile, name: str, chosen: np.ndarray) -> np.ndarray:
    """Return a field of the chosen nodules of an open series file."""
    return series[name][chosen]


def iter_series(
    files: Iterable[Path], member: Member | None = None, read: ReadField = read_field
) -> Iterator[schema.Records]:
    """Yield the prepared records of each series, so that only one series is in memory at a time.

    Args:
      files: of the series, see `prepare.Prepared`.
      member: selects the nodules to read: (n, 9, 6) rating counts -> (n,) bool; None for all. The voxels of the other
        nodules are not read, and a series without selected nodules is skipped.
      read: returns a field of the selected nodules.

    Raises:
      UserError: a file is damaged.
    """
    for path in files:
        with _opened(path) as (file, series):
            rating_counts = series[schema.RATING_COUNTS]
            chosen = np.flatnonzero(member(rating_counts)) if member else np.arange(len(rating_counts))
            names = [name for name in series.files if name != REMARKS] if len(chosen) else []
            records = {name: read(file, series, name, chosen) for name in names}
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
      files: of the series, see `prepare.Prepared`.
      member: selects the nodules to read, see `iter_series`.

    Raises:
      UserError: a file is damaged, a nodule id appears twice, or no nodule is selected.
    """
    return join_records(iter_series(files, member))
