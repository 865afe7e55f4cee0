"""Reading of users' CSV tables; every error names the file, the line and the column."""

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from pnsamp_jax.ct.file_kinds import EMPTY, PAGE, POINTER, kind_of, what_it_is
from pnsamp_jax.data.spellings import with_minus
from pnsamp_jax.errors import UserError

DELIMITERS = (",", ";", "\t")  # spreadsheets write ";" where the comma is the decimal separator
# How tables write that a value is missing: people, spreadsheets and pandas.
MISSING = ("", "-", "--", "–", "—", "−", "?", ".", "na", "n/a", "#n/a", "#na", "<na>", "nan", "none", "null")
SAVE = "save the table as CSV in UTF-8"
XLS, XLSX = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"  # how workbooks begin; .ods as .xlsx


class Row(dict[str, str]):
    """The cells of a line by column; `decimal_comma` tells whether its numbers may have one."""

    decimal_comma = False


def read_table(
    path: Path, columns: Collection[str], blank: Collection[str] = (), optional: Collection[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Yield ("file, line n", row) for each row of a CSV file, as spreadsheets write it.

    Cells are separated by commas, semicolons or tabs. Lines without any value are skipped, and so is the "sep=;" that
    tells spreadsheets the separator. A required or optional column is found whatever the case, blanks and underscores
    of its name, so that "Internal structure" and "internalStructure" are `internal_structure`; other names are read
    in lower case.

    Args:
      path: the table.
      columns: required columns; each must appear exactly once. Further columns are read too.
      blank: required columns whose cells may be empty.
      optional: further columns that must not appear twice.

    Raises:
      UserError: the file is missing or not CSV in UTF-8, or a column or a value is missing.
    """
    text = _read_text(path)
    delimiter = _delimiter(text, columns)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        names = next((fields for fields in reader if not _is_before_header(fields)), [])
        known = {plain_name(column): column for column in (*columns, *optional)}
        header = [known.get(plain_name(name), name.strip().lower()) for name in names]
        first = max(reader.line_num, 1)
        if columns and not names:
            raise UserError(f"{path}: is empty; give a table with the columns {', '.join(columns)}")
        missing = [column for column in columns if header.count(column) != 1]
        missing += [column for column in optional if header.count(column) > 1]
        if missing:
            found = "two columns" if missing[0] in header else "no column"
            cause = _why_unread(_header_line(text), missing[0]) if found == "no column" else ""
            raise UserError(f"{path}, line {first}: {found} {missing[0]}; {cause or 'expected ' + ', '.join(columns)}")
        for fields in reader:
            if not any(map(str.strip, fields)):
                continue
            where = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise UserError(f"{where}: {len(fields)} fields, but line {first} names {len(header)} columns")
            line = Row({name: value.strip() for name, value in zip(header, fields, strict=True)})
            line.decimal_comma = delimiter != ","
            for name in columns:
                if name not in blank:
                    require_value(where, name, line[name])
            yield where, line
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}); correct the quotes") from error


def column_names(path: Path) -> set[str]:
    """Return the names of a table's columns in lower case, whatever separates them.

    Raises:
      UserError: the file is missing or not text in UTF-8.
    """
    first = _header_line(_read_text(path))
    found = [{name.strip().strip('"').strip().lower() for name in first.split(delimiter)} for delimiter in DELIMITERS]
    return max(found, key=len)


def plain_name(name: str) -> str:
    """Return the name of a column without case, blanks, underscores and quotes."""
    return re.sub(r'[\s_"]', "", name).lower()


def require_value(where: str, column: str, cell: str) -> None:
    """Raise UserError if a cell holds no value, but what tables and spreadsheets write in place of one.

    Args:
      where: "file, line n", for the message.
      column: its name.
      cell: without blanks around it.
    """
    if not cell:
        raise UserError(f"{where}, column {column}: is empty")
    if is_missing(cell):
        raise UserError(
            f"{where}, column {column}: '{cell}' is how tables write a missing value; give the value, or write it in "
            "another way if it is a name"
        )
    if cell.startswith("#"):
        raise UserError(
            f"{where}, column {column}: '{cell}' begins with #, as an error of a spreadsheet or a comment does; give "
            "the value without it"
        )


def is_missing(cell: str) -> bool:
    """Return whether a cell, without blanks around it, holds no value."""
    return cell.lower() in MISSING


def number(where: str, line: Row, column: str) -> float:
    """Return a cell as a float. In a table separated by semicolons or tabs it may have a decimal comma.

    Raises:
      UserError: the cell is not a finite number; the message begins with `where` and names the column.
    """
    text = with_minus(line[column])
    if line.decimal_comma and "." not in text:
        text = text.replace(",", ".")  # two of them are no number
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{where}, column {column}: '{line[column]}' is not a number")
    return value


def _delimiter(text: str, columns: Collection[str]) -> str:
    """Return the delimiter with which the first line has the most of the columns, a comma if there is none."""
    first = _header_line(text).strip()
    wanted = set(map(plain_name, columns))
    found = {delimiter: len(wanted & set(map(plain_name, first.split(delimiter)))) for delimiter in DELIMITERS}
    return max(DELIMITERS, key=lambda delimiter: found[delimiter])


def _header_line(text: str) -> str:
    """Return the first line that names columns, "" if there is none."""
    lines = text.splitlines()
    return next((line for line in lines if not _is_before_header(re.split("[,;\t]", line.replace('"', "")))), "")


def _why_unread(header: str, column: str) -> str:
    """Return why a column is not found in a line that seems to name it, and the way out; "" if it does not."""
    if header.lstrip().startswith("#"):
        return "the line begins with #, as a comment does; delete comments, and the # before names of columns"
    for delimiter, name in (("|", "'|'"), (None, "blanks")):
        if not re.search("[,;\t]", header) and plain_name(column) in map(plain_name, header.split(delimiter)):
            return f"its cells are separated by {name}; separate them by commas, semicolons or tabs"
    return ""


def _is_before_header(fields: list[str]) -> bool:
    """Return whether a line holds no value, or only tells spreadsheets the separator."""
    values = [field.strip() for field in fields if field.strip()]
    return not values or (len(values) == 1 and values[0].lower().startswith("sep="))


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a table' if path.is_dir() else 'no such file'}; correct the path")
    data = path.read_bytes()
    if data.startswith((XLS, XLSX)):
        raise UserError(f"{path}: is a workbook, not text; {SAVE}")
    kind = kind_of(path)
    if kind in (POINTER, PAGE):
        raise UserError(f"{path}: {what_it_is(kind, SAVE)}")
    if kind not in ("", EMPTY):
        raise UserError(f"{path}: is {kind}, not a table; {SAVE}")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # "Unicode text" of spreadsheets
        data = data.decode("utf-16", "replace").encode()
    bad_byte = data.find(0)
    if bad_byte < 0:
        try:
            return data.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            bad_byte = error.start
    line = data.count(b"\n", 0, bad_byte) + 1
    raise UserError(f"{path}, line {line}: not text in UTF-8; {SAVE}")
