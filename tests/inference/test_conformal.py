import numpy as np
import pytest

from pnsamp_jax.data import schema
from pnsamp_jax.inference import conformal

ORDINAL = schema.RATING_NAMES.index("sphericity")
NOMINAL = schema.RATING_NAMES.index("calcification")


def random_probabilities(random, count):
    p = random.dirichlet(np.full(6, 0.7), (count, 9)) * schema.CLASS_EXISTS
    return p / p.sum(axis=-1, keepdims=True)


def draw(random, p):
    """Draw a class from 1 for each of (..., K) probabilities."""
    return 1 + (p.cumsum(axis=-1) < random.random((*p.shape[:-1], 1))).sum(axis=-1)


def test_a_set_grows_by_the_likelier_neighbour():
    p = np.array([[0.05, 0.3, 0.05, 0.35, 0.25]])
    # 4, then 5 (0.25 against 0.05), then 3, 2 and 1, the only neighbours left
    np.testing.assert_allclose(conformal.mass_before(p), [[0.95, 0.65, 0.60, 0.0, 0.35]])


def test_a_nominal_set_grows_by_the_likeliest_class():
    p = np.array([[0.05, 0.3, 0.06, 0.34, 0.25]])
    np.testing.assert_allclose(conformal.mass_before(p, nominal=True), [[0.95, 0.34, 0.89, 0.0, 0.64]])


def test_the_quantile_is_that_of_the_textbook_if_each_patient_has_one_nodule():
    scores = np.random.default_rng(0).permutation(19) / 19
    # the ceil(0.9 * 20) = 18th smallest of 19
    assert conformal.patient_quantile(scores, np.arange(19), 0.9) == pytest.approx(17 / 19)


def test_nine_patients_are_needed_for_ninety_per_cent():
    assert conformal.patient_quantile(np.arange(9.0), np.arange(9), 0.9) == 8
    assert conformal.patient_quantile(np.arange(8.0), np.arange(8), 0.9) == np.inf


def test_a_patient_with_many_nodules_counts_once():
    scores = np.concatenate([np.arange(9.0), np.full(90, 100.0)])
    patients = np.concatenate([np.arange(9), np.full(90, 9)])
    assert conformal.patient_quantile(scores, patients, 0.8) == 8  # 9 of 11 patients
    assert conformal.patient_quantile(scores, patients, 0.9) == 100


def test_coverage_holds_for_new_patients_and_for_each_group_of_malignancy():
    random = np.random.default_rng(1)
    covered = np.zeros((200, 2, 3))
    for trial in range(len(covered)):
        p = random_probabilities(random, 400)
        truth = draw(random, p)
        patients = np.repeat(np.arange(200), 2)
        limits = conformal.fit_limits(p[:200], truth[:200], patients[:200])
        sets = conformal.class_sets(p[200:], limits)
        own = truth[200:, schema.MALIGNANCY]
        hit = np.take_along_axis(sets[:, :, schema.MALIGNANCY], own[None, :, None] - 1, axis=-1)[..., 0]
        groups = [np.isin(own, group) for group in ((1, 2), (3,), (4, 5))]
        covered[trial] = [[level[group].mean() for group in groups] for level in hit]
    mean = covered.mean(axis=0)  # the standard error of a mean over 200 trials is below 0.006
    assert (mean[0] > 0.8 - 0.02).all() and (mean[1] > 0.9 - 0.02).all()
    assert (mean[0] < 0.95).all(), "sets that hold everything would have any coverage"


def test_a_rating_without_enough_patients_has_all_classes_in_its_set():
    random = np.random.default_rng(2)
    p = random_probabilities(random, 6)
    limits = conformal.fit_limits(p, draw(random, p), np.arange(6))
    sets = conformal.class_sets(p, limits)
    assert (sets[1] == schema.CLASS_EXISTS).all()


def test_ordinal_sets_have_no_gaps_and_nominal_ones_may():
    p = np.zeros((1, 9, 6))
    p[0, :, 0], p[0, :, 3] = 0.55, 0.45
    limits = np.zeros((9, 6))
    limits[:, [0, 3]] = 0.99
    sets = conformal.class_sets(p, limits)[0]
    assert sets[ORDINAL].tolist() == [True, True, True, True, False, False]
    assert np.flatnonzero(sets[NOMINAL]).tolist() == [0, 3]


def test_networks_vote():
    votes = np.zeros((3, 1, 9, 6), bool)
    votes[0, ..., [1, 2]] = True
    votes[1, ..., [2, 3]] = True
    votes[2, ..., 3] = True
    merged = conformal.merge(votes)[0]
    assert np.flatnonzero(merged[ORDINAL]).tolist() == [2, 3]


def test_networks_that_share_no_class_still_give_a_set():
    votes = np.zeros((3, 1, 9, 6), bool)
    for network, k in enumerate((0, 2, 4)):
        votes[network, ..., k] = True
    assert np.flatnonzero(conformal.merge(votes)[0, ORDINAL]).tolist() == [0, 1, 2, 3, 4]


def test_a_limit_of_1_puts_every_class_into_the_set_whatever_the_rounding():
    random = np.random.default_rng(0)
    logits = np.where(schema.CLASS_EXISTS, random.normal(0, 8, (4000, 9, 6)), -np.inf).astype(np.float32)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    assert probabilities.dtype == np.float32 and (probabilities.cumsum(axis=-1) > 1).any()  # as rounding goes
    sets = conformal.class_sets(probabilities, np.where(schema.CLASS_EXISTS, 1.0, 0.0))
    assert (sets == schema.CLASS_EXISTS).all()
