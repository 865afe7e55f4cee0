"""An ONNX graph in the making: its values, nodes and constants.

In JAX both sides of an addition have the same shape, and a vector of one value for each channel is repeated for every
voxel first. ONNX repeats it implicitly. A value is therefore kept as it is until an operation needs it repeated.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pnsamp_jax.export.packages import needed

BATCH = "batch"  # name of the free axis


class Tensor(NamedTuple):
    """A value that the model computes.

    Attributes:
      name: in the graph.
      shape: as it is stored. Axes that the value has in JAX may be 1, or missing, and stand for any length.
    """

    name: str
    shape: tuple


Value = np.ndarray | Tensor  # known now, or when the model runs


class Graph:
    """The nodes and constants of a model in the making.

    Attributes:
      nodes: in the order in which they run.
      constants: by a digest of their content, so that none is stored twice.
    """

    def __init__(self) -> None:
        self.onnx = needed("onnx", "onnx")
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, operator: str, *inputs: Value | Sequence[int], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node, and return the names of its outputs.

        Args:
          operator: of ONNX.
          *inputs: values, or lists of integers, which become int64.
          outputs: how many it has.
          **attributes: of the operator.
        """
        names = [f"{operator.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        given = [value.name if isinstance(value, Tensor) else self._constant(value) for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(operator, given, names, **attributes))
        return names

    def tensor(self, shape: Sequence, operator: str, *inputs: Value | Sequence[int], **attributes: Any) -> Tensor:
        """Add a node with one output of a shape, and return that."""
        return Tensor(self.node(operator, *inputs, **attributes)[0], tuple(shape))

    def name(self, value: Value, name: str) -> None:
        """Give a value the name of an output."""
        self.node("Identity", value)
        self.nodes[-1].output[:] = [name]

    def repeated(self, value: Value, shape: Sequence) -> Value:
        """Return a value with all the axes that it has in JAX, at their full length.

        Raises:
          NotImplementedError: another axis than the first would be repeated as often as the batch is long.
        """
        if value.shape == tuple(shape):
            return value
        free = [axis for axis, size in enumerate(shape) if not is_known(size)]
        has_them = len(value.shape) == len(shape) and all(value.shape[axis] == shape[axis] for axis in free)
        sizes: Value | list[int] = [size if is_known(size) else 1 for size in shape]
        if not has_them:
            if free != [0] or str(shape[0]) != BATCH:
                raise NotImplementedError(f"a value that is repeated to {shape} is not translated to ONNX")
            batch = self.tensor((1,), "Shape", Tensor("images", ()), start=0, end=1)
            sizes = self.tensor((len(shape),), "Concat", batch, np.array(sizes[1:], np.int64), axis=0)
        return self.tensor(shape, "Expand", value, sizes)

    def _constant(self, value: np.ndarray | Sequence[int]) -> str:
        array = np.asarray(value, None if isinstance(value, np.ndarray | np.generic) else np.int64, order="C")
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(array, name)
        return self.constants[key].name


def is_known(size: Any) -> bool:
    """Return whether the length of an axis is a number, and not that of the batch."""
    return isinstance(size, int | np.integer)
