"""The label policy: how several readers' ratings become one, and which nodules belong to which cohort."""

import numpy as np
import pytest

from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError


def counts_of(*malignancies):
    """Return the (9, 6) rating counts of readers with these ratings of malignancy."""
    ratings = np.ones((len(malignancies), 9), int)
    ratings[:, schema.MALIGNANCY] = malignancies
    return cohort.count_ratings(ratings)


@pytest.mark.parametrize(
    ("readers", "mean", "rounded", "median"),
    [
        ((2, 3), 2.5, 3, 2.5),  # rounded half up; half to even would give 2
        ((3, 4), 3.5, 4, 3.5),
        ((1, 2), 1.5, 2, 1.5),
        ((1, 1, 4, 5), 2.75, 3, 2.5),
        ((2, 2, 3, 5), 3.0, 3, 2.5),
        ((1, 5, 5), 11 / 3, 4, 5.0),
        ((3,), 3.0, 3, 3.0),
    ],
)
def test_mean_rounded_and_median_rating(readers, mean, rounded, median):
    rating_counts = counts_of(*readers)[schema.MALIGNANCY]
    assert cohort.mean_rating(rating_counts) == pytest.approx(mean)
    assert cohort.rounded_rating(rating_counts) == rounded
    assert cohort.median_rating(rating_counts) == median


def test_a_missing_rating_does_not_affect_the_others():
    ratings = np.array([[4, 5, 6, 3, 3, 3, 3, 3, 5], [4, 1, 6, 3, 3, 3, 3, 3, 0]])
    rating_counts = cohort.count_ratings(ratings)
    assert rating_counts.sum(axis=-1).tolist() == [2, 1, 2, 2, 2, 2, 2, 2, 1]
    assert cohort.rounded_rating(rating_counts).tolist() == [4, 1, 6, 3, 3, 3, 3, 3, 5]
    unrated = cohort.count_ratings(np.zeros((1, 9), int))
    assert np.isnan(cohort.mean_rating(unrated)).all() and np.isnan(cohort.median_rating(unrated)).all()
    assert (cohort.rounded_rating(unrated) == 0).all()


@pytest.mark.parametrize(
    ("name", "signs", "inside"),
    [
        ("rounded_ne_3", [0, 1, -1, 0, 0], [False, True, True, False, False]),
        ("mean_ne_3", [-1, 1, -1, 0, 0], [True, True, True, False, False]),
        ("median_ne_3", [-1, 1, -1, -1, 0], [True, True, True, True, False]),
        ("all", [0, 1, -1, 0, 0], [True, True, True, True, False]),
    ],
)
def test_cohorts_exclude_what_they_summarise_as_three(name, signs, inside):
    rating_counts = np.stack([counts_of(2, 3), counts_of(3, 4), counts_of(2), counts_of(2, 2, 3, 5), counts_of(0)])
    assert cohort.suspicion(rating_counts, name).tolist() == signs
    assert cohort.members(rating_counts, name).tolist() == inside


def test_the_least_number_of_readers_who_rated_malignancy():
    rating_counts = np.stack([counts_of(1), counts_of(1, 0), counts_of(5, 4), counts_of(5, 5, 4, 0)])
    members = [cohort.members(rating_counts, "rounded_ne_3", least).tolist() for least in (1, 2, 3, 4)]
    assert [sum(inside) for inside in members] == [4, 2, 1, 0]
    assert members[1] == [False, False, True, True]


def test_an_unknown_cohort_is_reported():
    with pytest.raises(UserError, match="config.data.cohort: no cohort 'some'.*rounded_ne_3"):
        cohort.suspicion(counts_of(1)[None], "some")
