"""Flax modules. Every model maps windowed patches to mask logits and rating logits; `create` builds one by name."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from pnsamp_jax.errors import UserError
from pnsamp_jax.models.cnn_mtl import CNNMTL
from pnsamp_jax.models.layers import Block
from pnsamp_jax.models.mcnn import MCNN
from pnsamp_jax.models.pn_samp import PNSAMP
from pnsamp_jax.models.shc_dcnn import SHCDCNN
from pnsamp_jax.models.tumornet import TumorNet
from pnsamp_jax.models.unet3d import UNet3D

MODELS = {
    "pn_samp": PNSAMP,
    "unet3d": UNet3D,
    "tumornet": TumorNet,
    "shc_dcnn": SHCDCNN,
    "mcnn": MCNN,
    "cnn_mtl": CNNMTL,
}


def create(name: str, dtype: str = "float32", axis_name: str | None = None, **fields) -> nn.Module:
    """Builds the model `name`; `fields` are its own.

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
    """The layers of a model in the order in which they run, one a line: name, output shape, parameters; then the sum.

    A `Block` is one line, and so is every layer with parameters of its own that lies in no other line. Nothing is
    computed.

    Args:
      model: of `create`.
      patch_size: voxels on a side of the input.
      channels: of the input.
    """
    units = {}  # path of a block or layer -> shape of its output for one nodule

    def note(call, args, kwargs, context):
        module = context.module
        output = call(*args, **kwargs)
        own = any(not isinstance(value, Mapping) for value in module.variables.get("params", {}).values())
        if isinstance(output, jax.Array) and (isinstance(module, Block) or own):
            units[module.path] = output.shape[1:]
        return output

    def init(x: jax.Array) -> dict:  # a function of its own each time, since JAX remembers what it has traced
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), x)

    patch = jax.ShapeDtypeStruct((1, patch_size, patch_size, patch_size, channels), jnp.float32)
    params = jax.eval_shape(init, patch)["params"]

    def count(tree: dict) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    rows = [("layer", "output", "parameters")]
    for path, shape in units.items():
        if any(path[:depth] in units for depth in range(len(path))):
            continue
        tree = params
        for name in path:
            tree = tree[name]
        rows.append(("/".join(path), "x".join(map(str, shape)), f"{count(tree):,}"))
    rows.append(("total", "", f"{count(params):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{name:{widths[0]}}  {shape:{widths[1]}}  {size:>{widths[2]}}" for name, shape, size in rows)
