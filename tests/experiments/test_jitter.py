"""Jitter: known moves of known points, in a CT that is linear in x."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments import jitter
from pnsamp_jax import config
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.workdir import tables

SIZE, SPACING_MM = 16, 2.0
SLOPE = 10  # HU per mm
CENTRE = np.zeros(3)
NETWORKS = ensemble.Networks(None, SIZE, SPACING_MM, (), {"fold_0": None, "fold_1": None})


def marked_nodule(name):
    """Return a nodule at the origin of a CT of 80 mm."""
    affine = np.diag([SPACING_MM] * 3 + [1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = -39
    x = affine[0, 3] + SPACING_MM * np.arange(40)
    ct = Volume(np.broadcast_to(SLOPE * x, (40, 40, 40)).astype(np.int16), affine)
    return MarkedNodule(Nodule(name, name, np.full((1, 9), 4)), ct, None, "cube", CENTRE)


@pytest.fixture
def folds_used(monkeypatch):
    """Replace the networks: they mark a cube of 6 voxels, and P(5) grows the further left the patch lies.

    Return the list of the folds whose networks predict.
    """
    folds = []

    def predict(networks, images, flips=True):
        if flips:  # not the look that finds out where the nodule is
            folds.extend(networks.members)
        mask = np.zeros(images.shape)
        mask[:, 5:11, 5:11, 5:11] = 1
        p5 = 0.6 + images.mean(axis=(1, 2, 3)) / SLOPE / 100  # 0.6 at the nodule's own point
        p = np.zeros((1, 1, len(images), 9, 6))
        p[..., 4], p[..., 0] = p5[:, None], 1 - p5[:, None]
        return ensemble.Predictions(mask, p, None)

    monkeypatch.setattr(ensemble, "predict", predict)
    return folds


def test_offsets_begin_with_zero_and_fill_the_ball():
    moves = jitter.offsets(4000, 5.0, seed=0)
    distance = np.linalg.norm(moves, axis=1)
    assert distance[0] == 0 and distance.max() <= 5
    # Uniform: an eighth within half the radius, to two standard errors, and the mean in the middle.
    assert (distance[1:] < 2.5).mean() == pytest.approx(1 / 8, abs=0.0105)
    np.testing.assert_allclose(moves.mean(axis=0), 0, atol=0.1)
    np.testing.assert_array_equal(moves[:9], jitter.offsets(4000, 5.0, seed=0)[:9])


def test_a_mask_that_moves_with_the_point_overlaps_less(folds_used):
    moves = np.array([(0, 0, 0), (2 * SPACING_MM, 0, 0), (0, 0, -3 * SPACING_MM), (10.0, 0, 0)])
    expected, likeliest, dice = jitter.predict_at_offsets(NETWORKS, marked_nodule("a"), moves)
    np.testing.assert_allclose(dice, [1, 4 / 6, 3 / 6, 1 / 6])
    np.testing.assert_allclose(expected, 1 + 4 * np.array([0.6, 0.64, 0.6, 0.7]), atol=1e-6)
    assert likeliest.tolist() == [5] * 4


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Return a run that tested a cube in each of two folds, and a slab."""
    rating_counts = np.zeros((3, 9, 6), np.uint8)
    rating_counts[:, :, 3] = 1
    records = {
        schema.NODULE_ID: np.array(["a", "b", "c"]),
        schema.PATIENT_ID: np.array(["a", "b", "c"]),
        schema.CONTEXT: np.array(["cube", "cube", "slab"]),
        schema.RATING_COUNTS: rating_counts,
        schema.READER_DICE: np.full(3, np.nan),
        schema.DIAMETER: np.full(3, 8.0),
    }
    tables.write_readers(tmp_path / "readers.csv", records)
    for fold, chosen in enumerate(([1], [0, 2])):
        part = {name: values[chosen] for name, values in records.items()}
        p = np.tile(np.eye(6)[3], (len(chosen), 9, 1))
        tables.write_predictions(tmp_path / f"fold_{fold}" / "predictions.csv", fold, part, "modal", {}, p)
    tables.gather_predictions(tmp_path)
    nodules = [marked_nodule(name) for name in "abc"]
    source = SimpleNamespace(series=lambda: [0, 1, 2], load=lambda series: [nodules[series]])
    monkeypatch.setattr(config.Settings, "source", source)
    monkeypatch.setattr(ensemble, "load", lambda folder: NETWORKS)
    return tmp_path


def test_each_nodule_is_predicted_by_the_fold_that_tested_it(workdir, folds_used):
    results = jitter.run(tiny_config(), workdir, "cube", 20, 20.0)
    assert folds_used == ["fold_1", "fold_0"]
    assert (workdir / "jitter.json").read_text() == json.dumps(results, indent=1)
    assert (results["nodules"], results["points"], results["radius_mm"]) == (2, 20, 20)
    x = np.array([jitter.offsets(20, 20.0, seed)[1:, 0] for seed in range(2)])
    assert results["change"]["mean"] == pytest.approx(0.04 * np.abs(x).mean(), rel=0.01)  # HU are rounded
    assert results["same_class"]["mean"] == (x > -10).mean()  # at -10 mm, class 1 is as likely as class 5
    assert 0 < results["dice"]["mean"] < 0.5


def test_without_moves_nothing_changes(workdir, folds_used):
    results = jitter.run(tiny_config(), workdir, "cube", 2, 0.0)
    assert [results[name]["mean"] for name in ("change", "same_class", "dice")] == [0, 1, 1]


def test_a_context_that_was_not_tested_is_refused(workdir):
    with pytest.raises(UserError, match="--context=ct: the run tested no such nodule"):
        jitter.run(tiny_config(), workdir, "ct", 2, 1.0)
    assert not (workdir / "jitter.json").exists()
