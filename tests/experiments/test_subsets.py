"""The nodules of a fold as input of a second stage: consensus, measured features, and the masks of another run."""

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments.baselines import subsets
from pnsamp_jax import testing
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import open_run


@pytest.fixture
def mask_run(tmp_path, monkeypatch):
    """Return the workdir of a run with a margin of its own, whose networks reproduce the readers' masks."""

    def predict_nodules(run, networks, nodules, flips, masks):
        assert flips == run.settings.test_flips and masks
        assert hash(run.settings.task)  # a step can be compiled for it
        margin, size = run.settings.geometry.margin, run.settings.geometry.patch_size
        inner = (nodules, *[slice(margin, margin + size)] * 3)
        return {"mask": np.asarray(run.records[schema.MASK])[inner] > 0}

    monkeypatch.setattr(testing, "load_fold", lambda run, fold: (None, 1))
    monkeypatch.setattr(testing, "predict_nodules", predict_nodules)
    open_run(tiny_config(**{"data.margin": 4}), tmp_path / "masks")
    return tmp_path / "masks"


def test_the_consensus_and_the_thinnest_nodules():
    shares = np.zeros((3, 2, 2, 2), np.uint8)
    shares[0, 0, 0] = [126, 125]
    shares[1, 0, 0] = [84, 63]
    masks = subsets.consensus(shares)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2, 3)), [1, 1, 0])
    assert masks[0, 0, 0, 0] and masks[1, 0, 0, 0]


def test_a_nodule_with_the_same_mask_is_measured_once():
    calls = []
    measure = subsets.for_each_nodule(lambda image, mask: calls.append(1) or [image.sum(), mask.sum()])
    records = {schema.NODULE_ID: np.array(["a", "b"]), schema.IMAGE: np.arange(16).reshape(2, 2, 2, 2)}
    masks = np.ones((2, 2, 2, 2), bool)
    first = measure(subsets.Subset(records, None, masks))
    np.testing.assert_array_equal(first, measure(subsets.Subset(records, None, masks.copy())))
    np.testing.assert_array_equal(first, [[28, 8], [92, 8]])
    assert len(calls) == 2
    masks[1, 0, 0, 0] = False
    np.testing.assert_array_equal(measure(subsets.Subset(records, None, masks)), [[28, 8], [92, 7]])
    assert len(calls) == 3


def test_the_labels_of_a_subset_are_those_of_the_cohort():
    rating_counts = np.random.default_rng(0).integers(0, 2, (5, 9, 6)).astype(np.uint8)
    subset = subsets.Subset({schema.RATING_COUNTS: rating_counts}, None, np.empty((5, 0)))
    np.testing.assert_array_equal(subset.labels, cohort.labels(rating_counts, "modal"))
    by_mean = subset._replace(nominal="mean")
    np.testing.assert_array_equal(by_mean.labels, cohort.rounded_rating(rating_counts))
    np.testing.assert_array_equal(subset.means, cohort.mean_rating(rating_counts))


def test_masks_of_another_run_are_found_by_nodule(tmp_path, mask_run):
    config = tiny_config()
    run = open_run(config, tmp_path / "run")
    mask_config = subsets.read_mask_config(mask_run, config)
    nodule_ids = run.records[schema.NODULE_ID][::-1].tolist()
    masks = subsets.predicted_masks(mask_run, mask_config, {1: run.folds[1]}, nodule_ids)
    test = subsets.make_subset(run.records, run.indices(1)["test"], config.patch_size, None, masks[1])
    assert test.masks.shape == (len(run.folds[1]["test"]), 16, 16, 16)  # without the margin
    np.testing.assert_array_equal(test.masks, test.records[schema.MASK] > 0)


def test_a_mask_run_that_lacks_a_nodule_or_a_segmentation_is_refused(mask_run, monkeypatch):
    config = tiny_config()
    with pytest.raises(UserError, match="mask_run: .*nowhere holds no run"):
        subsets.read_mask_config(mask_run / "nowhere", config)
    mask_config = subsets.read_mask_config(mask_run, config)
    with pytest.raises(UserError, match="mask_run: .* has no nodule 'another'"):
        subsets.predicted_masks(mask_run, mask_config, {}, ["another"])
    run = open_run(config, mask_run.with_name("run"))
    monkeypatch.setattr(testing, "predict_nodules", lambda *_, **__: {"features": None})
    with pytest.raises(UserError, match="does not segment"):
        subsets.predicted_masks(mask_run, mask_config, {0: run.folds[0]}, run.folds[0]["test"])
