"""The label policy: how several readers' ratings become one, and which nodules belong to which cohort."""

import numpy as np
import pytest

from pnsamp_jax.data import cohort, lidc_database, schema
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
    assert cohort.malignancy_sign(rating_counts, name).tolist() == signs
    assert cohort.members(rating_counts, name).tolist() == inside


def test_the_least_number_of_readers_who_rated_malignancy():
    rating_counts = np.stack([counts_of(1), counts_of(1, 0), counts_of(5, 4), counts_of(5, 5, 4, 0)])
    members = [cohort.members(rating_counts, "rounded_ne_3", least).tolist() for least in (1, 2, 3, 4)]
    assert [sum(inside) for inside in members] == [4, 2, 1, 0]
    assert members[1] == [False, False, True, True]


def test_an_unknown_cohort_is_reported():
    with pytest.raises(UserError, match="config.data.cohort: no cohort 'some'.*rounded_ne_3"):
        cohort.malignancy_sign(counts_of(1)[None], "some")


# Nominal ratings

STRUCTURE, CALCIFICATION = 1, 2


def label_of(nominal, index, *classes):
    """Return the label of one rating that readers gave these classes."""
    ratings = np.ones((len(classes), 9), int)
    ratings[:, index] = classes
    return cohort.labels(cohort.count_ratings(ratings), nominal)[index]


@pytest.mark.parametrize(
    ("index", "classes", "modal", "mean"),
    [
        (CALCIFICATION, (3, 6, 6), 6, 5),  # no reader saw a central calcification, 5
        (CALCIFICATION, (3, 3, 3, 6), 3, 4),
        (CALCIFICATION, (1, 5, 5, 6), 5, 4),
        (CALCIFICATION, (6,), 6, 6),
        (CALCIFICATION, (3, 6), 6, 5),  # ties: 6 is the commonest, then 3, 5, 4, 2, 1
        (CALCIFICATION, (3, 3, 5, 5), 3, 4),
        (CALCIFICATION, (4, 5), 5, 5),
        (CALCIFICATION, (1, 2), 2, 2),
        (CALCIFICATION, (4, 2, 1), 4, 2),
        (STRUCTURE, (1, 4), 1, 3),  # 1 is the commonest, then 4, 2, 3
        (STRUCTURE, (2, 4), 4, 3),
        (STRUCTURE, (4, 4, 1), 4, 3),
        (CALCIFICATION, (0, 0), 0, 0),
    ],
)
def test_nominal_ratings_have_the_class_of_most_readers(index, classes, modal, mean):
    assert label_of("modal", index, *classes) == modal
    assert label_of("mean", index, *classes) == mean


def test_ordinal_ratings_are_rounded_means_under_either_rule():
    rating_counts = np.random.default_rng(0).integers(0, 4, (50, 9, 6)).astype(np.uint8) * schema.CLASS_EXISTS
    rounded = cohort.rounded_rating(rating_counts)
    modal = cohort.labels(rating_counts, "modal")
    nominal = np.isin(np.arange(9), [STRUCTURE, CALCIFICATION])
    np.testing.assert_array_equal(cohort.labels(rating_counts, "mean"), rounded)
    np.testing.assert_array_equal(modal[:, ~nominal], rounded[:, ~nominal])
    assert (modal[:, nominal] != rounded[:, nominal]).any()


def test_one_reader_more_outweighs_every_tie():
    for index, classes in ((STRUCTURE, 4), (CALCIFICATION, 6)):
        for chosen in range(1, classes + 1):
            assert label_of("modal", index, *range(1, classes + 1), chosen) == chosen


def test_ties_go_to_the_class_that_the_readers_of_the_archive_chose_most_often():
    ratings = np.array([reading.ratings for scan in lidc_database.read_scans() for reading in scan.annotations])
    for index, classes in ((STRUCTURE, 4), (CALCIFICATION, 6)):
        votes = np.bincount(ratings[:, index], minlength=classes + 1)[1 : classes + 1]
        for one in range(1, classes + 1):
            for other in range(1, one):
                commoner = one if votes[one - 1] > votes[other - 1] else other
                assert label_of("modal", index, one, other) == commoner


def test_counts_by_hand_with_nodules_that_are_neither():
    ratings = [[1], [2, 2], [3], [4], [5, 4], [5], [2, 4], [0]]  # of malignancy, by nodule and reader
    nodules = []
    for index, malignancy in enumerate(ratings):
        by_reader = np.full((len(malignancy), 9), 1)
        by_reader[:, schema.MALIGNANCY] = malignancy
        nodules.append(cohort.Nodule(f"p_n{index:02d}", "p", by_reader))
    for name in cohort.COHORTS:  # "all" has the nodule that nobody rated and those rated 3 too
        assert cohort.counts(nodules, name) == {"benign": 2, "malignant": 3}
    assert cohort.counts(nodules, "all", min_readers=2) == {"benign": 1, "malignant": 1}
