"""Records whose voxels stay on disk are those in memory, to the bit, and so are the batches made of them."""

import tracemalloc

import numpy as np
import pytest

from pnsamp_jax import input_pipeline
from pnsamp_jax.data import schema
from pnsamp_jax.data.on_disk import VOXELS, open_records
from pnsamp_jax.data.series_files import read_records
from pnsamp_jax.errors import UserError

SIZE = 6


def made_up_series(rng, number, nodules, size=SIZE):
    """Return the records of one series, under ids that are not in the order of the series."""
    return {
        schema.NODULE_ID: np.array([f"p{(7 * number + i) % 10}_n{number}{i}" for i in range(nodules)]),
        schema.IMAGE: rng.integers(-1024, 3072, (nodules, size, size, size)).astype(np.int16),
        schema.MASK: rng.integers(0, 253, (nodules, size, size, size)).astype(np.uint8),
        schema.RATING_COUNTS: rng.integers(0, 5, (nodules, 9, 6)).astype(np.uint8),
    }


@pytest.fixture
def files(tmp_path):
    """Series of one to three nodules, eight in all."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.npz" for number in range(4)]
    for number, path in enumerate(paths):
        np.savez(path, **made_up_series(rng, number, (3, 1, 2, 2)[number]))
    return paths


def some(rating_counts):
    return rating_counts[:, 0, 0] == 4


@pytest.mark.parametrize("member", [None, some])
def test_records_on_disk_are_those_in_memory(files, member):
    memory, disk = read_records(files, member), open_records(files, member)
    assert list(disk) == list(memory) and not any(isinstance(disk[name], np.ndarray) for name in VOXELS)
    count = len(memory[schema.NODULE_ID])
    assert 1 < count <= 8 and (member is None or count < 8)
    for indices in (np.arange(count), np.array([count - 1, 0, 0, 1]), np.array([], int)):
        for name, values in memory.items():
            assert disk[name].dtype == values.dtype and disk[name].shape == values.shape
            np.testing.assert_array_equal(disk[name][indices], values[indices], strict=True)


def test_only_the_nodules_asked_for_are_in_memory(tmp_path):
    size, nodules = 32, 40
    np.savez(tmp_path / "series.npz", **made_up_series(np.random.default_rng(0), 0, nodules, size))
    tracemalloc.start()
    try:
        records = open_records([tmp_path / "series.npz"])
        records[schema.IMAGE][np.array([3, 20])]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2 * size**3  # all images take 40 times 2 size^3


@pytest.mark.parametrize("content", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1]])
def test_a_damaged_file_is_reported(files, content):
    files[2].write_bytes(content(files[2].read_bytes()))
    with pytest.raises(UserError, match="damaged .*; delete it and run again") as caught:
        open_records(files)
    assert str(caught.value).startswith(str(files[2]))


def test_a_series_with_other_voxels_is_reported(files):
    np.savez(files[3], **made_up_series(np.random.default_rng(0), 3, 2, SIZE + 1))
    with pytest.raises(UserError, match="3.npz: damaged .*7, 7, 7"):
        open_records(files)


def test_a_file_that_changes_while_it_is_in_use_is_reported(files):
    records = open_records(files)
    files[0].write_bytes(files[0].read_bytes()[:700])
    with pytest.raises(UserError, match="0.npz: changed while in use .*; run again$"):
        records[schema.IMAGE][np.arange(8)]
    files[0].unlink()
    with pytest.raises(UserError, match=r"0.npz: changed while in use \(No such file or directory\)"):
        records[schema.MASK][np.arange(8)]


@pytest.mark.tf
@pytest.mark.parametrize("first_step", [0, 5])
def test_batches_from_disk_equal_those_on_the_device(files, first_step):
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'pnsamp-jax[tf]'")
    # With batches of 3 of 7 nodules, several of the 9 steps contain the end of an epoch.
    nodules, settings = np.array([0, 1, 2, 4, 5, 6, 7]), {"seed": 3, "batch_size": 3}
    records = input_pipeline.to_device(read_records(files))
    device = list(input_pipeline.train_batches(records, nodules, pipeline="device", steps=range(9), **settings))
    disk = list(
        input_pipeline.train_batches(
            open_records(files), nodules, pipeline="tfdata", steps=range(first_step, 9), **settings
        )
    )
    for actual, expected in zip(disk, device[first_step:], strict=True):
        assert actual.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(actual[name], np.asarray(values), strict=True)


@pytest.mark.tf
def test_what_stops_reading_ahead_is_told_in_one_line(files):
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'pnsamp-jax[tf]'")
    records = open_records(files)
    files[1].unlink()
    batches = input_pipeline.train_batches(
        records, np.arange(8), pipeline="tfdata", steps=range(9), seed=0, batch_size=2
    )
    with pytest.raises(UserError, match="1.npz: changed while in use") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_test_batches_from_disk_are_those_in_memory(files):
    nodules = np.array([7, 2, 5])
    memory, disk = (
        list(input_pipeline.eval_batches(records, nodules, 2))
        for records in (read_records(files), open_records(files))
    )
    for (actual, count), (expected, of) in zip(disk, memory, strict=True):
        assert count == of
        for name, values in expected.items():
            np.testing.assert_array_equal(actual[name], values, strict=True)
