"""What each part of a fold is for: nothing is fitted on the nodules that are tested."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.baselines import cnn_mtl, depth, diameter, mcnn, radiomics, second_stage, shc_dcnn, tumornet
from experiments.baselines.subsets import Subset
from pnsamp_jax import testing
from pnsamp_jax.data import schema
from pnsamp_jax.inference import calibration, ensemble

RIGHT = {"train": 0.95, "validation": 0.75, "test": 0.9}  # share of the nodules on which the network is right


def test_temperatures_are_fitted_on_the_validation_nodules(tmp_path, monkeypatch):
    """The network gives every nodule's class 1 a probability of 0.9.

    It is right on three quarters of the validation nodules. log(0.9 / 0.1) is 2 log 3 and log(0.75 / 0.25) is log 3,
    so a temperature of 2 makes the probability match; on the test nodules, it would be 1.
    """
    part_of = np.repeat(list(RIGHT), 100)
    truth = np.concatenate([np.where(np.arange(100) < 100 * share, 1, 2) for share in RIGHT.values()])
    counts = (truth[:, None, None] == np.arange(1, 7)).astype(np.uint8).repeat(9, axis=1)
    ids = np.array([f"n{i:03d}" for i in range(300)])
    records = {schema.NODULE_ID: ids, schema.PATIENT_ID: ids, schema.RATING_COUNTS: counts}
    run = SimpleNamespace(
        settings=SimpleNamespace(checkpoint="best", test_flips=True, nominal="modal", fit_threshold=False),
        records=records,
        background=None,
        fold_folder=lambda fold: tmp_path,
        indices=lambda fold: {name: np.flatnonzero(part_of == name) for name in RIGHT},
    )

    def predict_nodules(run, networks, nodules, flips, masks=False):
        probabilities = np.zeros((len(nodules), 9, 6))
        probabilities[..., :2] = 0.9, 0.1
        return {"probabilities": probabilities, "features": nodules[:, None].astype(float)}

    networks = ensemble.Networks(None, 12, 1.0, (), {"fold_0": ensemble.Network({}, np.ones(9, np.float32), None)})
    monkeypatch.setattr(testing, "load_fold", lambda run, fold: (networks, 7))
    monkeypatch.setattr(testing, "predict_nodules", predict_nodules)
    testing.test_fold(run, 0)
    fitted = calibration.read(tmp_path / "calibration.json")
    np.testing.assert_allclose(fitted.temperatures, 2.0, rtol=1e-3)
    assert fitted.features == pytest.approx(149.5)  # the mean index of the validation nodules
    tested = {line.split(",")[0] for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]}
    assert tested == set(ids[part_of == "test"])


def test_the_threshold_of_the_mask_is_fitted_on_the_validation_nodules(tmp_path, monkeypatch):
    """The network gives every voxel of a nodule 0.3 and those around it 0.22; on test nodules, half as much.

    A threshold between 0.22 and 0.3 outlines the validation nodules. A shift that was fitted to the test nodules, of
    half the probability, would not be the same.
    """
    part_of = np.repeat(list(RIGHT), 4)
    ids = np.array([f"n{i:02d}" for i in range(12)])
    distance = np.sqrt(((np.indices((12, 12, 12)) - 5.5) ** 2).sum(axis=0))
    records = {
        schema.NODULE_ID: ids,
        schema.PATIENT_ID: ids,
        schema.IMAGE: np.where(part_of == "test", -800, 0).repeat(12**3).reshape(12, 12, 12, 12).astype(np.int16),
        schema.MASK: np.stack([schema.MASK_UNIT * (distance < 4).astype(np.uint8)] * 12),
    }
    run = SimpleNamespace(
        settings=SimpleNamespace(checkpoint="best", fit_threshold=True, batch_size=2, test_flips=False),
        records=records,
        background=None,
        fold_folder=lambda fold: tmp_path,
        indices=lambda fold: {name: np.flatnonzero(part_of == name) for name in RIGHT},
    )
    network = ensemble.Network({}, np.ones(9, np.float32), None)
    networks = ensemble.Networks(None, 12, 1.0, (), {"fold_0": network})
    answer = np.select([distance < 4, distance < 5], [0.3, 0.22], 0.0).astype(np.float32)

    def predict(networks, images, flips):
        mask = answer * np.where(images < -500, 0.5, 1).astype(np.float32)
        return ensemble.Predictions(mask, np.full((1, 1, len(images), 9, 6), 1 / 6), None)

    tested_with = []
    monkeypatch.setattr(testing, "load_fold", lambda run, fold: (networks, 7))
    monkeypatch.setattr(ensemble, "predict", predict)
    monkeypatch.setattr(testing, "write_predictions", lambda run, fold, asked, *_: tested_with.append(asked))
    records[schema.RATING_COUNTS] = np.ones((12, 9, 6), np.uint8)
    run.settings.nominal = "modal"
    testing.test_fold(run, 0)
    [tested] = tested_with
    shift = calibration.read(tmp_path / "calibration.json").mask_shift
    assert shift < 0  # without it, the voxels of 0.22 around the nodule would be marked too
    assert tested.members["fold_0"].mask_shift == shift and tested.fitted_threshold


def made_up(seed, count, sign):
    """Return nodules whose ratings rise with the first feature and with the size of their mask, or fall (sign -1)."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 4)).astype(np.float32)
    rating = np.where(sign * features[:, 0] > 0, 4, 2)
    counts = (rating[:, None, None] == np.arange(1, 7)).astype(np.uint8).repeat(9, axis=1)
    ids = np.array([f"n{seed}_{i:03d}" for i in range(count)])
    patients = np.array([f"p{seed}_{i // 2:03d}" for i in range(count)])
    distance = np.sqrt(((np.indices((12, 12, 12)) - 5.5) ** 2).sum(axis=0))
    masks = np.stack([distance < 3.4 + 1.2 * np.tanh(value) for value in features[:, 0]])
    image = np.where(masks, 0, -800).astype(np.int16) + rng.integers(-50, 50, masks.shape).astype(np.int16)
    records = {schema.RATING_COUNTS: counts, schema.NODULE_ID: ids, schema.PATIENT_ID: patients, schema.IMAGE: image}
    return Subset(records, features, masks)


def predictor(module, monkeypatch):
    """Return what a method's `run` hands to the cross-validation."""
    kept = {}
    monkeypatch.setattr(second_stage, "cross_validate", lambda *a, **k: kept.update(predict=a[2]) or {})
    monkeypatch.setattr(second_stage, "TREES", 30)
    monkeypatch.setattr(
        depth, "depths_mm", lambda source: {f"n{s}_{i:03d}": 5.0 + i for s in (0, 1) for i in range(60)}
    )
    monkeypatch.setattr(depth, "read_settings", lambda config: SimpleNamespace(source=None))
    module.run(SimpleNamespace(spacing_mm=1.0), None)
    return kept["predict"]


@pytest.mark.parametrize("module", [cnn_mtl, depth, diameter, mcnn, radiomics, shc_dcnn, tumornet])
def test_a_second_stage_learns_nothing_from_the_ratings_of_the_test_nodules(module, monkeypatch):
    predict, seen = predictor(module, monkeypatch), made_up(0, 60, sign=1)
    # The same test nodules with their own ratings, and with the opposite ones.
    given, opposite = (predict(seen, made_up(1, 30, sign), 0) for sign in (1, -1))
    np.testing.assert_array_equal(given, opposite)
    if module is not depth:  # whose depths are made up
        malignancy = given[:, schema.MALIGNANCY, :5] @ np.arange(1, 6)
        rises = made_up(1, 30, 1).features[:, 0] > 0
        assert malignancy[rises].mean() > malignancy[~rises].mean() + 0.5
