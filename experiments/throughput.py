"""How fast series are prepared and batches are read, how much memory it takes, and what that makes of an archive.

    python -m experiments.throughput --config pn_samp_m --workdir runs/throughput \\
        --config.data.source=lidc --config.data.dicom_root=/path/to/LIDC-IDRI \\
        [--config.data.beam=OPTIONS] [--series=5] [--nodules=300] [--scans=1018 --scans=100000]

Prepares so many series of the config's source in a process of its own or, with options of Beam, by its workers; a
source with fewer series has them prepared repeatedly. One more comes first and is left out of the median, since a
process begins by clustering the annotations. Then writes simulated nodules, and reads batches of them through both
pipelines, each in a process of its own. Files that were just written lie in the system's memory: for the speed of a
disk, give more nodules than fit there.

Prints the figures, with the hours and bytes of archives, and writes throughput.json.
"""

import json
import multiprocessing
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.launch import launch
from experiments.speed.preparation import prepare_measured
from experiments.trials import data_memory
from experiments.trials.small_run import make_empty
from pnsamp_jax import input_pipeline
from pnsamp_jax.config import Settings, read_settings
from pnsamp_jax.data import beam, schema
from pnsamp_jax.files import write_text


def measure_preparation(settings: Settings, folder: Path, count: int) -> dict[str, float]:
    """Prepare `count` series of a config's source into a folder.

    Returns:
      `seconds` per series, `nodules` and `stored_bytes` per series, and the largest `peak_bytes` of a process.
    """
    folder.mkdir(parents=True)
    series = settings.source.series()
    keys = [f"{number}:{series[number % len(series)]}" for number in range(count + 1)]
    files = {key: folder / f"{number}.npz" for number, key in enumerate(keys)}
    job = partial(prepare_measured, settings.source, settings.geometry)
    if settings.beam:
        notes = [notes for _, _, notes in beam.run(job, files, beam.read_options(settings.beam))]
    else:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            notes = [notes for _, notes in pool.starmap(job, files.items())]
    measured = [json.loads(note) for (note,) in notes]
    return {
        "seconds": float(np.median([one["seconds"] for one in measured][1:])),
        "nodules": float(np.mean([one["nodules"] for one in measured])),
        "stored_bytes": float(np.mean([one["stored_bytes"] for one in measured])),
        "peak_bytes": max(one["peak_bytes"] for one in measured),
    }


def read_batches(pipeline: str, files: list[Path], batch_size: int) -> float:
    """Read two epochs of training batches to the device, and return the patches per second of the second one."""
    records = data_memory.READ[pipeline](files)
    if pipeline == "device":
        records = input_pipeline.to_device(records)
    nodules = np.arange(len(records[schema.NODULE_ID]))
    epoch = max(1, len(nodules) // batch_size)
    steps, start = range(2 * epoch), 0.0
    batches = input_pipeline.train_batches(
        records, nodules, pipeline=pipeline, seed=0, steps=steps, batch_size=batch_size
    )
    for step, batch in enumerate(batches, start=1):
        jax.block_until_ready(jax.device_put(batch))
        start = time.perf_counter() if step == epoch else start
    return epoch * batch_size / (time.perf_counter() - start)


def describe(results: dict[str, Any], scans: list[int]) -> list[str]:
    """Return the lines that are printed."""
    one, lines = results["preparation"], []
    lines.append(
        f"preparing a series: {one['seconds']:.2f} s, {one['nodules']:.1f} nodules, "
        f"{one['stored_bytes'] / 1e6:.1f} MB stored, at most {one['peak_bytes'] / 1e6:.0f} MB of memory in a process"
    )
    for count in scans:
        hours, gigabytes = count * one["seconds"] / 3600, count * one["stored_bytes"] / 1e9
        lines.append(f"{count:,} scans: {hours:,.1f} hours divided by the number of processes, {gigabytes:,.0f} GB")
    lines += [
        f"reading batches, data.pipeline={name}: {rate:,.0f} patches per second"
        for name, rate in results["patches_per_second"].items()
    ]
    return lines


def run(config: ConfigDict, workdir: Path, series: int, nodules: int, scans: list[int]) -> None:
    """Measure, print and write everything; see the module's docstring."""
    make_empty(workdir)
    settings, rates = read_settings(config), {}
    preparation = measure_preparation(settings, workdir / "prepared", series)
    files = data_memory.write_simulated(workdir / "simulated", nodules)
    for pipeline in data_memory.READ:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rates[pipeline] = pool.apply(read_batches, (pipeline, files, settings.batch_size))
    results = {"preparation": preparation, "patches_per_second": rates, "config": settings.fields}
    write_text(workdir / "throughput.json", json.dumps(results, indent=1))
    for name in ("prepared", "simulated"):
        shutil.rmtree(workdir / name)
    print("\n".join(describe(results, scans)))


if __name__ == "__main__":
    launch(
        run,
        config="The source, the patch grid and the size of a batch.",
        workdir="Folder of the measurements; must be empty.",
        series=flags.DEFINE_integer("series", 5, "Number of series to prepare.", lower_bound=1),
        nodules=flags.DEFINE_integer("nodules", 300, "Number of simulated nodules to read.", lower_bound=1),
        scans=flags.DEFINE_multi_integer("scans", [1018, 100_000], "Number of scans of an archive; may be repeated."),
    )
