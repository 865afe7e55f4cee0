"""The checks of explanations: they find what they look for in made-up explanations, and run on a small run."""

import json

import numpy as np
import pytest
from tiny_run import made_up_run, tiny_config, tiny_plus_config

from experiments import explanations
from experiments.checks import deletion, randomisation, ratings, redrawn
from pnsamp_jax import run as runs
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import consensus_centroid, sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble

# Randomisation


def test_layers_are_named_after_their_parameters():
    paths = ("heads/malignancy_of_margin/kernel", "heads/malignancy_bias", "heads/fusion/bias", "heads/margin/kernel")
    assert [randomisation.layer_of(path) for path in paths] == ["malignancy", "malignancy", "fusion", "attributes"]
    assert randomisation.layer_of("up_full/conv/kernel") == "up_full"


@pytest.mark.slow
@pytest.mark.parametrize("additive", [False, True])
def test_ever_more_layers_are_randomised(tmp_path, additive):
    networks = ensemble.load(made_up_run(tmp_path, (0,), config=tiny_plus_config() if additive else None))

    def flat(networks):
        return {
            "/".join(key.key for key in path): leaf
            for path, leaf in randomisation.jax.tree_util.tree_leaves_with_path(
                networks.members["fold_0"].variables["params"]
            )
        }

    trained, done = flat(networks), []
    for last, randomised in randomisation.cascade(networks, seed=0):
        done.append(last)
        for path, leaf in flat(randomised).items():
            same = np.array_equal(leaf, trained[path])
            assert same == (randomisation.layer_of(path) not in done), path
    assert done == [layer for layer in randomisation.LAYERS if layer in map(randomisation.layer_of, trained)]
    assert {randomisation.layer_of(path) for path in trained} == set(done)


def test_similarity_is_a_rank_correlation_and_0_for_a_constant():
    rows = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    others = np.array([[2.0, 20, 30, 31], [4, 3, 2, 1], [5, 5, 5, 5]])
    np.testing.assert_allclose(randomisation.similarity(rows, others), [1, -1, 0])


# Deletion and insertion


def test_the_voxels_with_the_largest_values_are_changed_first():
    image = np.full((16, 16, 16), 50, np.int16)
    order_map = np.zeros(image.shape)
    order_map[8, 8, :] = np.arange(16) + 1
    deleted, inserted = deletion.changed_patches(image, order_map)
    for share, removed, put_in in zip(deletion.SHARES, deleted, inserted, strict=True):
        count = int(np.ceil(share * image.size))
        assert (removed == -850).sum() == (put_in == 50).sum() == count
        np.testing.assert_array_equal(removed == -850, put_in == 50)
    assert (deleted[0] == -850).nonzero()[2].tolist() == [11, 12, 13, 14, 15]


def test_the_saliency_is_ahead_where_it_changes_more():
    changes = np.zeros((6, 4, 2, len(deletion.SHARES)))
    changes[:, 0], changes[:, 2] = 0.5, 0.2
    results = explanations.deletion_results(changes, np.arange(6))
    assert results["deletion"]["edges"]["saliency_ahead"]["value"] == pytest.approx(0.3)
    assert results["insertion"]["random"]["saliency_ahead"]["value"] == pytest.approx(0.5)


# Redrawn phantoms


@pytest.fixture(scope="module")
def item():
    return redrawn.nodules(1, seed=0)[0]


def test_a_redrawn_nodule_differs_only_by_its_evidence(item):
    drawn = [redrawn.drawn(item, "spiculation", k, seed=0) for k in (5, 1)]
    with_spicules, without = (sample(one.ct, consensus_centroid(one.readers), 64, 0.6) for one in drawn)
    change = with_spicules - without
    assert (np.abs(change) > 1).mean() < 0.1  # noise, vessels and wall are the same
    assert change.max() > 200 and change.min() > -200 and change.mean() > 0  # spicules are brighter than lung


def test_the_size_of_redrawn_nodules_is_limited(item):
    assert 8 <= item.row()["diameter_mm"] <= 20 and len(item.annotations) >= 3


def test_agreement_counts_signs_where_the_malignancy_changes():
    malignancy = np.array([0.5, -0.5, 0.01, 0.3])
    contribution = np.array([0.2, 0.1, -0.5, 0.15])
    found = explanations.agreement(contribution, malignancy)
    assert found["visible"] == 3 and found["same_sign"] == pytest.approx(2 / 3)
    assert found["rank_correlation"] == pytest.approx(0.8)
    assert explanations.agreement(np.zeros(4), np.zeros(4)) == {
        "same_sign": None,
        "visible": 0,
        "rank_correlation": None,
    }


def test_the_contribution_of_the_redrawn_attribute_is_compared():
    attributes = list(redrawn.EVIDENCE)
    contributions = np.zeros((5, len(attributes), 8))
    for i, name in enumerate(attributes):
        contributions[:, i, schema.RATING_NAMES.index(name)] = np.linspace(0.1, 1, 5) * (1 + i)
    malignancy = contributions.sum(axis=-1)
    found = explanations.redrawn_results(
        redrawn.Redrawn(malignancy, contributions, malignancy, np.array([str(i) for i in range(5)]))
    )
    for name in attributes:
        assert (found[name]["same_sign"], found[name]["changes_most"]) == (1, 1)
        assert found[name]["rank_correlation"] == pytest.approx(1)
    assert found["all"]["rank_correlation"] == pytest.approx(1)


# Ratings


def test_contributions_that_follow_their_ratings_are_told_from_those_that_do_not():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(6), (200, 8))
    rating = ratings.ratings_of(probabilities)
    contributions = random.normal(size=(200, 8))
    contributions[:, 6] = -(rating[:, 6] ** 3)
    found = ratings.follow(contributions, rating)
    assert found["spiculation"]["rank_correlation"] == pytest.approx(1)
    assert found["texture"]["rank_correlation"] < 0.3
    commonest = np.bincount(probabilities[:, 2].argmax(axis=1)).argmax()
    np.testing.assert_array_equal(rating[:, 2], probabilities[:, 2, commonest])


# Everything


@pytest.fixture
def small_run(tmp_path):
    """Return the config and the workdir of a run of the phantom whose folds 0 and 2 are trained and tested."""
    config, workdir = tiny_config(), made_up_run(tmp_path / "run", (0, 2), config=tiny_plus_config())
    config.model.name = "pn_samp_plus"
    del config.model.segment, config.model.rate
    settings = read_settings(config)
    runs.load_folds(settings, runs.load_records(settings), tmp_path / "folds.json")  # not beside the trained folds
    (tmp_path / "folds.json").replace(workdir / "folds.json")
    return config, workdir


@pytest.mark.slow
def test_a_run_with_a_missing_fold_is_checked(small_run):
    config, workdir = small_run
    results = explanations.run(config, workdir, nodules=4, phantoms=2, seed=0)
    assert json.loads((workdir / "explanations.json").read_text()) == json.loads(json.dumps(results))
    assert (results["folds"], results["nodules"], results["phantoms"]) == ([0, 2], 4, 2)
    text = (workdir / "explanations.md").read_text()
    assert all(layer in text for layer in ("| malignancy |", "| down_0 |", "| saliency |", "| all |", "| texture |"))
    assert (workdir / "explanations.png").stat().st_size > 10_000


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"folds\.json: no such file; give the workdir of a training"):
        explanations.run(tiny_config(), tmp_path, nodules=1, phantoms=1, seed=0)
