"""A JAX function of images, computed by OpenVINO."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pnsamp_jax.export.openvino_model import convert, openvino
from pnsamp_jax.export.packages import needed


class OpenVINOProgram:
    """A function from images to results by name that OpenVINO computes in float32 on the CPU.

    It is compiled at the first call for each shape of images. One call uses all cores; calls do not overlap.
    """

    def __init__(self, function: Callable[[jax.Array], dict[str, jax.Array]]) -> None:
        """Take the function, which JAX can trace.

        Raises:
          UserError: OpenVINO or onnx is not installed.
        """
        needed("onnx", "openvino")
        self.function, self.core = function, openvino().Core()
        self.compiled: dict[tuple[int, ...], tuple[Any, list[str]]] = {}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the results for images (N, S, S, S)."""
        if images.shape not in self.compiled:
            self.compiled[images.shape] = self._compile(images.shape)
        program, names = self.compiled[images.shape]
        results = program(np.asarray(images, np.float32, order="C"))
        return {name: results[name] for name in names}

    def _compile(self, shape: tuple[int, ...]) -> tuple[Any, list[str]]:
        """Return the program for a shape, and the names of its results, to which compiling adds others."""
        model = convert(self.function, shape, {})
        names = [output.any_name for output in model.outputs]
        # Left alone, OpenVINO would compute in bfloat16 where the processor can.
        return self.core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), names
