"""What the second stages share: probabilities, masks, resuming, and refusals."""

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments.baselines import diameter, mcnn, second_stage
from experiments.baselines.subsets import Subset
from pnsamp_jax import evaluate, metrics, testing, train
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import open_run

METHOD = {"name": "plain"}


def plain_config(**changes):
    return tiny_config(**{"model.name": "plain", **changes})


def predict_two(train_nodules, test, seed):
    """Predict class 2 for every rating."""
    probabilities = np.zeros((len(test.masks), 9, 6))
    probabilities[..., 1] = 1.0
    return probabilities


def subset_of(rating_counts, features):
    """Return a subset with nothing else."""
    return Subset({schema.RATING_COUNTS: rating_counts}, features, None)


def counts_of(malignancy):
    """Return (n, 9, 6) rating counts of one reader, who gives every rating the class of the malignancy."""
    return (np.arange(1, 7) == np.asarray(malignancy)[:, None, None]).astype(np.uint8).repeat(9, axis=1)


# From numbers to probabilities


def test_the_mass_of_a_gaussian_around_each_class():
    p = second_stage.gaussian_classes(np.array([3.0, 1.0, 3.5]), np.array([0.5, 1.0, 1e-9]), 5)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(p[0], [0.00135, 0.15731, 0.68269, 0.15731, 0.00135], atol=1e-5)
    np.testing.assert_allclose(p[1, :2], [0.69146, 0.24173], atol=1e-5)  # the first class also has the mass below 1
    np.testing.assert_allclose(p[2], [0, 0, 0.5, 0.5, 0])


def test_a_mean_beyond_the_scale_is_its_last_class():
    p = second_stage.gaussian_classes(np.array([-7.0, 20.0]), 0.3, 6)
    np.testing.assert_allclose(p, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])


def test_classify_with_single_classes_and_missing_ratings(monkeypatch):
    monkeypatch.setattr(second_stage, "TREES", 3)
    x = np.arange(20.0)[:, None]
    labels = np.where(x > 9.5, 5, 1) * np.ones((1, 9), int)
    labels[:, 1], labels[:, 2], labels[::2, 3] = 4, 0, 0
    p = second_stage.forest_ratings(x, labels, x, 0)
    assert np.isnan(p[:, 2]).all() and (p[:, 1, 3] == 1).all()
    others = [index for index in range(9) if index != 2]
    np.testing.assert_allclose(p[:, others].sum(axis=-1), 1)
    assert (p[0, 3:, 0] > 0.6).all() and (p[-1, 3:, 4] > 0.6).all()


# MCNN and the diameter


@pytest.mark.parametrize("decode", [metrics.arg_max, metrics.best_within_one])
def test_mcnns_off_by_one_is_the_binary_accuracy(monkeypatch, decode):
    monkeypatch.setattr(second_stage, "TREES", 20)
    rng = np.random.default_rng(0)
    label = rng.choice([1, 2, 3, 4, 5], 120)
    features = (label > 3)[:, None] + 0.7 * rng.normal(size=(120, 4))
    seen, unseen = subset_of(counts_of(label[:80]), features[:80]), subset_of(counts_of(label[80:]), features[80:])
    p = mcnn.predict(seen, unseen, 0)
    assert np.isnan(p[:, : schema.MALIGNANCY]).all()
    p, truth = p[:, schema.MALIGNANCY], label[80:]
    np.testing.assert_allclose(p.sum(axis=1), 1)
    decided = truth != 3
    right = (p[:, 4] > 0.5) == (truth > 3)
    np.testing.assert_array_equal(metrics.off_by_one(decode(p[:, :5]), truth)[decided], right[decided])
    assert 0.6 < right[decided].mean() < 1


def test_mcnn_is_not_trained_on_undecided_nodules(monkeypatch):
    monkeypatch.setattr(second_stage, "TREES", 5)
    features = np.random.default_rng(0).normal(size=(60, 3))
    label = np.where(features[:, 0] > 0, 4, 2)
    with_three = subset_of(counts_of([*label, *[3] * 60]), np.concatenate([features, features]))
    first, second = (mcnn.predict(seen, with_three, 0) for seen in (subset_of(counts_of(label), features), with_three))
    np.testing.assert_array_equal(first, second)


def test_the_diameter_of_a_ball():
    grid = (np.indices((32, 32, 32)) - 15.5) * 0.5
    masks = np.stack([(grid**2).sum(axis=0) <= 6**2, np.zeros((32, 32, 32), bool)])
    np.testing.assert_allclose(diameter.diameters(masks, 0.5), [12, 0.5 * np.cbrt(6 / np.pi)], rtol=0.01)


def test_the_diameter_is_evaluated_like_any_other_system(tmp_path):
    results = diameter.run(tiny_config(**{"model.name": "diameter"}), tmp_path)["contexts"]["simulated"]
    assert results["n"] == 24 and results["over_folds"]["folds"] == 3
    assert results["malignancy"]["auc"]["value"] > 0.5  # larger nodules are rated more malignant


# Cross-validation


@pytest.fixture
def no_evaluation(monkeypatch):
    """Leave out the evaluation, whose intervals and figures take longest."""
    monkeypatch.setattr(evaluate, "evaluate", lambda workdir: {})


def test_a_method_runs_once_on_each_fold(tmp_path, no_evaluation):
    config, seen = plain_config(), []

    def predict(train_nodules, test, seed):
        ids = [set(subset.records[schema.NODULE_ID].tolist()) for subset in (train_nodules, test)]
        assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 24 and seed == config.seed
        assert not set(train_nodules.records[schema.PATIENT_ID]) & set(test.records[schema.PATIENT_ID])
        assert test.masks.shape == test.records[schema.IMAGE].shape == (len(ids[1]), 16, 16, 16)  # without the margin
        seen.append(ids[1])
        return predict_two(train_nodules, test, seed)

    second_stage.cross_validate(config, tmp_path, predict, METHOD)
    assert len(seen) == 3 and len(set.union(*seen)) == 24
    before = (tmp_path / "predictions.csv").read_bytes()
    (tmp_path / "fold_1" / "predictions.csv").unlink()
    second_stage.cross_validate(config, tmp_path, predict, METHOD)
    assert len(seen) == 4 and seen[3] == seen[1]
    assert (tmp_path / "predictions.csv").read_bytes() == before


def test_predictions_of_the_network_are_replaced(tmp_path, no_evaluation):
    config = plain_config(fold=0)
    second_stage.cross_validate(config, tmp_path, predict_two, METHOD)
    (tmp_path / "fold_0" / "second_stage.json").unlink()  # as after a test of the network in the same folder
    calls = []
    second_stage.cross_validate(config, tmp_path, lambda *a: calls.append(1) or predict_two(*a), METHOD)
    assert calls == [1]


def test_a_workdir_belongs_to_one_method(tmp_path, no_evaluation):
    config = plain_config(fold=0)
    second_stage.cross_validate(config, tmp_path, predict_two, METHOD)
    with pytest.raises(UserError, match="belongs to another method.*choose another --workdir"):
        second_stage.cross_validate(config, tmp_path, predict_two, {**METHOD, "attributes": "readers"})


def test_another_methods_config_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"config\.model\.name: 'pn_samp' is not 'plain'"):
        second_stage.cross_validate(tiny_config(), tmp_path / "run", predict_two, METHOD)
    assert not (tmp_path / "run").exists()


# With a network


@pytest.fixture
def network(monkeypatch):
    """Replace the network: its feature is the number of ratings, and its mask the readers' with one voxel added.

    Return the list of the folders of the folds that are trained.
    """
    trained = []

    def train_fold(run, fold):
        trained.append(run.fold_folder(fold))

    def predict_nodules(run, networks, nodules, flips, masks=False):
        assert networks == trained[-1:] or (masks and hash(run.settings.task))  # for which a step can be compiled
        margin, size = run.settings.geometry.margin, run.settings.geometry.patch_size
        mask = np.asarray(run.records[schema.MASK])[(nodules, *[slice(margin, margin + size)] * 3)] > 0
        mask[:, 0, 0, 0] = True  # no reader marked it
        features = np.asarray(run.records[schema.RATING_COUNTS])[nodules].sum(axis=(1, 2))[:, None]
        return {"features": features, "mask": mask}

    monkeypatch.setattr(train, "train_fold", train_fold)
    monkeypatch.setattr(testing, "load_fold", lambda run, fold: ([run.fold_folder(fold)], 1))
    monkeypatch.setattr(testing, "predict_nodules", predict_nodules)
    return trained


def test_methods_share_a_network(tmp_path, no_evaluation, network):
    config = plain_config()

    def predict(train_nodules, test, seed):
        for subset in (train_nodules, test):
            counts = subset.records[schema.RATING_COUNTS]
            np.testing.assert_array_equal(subset.features[:, 0], counts.sum(axis=(1, 2)))
        return predict_two(train_nodules, test, seed)

    for name in ("a", "b"):
        method = {**METHOD, "variant": name}
        second_stage.cross_validate(config, tmp_path / name, predict, method, network=tmp_path / "network")
        assert (tmp_path / name / "predictions.csv").exists()
    assert network == [tmp_path / "network" / f"fold_{fold}" for fold in (0, 1, 2)] * 2
    assert (tmp_path / "network" / "config.json").exists()


@pytest.fixture
def mask_run(tmp_path, network):
    """Return the workdir of a trained network, with a margin of its own."""
    open_run(tiny_config(**{"data.margin": 4}), tmp_path / "masks")
    return tmp_path / "masks"


def test_masks_of_another_run(tmp_path, no_evaluation, mask_run):
    def predict(train_nodules, test, seed):
        for subset in (train_nodules, test):
            marked = subset.records[schema.MASK] > 0
            marked[:, 0, 0, 0] = True
            np.testing.assert_array_equal(subset.masks, marked)
        return predict_two(train_nodules, test, seed)

    second_stage.cross_validate(plain_config(), tmp_path / "run", predict, METHOD, mask_run=mask_run)
    with pytest.raises(UserError, match="belongs to another method"):  # the readers' masks are another method
        second_stage.cross_validate(plain_config(), tmp_path / "run", predict_two, METHOD)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"patch_size": 32}, r"has config\.patch_size 16, this run 32"),
        ({"spacing_mm": 1.5}, r"has config\.spacing_mm 2\.0, this run 1\.5"),
        ({"split": "nodule"}, "tests other nodules in fold 0"),
        ({"num_folds": 4}, "tests other nodules in fold"),
    ],
)
def test_masks_of_another_grid_or_split_are_refused(tmp_path, no_evaluation, mask_run, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        second_stage.cross_validate(plain_config(**changes), tmp_path / "run", predict_two, METHOD, mask_run=mask_run)
    assert not (tmp_path / "run" / "second_stage.json").exists()  # the next attempt may name another run


def test_a_network_that_does_not_segment_is_refused(tmp_path, no_evaluation, mask_run, monkeypatch):
    monkeypatch.setattr(testing, "predict_nodules", lambda *_, **__: {"features": None})
    with pytest.raises(UserError, match="does not segment"):
        second_stage.cross_validate(plain_config(), tmp_path / "run", predict_two, METHOD, mask_run=mask_run)
