"""Preparation: each series once, whole or not at all, and resumed where it stopped."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pnsamp_jax.ct.notes import note
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.background import BackgroundSource
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import Geometry, MarkedNodule, Unusable, make_record, patch_affine
from pnsamp_jax.data.prepare import dataset_name, make_records, prepare
from pnsamp_jax.data.series_files import iter_series, read_records
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path

pytestmark = pytest.mark.filterwarnings("error")

GEOMETRY = Geometry(8, 1, 1.0)
SERIES = ("s0", "s1", "s2", "s3")
BROKEN = {
    "user": UserError("scan is bad"),
    "os": OSError("disk is bad"),
    "bug": RuntimeError("bug"),
    "stop": KeyboardInterrupt(),
    "memory": MemoryError(),
}
DAMAGED = ("unusable", "empty")


@dataclass(frozen=True)
class FakeSource:
    """Two nodules per series. Files control the series, since worker processes see them too.

    Attributes:
      folder: a file `<series>.<kind>` makes loading the series raise `BROKEN[kind]`, `<series>.unusable` makes its
        first nodule unusable, `<series>.empty` empties the mask of its first usable one, and `<series>.note` makes it
        tell something; each load adds a letter to `<series>.log`.
      names: the series.
      same_ids: True if all series have the same nodule ids.
    """

    folder: str
    names: tuple[str, ...] = SERIES
    same_ids: bool = False

    name = "fake"

    def series(self):
        return list(self.names)

    def load(self, series):
        with open(Path(self.folder, f"{series}.log"), "a") as log:
            log.write("x")
        if Path(self.folder, f"{series}.note").exists():
            note(f"{series}: 7 slices read")
        if Path(self.folder, f"{series}.killed").exists():
            os._exit(9)
        for kind, error in BROKEN.items():
            if Path(self.folder, f"{series}.{kind}").exists():
                raise error
        rng = np.random.default_rng(self.names.index(series))
        found = []
        for number in (1, 0):
            owner = "p" if self.same_ids else f"p{series}"
            ratings = rng.integers(1, 5, (3, 9))
            ct = Volume(rng.integers(-1000, 400, (9, 9, 9)).astype(np.int16), patch_affine((0, 0, 0), 9, 1.0))
            masks = Volume(rng.random((3, 4, 4, 4)) < 0.7, patch_affine((0, 0, 0), 4, 1.0))
            found.append(MarkedNodule(Nodule(f"{owner}_n{number}", owner, ratings), ct, masks, "ct"))
        return self.damaged(series, found)

    def damaged(self, series, found):
        unusable, empty = (Path(self.folder, f"{series}.{kind}").exists() for kind in DAMAGED)
        if empty:
            found[1 if unusable else 0].readers.array[:] = False
        if unusable:
            found[0] = Unusable(found[0].nodule.nodule_id, "m.nii.gz: no such file")
        return found

    def description(self):
        return {"source": self.name, "same_ids": self.same_ids}

    def inputs(self, series):
        path = Path(self.folder, f"{series}.inputs")
        return path.read_text() if path.exists() else None

    def breaks(self, series, kind):
        Path(self.folder, f"{series}.{kind}").touch()

    def mend(self):
        for kind in (*BROKEN, *DAMAGED):
            for path in Path(self.folder).glob(f"*.{kind}"):
                path.unlink()

    def loads(self):
        """Return how often each series was loaded since the last call."""
        logs = {path.stem: path for path in sorted(Path(self.folder).glob("*.log"))}
        counts = {series: path.stat().st_size for series, path in logs.items()}
        for path in logs.values():
            path.unlink()
        return counts


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return FakeSource(str(tmp_path / "source"))


def files(folder):
    """Return the names of all files, including hidden ones."""
    return sorted(os.listdir(folder))


def assert_equal(records, expected):
    assert set(records) == set(expected)
    for name, values in records.items():
        np.testing.assert_array_equal(values, expected[name])
        assert values.dtype == expected[name].dtype


def test_records_are_sorted_by_id_for_any_number_of_workers(source, tmp_path):
    alone = prepare(source, GEOMETRY, tmp_path / "alone", workers=1)
    pool = prepare(source, GEOMETRY, tmp_path / "pool", workers=2)
    assert alone.folder.name == pool.folder.name and alone.failures == {}
    assert files(alone.folder) == files(pool.folder) and len(files(alone.folder)) == len(SERIES) + 2
    assert {path.name for path in alone.files} < set(files(alone.folder)) and len(alone.files) == len(SERIES)
    records = read_records(alone.files)
    assert_equal(records, read_records(pool.files))
    assert records[schema.NODULE_ID].tolist() == [f"p{series}_n{number}" for series in SERIES for number in (0, 1)]
    for series in SERIES:
        for marked in source.load(series):
            (index,) = np.flatnonzero(records[schema.NODULE_ID] == marked.nodule.nodule_id)
            for name, value in make_record(marked, GEOMETRY).items():
                np.testing.assert_array_equal(records[name][index], value)
    assert records[schema.IMAGE].shape == (8, 10, 10, 10) and records[schema.IMAGE].dtype == np.int16
    assert records[schema.MASK].dtype == records[schema.RATING_COUNTS].dtype == np.uint8


def test_a_prepared_series_is_not_loaded_again(source, tmp_path):
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == dict.fromkeys(SERIES, 1)
    assert prepare(source, GEOMETRY, tmp_path / "cache", workers=1) == prepared
    assert source.loads() == {}
    assert json.loads((prepared.folder / "description.json").read_text())["geometry"]["patch_size"] == 8


def test_a_series_that_takes_too_much_memory_costs_no_other(source, tmp_path):
    source.breaks("s1", "memory")
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert len(prepared.files) == 3 and list(prepared.failures) == ["s1"]
    assert "s1: takes more memory than there is" in prepared.failures["s1"]


def test_a_worker_that_is_killed_is_reported_in_one_line(source, tmp_path):
    source.breaks("s1", "killed")
    with pytest.raises(UserError, match="^config.data.workers: a process was ended"):
        prepare(source, GEOMETRY, tmp_path / "cache", workers=2)


@pytest.mark.parametrize(("kind", "error"), [("bug", RuntimeError), ("stop", KeyboardInterrupt)])
def test_an_interrupted_preparation_resumes_where_it_stopped(source, tmp_path, kind, error):
    source.breaks("s2", kind)
    with pytest.raises(error):
        prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {"s0": 1, "s1": 1, "s2": 1}
    (folder,) = (tmp_path / "cache").iterdir()
    assert not [name for name in files(folder) if name.startswith(".")]
    source.mend()
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {"s2": 1, "s3": 1} and prepared.folder == folder
    whole = prepare(source, GEOMETRY, tmp_path / "whole", workers=1)
    assert_equal(read_records(prepared.files), read_records(whole.files))


@pytest.mark.parametrize("kind", ["user", "os"])
def test_a_damaged_series_is_left_out_reported_and_tried_again(source, tmp_path, capsys, kind):
    source.breaks("s1", kind)
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    reason = str(BROKEN[kind])
    output = capsys.readouterr().out
    assert "Left out 1 of 4 series" in output and f"s1: {reason}" in output and str(prepared.folder) in output
    assert prepared.failures == {"s1": reason} and prepared.nodule_failures == {}
    assert json.loads((prepared.folder / "failures.json").read_text()) == {"series": {"s1": reason}, "nodules": {}}
    assert len(read_records(prepared.files)[schema.NODULE_ID]) == 6
    source.loads()
    prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {"s1": 1} and "Left out 1 of 4" in capsys.readouterr().out
    source.mend()
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {"s1": 1} and capsys.readouterr().out == ""
    assert json.loads((prepared.folder / "failures.json").read_text()) == {"series": {}, "nodules": {}}
    assert len(read_records(prepared.files)[schema.NODULE_ID]) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_a_nodule_that_cannot_be_used_is_left_out_alone_and_told_in_every_run(source, tmp_path, capsys, workers):
    source.breaks("s1", "unusable")
    source.breaks("s3", "empty")
    for loads in (dict.fromkeys(SERIES, 1), {}):
        prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=workers)
        assert source.loads() == loads
        told, *reasons = capsys.readouterr().out.splitlines()
        assert told.startswith(f"Left out 2 of 8 nodules (listed in {prepared.folder / 'failures.json'}; tried again ")
        assert reasons == [
            "  ps1_n1: m.nii.gz: no such file",
            "  ps3_n1: the mask marks no voxel; a nodule needs at least one",
        ]
        listed = json.loads((prepared.folder / "failures.json").read_text())
        assert listed["nodules"] == prepared.nodule_failures and sorted(listed["nodules"]) == ["ps1_n1", "ps3_n1"]
        assert listed["series"] == prepared.failures == {} and len(prepared.files) == 4
        kept = ["ps0_n0", "ps0_n1", "ps1_n0", "ps2_n0", "ps2_n1", "ps3_n0"]
        assert read_records(prepared.files)[schema.NODULE_ID].tolist() == kept
    source.mend()
    assert prepare(source, GEOMETRY, tmp_path / "cache").nodule_failures != {}  # its inputs are as they were
    for series in ("s1", "s3"):
        Path(source.folder, f"{series}.inputs").write_text("the mask came")
    source.loads()
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=workers)
    assert source.loads() == {"s1": 1, "s3": 1} and prepared.nodule_failures == {}
    assert len(read_records(prepared.files)[schema.NODULE_ID]) == 8


def test_a_series_whose_nodules_all_fail_is_a_failed_series_and_tried_again(source, tmp_path, capsys):
    source.breaks("s1", "unusable")
    source.breaks("s1", "empty")
    source.breaks("s2", "unusable")
    for loads in (dict.fromkeys(SERIES, 1), {"s1": 1}):
        prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
        assert source.loads() == loads and list(prepared.failures) == ["s1"]
        series, of_series, nodules, of_nodules = capsys.readouterr().out.splitlines()
        assert series.startswith("Left out 1 of 4 series (listed in ")
        assert of_series == "  s1: none of its 2 nodules can be used; the first, ps1_n1: m.nii.gz: no such file"
        assert nodules.startswith("Left out 1 of 6 nodules of other series (listed in ")
        assert of_nodules == "  ps2_n1: m.nii.gz: no such file"


def test_a_source_of_only_damaged_series_is_an_error(source, tmp_path):
    for series in SERIES:
        source.breaks(series, "user")
    with pytest.raises(UserError, match="no series could be prepared; the first reason: scan is bad"):
        prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    with pytest.raises(UserError, match="none found"):
        prepare(FakeSource(source.folder, ()), GEOMETRY, tmp_path / "cache", workers=1)


def test_another_geometry_or_source_has_another_folder(source, tmp_path):
    prepared = prepare(source, GEOMETRY, tmp_path, workers=1)
    geometries = [Geometry(16, 1, 1.0), Geometry(8, 2, 1.0), Geometry(8, 1, 1.2)]
    names = {dataset_name(source, geometry) for geometry in (GEOMETRY, *geometries)}
    assert len(names | {dataset_name(FakeSource(source.folder, SERIES[:3]), GEOMETRY)}) == 5
    wide = prepare(source, geometries[1], tmp_path, workers=1)
    assert wide.folder != prepared.folder
    assert read_records(wide.files)[schema.IMAGE].shape[1:] == (12, 12, 12)
    assert read_records(prepared.files)[schema.IMAGE].shape[1:] == (10, 10, 10)
    other = prepare(FakeSource(source.folder, SERIES, same_ids=True), GEOMETRY, tmp_path, workers=1)
    assert other.folder not in (wide.folder, prepared.folder)


# Changes


def test_a_new_series_is_prepared_and_the_others_are_not_prepared_again(source, tmp_path):
    few = prepare(FakeSource(source.folder, SERIES[:3]), GEOMETRY, tmp_path / "cache", workers=1)
    assert len(few.files) == 3
    source.loads()
    every = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {"s3": 1} and set(few.files) < set(every.files)
    assert len(read_records(every.files)[schema.NODULE_ID]) == 8
    # A series that is gone is not read, though its file is kept.
    again = prepare(FakeSource(source.folder, SERIES[:3]), GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {} and again == few
    assert len(read_records(again.files)[schema.NODULE_ID]) == 6


def test_a_series_whose_inputs_change_is_prepared_again_and_its_old_records_are_removed(source, tmp_path):
    before = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    name = dataset_name(source, GEOMETRY)
    source.loads()
    Path(source.folder, "s2.inputs").write_text("one slice more")
    after = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert source.loads() == {"s2": 1} and dataset_name(source, GEOMETRY) != name
    assert len(set(before.files) & set(after.files)) == 3 and after.folder == before.folder
    assert sorted(after.folder.glob("*.npz")) == after.files


def test_a_series_that_changes_and_then_fails_is_not_read_as_it_was(source, tmp_path):
    prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    Path(source.folder, "s2.inputs").write_text("cut off")
    source.breaks("s2", "user")
    prepared = prepare(source, GEOMETRY, tmp_path / "cache", workers=1)
    assert len(read_records(prepared.files)[schema.NODULE_ID]) == 6 and sorted(prepared.failures) == ["s2"]
    assert len(list(prepared.folder.glob("*.npz"))) == 3


def test_only_selected_nodules_are_read(source, tmp_path):
    paths = prepare(source, GEOMETRY, tmp_path, workers=1).files
    every = read_records(paths)
    few = read_records(paths, lambda rating_counts: rating_counts[:, schema.MALIGNANCY, 3] > 0)
    chosen = every[schema.RATING_COUNTS][:, schema.MALIGNANCY, 3] > 0
    assert 0 < chosen.sum() < 8
    assert_equal(few, {name: values[chosen] for name, values in every.items()})
    with pytest.raises(UserError, match="no nodule belongs to the cohort"):
        read_records(paths, lambda rating_counts: np.zeros(len(rating_counts), bool))


def test_repeated_nodule_ids_are_refused(source, tmp_path):
    paths = prepare(FakeSource(source.folder, SERIES, same_ids=True), GEOMETRY, tmp_path, workers=1).files
    with pytest.raises(UserError, match="nodule_id 'p_n0' appears in two series"):
        read_records(paths)


@pytest.mark.parametrize(
    "content",
    [lambda data: b"", lambda data: b"garbage", lambda data: data[: len(data) // 2], lambda data: data[:-1]],
    ids=["empty", "garbage", "half", "cut"],
)
def test_a_damaged_file_is_reported(source, tmp_path, content):
    paths = prepare(source, GEOMETRY, tmp_path, workers=1).files
    path = paths[0]
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UserError, match="damaged .*; delete it and run again") as caught:
        read_records(paths)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    path.unlink()
    source.loads()
    prepare(source, GEOMETRY, tmp_path, workers=1)
    assert sum(source.loads().values()) == 1 and len(read_records(paths)[schema.NODULE_ID]) == 8


def test_damaged_bytes_are_reported_in_one_line(source, tmp_path):
    (path,) = prepare(FakeSource(source.folder, ("s0",)), GEOMETRY, tmp_path, workers=1).files
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        bad = whole.copy()
        bad[rng.integers(0, len(bad), 20)] = rng.integers(0, 256, 20)
        path.write_bytes(bad.tobytes())
        try:
            read_records([path])
        except UserError as error:
            refused += str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 250  # the remaining changes hit bytes without meaning


def test_make_records_stacks_a_series(source):
    records, failures = make_records(source, "s1", GEOMETRY)
    assert failures == {}
    assert records[schema.NODULE_ID].tolist() == ["ps1_n1", "ps1_n0"]  # in the source's order
    assert {len(values) for values in records.values()} == {2}


# atomic_path


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_has_the_permissions_that_the_user_gives_new_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "table.csv") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "table.csv").stat().st_mode & 0o777 == mode
        (tmp_path / "other.csv").touch()
        assert (tmp_path / "other.csv").stat().st_mode & 0o777 == mode  # the mask is as it was
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_file_remains_if_writing_fails(tmp_path, error):
    path = tmp_path / "new" / "table.csv"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".csv" and temporary.parent == path.parent
        temporary.write_text("old")
        assert not path.exists()
    assert path.read_text() == "old" and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old" and files(path.parent) == ["table.csv"]
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and files(path.parent) == ["table.csv"]


@pytest.mark.parametrize("workers", [1, 2])
def test_notes_about_files_are_printed_on_lines_of_their_own(source, tmp_path, capfd, workers):
    source.breaks("s1", "note")
    source.breaks("s3", "note")
    source.breaks("s3", "user")
    prepare(source, GEOMETRY, tmp_path / "cache", workers=workers)
    lines = [line.split("\r")[-1] for line in capfd.readouterr().err.split("\n")]
    assert sorted(line for line in lines if "slices" in line) == ["s1: 7 slices read", "s3: 7 slices read"]


def notes_of_a_run(source, cache, capfd):
    capfd.readouterr()
    prepare(source, GEOMETRY, cache, workers=1)
    lines = [line.split("\r")[-1] for line in capfd.readouterr().err.split("\n")]
    return [line for line in lines if "slices" in line or "more" in line]


def test_notes_are_told_again_by_runs_that_use_the_prepared_series(source, tmp_path, capfd):
    source.breaks("s1", "note")
    for _ in range(2):
        assert notes_of_a_run(source, tmp_path / "cache", capfd) == ["s1: 7 slices read"]
    assert source.loads()["s1"] == 1
    Path(source.folder, "s1.note").unlink()
    Path(source.folder, "s1.inputs").write_text("all slices")
    assert notes_of_a_run(source, tmp_path / "cache", capfd) == []


def test_of_many_notes_the_first_are_told_again_with_the_number_of_the_others(tmp_path, capfd):
    names = tuple(f"s{number}" for number in range(8))
    source = FakeSource(str(tmp_path), names)
    for name in names:
        source.breaks(name, "note")
    told = [f"{name}: 7 slices read" for name in names]
    assert notes_of_a_run(source, tmp_path / "cache", capfd) == told
    again = notes_of_a_run(source, tmp_path / "cache", capfd)
    assert again == [*told[:5], "... and 3 more notes about series that were prepared before"]


def test_the_points_beside_the_nodules_do_not_repeat_the_notes(source, tmp_path, capfd):
    source.breaks("s1", "note")
    background = BackgroundSource(source, 1, GEOMETRY)
    runs = [notes_of_a_run(one, tmp_path / "cache", capfd) for one in (source, background) * 2]
    assert runs == [["s1: 7 slices read"], []] * 2


def test_a_patch_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "a.npz").mkdir()  # opening a folder fails as a file without permission does, also for root
    with pytest.raises(UserError, match=r"a\.npz: cannot be read \(Is a directory\)$"):
        list(iter_series([tmp_path / "a.npz"]))
