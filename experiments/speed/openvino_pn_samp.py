"""This package's network in the benchmark, computed by OpenVINO, which predicts and does not train."""

from functools import partial

import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.speed.worker import System, draw_batch
from pnsamp_jax import steps
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.export.openvino_model import openvino
from pnsamp_jax.inference.openvino_program import OpenVINOProgram
from pnsamp_jax.state import create_state


def create(system: str, config: ConfigDict) -> System:
    """Create the system `openvino`: `forward` and `latency` of `jax_systems.create`, from the host and back.

    Raises:
      UserError: the config is not valid, or asks for another precision than float32.
    """
    if config.model.dtype != "float32":
        raise UserError(f"config.model.dtype: '{config.model.dtype}', but {system} computes in float32")
    settings = read_settings(config)
    task = settings.task
    state = create_state(task.model, task.patch_size, len(task.windows), settings.seed)
    uncalibrated = (jnp.ones(len(schema.RATINGS)), jnp.float32(0))
    predict = partial(steps.predict_step, task.model, task.patch_size, task.windows, state.variables, *uncalibrated)
    program, batch = OpenVINOProgram(predict), draw_batch(config)[schema.IMAGE]
    about = {"name": "this package, OpenVINO", "version": openvino().__version__.split("-")[0], "device": "CPU"}
    return System(about, {"forward": lambda: program(batch), "latency": lambda: program(batch[:1])})
