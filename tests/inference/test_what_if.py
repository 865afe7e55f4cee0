"""Moving the ratings of a nodule."""

import numpy as np
import pytest

from pnsamp_jax.data import schema
from pnsamp_jax.inference.what_if import WhatIf, class_shares, fit_class_terms

SPICULATION, CALCIFICATION = map(schema.RATING_NAMES.index, ("spiculation", "calcification"))


@pytest.fixture
def what_if():
    """Return a nodule of spiculation 2.25 and absent calcification (6), rated by two networks and four flips."""
    random = np.random.default_rng(0)
    own = np.full(8, 3.0)
    own[[SPICULATION, CALCIFICATION]] = 2.25, 6
    return WhatIf(random.normal(size=(2, 4, 5)), random.normal(size=(2, 8, 6, 5)), own)


def softmax(logits):
    odds = np.exp(logits)
    return odds / odds.sum(axis=-1, keepdims=True)


def moved(what_if, change):
    """Return the mean probabilities after a change (2, 5) of a term in each network."""
    return softmax(what_if.logits + change[:, None]).mean(axis=(0, 1))


def test_moving_a_rating_moves_its_term_as_the_mean_terms_differ(what_if):
    of_class = what_if.class_terms[:, SPICULATION].swapaxes(0, 1)  # (6, 2, 5)
    own = 0.75 * of_class[1] + 0.25 * of_class[2]  # at 2.25
    for rating, there in ((5, of_class[4]), (1.5, (of_class[0] + of_class[1]) / 2), (2.25, own)):
        found = what_if.probabilities(spiculation=rating)
        np.testing.assert_allclose(found, moved(what_if, there - own), rtol=1e-12)


def test_a_kind_without_an_order_moves_from_the_likeliest_class(what_if):
    of_class = what_if.class_terms[:, CALCIFICATION]
    expected = moved(what_if, of_class[:, 2] - of_class[:, 5])
    np.testing.assert_allclose(what_if.probabilities(calcification=3), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"calcification: cannot be moved to 2.5"):
        what_if.probabilities(calcification=2.5)


def test_several_ratings_move_together(what_if):
    both = what_if.probabilities(spiculation=5, calcification=3)
    change = what_if.class_terms[:, CALCIFICATION, 2] - what_if.class_terms[:, CALCIFICATION, 5]
    one_by_one = what_if._replace(logits=what_if.logits + change[:, None])
    np.testing.assert_allclose(both, one_by_one.probabilities(spiculation=5), rtol=1e-12)


def test_only_classes_that_every_network_knows_are_offered(what_if):
    what_if.class_terms[0, SPICULATION, [2, 4, 5]] = np.nan
    what_if.class_terms[1, SPICULATION, [0, 5]] = np.nan
    assert what_if.classes("spiculation").tolist() == [2, 4]
    of_class = what_if.class_terms[:, SPICULATION]
    expected = moved(what_if, (of_class[:, 3] - of_class[:, 1]) * (3 - 2.25) / 2)
    np.testing.assert_allclose(what_if.probabilities(spiculation=3), expected, rtol=1e-12)
    # Nothing is known beyond the classes of the validation nodules.
    np.testing.assert_array_equal(what_if.probabilities(spiculation=5), what_if.probabilities(spiculation=4))


def test_an_attribute_of_one_known_class_or_of_an_unknown_kind_cannot_be_moved(what_if):
    what_if.class_terms[0, SPICULATION, 1:] = np.nan
    what_if.class_terms[0, CALCIFICATION, 5] = np.nan
    for name in ("spiculation", "calcification"):
        assert not len(what_if.classes(name))
        with pytest.raises(ValueError, match=f"{name}: cannot be moved"):
            what_if.probabilities(**{name: 3})


def test_a_rating_between_two_classes_shares_in_both():
    shares = class_shares(np.array([1.0, 2.5, 4.9, 0.2]), np.array([1, 2, 4]))
    np.testing.assert_allclose(shares, [[1, 0, 0], [0, 0.75, 0.25], [0, 0, 1], [1, 0, 0]])


def test_terms_that_are_linear_between_classes_are_found():
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(5), (400, 9))
    probabilities[:, :, :3] /= 50  # hardly any nodule is rated below 3
    probabilities = np.pad(probabilities / probabilities.sum(axis=-1, keepdims=True), ((0, 0), (0, 0), (0, 1)))
    rating = (probabilities[:, SPICULATION] @ np.arange(1, 7)).clip(4)
    terms = random.normal(size=(400, 8, 5))
    slope = random.normal(size=5)
    terms[:, SPICULATION] = 1 + rating[:, None] * slope
    found = fit_class_terms(terms, probabilities)[SPICULATION]
    np.testing.assert_allclose(found[3:5], 1 + np.outer([4, 5], slope), rtol=1e-4)
    assert np.isnan(found[[0, 1, 5]]).all()


def test_terms_of_a_kind_without_an_order_are_means_over_the_nodules_that_are_rated_so():
    random = np.random.default_rng(2)
    terms, probabilities = random.normal(size=(20, 8, 5)), random.dirichlet(np.ones(6), (20, 9))
    probabilities[:2, CALCIFICATION] = np.eye(6)[5]
    probabilities[2:, CALCIFICATION, 5] = 0  # only two nodules have this class
    found = fit_class_terms(terms, probabilities)[CALCIFICATION]
    assert np.isnan(found[5]).all()
    chosen = probabilities[:, CALCIFICATION].argmax(axis=1) == 1
    assert chosen.sum() >= 3
    np.testing.assert_allclose(found[1], terms[chosen, CALCIFICATION].mean(axis=0), rtol=1e-5)
