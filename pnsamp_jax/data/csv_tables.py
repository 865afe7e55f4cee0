"""Reading of users' CSV tables; every error names the file, the line and the column."""

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from pnsamp_jax.errors import UserError

Row = dict[str, str]


def read_table(path: Path, columns: Collection[str], blank: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yield ("file, line n", row) for each row of a CSV file.

    Args:
      path: the table.
      columns: required columns; each must appear exactly once. Further columns are read too.
      blank: required columns whose cells may be empty.

    Raises:
      UserError: the file is missing or not CSV in UTF-8, or a column or a value is missing.
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
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}); correct the quotes") from error


def number(where: str, line: Row, column: str) -> float:
    """Return a cell as a float.

    Raises:
      UserError: the cell is not a finite number; the message begins with `where` and names the column.
    """
    try:
        value = float(line[column])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{where}, column {column}: '{line[column]}' is not a number")
    return value


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the README lists the required tables and their columns")
    data = path.read_bytes()
    bad_byte = data.find(0)
    if bad_byte < 0:
        try:
            return data.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            bad_byte = error.start
    line = data.count(b"\n", 0, bad_byte) + 1
    raise UserError(f"{path}, line {line}: not text in UTF-8; save the table as CSV in UTF-8")
