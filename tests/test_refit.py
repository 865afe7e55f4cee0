"""Heads that are fitted again: they learn from what holds, and nothing else of the network changes."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from pnsamp_jax import losses, refit, testing, train
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.models.pn_samp import RatingHeads
from pnsamp_jax.models.pn_samp_plus import AdditiveHeads
from pnsamp_jax.run import open_run
from pnsamp_jax.workdir.heads import save_heads, with_heads

pytestmark = pytest.mark.usefixtures("quick_compilation")

WEIGHTS = losses.Weights(1.0, 1.0, 1.0)


def made_up(nodules=60, copies=2):
    """Return features, whether ratings hold, and targets: malignancy 5 where the first feature is positive, else 1."""
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(1, nodules, 6)), copies, axis=0).astype(np.float32)
    targets = np.zeros((nodules, 9, 6), np.float32)
    targets[np.arange(nodules), schema.MALIGNANCY, np.where(features[0, :, 0] > 0, 4, 0)] = 1
    return features, np.ones((copies, nodules), bool), targets


@pytest.mark.parametrize("heads", [RatingHeads(0.2), AdditiveHeads(0.2)], ids=["M", "Plus"])
def test_heads_learn_what_the_features_tell(heads):
    features, held, targets = made_up()
    fitted = refit.fit_heads(heads, features, held, targets, WEIGHTS, seed=1, num_steps=150)
    logits = heads.apply({"params": fitted}, features[0], train=False)[:, schema.MALIGNANCY]
    assert (logits.argmax(axis=-1) == targets[:, schema.MALIGNANCY].argmax(axis=-1)).mean() > 0.95


def test_a_copy_whose_ratings_do_not_hold_teaches_nothing():
    heads = AdditiveHeads(0.2)
    features, held, targets = made_up()
    features[1], held[1] = -features[0], False  # which would teach the opposite
    fitted = refit.fit_heads(heads, features, held, targets, WEIGHTS, seed=1, num_steps=150)
    logits = heads.apply({"params": fitted}, features[0], train=False)[:, schema.MALIGNANCY]
    assert (logits.argmax(axis=-1) == targets[:, schema.MALIGNANCY].argmax(axis=-1)).mean() > 0.95


def test_the_seed_decides_the_heads():
    features, held, targets = made_up()
    one, same, other = (
        refit.fit_heads(RatingHeads(0.2), features, held, targets, WEIGHTS, seed, num_steps=5) for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one["fusion"]["kernel"], other["fusion"]["kernel"])


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit, "STEPS", 20)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the config and the workdir of a run whose first fold is trained, refitted and tested."""
    config = tiny_config(fold=0, refit_copies=2)
    workdir = tmp_path_factory.mktemp("refit") / "run"
    train.train_and_evaluate(config, workdir)
    return config, workdir


def test_only_the_heads_change(trained):
    config, workdir = trained
    run = open_run(config, workdir)
    [before], [after] = (load(run, 0)[0].members.values() for load in (testing.load_trained, testing.load_fold))
    changed = jax.tree.map(lambda one, other: not np.array_equal(one, other), before.variables, after.variables)
    assert all(jax.tree.leaves(changed["params"].pop("heads")["fusion"]))
    assert not any(jax.tree.leaves(changed))


def test_a_prediction_and_an_evaluation_use_the_new_heads(trained):
    config, workdir = trained
    [tested] = testing.load_fold(open_run(config, workdir), 0)[0].members.values()
    [predicting] = ensemble.load(workdir).members.values()
    jax.tree.map(np.testing.assert_array_equal, tested.variables, predicting.variables)


def test_faded_nodules_are_left_out_and_enlarged_ones_do_not_teach(trained):
    config, workdir = trained
    run = open_run(config, workdir)
    networks, _ = testing.load_trained(run, 0)
    appearance = {**run.settings.fields["appearance"], "fade": 0.9, "enlarge": 0.5}
    changed = dataclasses.replace(run.settings, fields={**run.settings.fields, "appearance": appearance})
    run = dataclasses.replace(run, settings=changed)
    features, held = refit.training_features(run, 0, networks)
    nodules = len(run.indices(0)["train"])
    assert features.shape[:2] == held.shape == (2, nodules)
    assert 0.2 < held.mean() < 0.8  # half are enlarged; with nine of ten faded as well, one in twenty would be left
    assert not np.array_equal(features[0], features[1])


def test_heads_that_are_there_are_not_fitted_again(trained, monkeypatch):
    config, workdir = trained
    monkeypatch.setattr(refit, "fit_heads", None)
    refit.refit_fold(open_run(config, workdir), 0)


@pytest.mark.parametrize("fault", ["damaged", "missing", "of another step", "of fewer copies"])
def test_heads_that_do_not_fit_are_refused_and_fitted_anew(trained, fault):
    config, workdir = trained
    run, folder = open_run(config, workdir), workdir / "fold_0"
    networks, step = testing.load_trained(run, 0)
    [network] = networks.members.values()
    sound = with_heads(folder, step, 2, network.variables)
    calibrated = (folder / "calibration.json").read_text()
    if fault == "damaged":
        (folder / "heads.sha256").write_text("0" * 64)
    elif fault == "missing":
        (folder / "heads.sha256").unlink()
    else:
        save_heads(folder, *((step + 1, 2) if fault == "of another step" else (step, 1)), sound["params"]["heads"])
    with pytest.raises(UserError, match="fold_0/heads: (missing or damaged|belong to step).*run --mode evaluate"):
        testing.load_fold(run, 0)
    refit.refit_fold(run, 0)
    assert not (folder / "calibration.json").exists()  # it is of other heads, for all that is known
    (folder / "calibration.json").write_text(calibrated)
    again = with_heads(folder, step, 2, network.variables)
    jax.tree.map(np.testing.assert_array_equal, sound, again)


def test_a_training_that_starts_from_trained_heads_keeps_them(trained, tmp_path):
    config, networks = trained
    config = config.copy_and_resolve_references()
    config.init = str(networks)
    train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "fold_0" / "heads").exists()
    assert list(ensemble.load(tmp_path / "run").members) == ["fold_0"]


def test_a_model_without_heads_is_refused(tmp_path):
    config = tiny_config(refit_copies=1)
    config.model.rate = False
    with pytest.raises(UserError, match="config.refit_copies: pn_samp has no heads of ratings"):
        train.train_and_evaluate(config, tmp_path / "run")
