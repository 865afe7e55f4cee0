"""pnsamp_jax.losses: hand-computed values, and the cases that break losses: empty masks, missing ratings, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pnsamp_jax import losses
from pnsamp_jax.data import schema
from pnsamp_jax.models.outputs import ABSENT, Outputs

CUBE = (4, 4, 4)
WEIGHTS = losses.Weights(segmentation=2.0, attributes=0.5, malignancy=3.0)
SURE = 1e4  # a logit whose sigmoid is exactly 0 or 1 in float32


def random_case(batch=3, seed=0):
    """Return the outputs of a model, a mask and targets with some ratings missing."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((batch, *CUBE)) < 0.3).astype(np.float32)
    labels = np.array([[rng.integers(0, rating.classes + 1) for rating in schema.RATINGS] for _ in range(batch)])
    targets = (np.arange(1, 7) == labels[..., None]).astype(np.float32)
    ratings = np.where(schema.CLASS_EXISTS, rng.normal(size=(batch, 9, 6)), ABSENT).astype(np.float32)
    outputs = Outputs(jnp.asarray(rng.normal(size=mask.shape), jnp.float32), jnp.asarray(ratings))
    return outputs, jnp.asarray(mask), jnp.asarray(targets)


# Dice


def test_dice_loss_is_equation_1():
    logits = np.full((1, *CUBE), -SURE, np.float32)
    logits[0, 0, 0, :3] = np.log([0.8 / 0.2, 0.4 / 0.6, 0.5 / 0.5])
    mask = np.zeros((1, *CUBE), np.float32)
    mask[0, 0, 0, :2] = 1
    expected = 1 - (2 * (0.8 + 0.4) + 1) / ((0.64 + 0.16 + 0.25) + 2 + 1)
    np.testing.assert_allclose(losses.dice_loss(logits, mask), [expected], rtol=1e-6)


HALF_CUBE = np.arange(64).reshape(CUBE) < 32


@pytest.mark.parametrize(
    ("predicted", "mask", "expected"),
    [
        pytest.param(HALF_CUBE, HALF_CUBE, 0.0, id="perfect"),
        pytest.param(~HALF_CUBE, HALF_CUBE, 1 - 1 / 65, id="disjoint"),
        pytest.param(np.zeros(CUBE), np.zeros(CUBE), 0.0, id="empty-mask-empty-prediction"),
        pytest.param(np.ones(CUBE), np.zeros(CUBE), 1 - 1 / 65, id="empty-mask-full-prediction"),
        pytest.param(np.zeros(CUBE), HALF_CUBE, 1 - 1 / 33, id="nothing-found"),
        pytest.param(np.ones(CUBE), HALF_CUBE, 1 - 65 / 97, id="everything-marked"),
    ],
)
def test_dice_loss_of_sure_predictions(predicted, mask, expected):
    logits = jnp.asarray(np.where(predicted, SURE, -SURE)[None], jnp.float32)
    loss, gradient = jax.value_and_grad(lambda x: losses.dice_loss(x, mask[None].astype(np.float32)).sum())(logits)
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    assert np.isfinite(gradient).all()


def test_dice_loss_gradient_moves_an_unsure_prediction_towards_the_mask():
    mask = HALF_CUBE[None].astype(np.float32)
    gradient = np.asarray(jax.grad(lambda x: losses.dice_loss(x, mask).sum())(jnp.zeros((1, *CUBE))))
    assert (gradient[0][HALF_CUBE] < 0).all() and (gradient[0][~HALF_CUBE] > 0).all()


def test_dice_loss_gradient_is_right():
    outputs, mask, _ = random_case()
    check_grads(lambda logits: losses.dice_loss(logits, mask), (outputs.mask,), order=1, modes=["rev"], rtol=1e-2)


# Ratings


def test_cross_entropy_is_the_hand_formula():
    outputs, _, targets = random_case()
    logits, one_hot = np.asarray(outputs.ratings, np.float64), np.asarray(targets)
    expected = np.zeros((3, 9))
    for nodule, row in np.ndindex(3, 9):
        if one_hot[nodule, row].any():
            z = logits[nodule, row, : schema.RATINGS[row].classes]
            expected[nodule, row] = np.log(np.exp(z).sum()) - z[one_hot[nodule, row].argmax()]
    assert (expected == 0).any()  # some are missing
    np.testing.assert_allclose(losses.rating_losses(outputs.ratings, targets), expected, rtol=1e-5, atol=1e-6)


def test_soft_targets_weight_the_classes():
    outputs, _, _ = random_case(batch=1)
    soft = np.zeros((1, 9, 6), np.float32)
    soft[..., 0], soft[..., 2] = 0.25, 0.75
    one, three = (
        losses.rating_losses(outputs.ratings, np.broadcast_to(np.eye(6, dtype=np.float32)[k], (1, 9, 6)))
        for k in (0, 2)
    )
    np.testing.assert_allclose(losses.rating_losses(outputs.ratings, soft), 0.25 * one + 0.75 * three, rtol=1e-5)


def test_a_missing_rating_has_neither_loss_nor_gradient():
    outputs, _, targets = random_case()
    targets = targets.at[1, 4].set(0)
    value, gradient = jax.value_and_grad(lambda x: losses.rating_losses(x, targets).sum())(outputs.ratings)
    assert np.isfinite(value)
    assert losses.rating_losses(outputs.ratings, targets)[1, 4] == 0
    assert not gradient[1, 4].any()
    assert gradient[np.asarray(targets).any(-1)].any(-1).all()


@pytest.mark.parametrize("scale", [1.0, SURE])
def test_absent_classes_never_cause_nan(scale):
    outputs, _, targets = random_case()
    logits = jnp.where(schema.CLASS_EXISTS, scale * outputs.ratings, ABSENT)
    loss, gradient = jax.value_and_grad(lambda x: losses.rating_losses(x, targets).sum())(logits)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert not np.asarray(gradient)[:, ~schema.CLASS_EXISTS].any()


# Total


def test_total_is_the_weighted_sum_of_its_terms():
    outputs, mask, targets = random_case()
    loss, terms = losses.total(outputs, mask, targets, WEIGHTS)
    assert list(terms) == ["segmentation", "attributes", "malignancy"]
    assert loss.shape == (3,) and all(term.shape == (3,) for term in terms.values())
    np.testing.assert_allclose(
        loss, 2.0 * terms["segmentation"] + 0.5 * terms["attributes"] + 3.0 * terms["malignancy"], rtol=1e-6
    )
    np.testing.assert_array_equal(terms["segmentation"], losses.dice_loss(outputs.mask, mask))
    entropy = np.asarray(losses.rating_losses(outputs.ratings, targets))
    np.testing.assert_array_equal(terms["malignancy"], entropy[:, schema.MALIGNANCY])
    rated = np.asarray(targets).any(-1)
    for nodule in range(3):
        attributes = np.delete(entropy[nodule], schema.MALIGNANCY)[np.delete(rated[nodule], schema.MALIGNANCY)]
        np.testing.assert_allclose(terms["attributes"][nodule], attributes.mean(), rtol=1e-6)


@pytest.mark.parametrize(("without", "left"), [("ratings", ["segmentation"]), ("mask", ["attributes", "malignancy"])])
def test_a_single_task_form_has_only_its_own_terms(without, left):
    outputs, mask, targets = random_case()
    loss, terms = losses.total(outputs._replace(**{without: None}), mask, targets, WEIGHTS)
    assert list(terms) == left
    np.testing.assert_allclose(loss, sum(getattr(WEIGHTS, name) * terms[name] for name in left), rtol=1e-6)


def test_nodules_do_not_affect_each_other():
    outputs, mask, targets = random_case(batch=4)
    order = np.array([2, 0, 3, 1])
    loss, terms = losses.total(outputs, mask, targets, WEIGHTS)
    shuffled = jax.tree.map(lambda x: x[order], (outputs, mask, targets))
    permuted, permuted_terms = losses.total(*shuffled, WEIGHTS)
    np.testing.assert_array_equal(permuted, loss[order])
    for name, term in terms.items():
        np.testing.assert_array_equal(permuted_terms[name], term[order])
    gradient = jax.grad(lambda x: losses.total(outputs._replace(mask=x), mask, targets, WEIGHTS)[0][0])(outputs.mask)
    assert gradient[0].any() and not gradient[1:].any()


def test_all_ratings_missing_is_finite():
    outputs, mask, targets = random_case()

    def loss_of(outputs):
        loss, terms = losses.total(outputs, mask, jnp.zeros_like(targets), WEIGHTS)
        return loss.mean(), terms

    (loss, terms), gradient = jax.value_and_grad(loss_of, has_aux=True)(outputs)
    assert np.isfinite(loss) and not terms["attributes"].any() and not terms["malignancy"].any()
    assert np.isfinite(gradient.mask).all() and gradient.mask.any() and not gradient.ratings.any()


def test_a_rating_that_the_model_does_not_predict_has_no_loss():
    outputs, mask, targets = random_case()
    targets = targets.at[:, [0, schema.MALIGNANCY], 1].set(1.0)
    lacking = outputs._replace(ratings=outputs.ratings.at[:, 1:].set(ABSENT))  # only the first rating is left
    _, terms = losses.total(lacking, mask, targets, WEIGHTS)
    alone = losses.rating_losses(outputs.ratings, targets)[:, 0]
    np.testing.assert_allclose(terms["attributes"], alone, rtol=1e-6)
    np.testing.assert_array_equal(terms["malignancy"], 0)
    gradient = jax.grad(lambda x: losses.total(lacking._replace(ratings=x), mask, targets, WEIGHTS)[0].sum())(
        lacking.ratings
    )
    assert np.isfinite(gradient).all() and (gradient[:, 1:] == 0).all() and (gradient[:, 0] != 0).any()


def test_voxel_loss_is_the_cross_entropy_per_voxel_of_the_nodule():
    mask = np.zeros((1, 4, 4, 4), np.float32)
    mask[0, 1, 1, 1:3] = 1
    logits = np.full(mask.shape, -2.0, np.float32)
    # Two voxels of the nodule are given odds of exp(-2), and so are the 62 others, rightly.
    missed, background = 2 * np.log1p(np.exp(2.0)), 62 * np.log1p(np.exp(-2.0))
    np.testing.assert_allclose(losses.voxel_loss(logits, mask), [(missed + background) / 3], rtol=1e-5)


def test_a_missed_nodule_keeps_its_gradient():
    mask = np.zeros((1, 8, 8, 8), np.float32)
    mask[0, 3:5, 3:5, 3:5] = 1
    logits = jnp.full(mask.shape, -8.0)
    per_voxel = jax.grad(lambda x: losses.voxel_loss(x, mask).sum())(logits)[0, 3, 3, 3]
    of_dice = jax.grad(lambda x: losses.dice_loss(x, mask).sum())(logits)[0, 3, 3, 3]
    assert abs(per_voxel) > 50 * abs(of_dice)


def test_the_voxel_term_is_left_out_at_weight_zero():
    outputs = Outputs(mask=jnp.zeros((1, 4, 4, 4)))
    mask, targets = jnp.ones((1, 4, 4, 4)), jnp.zeros((1, 9, 6))
    assert set(losses.total(outputs, mask, targets, WEIGHTS)[1]) == {"segmentation"}
    assert set(losses.total(outputs, mask, targets, WEIGHTS._replace(voxels=1.0))[1]) == {"segmentation", "voxels"}
