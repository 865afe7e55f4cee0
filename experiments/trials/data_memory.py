"""The memory of reading data, which from disk must not grow with them.

    python -m experiments.trials.data_memory --workdir runs/data_memory --nodules=100

Writes so many simulated nodules as prepared files of full size, then three and ten times as many (1.5 GB), and reads
them through both pipelines: an epoch of training batches, then all nodules as a test does. Each reading is a process
of its own. Draws the peaks of their memory to data_memory.png, and writes them to data_memory.json. From disk,
the tenfold data may add a twentieth of their own size.

There is no network in it, whose memory does not depend on the number of nodules. The device is that of JAX's default
backend; on a CPU, its memory is that of the process.
"""

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.speed.preparation import peak_bytes
from experiments.trials import small_run
from pnsamp_jax import input_pipeline
from pnsamp_jax.data import schema
from pnsamp_jax.data.on_disk import open_records
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.series_files import read_records

TIMES = (1, 3, 10)
PER_SERIES = 3
BATCH_SIZE = 8
LARGEST_SHARE = 0.05  # of the data that are added, in memory
READ = {"device": read_records, "tfdata": open_records}  # as `run.load_records`


def write_simulated(folder: Path, nodules: int) -> list[Path]:
    """Write nodules of random voxels, of full size, as the files of prepared series, and return their paths."""
    rng, cube = np.random.default_rng(0), (Geometry().stored_size,) * 3
    folder.mkdir(parents=True)
    paths = []
    for first in range(0, nodules, PER_SERIES):
        count = min(PER_SERIES, nodules - first)
        ids = np.array([f"simulated_{number:06}" for number in range(first, first + count)])
        records = {
            schema.NODULE_ID: ids,
            schema.PATIENT_ID: ids,
            schema.IMAGE: rng.integers(-1024, 1024, (count, *cube), np.int16),
            schema.MASK: rng.integers(0, schema.MASK_UNIT, (count, *cube), np.uint8),
            schema.RATING_COUNTS: schema.CLASS_EXISTS.astype(np.uint8)[None].repeat(count, axis=0),
        }
        paths.append(folder / f"{first:06}.npz")
        np.savez(paths[-1], **records)  # type: ignore[arg-type]  # no feature is called allow_pickle
    return paths


def read(pipeline: str, files: list[Path]) -> int:
    """Read an epoch of training batches, then every nodule, through a pipeline, and return `peak_bytes`."""
    records = READ[pipeline](files)
    if pipeline == "device":
        records = input_pipeline.to_device(records)
    nodules = np.arange(len(records[schema.NODULE_ID]))
    steps = range(len(nodules) // BATCH_SIZE)
    settings: dict[str, Any] = {"pipeline": pipeline, "seed": 0, "steps": steps, "batch_size": BATCH_SIZE}
    for batch in input_pipeline.train_batches(records, nodules, **settings):
        jax.block_until_ready(jax.device_put(batch))
    for batch, _ in input_pipeline.eval_batches(records, nodules, BATCH_SIZE):
        jax.block_until_ready(jax.device_put(batch))
    return peak_bytes()


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the peaks of both pipelines against the number of nodules."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for pipeline, peaks in results["peak_mb"].items():
        axes.plot(results["nodules"], peaks, marker="o", label=f"data.pipeline={pipeline}")
    axes.plot(results["nodules"], results["data_mb"], color="grey", linestyle=":", label="the data themselves")
    axes.set(xlabel="nodules", ylabel="peak of resident memory (MB)", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def measure(workdir: Path, nodules: int) -> dict[str, Any]:
    """Write the data and read them; see the module's docstring."""
    small_run.make_empty(workdir)
    results: dict[str, Any] = {"nodules": [], "data_mb": [], "peak_mb": {pipeline: [] for pipeline in READ}}
    for times in TIMES:
        files = write_simulated(workdir / "data", times * nodules)
        results["nodules"].append(times * nodules)
        results["data_mb"].append(sum(path.stat().st_size for path in files) / 1e6)
        for pipeline, peaks in results["peak_mb"].items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks.append(pool.apply(read, (pipeline, files)) / 1e6)
        shutil.rmtree(workdir / "data")
    draw(results, workdir / "data_memory.png")
    return summarise(results)


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Add to the peaks the memory from disk that ten times the data add, as a share of what they add on disk."""
    added = results["data_mb"][-1] - results["data_mb"][0]
    share = (results["peak_mb"]["tfdata"][-1] - results["peak_mb"]["tfdata"][0]) / added
    grew = f"memory from disk grew by {share:.1%} of the data that were added"
    return results | {"share_from_disk": share, "failures": [grew] if share > LARGEST_SHARE else []}


if __name__ == "__main__":
    small_run.launch_trial(
        "data_memory", measure, nodules=flags.DEFINE_integer("nodules", 100, "Nodules of the smallest data.", 1)
    )
