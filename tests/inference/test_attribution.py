"""pnsamp_jax.inference.attribution: contributions and saliency are the differences that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import made_up_run, tiny_plus_config

from pnsamp_jax.data import schema
from pnsamp_jax.inference import attribution, ensemble
from pnsamp_jax.models.pn_samp import RatingHeads
from pnsamp_jax.models.pn_samp_plus import AdditiveHeads

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def networks(tmp_path_factory, quick_compilation):
    """Return the networks of two folds of a run."""
    return ensemble.load(made_up_run(tmp_path_factory.mktemp("run"), (0, 2)))


@pytest.fixture(scope="module")
def additive(tmp_path_factory, quick_compilation):
    """Return the networks of two folds of a run whose malignancy is a sum over the attributes."""
    return ensemble.load(made_up_run(tmp_path_factory.mktemp("additive"), (0, 2), config=tiny_plus_config()))


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(-1000, 400, (3, 16, 16, 16)).astype(np.int16)


# Contributions


@pytest.fixture(scope="module")
def rated():
    """Return parameters of heads of the usual widths, features of three nodules and of an average one."""
    random = np.random.default_rng(1)
    features, average = random.normal(size=(3, 5)), random.normal(size=5)
    shapes = jax.eval_shape(lambda x: RatingHeads().init(jax.random.key(0), x, train=False), features)["params"]
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return params, jnp.asarray(features, jnp.float32), jnp.asarray(average, jnp.float32)


def expected_malignancy(params, features, temperature):
    """Return the expected malignancy that the heads predict from features."""
    logits = RatingHeads().apply({"params": params}, features, train=False)[:, schema.MALIGNANCY]
    return jax.nn.softmax(logits / temperature) @ jnp.arange(1.0, 7.0)


def test_no_input_of_an_average_nodule_contributes(rated):
    params, features, _ = rated
    parts = attribution.contributions(params, features, features[0], 1.0)
    assert parts.shape == (3, 9)
    np.testing.assert_allclose(parts[0], 0, atol=1e-6)
    assert np.abs(parts[1:]).max() > 1e-3


@pytest.mark.parametrize("index", [0, 3, 7])
def test_a_contribution_is_what_is_lost_with_the_average_nodules_features(rated, index):
    params, features, average = rated
    name = f"{schema.RATING_NAMES[index]}_features"
    fused = jax.nn.elu(average @ params["fusion"]["kernel"] + params["fusion"]["bias"])
    constant = fused @ params[name]["kernel"] + params[name]["bias"]
    replaced = params | {name: {"kernel": jnp.zeros_like(params[name]["kernel"]), "bias": constant}}
    lost = expected_malignancy(params, features, 1.7) - expected_malignancy(replaced, features, 1.7)
    parts = attribution.contributions(params, features, average, 1.7)
    np.testing.assert_allclose(parts[:, index], lost, atol=1e-5)


def test_the_image_contributes_separately_from_the_attributes(rated):
    params, features, average = rated
    kernel = params["malignancy_features"]["kernel"].copy()
    kernel[:192] = 0  # malignancy depends on the attributes alone
    blind = params | {"malignancy_features": params["malignancy_features"] | {"kernel": kernel}}
    parts = attribution.contributions(blind, features, average, 1.0)
    np.testing.assert_allclose(parts[:, 8], 0, atol=1e-6)
    assert np.abs(attribution.contributions(params, features, average, 1.0)[:, 8]).min() > 1e-3


def test_contributions_are_in_classes_of_the_calibrated_rating():
    """Malignancy is class 4 or 5 at even odds for an average nodule, and e^2 to 1 for this one's subtlety.

    All that the heads read is the subtlety: feature, fused value and attribute are 1 where ELU changes nothing.
    """
    shapes = jax.eval_shape(lambda x: RatingHeads().init(jax.random.key(0), x, train=False), jnp.zeros((1, 1)))[
        "params"
    ]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for layer in ("fusion", "subtlety_features"):
        params[layer]["kernel"][0, 0] = 1.0
    params["malignancy_features"]["kernel"][192, 0] = 1.0  # behind the 192 fused features comes the subtlety
    params["malignancy"]["kernel"][0, 4] = 2.0
    params["malignancy"]["bias"][:] = [-1e3, -1e3, -1e3, 0.0, 0.0]
    for temperature, odds in ((1.0, np.exp(2.0)), (2.0, np.exp(1.0)), (0.5, np.exp(4.0))):
        parts = attribution.contributions(params, jnp.ones((1, 1)), jnp.zeros(1), temperature)
        np.testing.assert_allclose(parts[0, 0], odds / (1 + odds) - 0.5, rtol=1e-5)
        np.testing.assert_allclose(parts[0, 1:], 0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_mean_contributions_and_saliency_are_calibrated(networks, patches, temperature):
    members = networks.members.items()
    hot = {name: member._replace(temperatures=np.full(9, temperature, np.float32)) for name, member in members}
    networks = networks._replace(members=hot)
    predictions = ensemble.predict(networks, patches, flips=False)
    parts = [
        attribution.contributions(member.variables["params"]["heads"], features[0], member.mean_features, temperature)
        for member, features in zip(hot.values(), predictions.features, strict=True)
    ]
    found = attribution.mean_contributions(networks, predictions)
    np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-6)
    assert np.abs(found).max() > 1e-3


def test_mean_contributions_are_means_over_networks_and_flips(networks, patches):
    predictions = ensemble.predict(networks, patches)
    parts = [
        attribution.contributions(
            network.variables["params"]["heads"],
            features,
            network.mean_features,
            network.temperatures[schema.MALIGNANCY],
        )
        for network, features_of_flips in zip(networks.members.values(), predictions.features, strict=True)
        for features in features_of_flips
    ]
    assert len(parts) == 2 * 8 and np.ptp(parts, axis=0).max() > 1e-3
    np.testing.assert_allclose(
        attribution.mean_contributions(networks, predictions), np.mean(parts, axis=0), atol=1e-6
    )


def test_terms_and_bias_add_up_to_the_logits(additive, patches):
    network = additive.members["fold_0"]
    heads = network.variables["params"]["heads"]
    features = ensemble.predict(additive, patches, flips=False).features[0, 0]
    logits = AdditiveHeads().apply({"params": heads}, features, train=False)[:, schema.MALIGNANCY, :5]
    terms = attribution.malignancy_terms(heads, features)
    assert terms.shape == (3, 9, 5)
    # Sums of nine float32 in another order.
    np.testing.assert_allclose(terms.sum(axis=1), logits, rtol=1e-5, atol=1e-5 * np.abs(terms).max())


def test_contributions_lead_from_the_average_nodule_to_the_prediction(additive, networks, patches):
    predictions = ensemble.predict(additive, patches)
    expected = predictions.mean_probabilities[:, schema.MALIGNANCY] @ np.arange(1, 7)
    sums = attribution.mean_contributions(additive, predictions).sum(axis=1)
    # The sum of a path integral over random networks, whose logits are far larger than those of trained ones.
    np.testing.assert_allclose(attribution.average_malignancy(additive) + sums, expected, atol=2e-3)
    assert np.abs(sums).max() > 0.1
    assert attribution.average_malignancy(networks) is None  # where the image speaks directly


def test_an_unmoved_what_if_is_the_prediction(additive, patches):
    predictions = ensemble.predict(additive, patches)
    found = attribution.what_ifs(additive, predictions)
    p = predictions.mean_probabilities
    for i, what_if in enumerate(found):
        assert what_if.logits.shape == (2, 8, 5)
        np.testing.assert_allclose(what_if.probabilities(), p[i, schema.MALIGNANCY, :5], atol=1e-6)
        own = dict(zip(schema.ATTRIBUTE_NAMES, what_if.own, strict=True))
        movable = {name: rating for name, rating in own.items() if len(what_if.classes(name))}
        assert len(movable) > 2
        np.testing.assert_allclose(what_if.probabilities(**movable), what_if.probabilities(), atol=1e-12)
        assert own["spiculation"] == pytest.approx(p[i, 6] @ np.arange(1, 7))
        assert own["calcification"] == 1 + p[i, 2].argmax()


def test_ratings_cannot_be_moved_where_a_network_lacks_its_mean_terms(additive, networks, patches):
    older = {"fold_2": additive.members["fold_2"]._replace(class_terms=None)}
    for some in (additive._replace(members={**additive.members, **older}), networks):
        assert attribution.what_ifs(some, ensemble.predict(some, patches, flips=False)) == [None] * 3


def test_terms_of_the_attributes_are_those_of_an_additive_network(additive, networks):
    features = np.random.default_rng(3).normal(size=(4, len(additive.members["fold_0"].mean_features)))
    terms = attribution.malignancy_terms(additive.members["fold_0"].variables["params"]["heads"], features)
    found = attribution.attribute_terms(additive.member(0), features)
    np.testing.assert_array_equal(found, np.asarray(terms)[:, :8])
    assert attribution.attribute_terms(networks.member(0), features) is None
    assert attribution.attribute_terms(additive.member(0), None) is None


# Saliency


def test_the_saliency_is_the_derivative_towards_lung(networks, patches):
    network, step = networks.members["fold_0"], 1e-2
    one_network = networks._replace(members={"fold_0": network})
    images = patches[:1].clip(-700, -300).astype(np.float32)  # where neither window clips

    def expected(images):
        probabilities = ensemble.predict(one_network, images, flips=False).mean_probabilities
        return probabilities[:, schema.MALIGNANCY].astype(np.float64) @ np.arange(1, 7)

    towards = step * (images - attribution.LUNG_HU)
    slope = (expected(images + towards) - expected(images - towards)) / (2 * step)
    # Central differences in float32, through maxima: they agree within a few hundredths.
    assert attribution.saliency(one_network, images).sum() == pytest.approx(slope[0], rel=0.05, abs=2e-3)


def test_the_saliency_is_the_mean_over_networks(networks, patches):
    images = patches[:2].astype(np.float32)
    alone = [attribution.saliency(networks.member(fold), images) for fold in (0, 2)]
    np.testing.assert_allclose(attribution.saliency(networks, images), np.mean(alone, axis=0), atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
