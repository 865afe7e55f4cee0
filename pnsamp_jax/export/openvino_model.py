"""From a JAX function to an OpenVINO model, by way of ONNX."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pnsamp_jax.export.onnx_model import translate
from pnsamp_jax.export.packages import needed


def openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report to a server each time that a model is compiled.

    Raises:
      UserError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # so that its import fails
    return needed("openvino", "openvino")


def convert(
    function: Callable[[jax.Array], dict[str, jax.Array]], shape: Sequence[int | None], metadata: Mapping[str, str]
) -> Any:
    """Return the `openvino.Model` of a function, with the metadata in rt_info; see `onnx_model.translate`.

    Raises:
      UserError: OpenVINO or onnx is not installed.
    """
    model = openvino().Core().read_model(translate(function, shape, metadata).SerializeToString())
    for name, value in metadata.items():
        model.set_rt_info(value, ["pnsamp", name])
    return model
