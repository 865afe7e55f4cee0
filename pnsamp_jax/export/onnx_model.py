"""From a JAX function to an ONNX model, operation by operation.

JAX traces the function to a program of primitive operations (a jaxpr). It is walked once: what depends on constants
alone is computed, calls are followed, and every other operation becomes what `onnx_operators` has for it. So the model
is what the network is, whatever the network is made of. Where an operation has a form for each platform, such as
`models.conv3d`, the form for all other platforms is taken.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from pnsamp_jax.export.onnx_graph import BATCH, Graph, Tensor, Value, is_known
from pnsamp_jax.export.onnx_operators import FUNCTIONS, PRIMITIVES, REPEATING, Operation

OPSET, IR_VERSION = 17, 8  # of 2022
SMALL = 2**16  # values
CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")


def translate(
    function: Callable[[jax.Array], dict[str, jax.Array]], shape: Sequence[int | None], metadata: Mapping[str, str]
) -> Any:
    """Return the `onnx.ModelProto` of a function from images to results by name.

    Args:
      function: that JAX can trace.
      shape: of the images, the model's float32 input `images`; None in the first place for batches of any size.
      metadata: of the model.

    Raises:
      NotImplementedError: the function contains an operation that `onnx_operators` lacks.
      UserError: the package onnx is not installed.
    """
    graph, (free,) = Graph(), export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct(tuple(free if size is None else size for size in shape), np.float32)
    traced = jax.jit(function).trace(images)
    results = _follow(graph, traced.jaxpr, [Tensor("images", images.shape)])
    outputs = []
    for name, value, struct in zip(sorted(traced.out_info), results, jax.tree.leaves(traced.out_info), strict=True):
        graph.name(graph.repeated(value, struct.shape), name)
        outputs.append(_information(graph.onnx, name, struct.shape))
    proto = graph.onnx.helper.make_model(
        graph.onnx.helper.make_graph(
            graph.nodes,
            "pnsamp",
            [_information(graph.onnx, "images", images.shape)],
            outputs,
            list(graph.constants.values()),
        ),
        opset_imports=[graph.onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pnsamp_jax",
    )
    graph.onnx.helper.set_model_props(proto, dict(metadata))
    graph.onnx.checker.check_model(proto, full_check=True)
    return proto


def _information(onnx: Any, name: str, shape: Sequence) -> Any:
    sizes = [int(size) if is_known(size) else BATCH for size in shape]
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)


def _follow(graph: Graph, program: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Translate a program with its constants, and return its outputs."""
    jaxpr = program.jaxpr
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, program.consts), strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def read(atom: Any) -> Value:
        return _constant(atom) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        found = _equation(graph, equation, [read(atom) for atom in equation.invars])
        values |= zip(equation.outvars, found, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """Translate one operation, and return its outputs."""
    name, parameters = equation.primitive.name, equation.params
    before, after = ([_shape(one) for one in side] for side in (equation.invars, equation.outvars))
    operation = Operation(parameters, after)
    known = not any(isinstance(value, Tensor) for value in inputs)
    if name == "platform_index":  # of the form for platforms without a name
        return [np.asarray(parameters["platforms"].index(None), np.int32)]
    if name == "cond":
        return _follow(graph, parameters["branches"][int(np.asarray(inputs[0]))], inputs[1:])
    if name in CALLS and (known or parameters.get("name", "") not in FUNCTIONS):
        return _follow(graph, parameters.get("jaxpr") or parameters["call_jaxpr"], inputs)
    if known and _is_worth_keeping(before, after):
        result = equation.primitive.bind(*inputs, **parameters)
        return [np.asarray(one) for one in (result if equation.primitive.multiple_results else [result])]
    if name in REPEATING:
        return [REPEATING[name](graph, operation, *inputs)]
    translation = FUNCTIONS[parameters["name"]] if name in CALLS else PRIMITIVES.get(name)
    if translation is None:
        raise NotImplementedError(f"JAX's operation '{name}' has no translation to ONNX in export/onnx_operators.py")
    whole = [graph.repeated(value, shape) for value, shape in zip(inputs, before, strict=True)]
    found = translation(graph, operation, *whole)
    return found if isinstance(found, list) else [found]


def _constant(literal: Any) -> np.ndarray:
    return np.asarray(literal.val, literal.aval.dtype)


def _shape(atom: Any) -> tuple:
    return tuple(atom.aval.shape)


def _is_worth_keeping(before: list[tuple], after: list[tuple]) -> bool:
    """Return whether the results of an operation on constants are constants of the model too, by their shapes.

    They are not if they depend on the batch, or take much more room than what they are computed from.
    """
    if not all(is_known(size) for shape in after for size in shape):
        return False
    return sum(map(math.prod, after)) <= max(sum(map(math.prod, before)), SMALL)
