"""One turn of one system of the benchmark, in its own process.

Reads a pickled `Job` from standard input; the last line of standard output is the JSON of `measure`. JAX, PyTorch and
Keras are not imported here, so that each process loads only its own toolkit.
"""

import json
import pickle
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pnsamp_jax.allocator import give_back_freed_memory, keep_freed_memory
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError

MODULES = {  # else jax_systems
    "torch": "torch_pn_samp",
    "torch_compile": "torch_pn_samp",
    "keras": "keras_pn_samp",
    "openvino": "openvino_pn_samp",
}


class Job(NamedTuple):
    """The task of a worker."""

    system: str  # `create(system, config)` of its module returns the `System`
    config: ConfigDict  # with the batch size, patch size and precision to measure
    seconds: float  # for which the calls of each part are repeated
    parts: tuple[str, ...] = ()  # of the system; all if empty
    devices: int = 0  # into which the CPU is divided; 0 for the devices of the machine


def host_peak() -> int:
    """Return the most bytes of memory that this process has held so far."""
    if sys.platform == "linux":  # where `resource` starts with the memory of the parent process
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class System(NamedTuple):
    """What a worker measures."""

    about: dict  # JSON for the report: `name`, `version` and `device`
    parts: dict[str, Callable[[], object]]  # each returns once its result is computed; the first call compiles
    peak: Callable[[], int] = host_peak  # most bytes held so far, of the device if it has memory of its own
    costs: Callable[[], dict[str, dict[str, float]]] = dict  # operations and bytes of a call by part, where known


def draw_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Draw a batch as the input pipeline yields it: random voxels, a central ball, one reader for each rating."""
    random = np.random.default_rng(config.seed)
    batch, side = config.batch_size, config.patch_size + 2 * config.data.margin
    squares = np.square(np.arange(side) - (side - 1) / 2)
    ball = squares[:, None, None] + squares[:, None] + squares < (config.patch_size / 8) ** 2
    classes = random.integers(0, [rating.classes for rating in schema.RATINGS], (batch, len(schema.RATINGS)))
    return {
        schema.IMAGE: random.integers(-1400, 200, (batch, side, side, side), np.int16),
        schema.MASK: np.stack([schema.MASK_UNIT * ball.astype(np.uint8)] * batch),
        schema.RATING_COUNTS: np.eye(schema.MAX_CLASSES, dtype=np.uint8)[classes],
    }


def network_inputs(config: ConfigDict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `draw_batch` as a network receives it without augmentation.

    Returns:
      Patches (B, S, S, S, windows) and masks (B, S, S, S) in float32, and classes from 0 (B, 9).
    """
    batch, inner = draw_batch(config), slice(config.data.margin, config.data.margin + config.patch_size)
    width, centre = np.array(config.model.windows, np.float32).T
    images, masks = (batch[name][:, inner, inner, inner] for name in (schema.IMAGE, schema.MASK))
    inputs = np.clip((images[..., None].astype(np.float32) - centre) / width + 0.5, 0, 1)
    return inputs, (masks > 0).astype(np.float32), batch[schema.RATING_COUNTS].argmax(axis=-1)


def measure(system: System, seconds: float, parts: tuple[str, ...]) -> dict:
    """Measure the given parts of a system, or all.

    Returns:
      `about`, `costs` and `peak_bytes` of the system; by part, the `seconds` of each call; and `compile_s`, by how
      much the first call takes longer than the fastest.
    """
    times, compile_s = {}, {}
    for part in parts or system.parts:
        calls: list[float] = []
        end = 0.0
        while len(calls) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            system.parts[part]()
            calls.append(time.perf_counter() - start)
            if len(calls) == 1:
                give_back_freed_memory()  # of the compilation, as in training
            if len(calls) == 2:  # the first call compiles, and the second still warms up
                end = time.perf_counter() + seconds
        times[part], compile_s[part] = calls[2:], calls[0] - min(calls[1:])
    results = {"seconds": times, "compile_s": compile_s, "peak_bytes": system.peak()}
    return results | {"about": system.about, "costs": system.costs()}


def main() -> None:
    """Measure the job on standard input."""
    job = pickle.load(sys.stdin.buffer)
    if sys.platform == "linux":  # if memory runs out, the system shall end this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    keep_freed_memory()  # as in training, and for all systems alike
    module = import_module(f"experiments.speed.{MODULES.get(job.system, 'jax_systems')}")
    try:
        print(json.dumps(measure(module.create(job.system, job.config), job.seconds, job.parts)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
