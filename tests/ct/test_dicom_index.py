"""pnsamp_jax.ct.dicom_index: series are found under any layout, and a cached index is never outdated."""

import json
import os

import pydicom
import pytest
from ct_files import HU, REAL, UID, refusal, write_series, write_slice

from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.notes import collected

pytestmark = pytest.mark.filterwarnings("error")


def test_index_finds_ct_series_under_any_layout_and_nothing_else(tmp_path):
    deep = write_series(tmp_path / "b" / "deep er" / "é", HU[:2], names=["IM2", "IM1"])
    flat = write_series(tmp_path, HU[:2], names=["z.dcm", "a.ima"], SeriesInstanceUID="1.2.2")
    more = write_slice(tmp_path / "a" / "x.dcm", HU[0], (0, 0, 9))
    write_slice(tmp_path / "dx.dcm", HU[0], (0, 0, 0), Modality="DX", SeriesInstanceUID="1.9")
    write_slice(tmp_path / "scout.dcm", HU[0], (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    dose = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None, "SeriesInstanceUID": "1.8"}
    write_slice(tmp_path / "dose.dcm", HU[0], (0, 0, 0), **dose)
    (tmp_path / "069.xml").write_text("<LidcReadMessage/>" * 99)
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = index_series(tmp_path)
    assert found == {"1.2.2": sorted(flat), UID: sorted([*deep, more])}
    assert list(found) == ["1.2.2", UID]


def test_cached_index_opens_only_new_and_changed_files(tmp_path, monkeypatch):
    root, cache = tmp_path / "root", tmp_path / "made" / "index.json"
    paths = write_series(root)
    (root / "note.xml").write_text("x")
    opened, read = [], pydicom.dcmread

    def read_and_note(path, **options):
        opened.append(str(path))
        return read(path, **options)

    monkeypatch.setattr(pydicom, "dcmread", read_and_note)
    first = index_series(root, cache)
    assert len(opened) == 6 and first == {UID: paths}
    written = cache.stat().st_mtime_ns
    opened.clear()
    assert index_series(root, cache) == first
    assert opened == [] and cache.stat().st_mtime_ns == written
    write_slice(paths[1], HU[1], (0, 0, 0), SeriesInstanceUID="1.2.3.99")
    os.remove(paths[4])
    new = write_slice(root / "new" / "n.dcm", HU[0], (0, 0, 1))
    assert index_series(root, cache) == {UID: sorted([paths[0], paths[2], paths[3], new]), "1.2.3.99": [paths[1]]}
    assert sorted(opened) == sorted([paths[1], new])
    assert os.listdir(cache.parent) == ["index.json"]
    opened.clear()
    moved = root.rename(tmp_path / "moved")
    assert index_series(moved, cache)["1.2.3.99"] == [str(moved / "001.dcm")] and opened == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"000.dcm": 3}', '{"000.dcm": {"ct": 7}}', "\x00\xff", "[" * 99999]
)
def test_corrupt_cache_is_rebuilt(tmp_path, content):
    paths = write_series(tmp_path / "root", HU[:2])
    cache = tmp_path / "index.json"
    cache.write_text(content, encoding="latin-1")
    assert index_series(tmp_path / "root", cache) == {UID: paths}
    assert set(json.loads(cache.read_text())) == {"000.dcm", "001.dcm"}


def test_cache_with_a_wrong_type_of_uid_is_rebuilt(tmp_path):
    paths, cache = write_series(tmp_path / "root", HU[:2]), tmp_path / "index.json"
    index_series(tmp_path / "root", cache)
    entries = json.loads(cache.read_text())
    entries["000.dcm"]["series"] = ["1.2"]
    cache.write_text(json.dumps(entries))
    assert index_series(tmp_path / "root", cache) == {UID: paths}


def test_cache_inside_the_root_is_not_indexed(tmp_path):
    write_series(tmp_path, HU[:2])
    assert index_series(tmp_path, tmp_path / "c.json") == index_series(tmp_path, tmp_path / "c.json")
    assert set(json.loads((tmp_path / "c.json").read_text())) == {"000.dcm", "001.dcm"}


def test_cache_that_cannot_be_written_causes_a_warning_only(tmp_path, caplog):
    paths = write_series(tmp_path / "root", HU[:2])
    (tmp_path / "file").touch()
    with collected() as notes:  # which stay with the series, and this is none about it
        assert index_series(tmp_path / "root", tmp_path / "file" / "index.json") == {UID: paths}
    assert "index could not be saved" in caplog.text and notes == []


def test_failed_write_leaves_the_old_cache_and_no_temporary_file(tmp_path, monkeypatch):
    paths, cache = write_series(tmp_path / "root", HU[:2]), tmp_path / "cache" / "index.json"
    cache.parent.mkdir()
    cache.write_text("{}")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert index_series(tmp_path / "root", cache) == {UID: paths}
    assert cache.read_text() == "{}" and os.listdir(cache.parent) == ["index.json"]


def test_unreadable_paths_are_refused(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(index_series, tmp_path / "nowhere")
    (tmp_path / "dangling.dcm").symlink_to(tmp_path / "gone")
    assert str(tmp_path / "dangling.dcm") in refusal(index_series, tmp_path)


def test_pipe_is_ignored(tmp_path):
    paths = write_series(tmp_path, HU[:2])
    os.mkfifo(tmp_path / "pipe.dcm")
    assert index_series(tmp_path) == {UID: paths}


@pytest.mark.data
def test_real_series_is_indexed_without_the_xml_files():
    found = index_series(REAL)
    ((uid, paths),) = found.items()
    assert uid == "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
    assert len(paths) == 133 and all(path.endswith(".dcm") for path in paths)
    assert list(REAL.rglob("*.xml"))
