"""pnsamp_jax.inference.ensemble: what is read from a run, and what an ensemble of networks says."""

import itertools
import json
import os
import shutil

import jax
import numpy as np
import pytest
from tiny_run import made_up_run, tiny_config

from experiments import export_weights
from experiments.export_weights import export
from pnsamp_jax import train, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble, temperature
from pnsamp_jax.workdir import layout

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, quick_compilation):
    """A run of two of its folds."""
    return made_up_run(tmp_path_factory.mktemp("run"), (0, 2))


@pytest.fixture(scope="module")
def asked(workdir):
    return ensemble.load(workdir)


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(-1000, 400, (3, 16, 16, 16)).astype(np.int16)


def malignancy(p):
    return p[..., schema.MALIGNANCY, :] @ np.arange(1, 7)


def test_every_trained_fold_is_a_member(asked):
    assert list(asked.members) == ["fold_0", "fold_2"]
    assert (asked.patch_size, asked.spacing_mm) == (16, 2.0)
    assert asked.windows == ((1600.0, -600.0), (700.0, -600.0))


def test_they_say_what_the_run_itself_says_of_its_nodules(workdir, asked):
    config = tiny_config()
    records = layout.load_records(config)
    chosen = np.arange(3)
    said = train.predict_nodules(config, layout.place_records(config, records), chosen, workdir / "fold_2")
    one = asked._replace(members={"fold_2": asked.members["fold_2"]})
    images = np.stack([np.asarray(transforms.crop(image, 16)) for image in records[schema.IMAGE][:3]])
    answers = ensemble.predict(one, images, flips=False)
    # The same sums in another order, as two programs have them.
    temperatures = asked.members["fold_2"].temperatures
    np.testing.assert_allclose(
        answers.probabilities, temperature.scale(said["probabilities"], temperatures), atol=1e-5
    )
    assert ((answers.mask > 0.5) == said["mask"]).mean() > 0.999


def test_the_answer_is_the_mean_over_networks_and_flips(asked, patches):
    masks, probabilities = [], []
    for network, flip in itertools.product(asked.members.values(), ensemble.FLIPS):
        axes = 1 + np.flatnonzero(flip)
        mask, p, _ = ensemble.answer(asked.model, asked.windows, network, np.flip(patches, axes))
        masks.append(np.flip(mask, axes))
        probabilities.append(p)
    answers = ensemble.predict(asked, patches)
    np.testing.assert_allclose(answers.mask, np.mean(masks, axis=0), atol=1e-6)
    np.testing.assert_allclose(answers.probabilities, np.mean(probabilities, axis=0), atol=1e-6)
    expected = malignancy(np.reshape(probabilities, (2, 8, 3, 9, 6)))
    np.testing.assert_allclose(answers.ensemble_spread, expected.mean(1).std(0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(answers.flip_spread, expected.mean(0).std(0, ddof=1), atol=1e-6)
    assert (answers.ensemble_spread > 0).all() and (answers.flip_spread > 0).all()


def test_flipping_the_patch_flips_the_mask_and_nothing_else(asked, patches):
    answers, mirrored = ensemble.predict(asked, patches), ensemble.predict(asked, patches[:, :, ::-1])
    np.testing.assert_allclose(mirrored.mask[:, :, ::-1], answers.mask, atol=1e-6)
    np.testing.assert_allclose(mirrored.probabilities, answers.probabilities, atol=1e-6)


def test_one_network_without_flips_has_no_spread(asked, patches):
    one = asked._replace(members={"fold_0": asked.members["fold_0"]})
    answers = ensemble.predict(one, patches, flips=False)
    assert np.isnan(answers.ensemble_spread).all() and np.isnan(answers.flip_spread).all()


def test_a_nodule_is_told_the_same_in_any_company(asked, patches):
    alone, together = ensemble.predict(asked, patches[1:2]), ensemble.predict(asked, patches)
    # Two programs, one for each batch size.
    np.testing.assert_allclose(alone.probabilities[0], together.probabilities[1], atol=1e-5)


def test_the_saliency_is_the_derivative_towards_lung(asked, patches):
    network, step = asked.members["fold_0"], 1e-2
    images = patches[:1].clip(-700, -300).astype(np.float32)  # where neither window is cut off

    def expected(images):
        return malignancy(np.asarray(ensemble.answer(asked.model, asked.windows, network, images)[1], np.float64))

    towards = step * (images - ensemble.LUNG_HU)
    slope = (expected(images + towards) - expected(images - towards)) / (2 * step)
    one = asked._replace(members={"fold_0": network})
    # Central differences through maxima and in float32: good to some hundredths.
    assert ensemble.saliency(one, images).sum() == pytest.approx(slope[0], rel=0.05, abs=2e-3)


def test_exported_weights_are_small_and_say_the_same(workdir, asked, patches, tmp_path):
    export(workdir, tmp_path / "weights")
    config = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert config["data"]["cache"] == "" and not list(tmp_path.rglob("checkpoints"))
    exported = ensemble.load(tmp_path / "weights")
    assert list(exported.members) == list(asked.members)
    for leaf in jax.tree.leaves(exported.members["fold_0"].variables):
        assert leaf.dtype == np.float32
    # bfloat16 keeps 8 bits of each parameter; half a percent of each weight moves a probability by about as much.
    ours, theirs = ensemble.predict(asked, patches), ensemble.predict(exported, patches)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=0.01)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and os.fsencode(tmp_path) in path.read_bytes()]
    with pytest.raises(UserError, match="is there already"):
        export(workdir, tmp_path / "weights")


def test_an_export_that_fails_leaves_nothing(workdir, tmp_path, monkeypatch):
    def copy(source, target):
        if "fold_2" in str(source):
            raise OSError("the disk is full")
        shutil.copyfile(source, target / "calibration.json")

    monkeypatch.setattr(export_weights.shutil, "copy", copy)
    with pytest.raises(OSError, match="the disk is full"):
        export(workdir, tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_folds_that_are_not_tested_yet_are_left_out_and_named(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "fold_0" / "calibration.json").unlink()
    (tmp_path / "fold_1" / "checkpoints").mkdir(parents=True)
    assert list(ensemble.load(tmp_path).members) == ["fold_2"]
    assert capsys.readouterr().err == f"{tmp_path}: left out, since not tested yet: fold_0, fold_1\n"
    (tmp_path / "fold_2" / "calibration.json").unlink()
    with pytest.raises(UserError, match="no fold is tested yet.*--mode evaluate --config.fold=0 on this workdir"):
        ensemble.load(tmp_path)


def test_the_calibration_of_another_checkpoint_is_refused(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "fold_2" / "calibration.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"checkpoint": "last", "step": 7}))
    message = (
        r"fold_2/calibration\.json: is of the last checkpoint, step 7, but .* best one, now step 1; run --mode eval"
    )
    with pytest.raises(UserError, match=message):
        ensemble.load(tmp_path)
    path.write_text(json.dumps(content | {"checkpoint": "last"}))  # the best is the last
    assert len(ensemble.load(tmp_path).members) == 2
    older = {name: value for name, value in content.items() if name not in ("checkpoint", "step")}
    path.write_text(json.dumps(older))
    assert len(ensemble.load(tmp_path).members) == 2
    assert not capsys.readouterr().err


def test_one_fold_alone(asked):
    assert list(ensemble.of_fold(asked, 2).members) == ["fold_2"]
    with pytest.raises(UserError, match="fold_1: is not trained and tested; ready are fold_0, fold_2"):
        ensemble.of_fold(asked, 1)


def test_what_is_no_trained_run_is_the_users_error(workdir, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file; give the workdir of a training"):
        ensemble.load(tmp_path)
    shutil.copy(workdir / "config.json", tmp_path)
    with pytest.raises(UserError, match="no fold is trained"):
        ensemble.load(tmp_path)
    shutil.copytree(workdir / "fold_0", tmp_path / "fold_0")
    (tmp_path / "fold_0" / "calibration.json").write_text('{"temperatures": {}}')
    with pytest.raises(UserError, match=r"fold_0/calibration\.json: damaged"):
        ensemble.load(tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["segment"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="lacks the mask or the ratings"):
        ensemble.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is not the config of a run"):
        ensemble.load(tmp_path)
