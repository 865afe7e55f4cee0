"""From a JAX function to an ONNX model, operation by operation.

JAX traces the function to a program of primitive operations (a jaxpr). It is walked once: what depends on constants
alone is computed, calls are followed, and every other operation becomes what `onnx_operators` has for it. So the model
is what the network is, whatever the network is made of. Where an operation has a form for each platform, such as
`models.conv3d`, the form for all other platforms is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from pnsamp_jax.export.onnx_graph import BATCH, Graph, Tensor, Value, is_known
from pnsamp_jax.export.onnx_operators import FUNCTIONS, PRIMITIVES

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
        graph.nodes.append(graph.onnx.helper.make_node("Identity", [graph.repeated(value, struct.shape).name], [name]))
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
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        values |= zip(
            equation.outvars, _equation(graph, equation, [read(atom) for atom in equation.invars]), strict=True
        )
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """Translate one operation, and return its outputs."""
    name, parameters = equation.primitive.name, equation.params
    known = not any(isinstance(value, Tensor) for value in inputs)
    if name == "platform_index":  # of the form for platforms without a name
        return [np.asarray(parameters["platforms"].index(None), np.int32)]
    if name == "cond":
        return _follow(graph, parameters["branches"][int(inputs[0])], inputs[1:])
    if name in CALLS:
        whole = FUNCTIONS.get(parameters.get("name"))
        if whole and not known:
            return [whole(graph, equation, *inputs)]
        return _follow(graph, parameters.get("jaxpr") or parameters["call_jaxpr"], inputs)
    if known and _is_worth_keeping(equation):
        found = equation.primitive.bind(*inputs, **parameters)
        return [np.asarray(one) for one in (found if equation.primitive.multiple_results else [found])]
    if name not in PRIMITIVES:
        raise NotImplementedError(f"JAX's operation '{name}' has no translation to ONNX in export/onnx_operators.py")
    found = PRIMITIVES[name](graph, equation, *inputs)
    return found if isinstance(found, list) else [found]


def _is_worth_keeping(equation: JaxprEqn) -> bool:
    """Return whether the results of an operation on constants are constants of the model too.

    They are not if they depend on the batch, or take much more room than what they are computed from.
    """
    if not all(is_known(size) for variable in equation.outvars for size in variable.aval.shape):
        return False
    before, after = (sum(one.aval.size for one in side) for side in (equation.invars, equation.outvars))
    return after <= max(before, SMALL)
