"""The model of every config: its size, its outputs, and that the parts of PN-SAMP are connected as in the paper."""

import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax import losses, models
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.models.outputs import ABSENT, Outputs
from pnsamp_jax.models.pn_samp import RatingHeads

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Config -> number of parameters, whether it segments, whether it rates. Every config with a network must be here.
EXPECTED = {
    "base": (1_510_404, True, True),
    "demo": (1_510_404, True, True),
    "cnn_mtl": (1_290_224, False, True),
    "mcnn": (107_113, False, True),
    "pn_samp_c": (388_401, False, True),
    "pn_samp_m": (1_510_404, True, True),
    "pn_samp_m_32": (1_510_404, True, True),
    # Trunk with a third input channel, sub-3DCNN, fusion of 790 features (256 + 128 of the paths, 8 each of 2 + 48
    # maps, 6 of the shape), attributes and terms of malignancy:
    # 1,316,037 + 434 + 73,026 + 791 x 192 + 8 x 193 x 24 + 25 x 40 + 8 x 24 x 5 + 5.
    "pn_samp_plus": (1_594_278, True, True),
    "pn_samp_s1": (1_509_970, True, True),
    "pn_samp_s2": (1_509_970, True, True),
    "pn_samp_seg": (1_316_037, True, False),
    "predict": (1_510_404, True, True),
    "shc_dcnn": (263_565, False, True),
    "table_32": (1_510_404, True, True),
    "tumornet": (217_017, False, True),
    "unet3d": (16_316_449, True, False),
}
NO_NETWORK = {"depth", "diameter", "radiomics"}  # configs of methods that are not Flax modules
FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")

TINY = {"features": (2, 2, 4, 4), "mask_features": (2, 2, 2, 2)}

PN_SAMP_M = """\
layer                              output       parameters
down_0                             64x64x64x16         884
down_1                             32x32x32x32      13,888
down_2                             16x16x16x64      55,424
down_3                             8x8x8x128       221,440
up_3                               4x4x4x128       442,752
up_2                               8x8x8x64        442,944
up_1                               16x16x16x32     110,880
up_0                               32x32x32x16      27,792
mask                               64x64x64             33
mask_0                             64x64x64x8          226
mask_1                             32x32x32x16       3,488
mask_2                             16x16x16x32      13,888
mask_3                             8x8x8x64         55,424
heads/fusion                       192              73,920
heads/subtlety_features            24                4,632
heads/subtlety                     5                   125
heads/internal_structure_features  24                4,632
heads/internal_structure           4                   100
heads/calcification_features       24                4,632
heads/calcification                6                   150
heads/sphericity_features          24                4,632
heads/sphericity                   5                   125
heads/margin_features              24                4,632
heads/margin                       5                   125
heads/lobulation_features          24                4,632
heads/lobulation                   5                   125
heads/spiculation_features         24                4,632
heads/spiculation                  5                   125
heads/texture_features             24                4,632
heads/texture                      5                   125
heads/malignancy_features          24                9,240
heads/malignancy                   5                   125
total                                            1,510,404"""


def build(config):
    """Return the model of a config and the number of its input channels."""
    fields = importlib.import_module(f"pnsamp_jax.configs.{config}").get_config().model.to_dict()
    windows = fields.pop("windows")
    return models.create(**fields), len(windows)


def shapes(model, size, channels, batch=2):
    """Return the shapes of the parameters and of the outputs, without computing anything."""

    def run(x):
        return model.init_with_output({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    outputs, variables = jax.eval_shape(run, jnp.zeros((batch, size, size, size, channels)))
    return variables["params"], outputs


# Sizes and shapes


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_and_outputs_of_each_config(config):
    if config in NO_NETWORK:
        pytest.skip("this config has no network, so there is nothing to count")
    assert config in EXPECTED, f"add configs/{config}.py to the table above"
    parameters, segments, rates = EXPECTED[config]
    model, channels = build(config)
    size = importlib.import_module(f"pnsamp_jax.configs.{config}").get_config().patch_size
    params, outputs = shapes(model, size, channels)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, outputs)))
    assert (outputs.mask is not None) == segments and (outputs.ratings is not None) == rates
    if segments:
        assert outputs.mask.shape == (2, size, size, size)
    if rates:
        assert outputs.ratings.shape == (2, len(schema.RATINGS), schema.MAX_CLASSES)


def test_the_table_lists_only_configs_that_exist():
    assert EXPECTED.keys() <= set(CONFIGS)


def test_the_multi_task_form_has_about_1_5_million_parameters():
    multi_task = [number for number, segments, rates in EXPECTED.values() if segments and rates]
    assert multi_task and all(1.4e6 <= number <= 1.6e6 for number in multi_task)


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_the_patch_size_changes_the_mask_and_no_parameter(size):
    model, channels = build("pn_samp_m")
    params, outputs = shapes(model, size, channels, batch=1)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes(model, 64, channels)[0])
    assert outputs.mask.shape == (1, size, size, size)
    assert outputs.ratings.shape == (1, 9, 6)


def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    params, outputs = shapes(models.create("pn_samp", "bfloat16", **TINY), 16, 2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, outputs)))


def test_the_layer_table_of_pn_samp_m():
    model, channels = build("pn_samp_m")
    for _ in range(2):  # also in the second call, although JAX caches what it has traced
        assert models.layer_table(model, 64, channels) == PN_SAMP_M


def test_the_layer_table_of_a_single_task_form():
    lines = models.layer_table(models.create("pn_samp", rate=False, **TINY), 16, 1).splitlines()
    names = [line.split()[0] for line in lines[1:-1]]
    assert names == [f"down_{i}" for i in range(4)] + [f"up_{i}" for i in (3, 2, 1, 0)] + ["mask"]
    assert lines[1].split() == ["down_0", "16x16x16x2", "58"]  # 2 for the norm, 54 + 2 for the convolution


# Names and fields


def test_an_unknown_model_is_the_users_error():
    with pytest.raises(UserError, match=r"config\.model\.name: no model 'resnet'; choose from .*pn_samp"):
        models.create("resnet")


@pytest.mark.parametrize("field", ["kernel", "train", "parent"])
def test_an_unknown_field_is_the_users_error(field):
    with pytest.raises(
        UserError, match=rf"config\.model\.{field}: pn_samp has no such field; it has dropout, features"
    ):
        models.create("pn_samp", **{field: 3})


# How the parts are connected


@pytest.fixture(scope="module")
def tiny():
    """Return the gradients of the rating loss and the outputs of a small multi-task model."""
    model = models.create("pn_samp", features=(2, 4), mask_features=(2, 2))  # more levels take longer to compile
    rng = np.random.default_rng(0)
    patch = jnp.asarray(rng.random((2, 16, 16, 16, 2)), jnp.float32)
    targets = jnp.zeros((2, 9, 6)).at[..., 1].set(1.0)

    def draw(leaf):  # much faster than compiling the initialisation
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    variables = jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), patch))
    variables["batch_stats"] = jax.tree.map(lambda leaf: 0.5 + np.abs(leaf), variables["batch_stats"])

    @jax.jit
    def run(params):
        def loss_of(params):
            outputs = model.apply({**variables, "params": params}, patch)
            return losses.rating_losses(outputs.ratings, targets).mean(), outputs

        return jax.grad(loss_of, has_aux=True)(params)

    gradients, outputs = run(variables["params"])
    return jax.device_get(gradients), Outputs(*jax.device_get(tuple(outputs)))


def test_absent_classes_have_no_probability(tiny):
    probabilities = np.asarray(jax.nn.softmax(tiny[1].ratings))
    assert not probabilities[:, ~schema.CLASS_EXISTS].any()
    assert (probabilities[:, schema.CLASS_EXISTS] > 0).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    assert (tiny[1].ratings[:, ~schema.CLASS_EXISTS] == ABSENT).all()


@pytest.mark.parametrize("part", ["down_0", "down_1", "up_1", "up_0", "mask", "mask_0", "mask_1", "heads"])
def test_the_rating_loss_reaches_the_encoder_and_the_decoder(tiny, part):
    gradients = tiny[0][part]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(gradients) if path[-1].key == "kernel"]
    assert kernels and all(np.abs(leaf).max() > 1e-8 for leaf in kernels)


@pytest.fixture(scope="module")
def heads():
    """Return the compiled rating heads alone, their parameters and some features."""
    module, x = RatingHeads(fused=8, features=3), jnp.asarray(np.random.default_rng(0).random((2, 5)))
    apply, init = (jax.jit(partial(method, train=False)) for method in (module.apply, module.init))
    return apply, init(jax.random.key(0), x)["params"], x


@pytest.mark.parametrize("name", [name for name in schema.RATING_NAMES if name != "malignancy"])
def test_malignancy_is_built_upon_each_attributes_features(heads, name):
    apply, params, x = heads
    layer = f"{name}_features"
    moved = {**params, layer: {**params[layer], "bias": params[layer]["bias"] + 1.0}}
    changed = np.asarray(apply({"params": moved}, x) != apply({"params": params}, x)).any((0, 2))
    assert {schema.RATING_NAMES[row] for row in np.flatnonzero(changed)} == {name, "malignancy"}


def test_the_features_of_malignancy_change_no_other_rating(heads):
    apply, params, x = heads
    layer = {**params["malignancy_features"], "bias": params["malignancy_features"]["bias"] + 1.0}
    changed = np.asarray(
        apply({"params": {**params, "malignancy_features": layer}}, x) != apply({"params": params}, x)
    ).any((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), [schema.MALIGNANCY])
