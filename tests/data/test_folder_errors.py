"""The `folder` source refuses invalid folders in one line that names the file, the line and the column."""

import numpy as np
import pytest
from ct_files import refusal, write_itk
from made_folder import AFFINE, block, change, load, replace, tables, write_table

from pnsamp_jax.data import schema
from pnsamp_jax.data.background import BackgroundSource
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.folder_tables import NODULE_COLUMNS, RATING_COLUMNS
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.prepare import prepare
from pnsamp_jax.data.series_files import read_records

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("table", "line", "cells", "expected"),
    [
        ("nodules.csv", 3, {"x_mm": "ten"}, "line 3, column x_mm: 'ten' is not a number"),
        ("nodules.csv", 4, {"z_mm": "nan"}, "line 4, column z_mm: 'nan' is how tables write a missing value"),
        ("nodules.csv", 2, {"y_mm": "inf"}, "line 2, column y_mm: 'inf' is not a number"),
        ("nodules.csv", 2, {"x_mm": ""}, "line 2, column x_mm: is empty"),
        ("nodules.csv", 3, {"mask": "  "}, "line 3, column mask: is empty"),
        ("nodules.csv", 4, {"patient_id": ""}, "line 4, column patient_id: is empty"),
        ("nodules.csv", 3, {"nodule_id": "a_n00"}, "line 3: nodule_id 'a_n00' appears twice"),
        ("nodules.csv", 4, {"nodule_id": "c_n00"}, "ratings.csv: nodule_id 'b_n00' is not in nodules.csv"),
        ("ratings.csv", 2, {"malignancy": 7}, "line 2, column malignancy: 7 is not a class 1..5"),
        ("ratings.csv", 2, {"malignancy": 6}, "line 2, column malignancy: 6 is not a class 1..5"),
        (
            "ratings.csv",
            2,
            {"malignancy": 0},
            "line 2, column malignancy: 0 is not a class 1..5; leave the cell blank",
        ),
        ("ratings.csv", 2, {"internal_structure": 6}, "column internal_structure: 6 is not a class 1..4"),
        ("ratings.csv", 3, {"calcification": -1}, "line 3, column calcification: -1 is not a class 1..6"),
        ("ratings.csv", 4, {"internal_structure": 2.5}, "line 4, column internal_structure: 2.5 is not a class 1..4"),
        ("ratings.csv", 4, {"margin": "high"}, "line 4, column margin: 'high' is not a number"),
        ("ratings.csv", 5, {"reader": ""}, "line 5, column reader: is empty"),
        ("ratings.csv", 3, {"reader": 0}, "line 3: reader '0' rates nodule_id 'a_n00' twice"),
        ("ratings.csv", 3, {"reader": " 00"}, "line 3: reader '00' rates nodule_id 'a_n00' twice"),
        ("nodules.csv", 4, {"patient_id": "A"}, "line 4, column patient_id: 'A' and 'a' differ only in case"),
        ("nodules.csv", 3, {"patient_id": "b"}, "line 3, column patient_id: images/a.nrrd is an image of patient 'a'"),
        ("ratings.csv", 5, {"nodule_id": "x"}, "ratings.csv: nodule_id 'x' is not in nodules.csv"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_column(root, table, line, cells, expected):
    change(root, table, line, **cells)
    message = refusal(FolderSource(str(root)).series)
    file = "ratings.csv" if "ratings.csv" in expected else table
    assert expected in message and str(root / file) in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Lung 7", "lung7"),
        ("7", "007"),
        ("7", "7.0"),
        ("Stra\u00dfe", "STRASSE"),
        ("P\u00a01", "P 1"),
        ("\uff171", "71"),
        ("P001", "P1"),
        ("LIDC-0001", "LIDC_0001"),
        ("LIDC-0001", "lidc 1"),
        ("P\u20101", "P1"),
        ("2020-007", "2020_7"),
        ("site01-pat002", "Site1Pat2"),
        ("a-b", "A_B"),
    ],
)
def test_two_spellings_of_a_patient_are_refused_since_they_would_be_split_over_the_folds(root, one, other):
    change(root, "nodules.csv", 2, patient_id=one)
    change(root, "nodules.csv", 3, patient_id=one)
    change(root, "nodules.csv", 4, patient_id=other)
    message = refusal(FolderSource(str(root)).series)
    assert f"line 4, column patient_id: '{other}' and '{one}' differ only in case, blanks, hyphens, " in message


@pytest.mark.parametrize(("one", "other"), [("Mu\u0308", "M\u00fc"), ("p\u200b1", "p1"), ("p1\ufeff2", "p12")])
def test_two_spellings_that_look_alike_are_told_apart_by_their_characters(root, one, other):
    change(root, "nodules.csv", 2, patient_id=one)
    change(root, "nodules.csv", 3, patient_id=one)
    change(root, "nodules.csv", 4, patient_id=other)
    message = refusal(FolderSource(str(root)).series)
    assert "look alike, but are written with other characters" in message
    assert f"{ascii(other)} and {ascii(one)}" in message and "differ only in case" not in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "70"),
        ("P70", "P7"),
        ("a", "a1"),
        ("1.0", "10"),
        ("0", "1"),
        ("P0", "P"),
        ("1-11", "11-1"),
        ("1_1", "11"),
        ("1 1", "11"),
        ("1-1", "-11"),
        ("1.01", "1.1"),
        ("P100", "P1"),
        ("a1b", "ab1"),
    ],
)
def test_ids_that_differ_more_are_two_patients(root, one, other):
    change(root, "nodules.csv", 2, patient_id=one)
    change(root, "nodules.csv", 3, patient_id=one)
    change(root, "nodules.csv", 4, patient_id=other)
    assert len(FolderSource(str(root)).series()) == 2


@pytest.mark.parametrize(
    ("nodule_id", "rated", "expected"),
    [
        ("001", "1", "'1' and '001' differ only in case, blanks, hyphens, underscores, leading zeros or a final .0"),
        ("1", "1.0", "'1.0' and '1' differ only in"),
        ("B_n00", "b-n00", "'b-n00' and 'B_n00' differ only in"),
        ("b_n\u200b00", "b_n00", "look alike, but are written with other characters, 'b_n00' and 'b_n\\u200b00'"),
        ("bu\u0308", "b\u00fc", "look alike, but are written with other characters, 'b\\xfc' and 'bu\\u0308'"),
    ],
)
def test_ratings_of_a_nodule_under_another_spelling_name_it(root, nodule_id, rated, expected):
    change(root, "nodules.csv", 4, nodule_id=nodule_id)
    change(root, "ratings.csv", 5, nodule_id=rated)
    message = refusal(FolderSource(str(root)).series)
    assert message.startswith(f"{root}/ratings.csv: nodule_id '{rated}' is not in nodules.csv, but '{nodule_id}' is: ")
    assert expected in message and message.endswith("; write the id in one way")
    change(root, "ratings.csv", 5, nodule_id=nodule_id)
    assert len(FolderSource(str(root)).series()) == 2


def test_an_image_under_two_spellings_of_its_path_is_one_image(root):
    change(root, "nodules.csv", 3, image="./images//a.nrrd")
    assert FolderSource(str(root)).series() == ["images/a.nrrd", "images/b.nrrd"]
    assert len(load(root)) == 2


@pytest.mark.parametrize("spelling", ["absolute", "link", "linked folder"])
def test_an_image_or_a_mask_under_two_spellings_of_its_path_is_told(root, spelling):
    (root / "link.nrrd").symlink_to(root / "images" / "a.nrrd")
    (root / "linked").symlink_to(root / "images")
    name = {"absolute": str(root / "images" / "a.nrrd"), "link": "link.nrrd", "linked folder": "linked/a.nrrd"}[
        spelling
    ]
    change(root, "nodules.csv", 4, image=name)
    assert refusal(FolderSource(str(root)).series) == (
        f"{root}/nodules.csv, line 4, column patient_id: {name} is images/a.nrrd, an image of patient 'a' in a line "
        "above, and here of 'b'; correct one of them"
    )
    change(root, "nodules.csv", 4, patient_id="a")
    assert len(FolderSource(str(root)).series()) == 2
    change(root, "nodules.csv", 4, mask=str(root / "masks" / "a1.nrrd"))
    assert "line 4: names the same mask as nodule_id 'a_n01'" in refusal(FolderSource(str(root)).series)


def test_an_unknown_context_is_named(root):
    nodules, _ = tables()
    write_table(
        root / "nodules.csv", [{**row, "context": "mri" if row["patient_id"] == "b" else ""} for row in nodules]
    )
    message = refusal(FolderSource(str(root)).series)
    assert f"{root}/nodules.csv, line 4, column context: 'mri' is none of ct, cube, slab, simulated" in message


@pytest.mark.parametrize(
    ("table", "old", "new", "expected"),
    [
        ("nodules.csv", b"patient_id", b"person", "line 1: no column patient_id; expected nodule_id, patient_id"),
        ("ratings.csv", b"lobulation", b"", "line 1: no column lobulation"),
        ("ratings.csv", b"lobulation", b"texture", "line 1: no column lobulation"),
        ("ratings.csv", b"subtlety", b"subtlety,margin", "line 1: two columns margin"),
        ("nodules.csv", b"a_n01", b"a_n01,", "line 3: 8 fields, but line 1 names 7"),
        ("nodules.csv", b",masks/a1.nrrd", b"", "line 3: 6 fields, but line 1 names 7"),
        ("nodules.csv", b"a_n01", b"\xe9_n01", "line 3: not text in UTF-8"),
        ("ratings.csv", b"b_n00", b"b_\0n00", "line 5: not text in UTF-8"),
        ("nodules.csv", b"a_n01", b'"a_n01" x', "line 3: not valid CSV"),
        ("nodules.csv", b"b_n00", b'"b_n00', "not valid CSV"),
    ],
)
def test_a_malformed_table_is_named_by_file_and_line(root, table, old, new, expected):
    replace(root, table, old, new)
    message = refusal(FolderSource(str(root)).series)
    assert message.startswith(str(root / table)) and expected in message


@pytest.mark.parametrize("table", ["nodules.csv", "ratings.csv"])
def test_a_table_that_is_missing_empty_or_not_text_is_named(root, table):
    source = FolderSource(str(root))
    text = (root / table).read_text()
    (root / table).write_bytes(text.encode("utf-32"))
    assert f"{root / table}, line 1: not text in UTF-8" in refusal(source.series)
    (root / table).write_bytes(b"")
    assert f"{root / table}: is empty; give a table with the columns nodule_id, " in refusal(source.series)
    (root / table).write_bytes(b"\n,,\n")
    assert f"{root / table}: is empty" in refusal(source.series)
    (root / table).unlink()
    assert f"{root / table}: no such file" in refusal(source.series)
    assert f"{root / table}: no such file" in refusal(prepare, source, Geometry(), root / "cache", 1)
    assert not (root / "cache").exists()


def test_a_table_without_nodules_is_refused(root):
    write_table(root / "nodules.csv", [], NODULE_COLUMNS)
    assert f"{root}/nodules.csv: contains no nodule" in refusal(FolderSource(str(root)).series)
    write_table(root / "ratings.csv", [], RATING_COLUMNS)
    assert "contains no nodule" in refusal(FolderSource(str(root)).series)


@pytest.mark.parametrize("x_mm", [-10, 20.6, -0.6])
def test_a_point_outside_the_image_is_refused(root, x_mm):
    change(root, "nodules.csv", 3, x_mm=x_mm)
    message = refusal(load, root)
    assert "'a_n01' lies outside images/a.nrrd" in message and "LPS" in message


@pytest.mark.parametrize("x_mm", [-0.4, 20.4])
def test_a_point_in_the_outermost_voxels_is_inside(root, x_mm):
    change(root, "nodules.csv", 3, x_mm=x_mm)
    corner = 0 if x_mm < 10 else 18
    write_itk(root / "masks" / "a1.nrrd", block((11, 7, corner), (15, 10, corner + 3)), AFFINE)
    assert load(root)[1].centre_mm[0] == x_mm


def test_an_empty_mask_is_refused(root):
    write_itk(root / "masks" / "a1.nrrd", np.zeros((21, 21, 21), np.uint8), AFFINE)
    assert f"{root}/masks/a1.nrrd: the mask marks no voxel" in refusal(load, root)


@pytest.mark.parametrize("value", [-1, 256, 1000])
def test_a_mask_with_values_outside_0_to_255_is_refused(root, value):
    mask = block((12, 7, 11), (15, 10, 14)).astype(np.int16)
    mask[0, 0, 0] = value
    write_itk(root / "masks" / "a1.nrrd", mask, AFFINE)
    message = refusal(load, root)
    assert f"{root}/masks/a1.nrrd: contains {value};" in message


def test_a_mask_that_lost_its_geometry_is_refused(root):
    write_itk(root / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14)))
    message = refusal(load, root)
    assert f"{root}/masks/a1.nrrd: has as many voxels as its image, but lies up to" in message


@pytest.mark.parametrize("name", ["images/a.nrrd", "masks/a1.nrrd"])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    assert f"{root}/{name}: no such file" in refusal(load, root)


@pytest.mark.parametrize("content", [None, b"", b"NRRD0004\n"])
def test_a_bad_mask_costs_no_other_nodule_of_its_image_and_is_told_until_it_is_mended(root, capsys, content):
    source, mask = FolderSource(str(root)), root / "masks" / "a1.nrrd"
    good = mask.read_bytes()
    mask.unlink() if content is None else mask.write_bytes(content)
    for _ in range(2):  # the second time from the cache
        prepared = prepare(source, Geometry(16, 0, 1.2), root / "cache", 1)
        assert read_records(prepared.files)[schema.NODULE_ID].tolist() == ["a_n00", "b_n00"]
        assert not prepared.failures and list(prepared.nodule_failures) == ["a_n01"]
        told, reason = capsys.readouterr().out.splitlines()
        assert told.startswith("Left out 1 of 3 nodules (listed in ") and reason.startswith(f"  a_n01: {mask}: ")
    mask.write_bytes(good)
    prepared = prepare(source, Geometry(16, 0, 1.2), root / "cache", 1)
    assert len(read_records(prepared.files)[schema.NODULE_ID]) == 3 and capsys.readouterr().out == ""


def test_a_damaged_image_fails_all_its_nodules_as_one_series(root):
    (root / "images" / "a.nrrd").write_bytes(b"")
    prepared = prepare(FolderSource(str(root)), Geometry(16, 0, 1.2), root / "cache", 1)
    assert list(prepared.failures) == ["images/a.nrrd"] and prepared.nodule_failures == {}


def test_no_point_is_drawn_in_an_image_with_a_nodule_whose_mask_is_not_known(root):
    (root / "masks" / "a1.nrrd").unlink()
    background = BackgroundSource(FolderSource(str(root)), 1, Geometry(16, 0, 1.2))
    message = refusal(background.load, "images/a.nrrd")
    assert message.startswith("no point is drawn beside its nodules") and f"{root}/masks/a1.nrrd: no such" in message
    background.load("images/b.nrrd")


@pytest.mark.parametrize("column", ["nodule_id", "patient_id", "image", "mask"])
@pytest.mark.parametrize("cell", ["nan", "NA", "#REF!", "-"])
def test_a_cell_without_a_value_is_neither_an_id_nor_a_path(root, column, cell):
    change(root, "nodules.csv", 3, **{column: cell})
    message = refusal(FolderSource(str(root)).series)
    assert message.startswith(f"{root}/nodules.csv, line 3, column {column}: '{cell}' ")
