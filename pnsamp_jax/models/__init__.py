"""Flax modules of PN-SAMP and the compared systems: from windowed patches to `Outputs`; `create` builds by name."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pnsamp_jax.errors import UserError
from pnsamp_jax.models.cnn_mtl import CNNMTL
from pnsamp_jax.models.layers import Block
from pnsamp_jax.models.mcnn import MCNN
from pnsamp_jax.models.pn_samp import PNSAMP
from pnsamp_jax.models.pn_samp_plus import PNSAMPPlus
from pnsamp_jax.models.shc_dcnn import SHCDCNN
from pnsamp_jax.models.tumornet import TumorNet
from pnsamp_jax.models.unet3d import UNet3D

MODELS = {
    "pn_samp": PNSAMP,
    "pn_samp_plus": PNSAMPPlus,
    "unet3d": UNet3D,
    "tumornet": TumorNet,
    "shc_dcnn": SHCDCNN,
    "mcnn": MCNN,
    "cnn_mtl": CNNMTL,
}


def create(name: str, dtype: str = "float32", axis_name: str | None = None, **fields) -> nn.Module:
    """Build a model by name.

    Args:
      name: one of `MODELS`.
      dtype: of the activations.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      **fields: the model's other fields.

    Raises:
      UserError: there is no such model, or it has no such field.
    """
    if name not in MODELS:
        raise UserError(f"config.model.name: no model '{name}'; choose from {', '.join(MODELS)}")
    # Flax adds `parent` and `name` to the fields of every module.
    known = {field.name for field in dataclasses.fields(MODELS[name])} - {"parent", "name", "dtype", "axis_name"}
    for field in fields:
        if field not in known:
            raise UserError(f"config.model.{field}: {name} has no such field; it has {', '.join(sorted(known))}")
    return MODELS[name](dtype=jnp.dtype(dtype), axis_name=axis_name, **fields)


def layer_table(model: nn.Module, patch_size: int, channels: int) -> str:
    """Return the table of a model's layers in the order in which they run: name, output shape, parameters.

    Each `Block` is one line, and so is each layer outside the blocks that has parameters itself. The last line is the
    total. The shapes are traced; nothing is computed.

    Args:
      model: from `create`.
      patch_size: voxels on a side of the input.
      channels: of the input.
    """
    output_shapes: dict[tuple[str, ...], tuple[int, ...]] = {}  # by the path of a block or layer, for one nodule

    def record_shape(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        output = call(*args, **kwargs)
        has_parameters = any(not isinstance(value, Mapping) for value in module.variables.get("params", {}).values())
        if isinstance(output, jax.Array) and (isinstance(module, Block) or has_parameters):
            output_shapes[module.path] = output.shape[1:]
        return output

    def init(x: jax.Array) -> dict:  # a new function in each call, because JAX would not trace the same one again
        with nn.intercept_methods(record_shape):
            return dict(model.init(jax.random.key(0), x))

    patch = jax.ShapeDtypeStruct((1, patch_size, patch_size, patch_size, channels), jnp.float32)
    params = jax.eval_shape(init, patch)["params"]

    def count(tree: dict) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    rows = [("layer", "output", "parameters")]
    for path, shape in output_shapes.items():
        if any(path[:depth] in output_shapes for depth in range(len(path))):
            continue  # part of a block
        tree = params
        for name in path:
            tree = tree[name]
        rows.append(("/".join(path), "x".join(map(str, shape)), f"{count(tree):,}"))
    rows.append(("total", "", f"{count(params):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{name:{widths[0]}}  {shape:{widths[1]}}  {size:>{widths[2]}}" for name, shape, size in rows)
