"""Diagnoses of patients: TCIA's table for LIDC-IDRI, or one like it.

The archive's table gives a diagnosis for each patient and for up to five nodules, but does not say which nodule is
"nodule 1". Only the diagnosis of the patient is therefore read. The table may be the .xls file as published, the same
saved as CSV with its long headers and its codes, or a CSV with the columns `patient_id`, `diagnosis` and `method`,
whose cells are codes or the words below.
"""

import io
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pnsamp_jax.data.csv_tables import XLS, XLSX, column_names, plain_name, read_table, require_value
from pnsamp_jax.data.spellings import bare, difference
from pnsamp_jax.errors import UserError

# The words of the codes 0, 1, ...: the diagnosis, where "primary" is lung cancer, and how it was made.
DIAGNOSES = ("unknown", "benign", "primary", "metastatic")
METHODS = ("unknown", "two_years_stable", "biopsy", "resection", "progression_or_response")

# The name of each column, and how the published name begins, which goes on with the meaning of the codes.
COLUMNS = {
    "patient_id": "tcia patient id",
    "diagnosis": "diagnosis at the patient level",
    "method": "diagnosis method",
}

# What xlrd raises besides its own errors when a file is damaged.
DAMAGE = (struct.error, AssertionError, LookupError, ValueError, OSError)

Cells = dict[str, str]  # of a row, by the names of their columns


class Diagnosis(NamedTuple):
    """The diagnosis of a patient, one of `DIAGNOSES`, and how it was made, one of `METHODS`."""

    diagnosis: str
    method: str


def read_diagnoses(path: Path) -> dict[str, Diagnosis]:
    """Read a table of diagnoses, by patient as the table spells the id; see `of_patients`.

    Raises:
      UserError: there is no such file, it is no table, it lacks a column, a cell holds no code, or a patient appears
        twice, whatever the spelling.
    """
    if not path.is_file():
        raise UserError(f"config.data.diagnosis: no such file: {path}")
    with path.open("rb") as file:
        first_bytes = file.read(4)
    if first_bytes == XLSX:
        raise UserError(f"{path}: is a workbook, but not of the kind .xls; save it as CSV")
    found: dict[str, Diagnosis] = {}
    spellings: dict[str, str] = {}
    for where, row in _read_workbook(path) if first_bytes == XLS else _read_csv(path):
        patient, diagnosis, method = (_cell(where, row, column) for column in COLUMNS)
        spelling = spellings.setdefault(bare(patient), patient)
        if patient in found:
            raise UserError(f"{where}: patient '{patient}' appears twice; keep one line")
        if spelling != patient:
            raise UserError(f"{where}: {difference(patient, spelling)}, so a patient appears twice; keep one line")
        found[patient] = Diagnosis(
            _word(where, "diagnosis", diagnosis, DIAGNOSES), _word(where, "method", method, METHODS)
        )
    if not found:
        raise UserError(f"{path}: names no patient; add one line for each")
    return found


def of_patients(diagnoses: Mapping[str, Diagnosis], patients: Iterable[str]) -> dict[str, Diagnosis]:
    """Return the diagnoses of the given patients, as far as a table names them, however it spells their ids."""
    named = {bare(patient): diagnosis for patient, diagnosis in diagnoses.items()}
    return {patient: named[bare(patient)] for patient in patients if bare(patient) in named}


def require_some(path: Path, diagnoses: Mapping[str, Diagnosis], patients: list[str]) -> None:
    """Raise UserError if the diagnoses that were read from a table are of none of the given patients."""
    if patients and not of_patients(diagnoses, patients):
        raise UserError(
            f"{path}: names none of the run's {len(set(patients))} patients; write their ids as the data do, such as "
            f"'{patients[0]}' (the table has '{next(iter(diagnoses))}')"
        )


def _read_csv(path: Path) -> Iterator[tuple[str, Cells]]:
    """Yield ("file, line n", cells) for each row of a CSV file."""
    published, names = COLUMNS["patient_id"], set(map(plain_name, column_names(path)))
    column = published if plain_name(published) in names else "patient_id"
    if plain_name(column) not in names:  # which `read_table` would report without the published name
        raise _no_column(path, "patient_id")
    for where, row in read_table(path, [column], optional=list(COLUMNS)):
        yield where, {_plain(name): value for name, value in row.items()}


def _read_workbook(path: Path) -> Iterator[tuple[str, Cells]]:
    """Yield ("file, row n", cells) for each row of the first sheet of an .xls file that is not blank."""
    try:
        import xlrd  # only this format needs it
    except ImportError as error:
        raise UserError(
            f"{path}: .xls files need xlrd; pip install 'pnsamp-jax[experiments]', or save the table as CSV"
        ) from error
    try:
        sheet = xlrd.open_workbook(path, logfile=io.StringIO()).sheet_by_index(0)
        rows = [[_text(value) for value in sheet.row_values(row)] for row in range(sheet.nrows)]
    except (xlrd.XLRDError, xlrd.compdoc.CompDocError, *DAMAGE) as error:
        raise UserError(f"{path}: cannot be read as .xls; copy it again, or save it as CSV") from error
    names = [_plain(name) for name in rows[0]] if rows else []
    for number, row in enumerate(rows[1:], start=2):
        if any(row):
            yield f"{path}, row {number}", dict(zip(names, row, strict=True))


def _text(value: str | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _plain(name: str) -> str:
    """Return the name of a column in lower case, without line breaks."""
    return " ".join(name.lower().split())


def _cell(where: str, row: Cells, column: str) -> str:
    """Return the cell of one of `COLUMNS`, which may have its own or its published name."""
    plain = plain_name(column)
    cells = [value for name, value in row.items() if plain_name(name) == plain or name.startswith(COLUMNS[column])]
    if not cells:
        raise _no_column(where.rpartition(",")[0], column)
    require_value(where, column, cells[0])
    return cells[0]


def _no_column(table: str | Path, column: str) -> UserError:
    return UserError(
        f"{table}: no column {column}, nor one whose name begins with '{COLUMNS[column]}'; give {', '.join(COLUMNS)}"
    )


def _word(where: str, column: str, cell: str, words: tuple[str, ...]) -> str:
    """Return the word of a cell that holds a code or a word."""
    text = cell.lower().removesuffix(".0")
    codes = {str(code): word for code, word in enumerate(words)}
    if text not in codes and text not in words:
        raise UserError(f"{where}, column {column}: '{cell}' is none of 0..{len(words) - 1} or {', '.join(words)}")
    return codes.get(text, text)
