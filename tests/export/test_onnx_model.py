"""pnsamp_jax.export.onnx_model: what JAX computes, ONNX Runtime and OpenVINO compute from the translation."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pnsamp_jax.errors import UserError
from pnsamp_jax.export.onnx_graph import Graph
from pnsamp_jax.export.onnx_model import OPSET, translate
from pnsamp_jax.export.openvino_model import openvino
from pnsamp_jax.models.conv3d import conv3d
from pnsamp_jax.models.pn_samp_plus import regional_features, shape_features
from pnsamp_jax.models.pooling import global_pool, max_pool, mean_pool, up_pool

onnx = pytest.importorskip("onnx", reason="needs ONNX: pip install 'pnsamp-jax[test]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'pnsamp-jax[test]'")
pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'pnsamp-jax[test]'")

pytestmark = pytest.mark.usefixtures("quick_compilation")

KERNEL = np.random.default_rng(1).normal(size=(3, 3, 3, 4, 5)).astype(np.float32)
ROW = np.arange(4.0, dtype=np.float32)
FUNCTIONS = {
    "a row for every voxel": lambda x: x * ROW + 1,
    "nothing but constants, repeated": lambda x: jnp.broadcast_to(ROW, x.shape),
    "a joined constant": lambda x: jnp.concatenate([x, jnp.broadcast_to(jnp.ones(3), (*x.shape[:-1], 3))], -1),
    "a large constant": lambda x: x + jnp.arange(4 * 64 * 64 * 4.0).reshape(4, 64, 64, 4).sum((1, 2))[:, None, None],
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "elu": jax.nn.elu,
    "chosen by a comparison": lambda x: jnp.where(x.max(-1, keepdims=True) > 1, x, jnp.nan),
    "clipped": lambda x: jnp.clip(x, -0.5, 0.5),
    "powers and logarithms": lambda x: jnp.log(jnp.exp(x) + jnp.square(x) ** 0.25) / jnp.sqrt(2 + jnp.abs(ROW)) - x,
    "stacked and split": lambda x: jnp.stack(jnp.split(x, 2, axis=-1), axis=2),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1), (0, 0)), constant_values=7),
    "indexed": lambda x: lax.slice_in_dim(x[:, 1:, 0, :, 2], 0, 4, 2, axis=2),
    "turned and reshaped": lambda x: x.transpose(0, 4, 1, 2, 3).reshape(x.shape[0], 4, -1),
    "a layer": lambda x: x @ KERNEL[0, 0, 0],
    "Einstein's sum": lambda x: jnp.einsum("bdhwc,bdhwe->bce", x, x * ROW),
    "a convolution": lambda x: conv3d(x, KERNEL),
    "max_pool": max_pool,
    "mean_pool": mean_pool,
    "up_pool": up_pool,
    "global_pool": global_pool,
    "regional_features": lambda x: regional_features(x, [jax.nn.sigmoid(x[..., :1]), jax.nn.sigmoid(x[..., 1:2])]),
    "shape_features": lambda x: shape_features(jax.nn.sigmoid(x[..., 0])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_operation_is_that_of_jax_for_batches_of_any_size(name):
    def function(images):
        return {"y": FUNCTIONS[name](images)}

    model = translate(function, (None, 4, 4, 4, 4), {}).SerializeToString()
    session, core = onnxruntime.InferenceSession(model), openvino().Core()
    program = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 3):
        x = np.random.default_rng(count).normal(size=(count, 4, 4, 4, 4)).astype(np.float32)
        expected = jax.jit(function)(x)["y"]
        for found in (session.run(["y"], {"images": x})[0], program(x)["y"]):
            # Sums of at most some hundred terms of float32.
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_fixed_shape_and_the_metadata_are_those_of_the_model():
    proto = translate(lambda x: {"twice": 2 * x, "once": x + 0}, (2, 3), {"version": "7"})
    onnx.checker.check_model(proto, full_check=True)
    assert [(one.name, [size.dim_value for size in one.type.tensor_type.shape.dim]) for one in proto.graph.output] == [
        ("once", [2, 3]),
        ("twice", [2, 3]),
    ]
    assert [(one.key, one.value) for one in proto.metadata_props] == [("version", "7")]
    assert proto.opset_import[0].version == OPSET


def test_a_constant_is_stored_once_and_a_large_result_is_left_to_the_model():
    def function(x):
        along = jnp.arange(50.0)
        many = along[:, None, None] * along[:, None] * along  # 125,000 values
        return {"y": x @ KERNEL[0, 0, 0] + x @ (1 * KERNEL[0, 0, 0]) + many.max()}

    stored = [tuple(constant.dims) for constant in translate(function, (None, 4), {}).graph.initializer]
    assert stored.count((4, 5)) == 1 and max(map(np.prod, stored)) < 2**16


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: jnp.sort(x), "'sort'"),
        (lambda x: x[jnp.argmax(ROW + x[0])], "'argmax'"),
        (lambda x: lax.fori_loop(0, 3, lambda _, y: y + x, x), "'scan'"),
        (lambda x: lax.dynamic_slice(x, (x[0, 0].astype(int), 0), (1, 4)), "'dynamic_slice'"),
    ],
)
def test_what_cannot_be_translated_is_named(function, what):
    with pytest.raises(NotImplementedError, match=what):
        translate(lambda x: {"y": function(x)}, (2, 4), {})


def test_without_onnx_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed; run `pip install 'pnsamp-jax\[onnx\]'`"):
        Graph()
