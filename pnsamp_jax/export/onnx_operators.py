"""What JAX's operations are in ONNX: a table of primitives, and one of functions that ONNX has an operator for.

An entry takes the graph, the operation and its inputs, adds nodes to the graph, and returns the output or the list of
outputs. Operations that the networks of this package do not use are missing.
"""

import string
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pnsamp_jax.export.onnx_graph import Graph, Tensor, Value, is_known

SPATIAL = (2, 3, 4)  # axes of depth, height and width in ONNX, where channels come second
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)


class Operation(NamedTuple):
    """An operation of JAX.

    Attributes:
      parameters: as JAX names them.
      shapes: of the outputs.
    """

    parameters: Mapping[str, Any]
    shapes: list[tuple]


# Operations whose inputs need not be repeated, see `onnx_graph`.


def elementwise(operator: str, graph: Graph, operation: Operation, *inputs: Value) -> Tensor:
    """Translate an operation that ONNX has under another name."""
    full = operation.shapes[0]
    stored = [value.shape for value in inputs if len(value.shape) == len(full)]
    shape = [size if any(one[axis] == size for one in stored) else 1 for axis, size in enumerate(full)]
    return graph.tensor(shape if stored else (), operator, *inputs)


def square(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Multiply a value by itself."""
    return elementwise("Mul", graph, operation, x, x)


def select_n(graph: Graph, operation: Operation, which: Value, no: Value, yes: Value) -> Tensor:
    """Choose between two values by a bool."""
    return elementwise("Where", graph, operation, which, yes, no)


def convert_element_type(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Change the type."""
    kind = graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(operation.parameters["new_dtype"]))
    return graph.tensor(x.shape, "Cast", x, to=kind)


def broadcast_in_dim(graph: Graph, operation: Operation, x: Value) -> Value:
    """Give the value its further axes, with a length of 1."""
    places = operation.parameters["broadcast_dimensions"]
    new = [axis for axis in range(len(operation.shapes[0])) if axis not in places]
    if not x.shape or not new:
        return x
    shape: list[Any] = [1] * len(operation.shapes[0])
    for size, axis in zip(x.shape, places, strict=True):
        shape[axis] = size
    return graph.tensor(shape, "Unsqueeze", x, new)


# Operations whose inputs have the shapes that they have in JAX.


def reshape(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Reshape; the one axis that depends on the batch is what remains."""
    (shape,) = operation.shapes
    return graph.tensor(shape, "Reshape", x, [size if is_known(size) else -1 for size in shape])


def squeeze(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Remove axes of length 1."""
    return graph.tensor(operation.shapes[0], "Squeeze", x, list(operation.parameters["dimensions"]))


def permuted(graph: Graph, x: Value, axes: Any) -> Tensor:
    """Permute the axes of a value."""
    return graph.tensor([x.shape[axis] for axis in axes], "Transpose", x, perm=list(map(int, axes)))


def transpose(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Permute the axes."""
    return permuted(graph, x, operation.parameters["permutation"])


def concatenate(graph: Graph, operation: Operation, *inputs: Value) -> Tensor:
    """Join along an axis."""
    return graph.tensor(operation.shapes[0], "Concat", *inputs, axis=int(operation.parameters["dimension"]))


def stack(graph: Graph, operation: Operation, *inputs: Value) -> Tensor:
    """Join along a new axis."""
    axis = int(operation.parameters["axis"])
    parts = [graph.tensor((*x.shape[:axis], 1, *x.shape[axis:]), "Unsqueeze", x, [axis]) for x in inputs]
    return graph.tensor(operation.shapes[0], "Concat", *parts, axis=axis)


def split(graph: Graph, operation: Operation, x: Value) -> list[Tensor]:
    """Cut along an axis."""
    sizes = list(map(int, operation.parameters["sizes"]))
    names = graph.node("Split", x, sizes, outputs=len(sizes), axis=int(operation.parameters["axis"]))
    return [Tensor(name, shape) for name, shape in zip(names, operation.shapes, strict=True)]


def cut(graph: Graph, x: Value, starts: Any, ends: Any, strides: Any, shape: tuple) -> Value:
    """Cut a box out of a value; axes that are kept whole, as that of the batch is, are left alone."""
    bounds = [
        (int(start), int(end), axis, int(stride))
        for axis, (size, start, end, stride) in enumerate(zip(x.shape, starts, ends, strides, strict=True))
        if not (stride == 1 and start == 0 and end == size)
    ]
    return graph.tensor(shape, "Slice", x, *map(list, zip(*bounds, strict=True))) if bounds else x


def slice_(graph: Graph, operation: Operation, x: Value) -> Value:
    """Cut out a box."""
    starts, ends = operation.parameters["start_indices"], operation.parameters["limit_indices"]
    strides = operation.parameters["strides"] or (1,) * len(x.shape)
    return cut(graph, x, starts, ends, strides, operation.shapes[0])


def gather(graph: Graph, operation: Operation, x: Value, indices: Value) -> Value:
    """Cut out a box at a known place, which is what indexing with numbers and slices comes to."""
    numbers, sizes = operation.parameters["dimension_numbers"], operation.parameters["slice_sizes"]
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or numbers.operand_batching_dims:
        raise NotImplementedError("of JAX's operation 'gather', only a box at a known place is translated to ONNX")
    starts = [0] * len(x.shape)
    for axis, start in zip(numbers.start_index_map, indices, strict=True):
        starts[axis] = int(start)
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    box = cut(graph, x, starts, ends, [1] * len(starts), tuple(sizes))
    gone = list(numbers.collapsed_slice_dims)
    return graph.tensor(operation.shapes[0], "Squeeze", box, gone) if gone else box


def pad(graph: Graph, operation: Operation, x: Value, value: Value) -> Tensor:
    """Continue beyond the ends with a constant."""
    before, after, _ = zip(*operation.parameters["padding_config"], strict=True)
    return graph.tensor(operation.shapes[0], "Pad", x, list(map(int, (*before, *after))), value)


def reduce_sum(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Sum over axes."""
    return graph.tensor(operation.shapes[0], "ReduceSum", x, list(map(int, operation.parameters["axes"])), keepdims=0)


def reduce_max(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Take the maximum over axes."""
    axes = list(map(int, operation.parameters["axes"]))
    return graph.tensor(operation.shapes[0], "ReduceMax", x, axes=axes, keepdims=0)


def dot_general(graph: Graph, operation: Operation, x: Value, y: Value) -> Tensor:
    """Multiply and sum over axes: a product of matrices, or else Einstein's sum."""
    (of_x, of_y), (batch_x, batch_y) = operation.parameters["dimension_numbers"]
    if not batch_x and tuple(of_x) == (len(x.shape) - 1,) and tuple(of_y) == (0,) and len(y.shape) == 2:
        return graph.tensor(operation.shapes[0], "MatMul", x, y)
    letters = iter(string.ascii_lowercase)
    in_x, in_y = ([next(letters) for _ in value.shape] for value in (x, y))
    for own, other in zip((*batch_x, *of_x), (*batch_y, *of_y), strict=True):
        in_y[other] = in_x[own]
    rest_x = [letter for axis, letter in enumerate(in_x) if axis not in (*batch_x, *of_x)]
    rest_y = [letter for axis, letter in enumerate(in_y) if axis not in (*batch_y, *of_y)]
    terms = f"{''.join(in_x)},{''.join(in_y)}->{''.join([in_x[axis] for axis in batch_x] + rest_x + rest_y)}"
    return graph.tensor(operation.shapes[0], "Einsum", x, y, equation=terms)


def conv_general_dilated(graph: Graph, operation: Operation, x: Value, kernel: Value) -> Tensor:
    """Convolve."""
    chosen, (of_x, of_kernel, of_y) = operation.parameters, operation.parameters["dimension_numbers"]
    if set(chosen["lhs_dilation"]) != {1} or chosen["batch_group_count"] != 1 or not isinstance(kernel, np.ndarray):
        raise NotImplementedError("transposed and computed convolutions are not translated to ONNX")
    before, after = zip(*chosen["padding"], strict=True)
    y = graph.tensor(
        [operation.shapes[0][axis] for axis in of_y],
        "Conv",
        permuted(graph, x, of_x),
        kernel.transpose(of_kernel),
        strides=list(map(int, chosen["window_strides"])),
        dilations=list(map(int, chosen["rhs_dilation"])),
        pads=list(map(int, (*before, *after))),
        group=int(chosen["feature_group_count"]),
    )
    return permuted(graph, y, np.argsort(of_y))


# Functions, with inputs as above.


def elu(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Compute x where it is positive and exp(x) - 1 elsewhere."""
    return graph.tensor(x.shape, "Elu", x)


def pooled(operator: str, graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Halve depth, height and width."""
    y = permuted(graph, x, TO_CHANNELS_FIRST)
    shape = [size // 2 if axis in SPATIAL else size for axis, size in enumerate(y.shape)]
    return permuted(
        graph, graph.tensor(shape, operator, y, kernel_shape=[2, 2, 2], strides=[2, 2, 2]), TO_CHANNELS_LAST
    )


def up_pool(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Double depth, height and width by repeating each voxel."""
    y = permuted(graph, x, TO_CHANNELS_FIRST)
    shape = [2 * size if axis in SPATIAL else size for axis, size in enumerate(y.shape)]
    scales = np.array([2 if axis in SPATIAL else 1 for axis in range(5)], np.float32)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return permuted(graph, graph.tensor(shape, "Resize", y, np.zeros(0, np.float32), scales, **how), TO_CHANNELS_LAST)


def greatest(graph: Graph, operation: Operation, x: Value) -> Tensor:
    """Take the maximum over space: (B, D, H, W, C) -> (B, C)."""
    return graph.tensor(operation.shapes[0], "ReduceMax", x, axes=[1, 2, 3], keepdims=0)


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
REPEATING: dict[str, Callable[..., Any]] = {
    **{name: partial(elementwise, operator) for name, operator in ELEMENTWISE.items()},
    "broadcast_in_dim": broadcast_in_dim,
    "convert_element_type": convert_element_type,
    "select_n": select_n,
    "square": square,
    "stop_gradient": lambda graph, operation, x: x,
}
PRIMITIVES: dict[str, Callable[..., Any]] = {
    "concatenate": concatenate,
    "conv_general_dilated": conv_general_dilated,
    "dot_general": dot_general,
    "gather": gather,
    "pad": pad,
    "reduce_max": reduce_max,
    "reduce_sum": reduce_sum,
    "reshape": reshape,
    "slice": slice_,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
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
