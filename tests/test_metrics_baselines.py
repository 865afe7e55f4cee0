"""The baselines of the accuracies: the best constant and one reader."""

import csv
from pathlib import Path

import numpy as np
import pytest
from made_ratings import random_cohort

from pnsamp_jax import metrics
from pnsamp_jax.data import cohort, schema

NAN = float("nan")
SUBSET = Path(__file__).resolve().parents[2] / "shared/data/lidc_subset/ratings.csv"


def test_best_constant_by_hand():
    assert metrics.best_constant([1, 1, 2, 5, 0], 5) == (1, 0.75)
    assert metrics.best_constant([4, 4, 4], 4) == (4, 1.0)


@pytest.mark.parametrize("nominal", [False, True])
@pytest.mark.parametrize("classes", [4, 5, 6])
def test_the_best_constant_of_one_class_is_that_class(classes, nominal):
    for chosen in range(1, classes + 1):
        assert metrics.best_constant([chosen] * 3, classes, nominal) == (chosen, 1.0)


def test_ties_of_best_constant_go_to_the_class_most_often_right_then_to_the_smallest():
    assert metrics.best_constant([2, 3, 3], 5) == (3, 1.0)
    assert metrics.best_constant([2, 4], 5) == (3, 1.0)
    assert metrics.best_constant([2, 3], 5) == (2, 1.0)


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_no_other_constant_beats_the_best_constant(classes):
    _, truth, _ = random_cohort(classes + 10, classes=classes)
    rates = [metrics.mean_score(metrics.off_by_one(np.full(len(truth), k), truth)) for k in range(1, classes + 1)]
    chosen, rate = metrics.best_constant(truth, classes)
    assert rate == pytest.approx(max(rates)) and rate == pytest.approx(rates[chosen - 1])


def test_best_constant_without_a_rated_nodule():
    for truth in ([], [0, 0]):
        chosen, rate = metrics.best_constant(truth, 5)
        assert chosen == 0 and np.isnan(rate)


def one_reader(rating_counts):
    """Return how often one reader is within one of the mean of the others, as a mean over all ratings."""
    return metrics.mean_score(metrics.one_reader_scores(rating_counts), rating_counts.sum(axis=1))


def test_one_reader_by_hand():
    rating_counts = np.array(
        [
            [1, 0, 1, 0, 0],  # 1 and 3: neither is within one of the other
            [0, 0, 0, 2, 0],  # both agree
            [1, 0, 0, 1, 1],  # 1 against 4.5 -> 5, 4 against 3, 5 against 2.5 -> 3 (half up): one of three
            [0, 1, 0, 0, 0],  # one reader
            [0, 0, 0, 0, 0],  # no reader
        ],
        np.uint8,
    )
    scores = metrics.one_reader_scores(rating_counts)
    np.testing.assert_allclose(scores, [0, 1, 1 / 3, NAN, NAN])
    assert one_reader(rating_counts) == pytest.approx(3 / 7)  # 0 of 2, 2 of 2, 1 of 3 ratings
    assert (~np.isnan(scores)).sum() == 3


def test_one_reader_equals_leaving_out_the_readers_one_by_one():
    rng = np.random.default_rng(3)
    ratings = [rng.integers(1, 7, readers) for readers in rng.integers(1, 5, 100)]
    rating_counts = np.stack([np.bincount(r, minlength=7)[1:] for r in ratings])
    hits = [
        abs(r[i] - np.floor(np.delete(r, i).mean() + 0.5)) <= 1 for r in ratings if len(r) > 1 for i in range(len(r))
    ]
    assert one_reader(rating_counts) == pytest.approx(np.mean(hits))


def test_the_best_constant_of_a_nominal_rating_is_its_commonest_class():
    truth = [3, 3, 3, 6, 6, 6, 6, 5, 5, 4, 0]
    assert metrics.best_constant(truth, 6) == (5, 0.7)  # 4, 5 and 6 lie within one of it
    assert metrics.best_constant(truth, 6, nominal=True) == (6, 0.4)
    chosen, rate = metrics.best_constant([0], 6, nominal=True)
    assert chosen == 0 and np.isnan(rate)


def test_one_reader_of_a_nominal_rating_by_hand():
    calcification = cohort.TIE_RANK[2]
    rating_counts = np.array(
        [
            [0, 0, 1, 0, 0, 1],  # 3 and 6: neither is the other
            [0, 0, 0, 0, 0, 3],  # all agree
            [0, 0, 1, 0, 0, 2],  # 3 against 6, 6; 6 against 3 and 6, a tie that goes to 6, twice: two of three
            [0, 0, 2, 0, 1, 0],  # 5 against 3, 3; 3 against 3 and 5, a tie that goes to 3: two of three
            [0, 1, 0, 0, 0, 0],  # one reader
            [0, 0, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    scores = metrics.one_reader_agreement(rating_counts, calcification)
    np.testing.assert_allclose(scores, [0, 1, 2 / 3, 2 / 3, NAN, NAN])


def test_one_reader_of_a_nominal_rating_equals_leaving_out_the_readers_one_by_one():
    rng, order = np.random.default_rng(5), [6, 3, 5, 4, 2, 1]  # from the class that wins a tie
    ratings = [rng.integers(1, 7, readers) for readers in rng.integers(2, 5, 100)]
    rating_counts = np.stack([np.bincount(r, minlength=7)[1:] for r in ratings])
    expected = []
    for r in ratings:
        others = [np.delete(r, i).tolist() for i in range(len(r))]
        expected.append(np.mean([max(order, key=o.count) == own for own, o in zip(r, others, strict=True)]))
    np.testing.assert_allclose(metrics.one_reader_agreement(rating_counts, cohort.TIE_RANK[2]), expected)


def test_one_reader_without_nodules():
    nothing = np.zeros((0, 5), int)
    assert metrics.one_reader_scores(nothing).shape == (0,)
    assert np.isnan(one_reader(nothing))


@pytest.mark.data
def test_baselines_of_real_ratings_are_close_to_those_of_all_of_lidc():
    nodules: dict[str, list[list[int]]] = {}
    with SUBSET.open() as file:
        for row in csv.DictReader(file):
            nodules.setdefault(row["nodule_id"], []).append([int(row[name] or 0) for name in schema.RATING_NAMES])
    rating_counts = np.stack([cohort.count_ratings(np.array(ratings)) for ratings in nodules.values()])
    rating_counts = rating_counts[cohort.members(rating_counts, "rounded_ne_3")]
    readers = [100 * one_reader(rating_counts[:, i]) for i in range(len(schema.RATINGS))]
    truth = cohort.rounded_rating(rating_counts)
    constants = [100 * metrics.best_constant(truth[:, i], r.classes)[1] for i, r in enumerate(schema.RATINGS)]
    # On all of LIDC-IDRI: readers 88.5 and 83.4 %, constants 89.6 and 71.5 %.
    assert np.mean(readers) == pytest.approx(88.66, abs=0.01)
    assert readers[schema.MALIGNANCY] == pytest.approx(83.57, abs=0.01)
    assert np.mean(constants) == pytest.approx(89.6, abs=1)
    assert constants[schema.MALIGNANCY] == pytest.approx(71.5, abs=2)
