"""Moving the ratings of a nodule."""

import numpy as np
import pytest

from pnsamp_jax.inference.what_if import ATTRIBUTES, WhatIf, fit_class_terms

SPICULATION, CALCIFICATION = ATTRIBUTES.index("spiculation"), ATTRIBUTES.index("calcification")


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


def test_mean_terms_are_those_of_the_nodules_that_are_rated_so():
    random = np.random.default_rng(1)
    terms, probabilities = random.normal(size=(20, 8, 5)), random.dirichlet(np.ones(6), (20, 9))
    rated = probabilities[:, 3].argmax(axis=1)
    rated[:2], probabilities[:2, 3] = 5, np.eye(6)[5]
    probabilities[2:, 3, 5] = 0  # only two nodules have this class
    found = fit_class_terms(terms, probabilities)
    assert found.shape == (8, 6, 5) and np.isnan(found[3, 5]).all()
    chosen = probabilities[:, 3].argmax(axis=1) == 1
    assert chosen.sum() >= 3
    np.testing.assert_allclose(found[3, 1], terms[chosen, 3].mean(axis=0), rtol=1e-6)
