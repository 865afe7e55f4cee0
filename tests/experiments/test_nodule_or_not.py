"""Nodule or not: points and nodules whose scores are known."""

import numpy as np
import pytest
from tiny_run import made_up_run, tiny_config

from experiments import nodule_or_not, random_points
from experiments.nodule_or_not import Points
from pnsamp_jax import EXAMPLE_CT
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble


def cells(lines, start):
    """Return the first number in each cell of the row that starts so."""
    (row,) = [line for line in lines if line.startswith(f"| {start} |")]
    return [float(cell.split()[0]) for cell in row.split("|")[2:-1]]


@pytest.fixture
def points():
    """Ten points, of which two look like nodules; the odd ones are bright, and the first five get a mask."""
    return Points(
        patients=np.arange(10),
        bright=np.arange(10) % 2 == 1,
        nodule_like=np.array([0.9, 0.8, *np.linspace(0.1, 0.4, 8)]),
        volume_mm3=np.array([100.0, 10.0, 50.0, 15.0, 30.0, 0, 0, 0, 0, 0]),
        suspicion=np.array([0.9, 0.2] * 5),
        context=np.full(10, "ct"),
        fold=np.repeat([0, 1], 5),
    )


@pytest.fixture
def table():
    """Eight nodules: the two with ground glass are the only ones that are lost, or below 6 mm."""
    counts = np.zeros((8, 9, 6), int)
    counts[:, schema.RATING_NAMES.index("texture"), :] = np.eye(6, dtype=int)[[0, 1, 2, 4, 4, 4, 4, 4]]
    return {
        "nodule_like": np.array([0.3, 0.45, 0.6, 0.7, 0.95, 0.96, 0.97, 0.98]),
        "patient_id": np.arange(8),
        "fold": np.tile([0.0, 1.0], 4),
        "rating_counts": counts,
        "diameter_mm": np.array([4.0, 5.0, 8, 8, 8, 12, 12, 12]),
    }


def test_points_that_look_like_nodules_and_their_masks_are_counted(points):
    lines = list(nodule_or_not.point_lines(points))
    assert cells(lines, "do not look like a nodule") == [80, 80, 80]
    assert cells(lines, "get a mask") == [50, 60, 40]
    assert cells(lines, "get a mask of more than 20 mm3") == [30, 60, 0]
    assert cells(lines, "get such a mask and look like a nodule") == [10, 20, 0]
    assert cells(lines, "get a mask and a suspicion above 50 %") == [30, 60, 0]
    assert cells(lines, "get both and look like a nodule") == [10, 20, 0]


def test_losses_are_counted_by_texture_and_size(table):
    lines = list(nodule_or_not.lost_lines(table))
    assert cells(lines, "all")[:2] == [8, 25]
    assert cells(lines, "texture up to 2.5 (ground glass)")[:2] == [2, 100]
    assert cells(lines, "texture between")[:2] == [1, 0] and cells(lines, "texture from 3.5 (solid)")[:2] == [5, 0]
    assert cells(lines, "below 6 mm")[:2] == [2, 100] and cells(lines, "10 mm or more")[:2] == [3, 0]


def test_the_auc_is_the_share_of_pairs_in_the_right_order(table, points):
    lines = list(nodule_or_not.auc_lines(table, points))
    pairs = table["nodule_like"][:, None] > points.nodule_like
    own = np.ix_(table["fold"] == 0, points.fold == 0)
    assert cells(lines, "all")[2] == pytest.approx(100 * pairs.mean(), abs=0.06)
    assert cells(lines, "0")[2] == pytest.approx(100 * pairs[own].mean(), abs=0.06)


@pytest.mark.slow
def test_random_points_of_a_ct(tmp_path, monkeypatch, capsys):
    """To these networks only the nodule at the given point looks like one."""
    folder = made_up_run(tmp_path / "run", (0,), likeness=True)
    head = ensemble.load(folder).members["fold_0"].likeness

    def predict(networks, images, flips):
        middle = images.shape[-1] // 2
        bright = images[:, middle, middle, middle] > -300
        features = np.where(bright[:, None], 1.0, -1.0) * np.sign(head[:-1]) * 1e3
        share = np.zeros(images.shape) + 0.9 * bright[:, None, None, None]
        p = np.tile(schema.CLASS_EXISTS / schema.CLASS_EXISTS.sum(axis=1, keepdims=True), (1, 1, len(images), 1, 1))
        return ensemble.Predictions(share, p, features[None, None])

    monkeypatch.setattr(ensemble, "predict", predict)
    monkeypatch.setattr(random_points.asking.attribution, "mean_contributions", lambda _, p: np.zeros((8, 9)))
    text = random_points.run(folder, EXAMPLE_CT, "56.4,86.3,-116.0", count=12)
    assert text in capsys.readouterr().out and "1 nodules of" in text and "nodule_like at the nodules: 1.00" in text
    masked = cells(text.splitlines(), "get a mask")[0]
    assert masked == pytest.approx(100 - cells(text.splitlines(), "do not look like a nodule")[0], abs=0.1)
    assert cells(text.splitlines(), "get such a mask and look like a nodule")[0] == masked


def test_what_cannot_be_asked_is_refused(tmp_path):
    folder = made_up_run(tmp_path / "run", (0,))
    with pytest.raises(UserError, match=r"has no likeness; test the run with --config\.data\.background"):
        random_points.run(folder, EXAMPLE_CT, "0,0,0")
    with pytest.raises(UserError, match=r"config\.data\.background: is 0"):
        nodule_or_not.run(tiny_config(), tmp_path / "other")
