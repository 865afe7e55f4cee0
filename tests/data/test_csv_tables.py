"""CSV tables as spreadsheets and people write them."""

import codecs

import pytest
from ct_files import refusal

from pnsamp_jax.data.csv_tables import column_names, number, read_table

COLUMNS = ("name", "x", "y")
LINES = [["name", "x", "y"], ["a", "1.5", "-2"], ["b", "3", "0.25"]]


def read(path, **options):
    return [
        {"name": row["name"], "x": number(where, row, "x"), "y": number(where, row, "y")}
        for where, row in read_table(path, COLUMNS, **options)
    ]


EXPECTED = [{"name": "a", "x": 1.5, "y": -2}, {"name": "b", "x": 3, "y": 0.25}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiter_line_end_and_encoding_do_not_matter(tmp_path, delimiter, end, encoding):
    text = end.join(delimiter.join(line) for line in LINES) + end
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read(tmp_path / "t.csv") == EXPECTED


def test_a_decimal_comma_is_read_where_semicolons_separate(tmp_path):
    text = "\n".join(";".join(line).replace(".", ",") for line in LINES)
    (tmp_path / "t.csv").write_text(text)
    assert read(tmp_path / "t.csv") == EXPECTED


@pytest.mark.parametrize("dash", ["-", "\u2212", "\u2013", "\u2014", "\u2010", "\u2011", "\uff0d"])
def test_a_dash_before_a_digit_is_a_minus(tmp_path, dash):
    (tmp_path / "t.csv").write_text(f"name;x;y\na;{dash}1,5;{dash},25\n", encoding="utf-8")
    assert read(tmp_path / "t.csv") == [{"name": "a", "x": -1.5, "y": -0.25}]
    for cell in (f"1{dash}2", dash, f"{dash}{dash}2"):
        (tmp_path / "t.csv").write_text(f"name,x,y\na,{cell},1\n", encoding="utf-8")
        assert f"column x: '{cell}' is " in refusal(read, tmp_path / "t.csv")


@pytest.mark.parametrize("cell", ["1,2,3", "1.234,5", "1,5mm"])
def test_what_may_be_another_number_is_refused(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"name;x;y\na;{cell};1\n")
    assert f"column x: '{cell}' is not a number" in refusal(read, tmp_path / "t.csv")


def test_a_quoted_comma_in_a_table_of_commas_is_no_decimal_comma(tmp_path):
    (tmp_path / "t.csv").write_text('name,x,y\na,"1,234",1\n')
    assert "column x: '1,234' is not a number" in refusal(read, tmp_path / "t.csv")


def test_empty_lines_of_a_spreadsheet_are_skipped_and_lines_keep_their_number(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        codecs.BOM_UTF8 + b"name,x,y\r\na,1.5,-2\r\n,,\r\n\r\n , ,\r\nb,3,0.25\r\nc,,1\r\n"
    )
    rows = read_table(tmp_path / "t.csv", COLUMNS)
    assert [next(rows)[0].rsplit(" ")[-1], next(rows)[0].rsplit(" ")[-1]] == ["2", "6"]
    assert "line 7, column x: is empty" in refusal(next, rows)


def test_a_missing_column_is_named_whatever_the_delimiter(tmp_path):
    (tmp_path / "t.csv").write_text("name;x\na;1\n")
    assert "line 1: no column y" in refusal(read, tmp_path / "t.csv")


def test_names_of_columns_may_have_capitals(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("Nodule_ID;X_mm\na;1,5\n")
    ((where, line),) = read_table(path, ("nodule_id", "x_mm"))
    assert line == {"nodule_id": "a", "x_mm": "1,5"} and number(where, line, "x_mm") == 1.5


def test_an_optional_column_must_not_appear_twice(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("nodule_id,mask_label,Mask_Label\na,1,2\n")
    message = refusal(list, read_table(path, ("nodule_id",), optional=("mask_label",)))
    assert "line 1: two columns mask_label" in message
    path.write_text("nodule_id,other,other\na,1,2\n")
    assert len(list(read_table(path, ("nodule_id",), optional=("mask_label",)))) == 1


@pytest.mark.parametrize("start", ["\n\n", ",,\n", "sep=,\n", '"sep=,"\n', " \nsep=,\n"])
def test_what_spreadsheets_write_above_the_header_is_skipped(tmp_path, start):
    (tmp_path / "t.csv").write_text(start + "\n".join(map(",".join, LINES)))
    assert read(tmp_path / "t.csv") == EXPECTED
    assert column_names(tmp_path / "t.csv") == set(COLUMNS)
    (tmp_path / "t.csv").write_text(start + "name,x\na,1\n")
    assert f"line {start.count(chr(10)) + 1}: no column y" in refusal(read, tmp_path / "t.csv")


def test_the_separator_that_a_first_line_states_may_be_a_semicolon(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\n" + "\n".join(";".join(line).replace(".", ",") for line in LINES))
    assert read(tmp_path / "t.csv") == EXPECTED


def test_a_decimal_comma_is_read_where_tabs_separate(tmp_path):
    text = "\n".join("\t".join(line).replace(".", ",") for line in LINES)
    (tmp_path / "t.csv").write_text(text, encoding="utf-16")  # "Unicode text" of a spreadsheet in half of Europe
    assert read(tmp_path / "t.csv") == EXPECTED


@pytest.mark.parametrize("start", [b"PK\x03\x04\x14\0", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"])
def test_a_workbook_that_is_called_csv_is_called_a_workbook(tmp_path, start):
    (tmp_path / "t.csv").write_bytes(start + bytes(100))
    assert "t.csv: is a workbook, not text; save the table as CSV" in refusal(read, tmp_path / "t.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quoted_cells_may_stand_behind_a_blank(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(f"{delimiter} ".join(f'"{cell}"' for cell in line) for line in LINES))
    assert read(path) == EXPECTED


@pytest.mark.parametrize("name", ["nodule_id", "noduleId", "Nodule ID", "NODULE  ID", "_nodule_id_"])
def test_names_of_columns_are_found_without_case_blanks_and_underscores(tmp_path, name):
    path = tmp_path / "t.csv"
    path.write_text(f"{name};xMM;Further Column\na;1,5;b\n")
    ((_, line),) = read_table(path, ("nodule_id", "x_mm"))
    assert line == {"nodule_id": "a", "x_mm": "1,5", "further column": "b"}


@pytest.mark.parametrize(("one", "other"), [("internal_structure", "internalStructure"), ("Internal structure",) * 2])
def test_two_columns_that_are_the_same_but_for_their_spelling_are_refused(tmp_path, one, other):
    path = tmp_path / "t.csv"
    path.write_text(f"{one},{other}\n1,2\n")
    message = "line 1: two columns internal_structure"
    assert message in refusal(list, read_table(path, ("internal_structure",)))
    assert message in refusal(list, read_table(path, (), optional=("internal_structure",)))
    path.write_text("a b,a_b,internal\n1,2,3\n")  # none of which is asked for
    assert len(list(read_table(path, ("internal",)))) == 1


@pytest.mark.parametrize("cell", ["NaN", "nan", "NA", "n/a", "#N/A", "NULL", "None", "-", "?"])
def test_what_tables_write_for_a_missing_value_is_no_id(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"name,x,y\n{cell},1,2\n")
    expected = f"t.csv, line 2, column name: '{cell}' is how tables write a missing value; give the value, or write it"
    assert expected in refusal(read, tmp_path / "t.csv")
    assert len(list(read_table(tmp_path / "t.csv", COLUMNS, blank=["name"]))) == 1


@pytest.mark.parametrize("cell", ["#REF!", "#VALUE!", "#NAME?", "# anna"])
def test_an_error_of_a_spreadsheet_is_no_id(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"name,x,y\n{cell},1,2\n")
    assert f"line 2, column name: '{cell}' begins with #" in refusal(read, tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["Na-1", "NAN01", "Nana", "null_1", "a#1", "-1", "0", "Na N"])
def test_ids_that_only_begin_like_a_missing_value_are_ids(tmp_path, name):
    (tmp_path / "t.csv").write_text(f"name,x,y\n{name},1,2\n")
    assert read(tmp_path / "t.csv") == [{"name": name, "x": 1, "y": 2}]


@pytest.mark.parametrize(("delimiter", "name"), [("|", r"'|'"), (" | ", r"'|'"), (" ", "blanks"), ("   ", "blanks")])
def test_another_separator_is_named(tmp_path, delimiter, name):
    (tmp_path / "t.csv").write_text("\n".join(delimiter.join(line) for line in LINES))
    expected = (
        f"t.csv, line 1: no column name; its cells are separated by {name}; separate them by commas, semicolons or"
    )
    assert expected in refusal(read, tmp_path / "t.csv")


@pytest.mark.parametrize("comment", ["# exported by someone", "#name,x,y", "# exported, 3 columns"])
def test_a_comment_above_the_header_is_named(tmp_path, comment):
    (tmp_path / "t.csv").write_text("\n".join([comment, *map(",".join, LINES)]))
    message = refusal(read, tmp_path / "t.csv")
    assert "t.csv, line 1: no column name; the line begins with #, as a comment does; delete comments" in message


def test_a_column_that_lacks_in_a_sound_table_is_told_as_such(tmp_path):
    (tmp_path / "t.csv").write_text("name,x,other y\na,1,2\n")
    assert "line 1: no column y; expected name, x, y" in refusal(read, tmp_path / "t.csv")
