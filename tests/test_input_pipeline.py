"""pnsamp_jax.input_pipeline: a batch is a function of (seed, step), and no nodule is lost. tf.data: see elsewhere."""

import numpy as np
import pytest

from pnsamp_jax import input_pipeline
from pnsamp_jax.data import schema
from pnsamp_jax.input_pipeline import batch_indices


def make_records(count):
    """Records that can be told apart in every feature."""
    rng = np.random.default_rng(0)
    return {
        schema.IMAGE: rng.integers(-1000, 400, (count, 4, 4, 4)).astype(np.int16),
        schema.MASK: rng.integers(0, 253, (count, 4, 4, 4)).astype(np.uint8),
        schema.RATING_COUNTS: rng.integers(0, 5, (count, 9, 6)).astype(np.uint8),
        schema.NODULE_ID: np.array([f"p_n{i}" for i in range(count)]),
    }


def batches(records, first_step=0, last_step=6, seed=3, batch_size=4, nodules=None):
    """The batches of the device pipeline, of all nodules or of those at the given places."""
    nodules = np.arange(len(records[schema.RATING_COUNTS])) if nodules is None else nodules
    steps = range(first_step, last_step)
    settings = {"pipeline": "device", "seed": seed, "steps": steps, "batch_size": batch_size}
    return list(input_pipeline.train_batches(input_pipeline.to_device(records), nodules, **settings))


def assert_same(batch, expected):
    assert batch.keys() == set(input_pipeline.FEATURES)
    for name, values in batch.items():
        np.testing.assert_array_equal(values, expected[name])
        assert values.dtype == expected[name].dtype


@pytest.mark.parametrize(("nodules", "batch_size"), [(12, 4), (10, 4), (7, 7), (3, 8), (1, 4), (5, 1)])
def test_every_nodule_comes_once_an_epoch(nodules, batch_size):
    epochs = 4
    steps = -(-epochs * nodules // batch_size)
    stream = np.concatenate([batch_indices(5, step, nodules, batch_size) for step in range(steps)])
    assert stream.shape == (steps * batch_size,)
    for epoch in range(epochs):
        part = stream[epoch * nodules : (epoch + 1) * nodules]
        np.testing.assert_array_equal(np.sort(part), np.arange(nodules))


def test_epochs_and_seeds_differ():
    orders = [batch_indices(seed, epoch, 50, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_depends_on_seed_and_step_alone():
    expected = [batch_indices(7, step, 10, 4) for step in range(20)]
    np.random.seed(1)  # nor on the global generator
    for step in reversed(range(20)):  # nor on what was asked before
        np.testing.assert_array_equal(batch_indices(7, step, 10, 4), expected[step])


def test_the_batch_size_divides_the_stream_and_changes_nothing_in_it():
    by_4 = np.concatenate([batch_indices(2, step, 10, 4) for step in range(15)])
    by_6 = np.concatenate([batch_indices(2, step, 10, 6) for step in range(10)])
    np.testing.assert_array_equal(by_4, by_6)


def test_batches_of_the_device_pipeline_are_the_records_at_the_indices():
    records = make_records(10)
    for step, batch in enumerate(batches(records)):
        indices = batch_indices(3, step, 10, 4)
        assert_same(batch, {name: records[name][indices] for name in input_pipeline.FEATURES})


def test_a_resumed_run_sees_what_the_uninterrupted_one_would_have():
    records = make_records(10)
    whole = batches(records)
    for first_step in (1, 4):
        resumed = batches(records, first_step)
        assert len(resumed) == 6 - first_step
        for batch, expected in zip(resumed, whole[first_step:], strict=True):
            assert_same(batch, expected)
    assert batches(records, first_step=6) == []


def test_a_batch_may_be_larger_than_the_dataset():
    records = make_records(3)
    (batch,) = batches(records, last_step=1, batch_size=8)
    assert batch[schema.IMAGE].shape == (8, 4, 4, 4)


def test_only_the_nodules_asked_for_are_seen():
    records, chosen = make_records(10), np.array([2, 3, 7])
    for step, batch in enumerate(batches(records, nodules=chosen)):
        places = chosen[batch_indices(3, step, 3, 4)]
        assert_same(batch, {name: records[name][places] for name in input_pipeline.FEATURES})


@pytest.mark.parametrize(("nodules", "batch_size"), [(8, 4), (7, 4), (3, 4), (1, 4), (5, 1)])
def test_eval_batches_cover_every_nodule_once_in_order(nodules, batch_size):
    records = make_records(nodules)
    parts = list(input_pipeline.eval_batches(records, np.arange(nodules), batch_size))
    assert sum(count for _, count in parts) == nodules
    for name in input_pipeline.FEATURES:
        assert all(batch[name].shape[0] == batch_size for batch, _ in parts)  # one shape, compiled once
        real = np.concatenate([batch[name][:count] for batch, count in parts])
        np.testing.assert_array_equal(real, records[name])
    batch, count = parts[-1]
    for padding in batch[schema.IMAGE][count:]:
        np.testing.assert_array_equal(padding, records[schema.IMAGE][-1])
