"""The networks of the compared systems: their sizes, their outputs, and the inputs that they derive from a patch."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pnsamp_jax import losses, models
from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.models.cnn_mtl import TASKS, Tower
from pnsamp_jax.models.mcnn import scales
from pnsamp_jax.models.outputs import ABSENT, Outputs
from pnsamp_jax.models.planes import PlaneCNN
from pnsamp_jax.models.shc_dcnn import central_planes
from pnsamp_jax.models.tumornet import class_logits, project
from pnsamp_jax.models.unet3d import UpConv2x2x2

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Model -> number of parameters with its config, ratings that it predicts, width of its features.
SYSTEMS = {
    "unet3d": (16_316_449, (), None),
    "tumornet": (217_017, ("malignancy",), 64),
    "shc_dcnn": (263_565, schema.RATING_NAMES, 128),
    "mcnn": (107_113, ("malignancy",), 128),
    "cnn_mtl": (1_290_224, TASKS, 7 * 32),
}
TINY = {
    "unet3d": {"features": 2, "up": "convolution"},
    "tumornet": {"features": (4, 4, 4, 4, 4), "hidden": 5},
    "shc_dcnn": {"features": (4, 4, 4, 4, 4), "hidden": 5},
    "mcnn": {"features": (2, 3), "hidden": 5},
    "cnn_mtl": {"features": (2, 2, 2, 2, 2), "hidden": 3},
}
LARGE = ("unet3d", "cnn_mtl")  # whose training step takes long to compile, at any width
SIZE = {"mcnn": 24}  # the others take 16


def config_of(system):
    """Return the config of a system."""
    return importlib.import_module(f"pnsamp_jax.configs.{system}").get_config()


def shapes(model, size, channels, **arguments):
    """Return the shapes of the variables and of the outputs for two nodules, without computing anything."""
    patch = jax.ShapeDtypeStruct((2, size, size, size, channels), jnp.float32)
    outputs, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, **arguments), patch)
    return variables, outputs


def count(params):
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def draw(model, size, channels, seed=0, **arguments):
    """Return random variables of a model, without compiling its initialisation."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    variables = jax.tree.map(fill, shapes(model, size, channels, **arguments)[0])
    variables["batch_stats"] = jax.tree.map(lambda leaf: 0.5 + np.abs(leaf), variables["batch_stats"])
    return variables


# Sizes and shapes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_parameters_and_outputs_at_the_configs_size(system, dtype):
    parameters, ratings, width = SYSTEMS[system]
    config = config_of(system)
    fields = config.model.to_dict() | {"dtype": dtype}
    channels, size = len(fields.pop("windows")), config.patch_size
    variables, outputs = shapes(models.create(**fields), size, channels)
    assert count(variables["params"]) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, outputs)))
    expected = Outputs(
        mask=None if ratings else (2, size, size, size),
        ratings=(2, len(schema.RATINGS), schema.MAX_CLASSES) if ratings else None,
        features=(2, width) if width else None,
    )
    assert Outputs(*(leaf if leaf is None else leaf.shape for leaf in outputs)) == expected


@pytest.mark.parametrize("size", [48, 96])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_parameters_do_not_depend_on_the_patch_size(system, size):
    model = models.create(system, **TINY[system])
    small, large = shapes(model, SIZE.get(system, 16), 2)[0], shapes(model, size, 2)[0]
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, large)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_systems_config_keeps_the_fields_that_it_does_not_set(system):
    base = importlib.import_module("pnsamp_jax.configs.base").get_config()
    base.data.root, base.model.dtype, base.patch_size = "nodules", "bfloat16", 32
    config = importlib.import_module(f"pnsamp_jax.configs.{system}").apply_to(base)
    assert (config.data.root, config.model.dtype) == ("nodules", "bfloat16")
    assert config.patch_size == (48 if system == "mcnn" else 32)


# Outputs and gradients of every system


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in SYSTEMS]
)
def run(request):
    """Return the name of a tiny system and the gradients, outputs and running statistics of one training step."""
    system = request.param
    size = SIZE.get(system, 16)
    # Three nodules: with two, and one voxel left of each, BatchNorm would return -1 and 1 whatever its input.
    x = jnp.asarray(np.random.default_rng(1).random((3, size, size, size, 2)), jnp.float32)
    model = models.create(system, **TINY[system])
    variables = draw(model, size, 2)

    @jax.jit
    def step(params, x):  # x is an argument because the compiler would be slow in folding a constant patch
        def loss_of(params):
            outputs, updated = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            loss = 0.0
            if outputs.mask is not None:
                loss += losses.dice_loss(outputs.mask, x[..., 0] > 0.5).mean()
            if outputs.ratings is not None:
                given = jnp.asarray([name in SYSTEMS[system][1] for name in schema.RATING_NAMES])
                targets = given[:, None] * jnp.eye(schema.MAX_CLASSES)[1]
                loss += losses.rating_losses(outputs.ratings, targets).mean()
            return loss, (outputs, updated["batch_stats"])

        return jax.grad(loss_of, has_aux=True)(params)

    gradients, (outputs, batch_stats) = jax.device_get(step(variables["params"], x))
    return system, gradients, outputs, (variables["batch_stats"], batch_stats)


def test_the_loss_reaches_every_parameter(run):
    for path, leaf in jax.tree.leaves_with_path(run[1]):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_training_moves_the_running_statistics(run):
    before, after = run[3]
    for path, moved in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before, after)):
        assert moved, jax.tree_util.keystr(path)


def test_only_the_ratings_of_the_paper_are_predicted(run):
    system, _, outputs, _ = run
    if outputs.ratings is None:
        assert not SYSTEMS[system][1]
        return
    given = np.array([name in SYSTEMS[system][1] for name in schema.RATING_NAMES])
    np.testing.assert_array_equal(
        outputs.ratings == ABSENT, np.broadcast_to(~(schema.CLASS_EXISTS & given[:, None]), outputs.ratings.shape)
    )


# 3D U-Net


def test_unet3d_has_the_papers_parameters():
    up_convolutions = count(shapes(models.create("unet3d", up="convolution"), 16, 3)[0]["params"])
    up_pools = count(shapes(models.create("unet3d"), 16, 3)[0]["params"])
    two_more_classes = 2 * (64 + 1)  # the paper has three; here the last layer has one channel
    assert up_convolutions + two_more_classes == 19_069_955
    assert up_convolutions - up_pools == 8 * (512**2 + 256**2 + 128**2)
    assert 16.25e6 < up_pools < 16.35e6


def test_unet3d_up_convolution_is_the_transposed_convolution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2, 2, 2, 3)).astype(np.float32)
    kernel = rng.normal(size=(2, 2, 2, 3, 3)).astype(np.float32)
    y = np.asarray(UpConv2x2x2().apply({"params": {"kernel": kernel}}, x))
    assert y.shape == (1, 4, 4, 4, 3)
    for d, h, w in np.ndindex(4, 4, 4):
        np.testing.assert_allclose(
            y[0, d, h, w], x[0, d // 2, h // 2, w // 2] @ kernel[d % 2, h % 2, w % 2], rtol=1e-4, atol=1e-5
        )


def test_unet3d_starts_from_a_small_mask():
    model = models.create("unet3d", features=2)
    bias = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 8, 1)))["params"]["mask"]["bias"])
    assert jax.nn.sigmoid(bias(jax.random.key(0))) < 0.05


def test_an_unknown_up_is_the_users_error():
    with pytest.raises(UserError, match=r"config\.model\.up: 'nearest' is none of pool, convolution"):
        shapes(models.create("unet3d", up="nearest"), 16, 1)


# TumorNet


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_tumornet_projects_medians(depth):
    # Along the first axis the values are 0, 1, 6, 2: median 1.5, and 3.5 of the middle two. Along the others they are
    # constant.
    volume = jnp.broadcast_to(jnp.array([0.0, 1.0, 6.0, 2.0])[:, None, None], (1, 4, 4, 4))
    views = np.asarray(project(volume, depth))
    assert views.shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(views[0, ..., 0], {0.5: 3.5, 1.0: 1.5}[depth])
    for view in (1, 2):
        np.testing.assert_array_equal(views[0, ..., view], np.repeat([[0.0], [1.0], [6.0], [2.0]], 4, axis=1))


def ball(diameter_mm, size, spacing_mm):
    """Return a ball of 1 in a patch of 0, (1, size, size, size)."""
    offsets = (np.indices((size, size, size)) - (size - 1) / 2) * spacing_mm
    return (np.sqrt((offsets**2).sum(axis=0)) <= diameter_mm / 2)[None].astype(np.float32)


@pytest.mark.parametrize(("size", "spacing_mm"), [(32, 1.2), (64, 0.6)])
@pytest.mark.parametrize("diameter_mm", [6.0, 10.0, 20.0, 30.0])
def test_tumornet_sees_nodules_of_every_size(size, spacing_mm, diameter_mm):
    views = np.asarray(project(ball(diameter_mm, size, spacing_mm), config_of("tumornet").model.depth))
    width_mm = np.sqrt(4 / np.pi * views[0].sum(axis=(0, 1))) * spacing_mm  # of the disc with the area that is seen
    # The median shows where a ray runs in the ball for more than half of the depth, 4.8 mm: a disc of a diameter of
    # sqrt(d^2 - 4.8^2), to within a voxel.
    np.testing.assert_allclose(width_mm, np.sqrt(diameter_mm**2 - 4.8**2), atol=spacing_mm)


@pytest.mark.parametrize("rating_counts", [[0, 0, 0, 4, 0], [1, 0, 2, 0, 1], [0, 3, 1, 0, 0]])
@pytest.mark.parametrize("mean", [0.5, 2.3, 3.0, 4.9])
def test_tumornets_cross_entropy_is_a_regression_on_the_mean_rating(rating_counts, mean):
    share, classes = np.array(rating_counts) / np.sum(rating_counts), np.arange(1, 6)

    def loss(mean):
        return -(share * jax.nn.log_softmax(class_logits(mean[None])[0])).sum()

    expected = (jax.nn.softmax(class_logits(jnp.array([mean]))[0]) * classes).sum()
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(mean)), expected - share @ classes, atol=1e-5)


def test_tumornet_starts_at_the_middle_class_and_uses_one_window():
    model = models.create("tumornet", **TINY["tumornet"])
    variables = draw(model, 16, 2)
    variables["params"]["mean"] = {"kernel": np.zeros((5, 1), np.float32), "bias": np.full(1, 3.0, np.float32)}
    apply = jax.jit(model.apply)
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 16, 16, 2)), jnp.float32)
    np.testing.assert_allclose(
        apply(variables, x).ratings[0, schema.MALIGNANCY, :5], [-2, -0.5, 0, -0.5, -2], rtol=1e-6
    )
    np.testing.assert_array_equal(apply(variables, x).features, apply(variables, x.at[..., 1].add(1.0)).features)


# The network of TumorNet and SHC-DCNN


def test_a_plane_is_summarised_by_its_mean_and_its_maximum():
    """One convolution that copies its input, a norm of variance 1e-6 + 1e-5, ReLU, and the maxima of 2 x 2 pixels."""
    copy = np.zeros((3, 3, 1, 1), np.float32)
    copy[1, 1] = 1.0
    variables = {
        "params": {"Conv_0": {"kernel": copy}, "BatchNorm_0": {"scale": np.ones(1), "bias": np.zeros(1)}},
        "batch_stats": {"BatchNorm_0": {"mean": np.zeros(1), "var": np.full(1, 1e-6)}},
    }
    view = 1e-3 * np.array([[1, 2, 0, -4], [-3, 0, 0, 0], [0, 0, 8, 0], [0, 6, 0, 0.0]])  # maxima 2, 0, 6 and 8
    features = PlaneCNN(features=(1,)).apply(variables, jnp.asarray(view, jnp.float32)[None, ..., None], train=False)
    np.testing.assert_allclose(features, np.array([[4e-3, 8e-3]]) / np.sqrt(1.1e-5), rtol=1e-5)


# SHC-DCNN


def test_shc_dcnn_takes_the_mean_of_the_two_central_slices():
    x = np.random.default_rng(0).random((2, 6, 6, 6, 2)).astype(np.float32)
    planes = np.asarray(central_planes(jnp.asarray(x)))
    for axis in range(3):
        np.testing.assert_allclose(planes[:, axis], np.take(x, [2, 3], axis + 1).mean(axis + 1), rtol=1e-6)


def test_shc_dcnn_gives_equal_planes_equal_features():
    model = models.create("shc_dcnn", **TINY["shc_dcnn"])
    variables = draw(model, 16, 1)
    # A volume that does not change when axes are exchanged has three equal planes.
    i, j, k = np.meshgrid(*[np.linspace(0, 1, 16, dtype=np.float32)] * 3, indexing="ij")
    volume = jnp.asarray(i * j * k)[None, ..., None]
    caught = jax.jit(partial(model.apply, capture_intermediates=lambda module, _: module.name == "planes"))(
        variables, volume
    )[1]
    (features,) = caught["intermediates"]["planes"]["__call__"]
    assert features.shape == (3, 8) and np.ptp(features[0]) > 0
    np.testing.assert_allclose(features[1:], [features[0]] * 2, rtol=1e-5)


# MCNN


def test_mcnn_has_equal_features_of_a_constant_at_every_scale():
    model = models.create("mcnn", **TINY["mcnn"])
    variables = draw(model, 24, 1)
    volume = jnp.full((1, 24, 24, 24, 1), 0.3)
    caught = jax.jit(partial(model.apply, capture_intermediates=lambda module, _: module.name == "stream"))(
        variables, volume
    )[1]
    (features,) = caught["intermediates"]["stream"]["__call__"]
    assert features.shape == (3, 6) and np.ptp(features[0]) > 0
    np.testing.assert_allclose(features[1:], [features[0]] * 2, rtol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("voxel", "cells"),
    [  # a patch of 24 has cubes of 24, 16 (from 4) and 8 (from 8); a voxel is 1/27, 1/8 and 1 of a cell
        ((0, 0, 0), {0: (0, 0, 0)}),
        ((4, 12, 19), {0: (1, 4, 6), 1: (0, 4, 7)}),
        ((3, 12, 12), {0: (1, 4, 4)}),
        ((8, 12, 15), {0: (2, 4, 5), 1: (2, 4, 5), 2: (0, 4, 7)}),
        ((7, 12, 12), {0: (2, 4, 4), 1: (1, 4, 4)}),
    ],
)
def test_mcnns_cubes_are_centred(voxel, cells, flip):
    volume = np.zeros((1, 24, 24, 24, 1), np.float32)
    volume[0][voxel] = 1.0
    expected = np.zeros((3, 8, 8, 8), np.float32)
    for scale, cell in cells.items():
        expected[scale][cell] = (1 / 27, 1 / 8, 1)[scale]
    if flip:
        volume, expected = volume[:, ::-1, ::-1, ::-1], expected[:, ::-1, ::-1, ::-1]
    np.testing.assert_allclose(scales(jnp.asarray(volume))[0, ..., 0], expected, rtol=1e-6)


# CNN-MTL


def test_cnn_mtls_towers_share_no_weights():
    model = models.create("cnn_mtl", **TINY["cnn_mtl"])
    variables = draw(model, 16, 1)
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 16, 16, 1)), jnp.float32)

    apply = jax.jit(lambda params: model.apply({**variables, "params": params}, x))
    params = variables["params"]
    before = apply(params)
    for index, task in enumerate(TASKS):
        tower = jax.tree.map(lambda leaf: leaf + 0.1, params[f"{task}_tower"])
        bias = params["first"]["bias"].copy()
        bias[2 * index : 2 * index + 2] += 0.1  # two channels belong to this tower
        for moved in ({f"{task}_tower": tower}, {"first": {**params["first"], "bias": bias}}):
            after = apply({**params, **moved})
            rows = np.flatnonzero((after.ratings != before.ratings).any(axis=(0, 2)))
            assert [schema.RATING_NAMES[row] for row in rows] == [task]
            blocks = (after.features != before.features).reshape(len(TASKS), -1).any(axis=1)
            np.testing.assert_array_equal(np.flatnonzero(blocks), [index])


def test_cnn_mtls_last_pooling_includes_the_whole_patch():
    # 48 voxels are 24 after the first pooling and 3 before the last one; the third must not be dropped.
    tower = Tower(features=(2, 2, 2, 2, 2), hidden=3)
    variables = draw(tower, 24, 1, train=False)
    x = jnp.asarray(np.random.default_rng(0).random((1, 24, 24, 24, 1)), jnp.float32)
    features = jax.jit(partial(tower.apply, train=False))
    assert np.abs(features(variables, x) - features(variables, x.at[:, -2:, -2:, -2:].set(5.0))).max() > 1e-6


# Sizes


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_a_patch_is_a_multiple_of_what_the_model_needs(name):
    multiple = models.MODELS[name].PATCH_MULTIPLE
    params, outputs = shapes(models.create(name), multiple, 1)
    assert all(value is None or 0 not in value.shape for value in outputs)
    config = base.get_config()
    config.model = ConfigDict({"name": name, "windows": config.model.windows, "dtype": "float32"})
    config.patch_size = 3 * multiple
    read_settings(config)
    config.patch_size += 4 if multiple > 4 else 1
    with pytest.raises(UserError, match=f"config.patch_size: .* is not divisible by {multiple}, as {name} needs"):
        read_settings(config)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_lines_of_the_layer_table_add_up(system):
    config = config_of(system)
    fields = config.model.to_dict()
    channels = len(fields.pop("windows"))
    lines = models.layer_table(models.create(**fields), config.patch_size, channels).splitlines()
    *layers, total = [int(line.split()[-1].replace(",", "")) for line in lines[1:]]
    assert sum(layers) == total == SYSTEMS[system][0]
