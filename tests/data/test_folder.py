"""The `folder` source reads valid folders correctly; `test_folder_errors` covers invalid ones."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ct_files import write_itk, write_series
from made_folder import AFFINE, POINTS, RATINGS, block, change, load, replace, tables, write_table

from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.folder_tables import NODULE_COLUMNS, RATING_COLUMNS, read_rows
from pnsamp_jax.data.patches import Geometry, consensus_centroid, make_record, patch_affine
from pnsamp_jax.data.prepare import prepare
from pnsamp_jax.data.series_files import read_records
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


def test_a_nodule_has_its_image_ratings_and_masks(root):
    source = FolderSource(str(root))
    assert source.series() == ["images/a.nrrd", "images/b.nrrd"]
    first, second = load(root)
    assert (first.nodule.nodule_id, first.nodule.patient_id, first.context) == ("a_n00", "a", "ct")
    assert first.nodule.ratings.tolist() == RATINGS["a_n00"]
    assert first.ct is second.ct and first.ct.array.dtype == np.int16
    np.testing.assert_array_equal(first.centre_mm, POINTS["a_n00"])
    np.testing.assert_array_equal(first.ct.array, np.random.default_rng(0).integers(-1000, 400, (2, 21, 21, 21))[0])
    # Bits 0 and 2 are two readers; a mask of 0 and 1 is one reader.
    assert first.readers.array.dtype == bool
    np.testing.assert_array_equal(
        first.readers.array, [block((8, 8, 8), (13, 13, 13)) > 0, block((9, 8, 8), (13, 13, 13)) > 0]
    )
    np.testing.assert_array_equal(second.readers.array, [block((12, 7, 11), (15, 10, 14)) > 0])
    np.testing.assert_allclose(consensus_centroid(second.readers), POINTS["a_n01"], atol=1e-6)


def test_each_line_becomes_a_record(root):
    prepared = prepare(FolderSource(str(root)), Geometry(16, 0, 1.2), root / "cache", workers=1)
    assert read_records(prepared.files)[schema.NODULE_ID].tolist() == sorted(RATINGS)


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        *(("slab", "slab"), ("cube", "cube"), ("simulated", "simulated"), ("ct", "ct"), ("scan", "ct"), ("", "ct")),
        *(("CT", "ct"), ("Slab", "slab"), ("Scan", "ct"), ("SIMULATED", "simulated")),
    ],
)
def test_context_is_kept_in_any_case_and_defaults_to_ct(root, context, expected):
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "context": context} for row in nodules])
    assert {marked.context for marked in load(root)} == {expected}


def test_blank_ratings_are_missing(root):
    change(root, "ratings.csv", 2, malignancy="", texture=" ")
    rating_counts = load(root)[0].nodule.rating_counts
    assert rating_counts[schema.MALIGNANCY].tolist() == [0, 0, 0, 1, 0, 0]
    assert rating_counts[schema.RATING_NAMES.index("texture")].tolist() == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("text", ["-", "\u2013", "?", "#N/A", "NA", "n/a", "None", "<NA>", "NaN", " - "])
def test_what_tables_write_for_no_rating_is_missing(root, text):
    change(root, "ratings.csv", 2, malignancy=text)
    assert load(root)[0].nodule.rating_counts[schema.MALIGNANCY].tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("name", ["internalStructure", "Internal structure", "INTERNAL_STRUCTURE"])
def test_a_column_may_be_called_as_pylidc_or_people_call_it(root, name):
    replace(root, "ratings.csv", b"internal_structure", name.encode())
    assert load(root)[0].nodule.ratings.tolist() == RATINGS["a_n00"]


def test_a_nodule_may_have_no_ratings(root):
    _, ratings = tables()
    write_table(root / "ratings.csv", [row for row in ratings if row["nodule_id"] != "b_n00"])
    (marked,) = load(root, "images/b.nrrd")
    assert marked.nodule.ratings.shape == (0, 9) and not marked.nodule.rating_counts.any()
    assert not make_record(marked, Geometry(16, 0, 1.0))[schema.RATING_COUNTS].any()


def test_the_table_of_ratings_may_be_empty(root):
    write_table(root / "ratings.csv", [], RATING_COLUMNS)
    assert not any(row.nodule.rating_counts.any() for rows in read_rows(str(root)).values() for row in rows)


def test_extra_columns_their_order_spaces_byte_order_mark_and_blank_lines_are_ignored(root):
    nodules, _ = tables()
    columns = ["note", *reversed(NODULE_COLUMNS)]
    lines = [", ".join(columns), ""]
    lines += [
        ", ".join(str({"note": '"a, b"', **row}[name]) for name in columns).replace(', "', ',"') for row in nodules
    ]
    (root / "nodules.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    assert load(root)[1].nodule.nodule_id == "a_n01"


def test_paths_may_be_written_as_on_windows(root):
    change(root, "nodules.csv", 3, image="images\\a.nrrd", mask=".\\masks\\a1.nrrd")
    assert FolderSource(str(root)).series() == ["images/a.nrrd", "images/b.nrrd"]
    assert len(load(root)) == 2


@pytest.mark.skipif(os.name == "nt", reason="a backslash separates folders there")
def test_a_name_that_holds_a_backslash_stays(root):
    (root / "images" / "b.nrrd").rename(root / "images\\b.nrrd")
    change(root, "nodules.csv", 4, image="images\\b.nrrd")
    assert len(load(root, "images\\b.nrrd")) == 1


def test_a_path_may_begin_with_the_home_folder(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root / "images"))
    change(root, "nodules.csv", 4, image="~/b.nrrd", mask="~/../masks/b0.nrrd")
    prepared = prepare(FolderSource(str(root)), Geometry(16, 0, 1.2), root / "cache", workers=1)
    assert read_records(prepared.files)[schema.NODULE_ID].tolist() == sorted(RATINGS)


def test_a_class_that_the_rating_does_not_have_is_missing(root):
    change(root, "ratings.csv", 2, internal_structure=5)
    rating_counts = load(root)[0].nodule.rating_counts[schema.RATING_NAMES.index("internal_structure")]
    assert rating_counts.tolist() == [1, 0, 0, 0, 0, 0]


def inputs(root):
    """Return what determines the records of each image, which must be JSON."""
    source = FolderSource(str(root))
    return {series: json.loads(json.dumps(source.inputs(series))) for series in source.series()}


def outdated_by(root, action, *args, **cells):
    """Return the images whose records are out of date after an action."""
    before = inputs(root)
    action(*args, **cells)
    after = inputs(root)
    return {series for series in after if after[series] != before.get(series)}


def test_only_the_image_whose_rows_change_is_out_of_date(root):
    assert outdated_by(root, list) == set()
    assert outdated_by(root, change, root, "ratings.csv", 3, malignancy=1) == {"images/a.nrrd"}
    assert outdated_by(root, change, root, "ratings.csv", 5, malignancy="") == {"images/b.nrrd"}
    assert outdated_by(root, change, root, "nodules.csv", 4, x_mm="10.5") == {"images/b.nrrd"}
    assert outdated_by(root, change, root, "nodules.csv", 4, patient_id="c") == {"images/b.nrrd"}


def test_new_rows_leave_other_images_up_to_date(root):
    nodules, ratings = tables()
    row = {**nodules[2], "nodule_id": "c_n00", "patient_id": "c", "image": "images/c.nrrd"}
    (root / "images" / "c.nrrd").write_bytes((root / "images" / "b.nrrd").read_bytes())
    assert outdated_by(root, write_table, root / "nodules.csv", [*nodules, row]) == {"images/c.nrrd"}
    rating = {**ratings[3], "nodule_id": "c_n00", "reader": 1}
    assert outdated_by(root, write_table, root / "ratings.csv", [*ratings, rating]) == {"images/c.nrrd"}


def touch(path):
    """Change the time of a file, as if it was written again with the same size."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("name", "image"),
    [("images/b.nrrd", "images/b.nrrd"), ("masks/b0.nrrd", "images/b.nrrd"), ("masks/a1.nrrd", "images/a.nrrd")],
)
def test_only_the_image_whose_files_change_is_out_of_date(root, name, image):
    assert outdated_by(root, touch, root / name) == {image}


def test_a_slice_that_changes_comes_or_goes_makes_its_series_out_of_date(root):
    nodules, _ = tables()
    paths = write_series(root / "images" / "a", names=[f"{i}.dcm" for i in range(5)])
    write_table(root / "nodules.csv", [{**row, "image": row["image"].replace("a.nrrd", "a")} for row in nodules])
    assert outdated_by(root, touch, Path(paths[2])) == {"images/a"}
    assert outdated_by(root, Path(paths[4]).unlink) == {"images/a"}
    assert outdated_by(root, shutil.copy, paths[3], root / "images" / "a" / "5.dcm") == {"images/a"}
    assert outdated_by(root, list) == set()


def test_tables_that_change_within_one_process_are_read_again(root):
    cache = root / "cache"
    first = prepare(FolderSource(str(root)), Geometry(16, 0, 1.2), cache, workers=1)
    change(root, "ratings.csv", 5, malignancy=5)
    second = prepare(FolderSource(str(root)), Geometry(16, 0, 1.2), cache, workers=1)
    assert len(set(first.files) & set(second.files)) == 1
    rating_counts = read_records(second.files)[schema.RATING_COUNTS]
    assert rating_counts[2, schema.MALIGNANCY].tolist() == [0, 0, 0, 0, 1, 0]  # of b_n00


def test_a_mask_of_0_and_255_is_one_reader(root):
    write_itk(root / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14), 255), AFFINE)
    np.testing.assert_array_equal(load(root)[1].readers.array, [block((12, 7, 11), (15, 10, 14)) > 0])


def test_a_mask_may_have_a_different_grid(root):
    affine = patch_affine(POINTS["a_n01"], 4, 1.5)
    write_itk(root / "masks" / "a1.nrrd", np.ones((4, 4, 4), np.uint8), affine)
    marked = load(root)[1]
    np.testing.assert_allclose(consensus_centroid(marked.readers), POINTS["a_n01"], atol=1e-6)
    mask = make_record(marked, Geometry(32, 0, 0.6))[schema.MASK]
    assert (mask == schema.MASK_UNIT).sum() == mask.astype(bool).sum() == 10**3  # 6 mm are 10 voxels


@pytest.mark.parametrize(
    ("context", "side", "known"),
    [("", 21, 18), ("ct", 29, 42), ("ct", 31, None), ("cube", 21, None), ("slab", 21, None), ("simulated", 21, None)],
)
def test_an_image_that_holds_less_than_half_of_a_patch_is_noted(root, context, side, known):
    hu = np.random.default_rng(0).integers(-1000, 400, (side,) * 3).astype(np.int16)
    write_itk(root / "images" / "b.nrrd", hu, patch_affine(POINTS["b_n00"], side, 1.0))
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "context": context} for row in nodules])
    with collected() as notes:
        load(root, "images/b.nrrd")
    expected = (
        f"{root}/images/b.nrrd: shows {known}% of the 38 mm around 'b_n00' that a network sees; the rest repeats"
    )
    assert [note[: len(expected)] for note in notes] == [expected] * (known is not None)


def test_a_relative_root_works(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert len(load(Path(root.name))) == 2
    with pytest.raises(UserError, match="no such file"):
        FolderSource("nowhere").series()


# Real nodules


@pytest.fixture(scope="module")
def real(lidc_subset):
    return FolderSource(str(lidc_subset))


def test_real_tables_are_read(real):
    rows = [row for rows in read_rows(real.root).values() for row in rows]
    assert len(rows) == 2282 and len({row.nodule.patient_id for row in rows}) == 785
    assert {row.context for row in rows} == {"slab", "cube"}


def test_the_real_nodule_whose_readers_share_no_voxel_is_read(real):
    (series,) = [name for name in real.series() if "LIDC-IDRI-0707_n04" in name]
    (marked,) = real.load(series)
    assert len(marked.readers.array) == 2 and not marked.readers.array.all(axis=0).any()


def test_real_nodules_are_centred_and_denser_than_their_surroundings(real):
    centred, denser = [], []
    for series in real.series()[10::120]:
        (marked,) = real.load(series)
        record = make_record(marked, Geometry())
        assert len(marked.readers.array) == len(marked.nodule.ratings)
        mask = record[schema.MASK] >= schema.MASK_UNIT // 2
        if mask.any():
            # The table's point is rounded to 0.001 mm; a voxel is 0.6 mm, and small nodules have few voxels.
            centred.append(np.linalg.norm(np.argwhere(mask).mean(axis=0) - 39.5) * 0.6)
            distance = np.linalg.norm(points_mm(record), axis=-1)
            shell = (record[schema.MASK] == 0) & (distance < record[schema.DIAMETER] / 2 + 8)
            denser.append(np.median(record[schema.IMAGE][mask]) - np.median(record[schema.IMAGE][shell]))
    assert len(centred) > 15
    assert np.median(centred) < 0.3 and max(centred) < 1.0
    # Lung is about -850 HU, a nodule mostly -600 to 50 HU; the measured median difference is 494 HU.
    assert np.median(denser) > 250 and np.mean(np.array(denser) > 100) > 0.8


def points_mm(record):
    """Return the offsets of a record's voxels from its centre in mm: (d, h, w, 3)."""
    size = len(record[schema.IMAGE])
    grid = Volume(None, patch_affine((0, 0, 0), size, 0.6))
    return grid.to_lps(np.moveaxis(np.indices((size,) * 3), 0, -1))
