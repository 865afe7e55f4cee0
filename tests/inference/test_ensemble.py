"""pnsamp_jax.inference.ensemble: reading the networks of a run, and averaging their predictions."""

import itertools
import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from tiny_run import made_up_run, tiny_config

from experiments import export_weights
from experiments.export_weights import export
from pnsamp_jax import testing, transforms
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import calibration, ensemble
from pnsamp_jax.inference.masks import adapted, at_one_half, central_component
from pnsamp_jax.run import Run, load_records

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, quick_compilation):
    """A run of two of its folds."""
    return made_up_run(tmp_path_factory.mktemp("run"), (0, 2))


@pytest.fixture(scope="module")
def networks(workdir):
    return ensemble.load(workdir)


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(-1000, 400, (3, 16, 16, 16)).astype(np.int16)


def malignancy(p):
    return p[..., schema.MALIGNANCY, :] @ np.arange(1, 7)


def test_every_trained_fold_is_a_member(networks):
    assert list(networks.members) == ["fold_0", "fold_2"]
    assert (networks.patch_size, networks.spacing_mm) == (16, 2.0)
    assert networks.windows == ((1600.0, -600.0), (700.0, -600.0))


def test_a_loaded_network_predicts_what_its_run_predicts_but_for_the_temperatures(workdir, networks):
    settings = read_settings(tiny_config())
    run = Run(workdir, settings, load_records(settings), [])
    nodules = np.arange(3)
    uncalibrated = testing.predict_nodules(run, testing.load_fold(run, 2)[0], nodules, flips=False, masks=True)
    images = np.stack([np.asarray(transforms.crop(image, 16)) for image in run.records[schema.IMAGE][:3]])
    loaded = ensemble.predict(networks.member(2), images, flips=False)
    expected = calibration.scale(uncalibrated["probabilities"], networks.members["fold_2"].temperatures)
    # The same sums in another order, since the batch sizes differ.
    np.testing.assert_allclose(loaded.mean_probabilities, expected, atol=1e-5)
    for probability, mask in zip(loaded.mask, uncalibrated["mask"], strict=True):
        assert (central_component(probability > 0.5) == mask).mean() > 0.999


def test_predictions_are_means_over_networks_and_flips(networks, patches):
    masks, probabilities = [], []
    for number, flip in itertools.product((0, 2), itertools.product((False, True), repeat=3)):
        axes = 1 + np.flatnonzero(flip)
        single = ensemble.predict(networks.member(number), np.flip(patches, axes), flips=False)
        masks.append(np.flip(single.mask, axes))
        probabilities.append(single.mean_probabilities)
    answers = ensemble.predict(networks, patches)
    np.testing.assert_allclose(answers.mask, np.mean(masks, axis=0), atol=1e-6)
    np.testing.assert_allclose(answers.mean_probabilities, np.mean(probabilities, axis=0), atol=1e-6)
    expected = malignancy(np.reshape(probabilities, (2, 8, 3, 9, 6)))
    np.testing.assert_allclose(answers.ensemble_spread, expected.mean(1).std(0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(answers.flip_spread, expected.mean(0).std(0, ddof=1), atol=1e-6)
    assert (answers.ensemble_spread > 0).all() and (answers.flip_spread > 0).all()


def test_each_mask_has_a_threshold_of_its_own_where_the_runs_config_says_so(workdir, networks, patches, tmp_path):
    plain = ensemble.predict(networks, patches, flips=False).mask
    copy = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"fit_threshold": True}))
    fitted = ensemble.predict(ensemble.load(copy), patches, flips=False).mask
    for before, after in zip(plain, fitted, strict=True):
        np.testing.assert_allclose(after, at_one_half(before), atol=1e-6)
        assert np.abs(after - before).max() > 0.01


def test_masks_are_adapted_by_the_mean_share_of_the_networks(networks, patches):
    fitted = networks._replace(fitted_threshold=True)
    plain, single = ensemble.predict(fitted, patches, flips=False), ensemble.predict(networks, patches, flips=False)
    members = {name: one._replace(mask_adaptation=i / 2) for i, (name, one) in enumerate(networks.members.items())}
    answers = ensemble.predict(fitted._replace(members=members), patches, flips=False)
    np.testing.assert_array_equal(answers.probabilities, plain.probabilities)
    textures = single.mean_probabilities[:, 7] @ np.arange(1, 7)
    for found, mask, texture in zip(answers.mask, single.mask, textures, strict=True):
        share = 0.25  # the mean of 0 and one half
        np.testing.assert_allclose(found, at_one_half(adapted(mask, texture, networks.spacing_mm, share)), atol=1e-6)
    assert np.abs(answers.mask - plain.mask).max() > 0.01


def test_an_accelerator_is_asked_once_for_all_flips_and_answers_the_same(networks, patches, monkeypatch):
    shifted = {name: network._replace(mask_shift=0.5) for name, network in networks.members.items()}
    networks = networks._replace(members=shifted)
    on_cpu = ensemble.predict(networks, patches)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_accelerator = ensemble.predict(networks, patches)
    # Two compiled programs.
    np.testing.assert_allclose(on_accelerator.mask, on_cpu.mask, atol=1e-5)
    np.testing.assert_allclose(on_accelerator.probabilities, on_cpu.probabilities, atol=1e-5)
    np.testing.assert_allclose(on_accelerator.features, on_cpu.features, rtol=1e-4, atol=1e-5)


def test_openvino_answers_the_same(workdir, networks, patches):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'pnsamp-jax[test]'")
    theirs, ours = ensemble.predict(ensemble.load(workdir, "openvino"), patches), ensemble.predict(networks, patches)
    # The same sums in another order.
    np.testing.assert_allclose(theirs.mask, ours.mask, atol=1e-4)
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-4)
    np.testing.assert_allclose(theirs.features, ours.features, rtol=1e-3, atol=1e-4)


def test_a_runtime_that_is_none_or_not_installed_is_told_in_one_line(workdir, monkeypatch):
    with pytest.raises(UserError, match="runtime: 'tvm' is none of jax, openvino"):
        ensemble.load(workdir, "tvm")
    for package in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r"is not installed; run `pip install 'pnsamp-jax\[openvino\]'`"):
            ensemble.load(workdir, "openvino")


def test_flipping_the_patch_flips_the_mask_and_nothing_else(networks, patches):
    answers, mirrored = ensemble.predict(networks, patches), ensemble.predict(networks, patches[:, :, ::-1])
    np.testing.assert_allclose(mirrored.mask[:, :, ::-1], answers.mask, atol=1e-6)
    np.testing.assert_allclose(mirrored.mean_probabilities, answers.mean_probabilities, atol=1e-6)


def test_one_network_without_flips_has_no_spread(networks, patches):
    answers = ensemble.predict(networks.member(0), patches, flips=False)
    assert np.isnan(answers.ensemble_spread).all() and np.isnan(answers.flip_spread).all()


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(networks, patches):
    alone, together = ensemble.predict(networks, patches[1:2]), ensemble.predict(networks, patches)
    # Two compiled programs, one for each batch size.
    np.testing.assert_allclose(alone.mean_probabilities[0], together.mean_probabilities[1], atol=1e-5)


def test_exported_weights_are_small_and_predict_the_same(workdir, networks, patches, tmp_path):
    export(workdir, tmp_path / "weights")
    config = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert config["data"]["cache"] == "" and not list(tmp_path.rglob("checkpoints"))
    exported = ensemble.load(tmp_path / "weights")
    assert list(exported.members) == list(networks.members)
    for leaf in jax.tree.leaves(exported.members["fold_0"].variables):
        assert leaf.dtype == np.float32
    # bfloat16 keeps 8 bits of each parameter; half a percent of each weight moves a probability by about as much.
    ours, theirs = ensemble.predict(networks, patches), ensemble.predict(exported, patches)
    np.testing.assert_allclose(ours.mean_probabilities, theirs.mean_probabilities, atol=0.01)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and os.fsencode(tmp_path) in path.read_bytes()]
    with pytest.raises(UserError, match="exists already"):
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


def test_a_calibration_by_another_rule_of_the_threshold_is_refused(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "fold_2" / "calibration.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"fitted_threshold": True}))  # the config has none
    with pytest.raises(
        UserError, match=r"fold_2/calibration\.json: belongs to another config\.fit_threshold.*evaluate"
    ):
        ensemble.load(tmp_path)
    path.write_text(json.dumps(content | {"fitted_threshold": False}))
    assert len(ensemble.load(tmp_path).members) == 2


def test_the_calibration_of_another_checkpoint_is_refused(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "fold_2" / "calibration.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"checkpoint": "last", "step": 7}))
    message = r"fold_2/calibration\.json: belongs to the last checkpoint, step 7, but .* best one, now step 1; run"
    with pytest.raises(UserError, match=message):
        ensemble.load(tmp_path)
    path.write_text(json.dumps(content | {"checkpoint": "last"}))  # the best is the last
    assert len(ensemble.load(tmp_path).members) == 2
    assert not capsys.readouterr().err


def test_one_fold_alone(networks):
    assert list(networks.member(2).members) == ["fold_2"]
    with pytest.raises(UserError, match="fold_1: is not trained and tested; ready are fold_0, fold_2"):
        networks.member(1)


def test_a_folder_that_is_not_a_trained_run_is_refused(workdir, tmp_path):
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


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"spacing_mm": 0.3}, "there config.spacing_mm is"),  # a network would be asked about other voxels
        ({"data": {"source": "folder"}}, "there config.data.source is 'phantom', here 'folder'"),  # no warning
        ({"patch_size": -16}, "is not the config of a run"),
        ({"spacing_mm": "x"}, "is not the config of a run"),
        ({"checkpoint": "newest"}, "is not the config of a run"),
    ],
)
def test_an_edited_config_is_noticed(tmp_path, changed, reason):
    path = made_up_run(tmp_path, (0,)) / "config.json"
    config = json.loads(path.read_text())
    for name, value in changed.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=reason):
        ensemble.load(tmp_path)


def test_a_copy_of_a_fold_is_no_network(tmp_path):
    made_up_run(tmp_path, (0, 1))
    for copy in ("fold_1_backup", "fold_01", "fold_1.old"):
        shutil.copytree(tmp_path / "fold_1", tmp_path / copy)
    assert list(ensemble.load(tmp_path).members) == ["fold_0", "fold_1"]
