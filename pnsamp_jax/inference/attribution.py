"""Attribution: which attributes, and which voxels, raise a nodule's expected malignancy rating."""

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pnsamp_jax import metrics, steps, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.inference.predictions import Predictions
from pnsamp_jax.inference.what_if import WhatIf
from pnsamp_jax.models.pn_samp import RatingHeads
from pnsamp_jax.models.pn_samp_plus import AdditiveHeads, PNSAMPPlus
from pnsamp_jax.task import Windows

if TYPE_CHECKING:
    from pnsamp_jax.inference.ensemble import Network, Networks

Array = jax.Array

GAUSS_POINTS = 16  # of the path integral; the integrand is smooth, so the sum is exact to rounding
TINY = 1e-30  # a probability that float32 can still hold
LUNG_HU = -850.0  # aerated lung, with which the saliency compares each voxel


@jax.jit
def contributions(heads: dict, features: Array, average: Array, temperature: Array) -> Array:
    """Compute by how much each input of the malignancy head raises the expected malignancy rating.

    That is the expected rating minus the one obtained when this input alone is replaced by that of an average nodule.
    What two inputs contribute together is credited to neither, so the contributions need not add up.

    Args:
      heads: parameters of `RatingHeads`.
      features: (B, F) of the nodules, as in `Outputs.features`.
      average: (F,) features of an average nodule.
      temperature: () of malignancy, see `inference.calibration`.

    Returns:
      (B, 9) in classes of malignancy: of the eight attributes and, last, of the fused features, that is, of what the
      head reads from the image directly.
    """

    def apply(method: str, *args: object) -> Array:
        output = RatingHeads().apply({"params": heads}, *args, method=method)
        assert isinstance(output, Array)
        return output

    def head_inputs(features: Array) -> list[Array]:
        fused = apply("fuse", features)
        return [*(apply("attribute_features", rating.name, fused) for rating in schema.ATTRIBUTES), fused]

    # Ten variants of each nodule: as it is, then with one of its nine inputs replaced.
    inputs = len(schema.ATTRIBUTES) + 1
    replaced = jnp.tile(jnp.eye(1 + inputs, inputs, -1, dtype=bool), (len(features), 1))
    pairs = zip(head_inputs(jnp.repeat(features, 1 + inputs, axis=0)), head_inputs(average), strict=True)
    *attributes, fused = [
        jnp.where(replaced[:, i, None], of_average, own) for i, (own, of_average) in enumerate(pairs)
    ]
    logits = apply("malignancy_logits", fused, attributes)
    expected = _expected_rating(logits, temperature).reshape(len(features), 1 + inputs)
    return expected[:, :1] - expected[:, 1:]


@jax.jit
def additive_contributions(heads: dict, features: Array, average: Array, temperature: Array) -> Array:
    """Compute by how much each attribute raises the expected malignancy rating, where its logits are a sum over them.

    The terms move on a straight line from those of an average nodule to the nodule's own, and each attribute is
    credited with its share of every step ("integrated gradients", Sundararajan et al., ICML 2017). So the
    contributions add up to the difference between the two expected ratings.

    Args:
      heads: parameters of `AdditiveHeads`.
      features: (B, F) of the nodules, as in `Outputs.features`.
      average: (F,) features of an average nodule.
      temperature: () of malignancy, see `inference.calibration`.

    Returns:
      (B, 9) in classes of malignancy: of the eight attributes and, last, 0 for what is read from the image directly.
    """
    own, start = malignancy_terms(heads, features), malignancy_terms(heads, average)
    change = (own - start)[:, :-1]  # (B, 8, 5); the bias is the same for all nodules

    def slope(position: Array) -> Array:
        logits = start.sum(axis=-2) + position * change.sum(axis=-2)
        gradient = jax.grad(lambda z: _expected_rating(z, temperature).sum())(logits)
        return jnp.einsum("bk,bak->ba", gradient, change, precision="highest")

    positions, weights = np.polynomial.legendre.leggauss(GAUSS_POINTS)
    slopes = jax.lax.map(slope, jnp.asarray((positions + 1) / 2, jnp.float32))
    found = jnp.tensordot(jnp.asarray(weights / 2, jnp.float32), slopes, axes=1)
    return jnp.pad(found, ((0, 0), (0, 1)))


@jax.jit
def malignancy_terms(heads: dict, features: Array) -> Array:
    """Compute what the logits of malignancy are the sum of, where they are a sum over the attributes.

    Args:
      heads: parameters of `AdditiveHeads`.
      features: (..., F) of nodules, as in `Outputs.features`.

    Returns:
      (..., 9, 5): what each of the eight attributes adds and, last, the bias.
    """
    terms, bias = AdditiveHeads().apply({"params": heads}, features, method="malignancy_terms")
    last = jnp.broadcast_to(jnp.asarray(bias), (*terms.shape[:-2], 1, terms.shape[-1]))
    return jnp.concatenate([terms, last], axis=-2)


def _expected_rating(logits: Array, temperature: Array) -> Array:
    """Compute the expected class of a rating: logits (..., K) -> (...)."""
    return nn.softmax(logits / temperature) @ jnp.arange(1.0, logits.shape[-1] + 1)


def mean_contributions(networks: "Networks", predictions: Predictions) -> np.ndarray:
    """Average the contributions of each input of the malignancy head over networks and flips.

    Args:
      networks: tested, so that their mean features are known.
      predictions: of these networks for N nodules.

    Returns:
      (N, 9) float32.
    """
    assert predictions.features is not None, "a model without ratings has no features"
    contributions_of = additive_contributions if is_additive(networks) else contributions
    found = []
    for network, features_of_flips in zip(networks.members.values(), predictions.features, strict=True):
        assert network.mean_features is not None, "an untested network has no mean features"
        heads, temperature = network.variables["params"]["heads"], network.temperatures[schema.MALIGNANCY]
        found += [
            contributions_of(heads, features, network.mean_features, temperature) for features in features_of_flips
        ]
    return np.mean(found, axis=0)


def is_additive(networks: "Networks") -> bool:
    """Return whether the malignancy is a sum of one term for each attribute."""
    return isinstance(networks.model, PNSAMPPlus)


def average_malignancy(networks: "Networks") -> float | None:
    """Compute the expected malignancy of an average nodule, the mean over tested networks.

    With the `mean_contributions` of a nodule, it adds up to the nodule's own expected malignancy.

    Returns:
      None where contributions do not add up, because the malignancy is no sum over the attributes.
    """
    if not is_additive(networks):
        return None
    found = []
    for network in networks.members.values():
        assert network.mean_features is not None, "an untested network has no mean features"
        terms = malignancy_terms(network.variables["params"]["heads"], network.mean_features)
        found.append(_expected_rating(terms.sum(axis=0), network.temperatures[schema.MALIGNANCY]))
    return float(np.mean(found))


def attribute_terms(networks: "Networks", features: np.ndarray | None) -> np.ndarray | None:
    """Compute what each attribute adds to the logits of malignancy in a single network.

    Args:
      networks: of one member.
      features: (N, F) of nodules; None for a model without.

    Returns:
      (N, 8, 5), or None if the malignancy is no sum over the attributes.
    """
    if not is_additive(networks) or features is None:
        return None
    [network] = networks.members.values()
    return np.asarray(malignancy_terms(network.variables["params"]["heads"], features))[:, :-1]


def what_ifs(networks: "Networks", predictions: Predictions) -> list[WhatIf | None]:
    """Return for each nodule what moving its ratings needs; None where a network lacks its `class_terms`."""
    assert predictions.probabilities is not None, "a model without ratings has no probabilities"
    nothing: list[WhatIf | None] = [None] * predictions.probabilities.shape[2]
    if not is_additive(networks):
        return nothing
    members = networks.members.values()
    class_terms = [network.class_terms for network in members if network.class_terms is not None]
    if len(class_terms) < len(members):
        return nothing
    temperatures = np.array([network.temperatures[schema.MALIGNANCY] for network in members])
    by_class = np.stack(class_terms) / temperatures[:, None, None, None]
    malignancy = predictions.probabilities[..., schema.MALIGNANCY, : by_class.shape[-1]]
    logits = np.log(np.maximum(malignancy, TINY))  # up to a constant, which a softmax does not see
    p = predictions.mean_probabilities[:, : schema.MALIGNANCY]
    own = np.where(schema.NOMINAL[: schema.MALIGNANCY], metrics.arg_max(p), metrics.expected(p))
    return [WhatIf(logits[:, :, i], by_class, own[i]) for i in range(len(own))]


@partial(jax.jit, static_argnums=(0, 1))
def malignancy_gradient(model: nn.Module, windows: Windows, network: "Network", images: Array) -> Array:
    """Compute by how much each voxel raises the expected malignancy compared with lung in its place.

    This is a first-order estimate: the gradient with respect to the model's input, times the input's difference from
    that of lung.

    Args:
      model: that predicts ratings.
      windows: of the model's input channels.
      network: trained.
      images: (B, S, S, S) HU, S the model's patch size.

    Returns:
      (B, S, S, S) float32 in classes of malignancy.
    """
    inputs = transforms.window(images, windows)

    def total_expected(inputs: Array) -> Array:
        ratings = steps.apply_model(model, network.variables, inputs).ratings
        assert ratings is not None, "a model without ratings has no malignancy"
        return _expected_rating(ratings[:, schema.MALIGNANCY], network.temperatures[schema.MALIGNANCY]).sum()

    lung = transforms.window(jnp.array(LUNG_HU), windows)
    return (jax.grad(total_expected)(inputs) * (inputs - lung)).sum(axis=-1)


def saliency(networks: "Networks", images: np.ndarray) -> np.ndarray:
    """Average the `malignancy_gradient` over the networks: (N, S, S, S) HU -> (N, S, S, S) float32."""
    gradients = [
        malignancy_gradient(networks.model, networks.windows, network, images) for network in networks.members.values()
    ]
    return np.mean(gradients, axis=0)
