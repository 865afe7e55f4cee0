"""What JAX's operations are in ONNX: a table of primitives, and one of functions that ONNX has an operator for.

An entry takes the graph, the equation of the operation and its inputs, adds nodes to the graph, and returns the output
or the list of outputs. Primitives that the networks of this package do not use are missing.
"""

import string
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from pnsamp_jax.export.onnx_graph import Graph, Tensor, Value, is_known

SPATIAL = (2, 3, 4)  # axes of depth, height and width in ONNX, where channels come second
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)


def elementwise(operator: str, graph: Graph, equation: JaxprEqn, *inputs: Value) -> Tensor:
    """Translate an operation that ONNX has under another name, and that repeats what is shorter."""
    full = equation.outvars[0].aval.shape
    stored = [value.shape for value in inputs if len(value.shape) == len(full)]
    shape = [size if any(one[axis] == size for one in stored) else 1 for axis, size in enumerate(full)]
    return graph.tensor(shape if stored else (), operator, *inputs)


def square(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Multiply a value by itself."""
    return elementwise("Mul", graph, equation, x, x)


def select_n(graph: Graph, equation: JaxprEqn, which: Value, no: Value, yes: Value) -> Tensor:
    """Choose between two values by a bool."""
    return elementwise("Where", graph, equation, which, yes, no)


def convert_element_type(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    """Change the type."""
    before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    kind = graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(after))
    return x if before == after else graph.tensor(x.shape, "Cast", x, to=kind)


def broadcast_in_dim(graph: Graph, equation: JaxprEqn, x: Value) -> Value:
    """Give the value its further axes with a length of 1; see `onnx_graph`."""
    full, places = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    new = [axis for axis in range(len(full)) if axis not in places]
    if not x.shape or not new:
        return x
    shape = [1] * len(full)
    for size, axis in zip(x.shape, places, strict=True):
        shape[axis] = size
    return graph.tensor(shape, "Unsqueeze", x, new)


def reshape(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Reshape; the one axis that depends on the batch is what remains."""
    shape = equation.outvars[0].aval.shape
    whole = graph.repeated(x, equation.invars[0].aval.shape)
    return graph.tensor(shape, "Reshape", whole, [size if is_known(size) else -1 for size in shape])


def squeeze(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Remove axes of length 1."""
    whole = graph.repeated(x, equation.invars[0].aval.shape)
    return graph.tensor(equation.outvars[0].aval.shape, "Squeeze", whole, list(equation.params["dimensions"]))


def transpose(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Permute the axes."""
    whole = graph.repeated(x, equation.invars[0].aval.shape)
    permutation = list(map(int, equation.params["permutation"]))
    return graph.tensor(equation.outvars[0].aval.shape, "Transpose", whole, perm=permutation)


def concatenate(graph: Graph, equation: JaxprEqn, *inputs: Value) -> Tensor:
    """Join along an axis."""
    parts = [graph.repeated(x, atom.aval.shape) for x, atom in zip(inputs, equation.invars, strict=True)]
    return graph.tensor(equation.outvars[0].aval.shape, "Concat", *parts, axis=int(equation.params["dimension"]))


def stack(graph: Graph, equation: JaxprEqn, *inputs: Value) -> Tensor:
    """Join along a new axis."""
    axis = int(equation.params["axis"])
    parts = []
    for x, atom in zip(inputs, equation.invars, strict=True):
        shape = atom.aval.shape
        whole = graph.repeated(x, shape)
        parts.append(graph.tensor((*shape[:axis], 1, *shape[axis:]), "Unsqueeze", whole, [axis]))
    return graph.tensor(equation.outvars[0].aval.shape, "Concat", *parts, axis=axis)


def split(graph: Graph, equation: JaxprEqn, x: Value) -> list[Tensor]:
    """Cut along an axis."""
    whole, sizes = graph.repeated(x, equation.invars[0].aval.shape), list(map(int, equation.params["sizes"]))
    names = graph.node("Split", whole, sizes, outputs=len(sizes), axis=int(equation.params["axis"]))
    return [Tensor(name, variable.aval.shape) for name, variable in zip(names, equation.outvars, strict=True)]


def cut(graph: Graph, x: Tensor, full: tuple, starts: Any, ends: Any, strides: Any, shape: tuple) -> Tensor:
    """Cut a box out of a value; axes that are kept whole, as that of the batch is, are left alone."""
    bounds = [
        (int(start), int(end), axis, int(stride))
        for axis, (size, start, end, stride) in enumerate(zip(full, starts, ends, strides, strict=True))
        if not (stride == 1 and start == 0 and end == size)
    ]
    return graph.tensor(shape, "Slice", x, *map(list, zip(*bounds, strict=True))) if bounds else Tensor(x.name, shape)


def slice_(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Cut out a box."""
    full, starts = equation.invars[0].aval.shape, equation.params["start_indices"]
    ends, strides = equation.params["limit_indices"], equation.params["strides"] or (1,) * len(full)
    whole = graph.repeated(x, full)
    return cut(graph, whole, full, starts, ends, strides, equation.outvars[0].aval.shape)


def gather(graph: Graph, equation: JaxprEqn, x: Value, indices: Value) -> Tensor:
    """Cut out a box at a known place, which is what indexing with numbers and slices comes to."""
    numbers, full = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or numbers.operand_batching_dims:
        raise NotImplementedError("of JAX's operation 'gather', only a box at a known place is translated to ONNX")
    starts, sizes = [0] * len(full), equation.params["slice_sizes"]
    for axis, start in zip(numbers.start_index_map, indices, strict=True):
        starts[axis] = int(start)
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    box = cut(graph, graph.repeated(x, full), full, starts, ends, [1] * len(full), tuple(sizes))
    gone = list(numbers.collapsed_slice_dims)
    return graph.tensor(equation.outvars[0].aval.shape, "Squeeze", box, gone) if gone else box


def pad(graph: Graph, equation: JaxprEqn, x: Value, value: Value) -> Tensor:
    """Continue beyond the ends with a constant."""
    before, after, _ = zip(*equation.params["padding_config"], strict=True)
    whole = graph.repeated(x, equation.invars[0].aval.shape)
    amounts = list(map(int, (*before, *after)))
    return graph.tensor(equation.outvars[0].aval.shape, "Pad", whole, amounts, value)


def reduce_sum(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Sum over axes."""
    whole, axes = graph.repeated(x, equation.invars[0].aval.shape), list(map(int, equation.params["axes"]))
    return graph.tensor(equation.outvars[0].aval.shape, "ReduceSum", whole, axes, keepdims=0)


def reduce_max(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Take the maximum over axes."""
    whole, axes = graph.repeated(x, equation.invars[0].aval.shape), list(map(int, equation.params["axes"]))
    return graph.tensor(equation.outvars[0].aval.shape, "ReduceMax", whole, axes=axes, keepdims=0)


def dot_general(graph: Graph, equation: JaxprEqn, x: Value, y: Value) -> Tensor:
    """Multiply and sum over axes: a product of matrices, or else Einstein's sum."""
    shapes = [atom.aval.shape for atom in equation.invars]
    x, y = (graph.repeated(value, shape) for value, shape in zip((x, y), shapes, strict=True))
    (of_x, of_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    shape = equation.outvars[0].aval.shape
    if not batch_x and tuple(of_x) == (len(shapes[0]) - 1,) and tuple(of_y) == (0,) and len(shapes[1]) == 2:
        return graph.tensor(shape, "MatMul", x, y)
    letters = iter(string.ascii_lowercase)
    in_x = [next(letters) for _ in shapes[0]]
    in_y = [next(letters) for _ in shapes[1]]
    for own, other in zip((*batch_x, *of_x), (*batch_y, *of_y), strict=True):
        in_y[other] = in_x[own]
    rest_x = [letter for axis, letter in enumerate(in_x) if axis not in (*batch_x, *of_x)]
    rest_y = [letter for axis, letter in enumerate(in_y) if axis not in (*batch_y, *of_y)]
    result = [in_x[axis] for axis in batch_x] + rest_x + rest_y
    terms = f"{''.join(in_x)},{''.join(in_y)}->{''.join(result)}"
    return graph.tensor(shape, "Einsum", x, y, equation=terms)


def conv_general_dilated(graph: Graph, equation: JaxprEqn, x: Value, kernel: Value) -> Tensor:
    """Convolve."""
    chosen, (of_x, of_kernel, of_y) = equation.params, equation.params["dimension_numbers"]
    if set(chosen["lhs_dilation"]) != {1} or chosen["batch_group_count"] != 1 or not isinstance(kernel, np.ndarray):
        raise NotImplementedError("transposed and computed convolutions are not translated to ONNX")
    before, after = zip(*chosen["padding"], strict=True)
    y = graph.tensor(
        [equation.outvars[0].aval.shape[axis] for axis in of_y],
        "Conv",
        permuted(graph, graph.repeated(x, equation.invars[0].aval.shape), of_x),
        np.ascontiguousarray(kernel.transpose(of_kernel)),
        strides=list(map(int, chosen["window_strides"])),
        dilations=list(map(int, chosen["rhs_dilation"])),
        pads=list(map(int, (*before, *after))),
        group=int(chosen["feature_group_count"]),
    )
    return permuted(graph, y, np.argsort(of_y))


def permuted(graph: Graph, x: Value, axes: Any) -> Tensor:
    """Permute the axes of a value."""
    return graph.tensor([x.shape[axis] for axis in axes], "Transpose", x, perm=list(map(int, axes)))


def elu(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Compute x where it is positive and exp(x) - 1 elsewhere."""
    return graph.tensor(x.shape, "Elu", x)


def pooled(operator: str, graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Halve depth, height and width."""
    y = permuted(graph, graph.repeated(x, equation.invars[0].aval.shape), TO_CHANNELS_FIRST)
    shape = [size // 2 if axis in SPATIAL else size for axis, size in enumerate(y.shape)]
    y = graph.tensor(shape, operator, y, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    return permuted(graph, y, TO_CHANNELS_LAST)


def up_pool(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Double depth, height and width by repeating each voxel."""
    y = permuted(graph, graph.repeated(x, equation.invars[0].aval.shape), TO_CHANNELS_FIRST)
    shape = [2 * size if axis in SPATIAL else size for axis, size in enumerate(y.shape)]
    scales = np.array([2 if axis in SPATIAL else 1 for axis in range(5)], np.float32)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    y = graph.tensor(shape, "Resize", y, np.zeros(0, np.float32), scales, **how)
    return permuted(graph, y, TO_CHANNELS_LAST)


def greatest(graph: Graph, equation: JaxprEqn, x: Value) -> Tensor:
    """Take the maximum over space: (B, D, H, W, C) -> (B, C)."""
    whole = graph.repeated(x, equation.invars[0].aval.shape)
    return graph.tensor(equation.outvars[0].aval.shape, "ReduceMax", whole, axes=[1, 2, 3], keepdims=0)


ELEMENTWISE = {
    "add": "Add",
    "and": "And",
    "div": "Div",
    "exp": "Exp",
    "gt": "Greater",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sqrt": "Sqrt",
    "sub": "Sub",
}
PRIMITIVES: dict[str, Callable[..., Any]] = {
    **{name: partial(elementwise, operator) for name, operator in ELEMENTWISE.items()},
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "conv_general_dilated": conv_general_dilated,
    "convert_element_type": convert_element_type,
    "dot_general": dot_general,
    "gather": gather,
    "pad": pad,
    "reduce_max": reduce_max,
    "reduce_sum": reduce_sum,
    "reshape": reshape,
    "select_n": select_n,
    "slice": slice_,
    "split": split,
    "square": square,
    "squeeze": squeeze,
    "stack": stack,
    "stop_gradient": lambda graph, equation, x: x,
    "transpose": transpose,
}
# Functions under `jax.jit`, by their name. Each is translated as a whole; all others are followed.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_greatest": greatest,
    "elu": elu,
    "max_pool": partial(pooled, "MaxPool"),
    "mean_pool": partial(pooled, "AveragePool"),
    "up_pool": up_pool,
}
