"""One's own nodules from a folder: read as they are, or refused in one line that says where the mistake is."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from ct_files import DATA, refusal, write_itk

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.folder import NODULE_COLUMNS, RATING_COLUMNS, FolderSource, read_rows
from pnsamp_jax.data.patches import Geometry, consensus_centroid, make_record, patch_affine
from pnsamp_jax.data.prepare import prepare
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")

SUBSET = DATA / "lidc_subset"
AFFINE = patch_affine((10, -20, 30), 21, 1.0)
NODULES = [
    {"nodule_id": "a_n00", "patient_id": "a", "image": "images/a.nrrd", "mask": "masks/a0.nrrd"},
    {"nodule_id": "a_n01", "patient_id": "a", "image": "images/a.nrrd", "mask": "masks/a1.nrrd"},
    {"nodule_id": "b_n00", "patient_id": "b", "image": "images/b.nrrd", "mask": "masks/b0.nrrd"},
]
POINTS = {"a_n00": (10, -20, 30), "a_n01": (12, -22, 33), "b_n00": (10, -20, 30)}
RATINGS = {
    "a_n00": [[5, 1, 6, 3, 3, 3, 4, 5, 5], [5, 1, 6, 3, 5, 3, 4, 5, 4]],
    "a_n01": [[3, 1, 3, 4, 4, 1, 1, 5, 1]],
    "b_n00": [[2, 1, 6, 4, 4, 2, 2, 4, 3]],
}


def tables():
    """The lines of both tables, to be changed."""
    nodules = [
        {**row, **dict(zip(("x_mm", "y_mm", "z_mm"), POINTS[row["nodule_id"]], strict=True))} for row in NODULES
    ]
    ratings = [
        {"nodule_id": nodule_id, "reader": reader, **dict(zip(schema.RATING_NAMES, row, strict=True))}
        for nodule_id, rows in RATINGS.items()
        for reader, row in enumerate(rows)
    ]
    return nodules, ratings


def write_table(path, rows, columns=None):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def block(low, high, value=1):
    mask = np.zeros((21, 21, 21), np.uint8)
    mask[tuple(map(slice, low, high))] = value
    return mask


@pytest.fixture
def root(tmp_path):
    """A sound folder: three nodules, two of them in one image."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    nodules, ratings = tables()
    write_table(tmp_path / "nodules.csv", nodules)
    write_table(tmp_path / "ratings.csv", ratings)
    hu = np.random.default_rng(0).integers(-1000, 400, (2, 21, 21, 21)).astype(np.int16)
    for name, voxels in zip("ab", hu, strict=True):
        write_itk(tmp_path / "images" / f"{name}.nrrd", voxels, AFFINE)
    both = block((8, 8, 8), (13, 13, 13), 1) | block((9, 8, 8), (13, 13, 13), 4)  # readers 0 and 2
    write_itk(tmp_path / "masks" / "a0.nrrd", both, AFFINE)
    write_itk(tmp_path / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14)), AFFINE)
    write_itk(tmp_path / "masks" / "b0.nrrd", block((9, 9, 9), (12, 12, 12)), AFFINE)
    return tmp_path


def change(root, table, line, **cells):
    """Rewrites cells of one line (the first after the header is 2) of a table."""
    with (root / table).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[line - 2].update(cells)
    write_table(root / table, rows)


def replace(root, table, old, new):
    """Replaces bytes of a table, which must be there once."""
    data = (root / table).read_bytes()
    assert data.count(old) == 1
    (root / table).write_bytes(data.replace(old, new))


def load(root, series="images/a.nrrd"):
    return FolderSource(str(root)).load(series)


# What is sound


def test_nodules_come_with_their_image_ratings_and_readers(root):
    source = FolderSource(str(root))
    assert source.series() == ["images/a.nrrd", "images/b.nrrd"]
    first, second = load(root)
    assert (first.nodule.nodule_id, first.nodule.patient_id, first.context) == ("a_n00", "a", "ct")
    assert first.nodule.ratings.tolist() == RATINGS["a_n00"]
    assert first.ct is second.ct and first.ct.array.dtype == np.int16
    np.testing.assert_array_equal(first.centre_mm, POINTS["a_n00"])
    np.testing.assert_array_equal(first.ct.array, np.random.default_rng(0).integers(-1000, 400, (2, 21, 21, 21))[0])
    # Bits 0 and 2 are two readers, a mask of 0 and 1 is one.
    assert first.readers.array.dtype == bool
    np.testing.assert_array_equal(
        first.readers.array, [block((8, 8, 8), (13, 13, 13)) > 0, block((9, 8, 8), (13, 13, 13)) > 0]
    )
    np.testing.assert_array_equal(second.readers.array, [block((12, 7, 11), (15, 10, 14)) > 0])
    np.testing.assert_allclose(consensus_centroid(second.readers), POINTS["a_n01"], atol=1e-6)


def test_one_line_of_a_series_is_one_record(root):
    folder = prepare(FolderSource(str(root)), Geometry(16, 0, 1.2), root / "cache", workers=1)
    with np.load(min(folder.glob("*.npz"))) as part:
        assert set(part[schema.NODULE_ID]) <= set(RATINGS)


@pytest.mark.parametrize("context", ["slab", "cube", "ct", ""])
def test_context_is_kept_and_ct_by_default(root, context):
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "context": context} for row in nodules])
    assert {marked.context for marked in load(root)} == {context or "ct"}


def test_blank_ratings_are_missing(root):
    change(root, "ratings.csv", 2, malignancy="", texture=" ")
    rating_counts = load(root)[0].nodule.rating_counts
    assert rating_counts[schema.MALIGNANCY].tolist() == [0, 0, 0, 1, 0, 0]
    assert rating_counts[schema.RATING_NAMES.index("texture")].tolist() == [0, 0, 0, 0, 1, 0]


def test_a_nodule_without_ratings_has_none(root):
    _, ratings = tables()
    write_table(root / "ratings.csv", [row for row in ratings if row["nodule_id"] != "b_n00"])
    (marked,) = load(root, "images/b.nrrd")
    assert marked.nodule.ratings.shape == (0, 9) and not marked.nodule.rating_counts.any()
    assert not make_record(marked, Geometry(16, 0, 1.0))[schema.RATING_COUNTS].any()


def test_a_table_of_ratings_may_be_empty(root):
    write_table(root / "ratings.csv", [], RATING_COLUMNS)
    assert not any(row.nodule.rating_counts.any() for rows in read_rows(str(root)).values() for row in rows)


def test_further_columns_order_spaces_a_byte_order_mark_and_blank_lines_do_not_matter(root):
    nodules, _ = tables()
    columns = ["note", *reversed(NODULE_COLUMNS)]
    lines = [", ".join(columns), ""]
    lines += [
        ", ".join(str({"note": '"a, b"', **row}[name]) for name in columns).replace(', "', ',"') for row in nodules
    ]
    (root / "nodules.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    assert load(root)[1].nodule.nodule_id == "a_n01"


def test_the_one_reading_of_a_class_that_its_rating_lacks_is_missing(root):
    change(root, "ratings.csv", 2, internal_structure=5)
    assert load(root)[0].nodule.rating_counts[schema.RATING_NAMES.index("internal_structure")].tolist() == [
        1,
        0,
        0,
        0,
        0,
        0,
    ]


def test_description_changes_with_the_tables_and_is_json(root):
    source = FolderSource(str(root))
    before = source.description()
    assert json.loads(json.dumps(before)) == before
    change(root, "ratings.csv", 3, malignancy=1)
    assert source.description() != before


@pytest.mark.parametrize("name", ["images/b.nrrd", "masks/a1.nrrd"])
def test_description_changes_with_a_file(root, name):
    before = FolderSource(str(root)).description()
    os.utime(root / name, ns=(1, 1))  # saved anew: prepared patches of it are out of date
    assert FolderSource(str(root)).description() != before


def test_a_mask_of_0_and_255_is_one_reader(root):
    write_itk(root / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14), 255), AFFINE)
    np.testing.assert_array_equal(load(root)[1].readers.array, [block((12, 7, 11), (15, 10, 14)) > 0])


# What is not


@pytest.mark.parametrize(
    ("table", "line", "cells", "says"),
    [
        ("nodules.csv", 3, {"x_mm": "ten"}, "line 3, column x_mm: 'ten' is not a number"),
        ("nodules.csv", 4, {"z_mm": "nan"}, "line 4, column z_mm: 'nan' is not a number"),
        ("nodules.csv", 2, {"y_mm": "inf"}, "line 2, column y_mm: 'inf' is not a number"),
        ("nodules.csv", 2, {"x_mm": ""}, "line 2, column x_mm: is empty"),
        ("nodules.csv", 3, {"mask": "  "}, "line 3, column mask: is empty"),
        ("nodules.csv", 4, {"patient_id": ""}, "line 4, column patient_id: is empty"),
        ("nodules.csv", 3, {"nodule_id": "a_n00"}, "line 3: nodule_id 'a_n00' appears twice"),
        ("nodules.csv", 4, {"nodule_id": "c_n00"}, "ratings.csv: nodule_id 'b_n00' is not in nodules.csv"),
        ("ratings.csv", 2, {"malignancy": 7}, "line 2, column malignancy: 7 is not a class 1..5"),
        ("ratings.csv", 3, {"calcification": -1}, "line 3, column calcification: -1 is not a class 1..6"),
        ("ratings.csv", 4, {"internal_structure": 2.5}, "line 4, column internal_structure: 2.5 is not a class 1..4"),
        ("ratings.csv", 4, {"margin": "high"}, "line 4, column margin: 'high' is not a number"),
        ("ratings.csv", 5, {"reader": ""}, "line 5, column reader: is empty"),
        ("ratings.csv", 3, {"reader": 0}, "line 3: reader '0' rates nodule_id 'a_n00' twice"),
        ("ratings.csv", 5, {"nodule_id": "x"}, "ratings.csv: nodule_id 'x' is not in nodules.csv"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_column(root, table, line, cells, says):
    change(root, table, line, **cells)
    message = refusal(FolderSource(str(root)).series)
    assert says in message and str(root / "ratings.csv" if "ratings.csv" in says else root / table) in message


def test_an_unknown_context_is_named(root):
    nodules, _ = tables()
    write_table(
        root / "nodules.csv", [{**row, "context": "mri" if row["patient_id"] == "b" else ""} for row in nodules]
    )
    message = refusal(FolderSource(str(root)).series)
    assert f"{root}/nodules.csv, line 4, column context: 'mri' is none of ct, cube, slab" in message


@pytest.mark.parametrize(
    ("table", "old", "new", "says"),
    [
        ("nodules.csv", b"patient_id", b"person", "line 1: no column patient_id; expected nodule_id, patient_id"),
        ("ratings.csv", b"lobulation", b"", "line 1: no column lobulation"),
        ("ratings.csv", b"lobulation", b"texture", "line 1: no column lobulation"),
        ("ratings.csv", b"subtlety", b"subtlety,margin", "line 1: two columns margin"),
        ("nodules.csv", b"a_n01", b"a_n01,", "line 3: 8 fields, but line 1 names 7"),
        ("nodules.csv", b",masks/a1.nrrd", b"", "line 3: 6 fields, but line 1 names 7"),
        ("nodules.csv", b"a_n01", b"\xe9_n01", "line 3: not text in UTF-8"),
        ("ratings.csv", b"b_n00", b"b_\0n00", "line 5: not text in UTF-8"),
        ("nodules.csv", b"a_n01", b'"a_n01" x', "line 3: not sound CSV"),
        ("nodules.csv", b"b_n00", b'"b_n00', "not sound CSV"),
    ],
)
def test_a_malformed_table_is_named_by_file_and_line(root, table, old, new, says):
    replace(root, table, old, new)
    message = refusal(FolderSource(str(root)).series)
    assert message.startswith(str(root / table)) and says in message


@pytest.mark.parametrize("table", ["nodules.csv", "ratings.csv"])
def test_a_table_that_is_missing_empty_or_utf16_is_named(root, table):
    source = FolderSource(str(root))
    text = (root / table).read_text()
    (root / table).write_bytes(text.encode("utf-16"))
    assert f"{root / table}, line 1: not text in UTF-8" in refusal(source.series)
    (root / table).write_bytes(b"")
    assert f"{root / table}, line 1: no column nodule_id" in refusal(source.series)
    (root / table).unlink()
    assert f"{root / table}: no such file" in refusal(source.series)
    # prepare asks for the description before anything else.
    assert f"{root / table}: no such file" in refusal(source.description)
    assert refusal(prepare, source, Geometry(), root / "cache", 1) and not (root / "cache").exists()


def test_a_table_without_nodules_is_refused(root):
    write_table(root / "nodules.csv", [], NODULE_COLUMNS)
    write_table(root / "ratings.csv", [], RATING_COLUMNS)
    assert "holds no nodule" in refusal(FolderSource(str(root)).series)


@pytest.mark.parametrize("x_mm", [-10, 20.6, -0.6])
def test_a_point_outside_the_image_is_refused(root, x_mm):
    change(root, "nodules.csv", 3, x_mm=x_mm)
    message = refusal(load, root)
    assert "'a_n01' lies outside images/a.nrrd" in message and "LPS" in message


@pytest.mark.parametrize("x_mm", [-0.4, 20.4])
def test_a_point_in_the_outermost_voxels_is_inside(root, x_mm):
    change(root, "nodules.csv", 3, x_mm=x_mm)
    assert load(root)[1].centre_mm[0] == x_mm


def test_an_empty_mask_is_refused(root):
    write_itk(root / "masks" / "a1.nrrd", np.zeros((21, 21, 21), np.uint8), AFFINE)
    assert f"{root}/masks/a1.nrrd: the mask marks no voxel" in refusal(load, root)


@pytest.mark.parametrize("value", [-1, 256, 1000])
def test_a_mask_that_is_none_is_refused(root, value):
    mask = block((12, 7, 11), (15, 10, 14)).astype(np.int16)
    mask[0, 0, 0] = value
    write_itk(root / "masks" / "a1.nrrd", mask, AFFINE)
    message = refusal(load, root)
    assert f"{root}/masks/a1.nrrd: holds {value};" in message


def test_a_mask_that_lost_its_geometry_is_refused(root):
    write_itk(root / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14)))
    message = refusal(load, root)
    assert f"{root}/masks/a1.nrrd" in message and "mm from the point of 'a_n01'" in message


@pytest.mark.parametrize("name", ["images/a.nrrd", "masks/a1.nrrd"])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    assert f"{root}/{name}: no such file" in refusal(load, root)


def test_a_mask_may_have_a_grid_of_its_own(root):
    affine = patch_affine(POINTS["a_n01"], 5, 1.5)
    write_itk(root / "masks" / "a1.nrrd", np.ones((5, 5, 5), np.uint8), affine)
    marked = load(root)[1]
    np.testing.assert_allclose(consensus_centroid(marked.readers), POINTS["a_n01"], atol=1e-6)
    mask = make_record(marked, Geometry(32, 0, 0.6))[schema.MASK]
    # Interpolation keeps the volume, but for what voxels of 0.6 mm lose at 6 faces, each to a tenth of a voxel.
    assert mask.sum() / schema.MASK_UNIT * 0.6**3 == pytest.approx(7.5**3, rel=0.03)


# The real subset


@pytest.fixture(scope="module")
def real():
    if not SUBSET.is_dir():
        pytest.skip("the real nodules are not in ../shared/data/lidc_subset")
    return FolderSource(str(SUBSET))


def test_real_tables_are_read(real):
    rows = [row for rows in read_rows(real.root).values() for row in rows]
    assert len(rows) == 2282 and len({row.nodule.patient_id for row in rows}) == 785
    assert {row.context for row in rows} == {"slab", "cube"}


def test_real_nodules_lie_in_the_middle_and_are_denser_than_what_surrounds_them(real):
    centred, denser = [], []
    for series in real.series()[10::120]:
        (marked,) = real.load(series)
        record = make_record(marked, Geometry())
        assert len(marked.readers.array) == len(marked.nodule.ratings)
        mask = record[schema.MASK] >= schema.MASK_UNIT // 2
        if mask.any():
            # The table's point is rounded to 0.001 mm; a voxel is 0.6, and small nodules have few.
            centred.append(np.linalg.norm(np.argwhere(mask).mean(axis=0) - 39.5) * 0.6)
            distance = np.linalg.norm(points_mm(record), axis=-1)
            shell = (record[schema.MASK] == 0) & (distance < record[schema.DIAMETER] / 2 + 8)
            denser.append(np.median(record[schema.IMAGE][mask]) - np.median(record[schema.IMAGE][shell]))
    assert len(centred) > 15
    assert np.median(centred) < 0.3 and max(centred) < 1.0
    # Lung is at -850, a nodule mostly between -600 and 50: measured, a median difference of 494 HU.
    assert np.median(denser) > 250 and np.mean(np.array(denser) > 100) > 0.8


def points_mm(record):
    """Offsets of a record's voxels from its middle, mm."""
    size = len(record[schema.IMAGE])
    grid = Volume(None, patch_affine((0, 0, 0), size, 0.6))
    return grid.to_lps(np.moveaxis(np.indices((size,) * 3), 0, -1))


def test_a_relative_root_works(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert len(load(Path(root.name))) == 2
    with pytest.raises(UserError, match="no such file"):
        FolderSource("nowhere").series()
