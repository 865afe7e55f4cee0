"""Trust: a run whose probabilities are true by construction, so that coverage and doubt are known."""

import re

import numpy as np
import pytest

from experiments import trust
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import calibration, conformal
from pnsamp_jax.workdir import tables

N, FOLDS = 600, 2


def draw(random, p):
    return 1 + (p.cumsum(axis=-1) < random.random((*p.shape[:-1], 1))).sum(axis=-1)


@pytest.fixture
def workdir(tmp_path):
    random = np.random.default_rng(0)
    p = random.dirichlet(np.full(6, 0.5), (N, 9)) * schema.CLASS_EXISTS
    p /= p.sum(axis=-1, keepdims=True)
    truth = draw(random, p)
    rating_counts = np.zeros((N, 9, 6), np.uint8)
    np.put_along_axis(rating_counts, truth[..., None] - 1, 2, axis=2)
    # The readers of the first half differ by 2.
    rating_counts[: N // 2, schema.MALIGNANCY] = 0
    middle = np.clip(truth[: N // 2, schema.MALIGNANCY], 2, 4) - 1
    for step in (-1, 1):
        rating_counts[np.arange(N // 2), schema.MALIGNANCY, middle + step] += 1
    records = {
        schema.NODULE_ID: np.array([f"n{i:03d}" for i in range(N)]),
        schema.PATIENT_ID: np.array([f"p{i // 2:03d}" for i in range(N)]),
        schema.CONTEXT: np.full(N, "slab"),
        schema.RATING_COUNTS: rating_counts,
        schema.READER_DICE: np.full(N, np.nan),
        schema.DIAMETER: np.where(np.arange(N) % 3, 6.0, 12.0),
    }
    tables.write_readers(tmp_path / "readers.csv", records)
    fold_of = np.arange(N) // 2 % FOLDS
    seen = random.dirichlet(np.full(6, 0.5), (N, 9)) * schema.CLASS_EXISTS
    seen /= seen.sum(axis=-1, keepdims=True)
    limits = conformal.fit_limits(seen, draw(random, seen), np.arange(N))
    for fold in range(FOLDS):
        tested = {name: values[fold_of == fold] for name, values in records.items()}
        path = tmp_path / f"fold_{fold}" / "predictions.csv"
        tables.write_predictions(path, fold, tested, "modal", {}, p[fold_of == fold])
        fitted = calibration.Calibration(np.ones(9), np.zeros(0), "best", 1, class_limits=limits)
        calibration.write(path.with_name("calibration.json"), fitted, N)
    tables.gather_predictions(tmp_path)
    return tmp_path


def cells(text, start):
    """Return the numbers before the intervals in the first row that starts so."""
    row, *_ = re.findall(rf"^\| {re.escape(start)}.*\|$", text, re.MULTILINE)
    return [float(cell.split()[0]) for cell in row.split("|")[2:-1]]


def test_true_probabilities_have_the_stated_coverage(workdir):
    text = trust.run(workdir, forest=workdir)
    assert (workdir / "trust.md").read_text() == text
    for group in ("all", "rated 4 or 5", "below 8 mm", "8 mm or more"):
        network, forest = np.array(cells(text, group)).reshape(2, 2)
        # The truth of half of the nodules is the mean of readers who differ, which draws it to the middle: up to
        # 10 points above what is stated.
        assert (network > [75, 86]).all() and (forest > [75, 86]).all(), group
    for name in ("texture", "margin"):
        coverage = cells(text, name)
        assert coverage[0] == pytest.approx(80, abs=5) and coverage[2] == pytest.approx(90, abs=4)
        assert 1 < coverage[1] < coverage[3] < 5
    assert "(n = 600 with two readers or more)" in text


def test_the_surest_nodules_are_right_more_often(workdir):
    text = trust.run(workdir)
    *curve, area = cells(text, "suspicion near one half")
    assert curve == sorted(curve) and curve[-1] > curve[0] + 5 and curve[0] < area < 100
    *random_curve, random_area = cells(text, "at random")
    assert random_curve[0] == curve[0] and random_area < area - 3


def test_the_readers_classes_and_who_disagrees_are_counted(workdir):
    table = tables.read_tables(workdir)
    apart = trust.readers_classes(table)
    assert apart[: N // 2].tolist() == [3] * (N // 2) and apart[N // 2 :].tolist() == [1] * (N // 2)
    assert "readers differ by 2 or more, 300 of 600" in trust.run(workdir)


def test_a_single_reader_neither_agrees_nor_disagrees(workdir):
    table = tables.read_tables(workdir)
    counts = np.minimum(table["rating_counts"], 1)
    assert np.isnan(trust.readers_classes(table | {"rating_counts": counts})[N // 2 :]).all()


def test_the_area_is_the_mean_accuracy_of_the_surest():
    doubt, right = np.array([0.1, 0.9, 0.5, 0.7]), np.array([1.0, 0.0, 1.0, 0.0])
    # The surest one, two, three and four nodules are right in 1, 1, 2/3 and 1/2 of the cases.
    assert trust._area(doubt, right)(np.ones(4)) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert trust._area(doubt, right)(np.array([1.0, 0, 1, 0])) == 1


def test_a_fold_without_limits_is_refused(workdir):
    fitted = calibration.Calibration(np.ones(9), np.zeros(0), "best", 1)
    calibration.write(workdir / "fold_1" / "calibration.json", fitted, N)
    with pytest.raises(UserError, match=r"fold_1/calibration\.json: has no limits; run --mode evaluate"):
        trust.run(workdir)


def test_a_forest_of_other_nodules_is_refused(workdir, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("predictions.csv", "readers.csv"):
        (other / name).write_text((workdir / name).read_text().replace("n007", "m007"))
    with pytest.raises(UserError, match="has no prediction of nodule 'n007'"):
        trust.run(workdir, forest=other)
