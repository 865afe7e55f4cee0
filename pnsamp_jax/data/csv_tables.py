"""Tables that users write: CSV in UTF-8, read with the place of every mistake."""

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from pnsamp_jax.errors import UserError

Row = dict[str, str]


def read_table(path: Path, columns: Collection[str], blank: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yields ("file, line n", row) of a CSV file, after checking that it is there and has the columns.

    Args:
      path: of the file.
      columns: that it must have, each once; further ones are read too.
      blank: those of them that a row may leave empty.

    Raises:
      UserError: the file is missing, no CSV in UTF-8, or lacks a column or a value.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [column for column in columns if header.count(column) != 1]
        if missing:
            found = "two columns" if missing[0] in header else "no column"
            raise UserError(f"{path}, line 1: {found} {missing[0]}; expected {', '.join(columns)}")
        for fields in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise UserError(f"{where}: {len(fields)} fields, but line 1 names {len(header)} columns")
            line = {name: value.strip() for name, value in zip(header, fields, strict=True)}
            for name in columns:
                if not line[name] and name not in blank:
                    raise UserError(f"{where}, column {name}: is empty")
            yield where, line
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not sound CSV ({error}); correct its quotes") from error


def number(where: str, line: Row, column: str) -> float:
    """A cell as a finite number; UserError names `where` and the column if it is none."""
    try:
        value = float(line[column])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{where}, column {column}: '{line[column]}' is not a number")
    return value


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the README says which tables are needed, and with what columns")
    data = path.read_bytes()
    bad = data.find(0)
    if bad < 0:
        try:
            return data.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            bad = error.start
    line = data.count(b"\n", 0, bad) + 1
    raise UserError(f"{path}, line {line}: not text in UTF-8; save the table as CSV in UTF-8")
