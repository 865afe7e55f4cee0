"""How fast PN-SAMP trains and predicts, in how much memory, and compared with other toolkits.

    python -m experiments.benchmark --config pn_samp_m --workdir runs/benchmark --config.batch_size=2 \\
        --compare=native --compare=torch --compare=keras [--config.model.dtype=bfloat16] [--dicom=/path/to/LIDC-IDRI]
    python -m experiments.benchmark --config pn_samp_m --workdir runs/benchmark --sweep=batch

Batch size, patch size and precision are those of the config. The systems take turns, each in its own process;
`openvino` predicts only, in float32. Writes
benchmark.json with all measurements, benchmark.md with the table, and logs/. If `config.predict` has an image and
points, that prediction is timed too. A sweep varies the batch size, the patch size, or the number of devices that the
CPU is divided into (real devices would be faster), and writes sweep_<name>.json and .png.
"""

import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from experiments.launch import launch
from experiments.speed import report
from experiments.speed.worker import Job
from pnsamp_jax.config import read_geometry
from pnsamp_jax.data import lidc, schema
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.lidc_database import read_scans
from pnsamp_jax.data.lidc_masks import reader_masks
from pnsamp_jax.data.prepare import make_records
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text

COMPARED = {"native": ("native",), "torch": ("torch", "torch_compile"), "keras": ("keras",), "openvino": ("openvino",)}
SWEEPS = {"batch": (1, 2, 4, 8, 16, 32, 64), "patch": (32, 48, 64, 96), "devices": (1, 2)}
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(os.cpu_count()),  # for PyTorch; JAX and TensorFlow use all cores by default
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # so that compile times are real
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # so that the measured memory is what the program needs
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),  # one device for each system
}
Result = TypeVar("Result")


def take_turn(job: Job, log: Path) -> dict:
    """Run a job in its own process, whose messages go to `log`.

    Returns:
      The measurements of `worker.measure`.

    Raises:
      UserError: the process failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | ENVIRONMENT
    if job.devices:
        flag = f"--xla_force_host_platform_device_count={job.devices}"
        variables |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    command = [sys.executable, "-m", "experiments.speed.worker"]
    with log.open("w") as file:
        done = subprocess.run(command, input=pickle.dumps(job), stdout=subprocess.PIPE, stderr=file, env=variables)
    if done.returncode:  # negative: ended by a signal, such as 9 if the memory was exhausted
        last = ["", *filter(str.strip, log.read_text(errors="replace").splitlines())][-1]
        raise UserError(f"status {done.returncode}, {last[:200]} (see {log})")
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(jobs: dict[str, Job], rounds: int, logs: Path) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Run all jobs in each round, so that a slow drift of the machine affects all of them alike.

    Returns:
      The measurements of each round by job, and the errors of the jobs that failed. A job that fails gets no further
      turn and has no measurements.
    """
    results: dict[str, list[dict]] = {name: [] for name in jobs}
    failures: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for name in [name for name in jobs if name not in failures]:
            try:
                results[name].append(take_turn(jobs[name], logs / f"{name}.log"))
            except UserError as error:
                failures[name] = str(error)
            print(f"round {number} of {rounds}: {name} {failures.get(name, 'done')}", flush=True)
    return {name: turns for name, turns in results.items() if name not in failures}, failures


def time_prediction(config: ConfigDict) -> dict[str, float]:
    """Measure the seconds from the start of the prediction in the config to its table.

    Returns:
      `cold_s` without compiled programs, and `warm_s` with those that the first run has left.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pnsamp_jax.main", "--config=predict"]
        command += [f"--config.predict.{name}={value}" for name, value in config.predict.items()]
        command += [f"--config.data.cache={folder}", "--workdir"]
        seconds = {}
        for name in ("cold_s", "warm_s"):
            start = time.perf_counter()
            with subprocess.Popen([*command, f"{folder}/{name}"]) as process:
                while process.poll() is None and not Path(folder, name, "predictions.csv").exists():
                    time.sleep(0.01)
                seconds[name] = time.perf_counter() - start
            if process.returncode:
                raise UserError("config.predict: the prediction failed; its own message is printed above")
        return seconds


def time_preparation(config: ConfigDict, dicom: str) -> dict[str, float]:
    """Measure the seconds to read, cluster and rasterise the annotations of the whole archive.

    With a folder of DICOM files, also measure the seconds to index them, and to make the stored patches of at most
    five indexed series in one process.
    """
    measured: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Result], *args: Any) -> Result:
        start = time.perf_counter()
        result = call(*args)
        measured[name] = time.perf_counter() - start
        return result

    nodules = timed("cluster_s", lidc.nodules, timed("read_s", read_scans))
    timed("rasterise_s", lambda: [reader_masks(one.annotations, one.scan.slice_z_mm) for one in nodules])
    if dicom:
        source, geometry = LidcSource(dicom), read_geometry(config)
        series = timed("index_s", source.series)[:5]
        made = timed("series_s", lambda: [make_records(source, one, geometry) for one in series])
        measured["nodules"] = sum(len(records[schema.NODULE_ID]) for records, _ in made)
    return measured


def write(path: Path, config: ConfigDict, **results: Any) -> dict:
    """Write results as JSON, together with the machine and the config, and return the content."""
    results["machine"] = {"system": platform.platform(), "cores": os.cpu_count()}
    results["config"] = json.loads(config.to_json())
    write_text(path, json.dumps(results, indent=2))
    return results


def sweep(name: str, config: ConfigDict, workdir: Path, rounds: int, seconds: float) -> None:
    """Measure a training step and a forward pass at several sizes; the file also holds the errors of failed sizes."""
    field, jobs = {"batch": "batch_size", "patch": "patch_size"}.get(name), {}
    for size in SWEEPS[name]:
        sized = ConfigDict(config.to_dict() | ({field: size} if field else {}))
        jobs[str(size)] = Job("training", sized, seconds, ("train_step", "forward"), 0 if field else size)
    runs, failures = take_turns(jobs, rounds, workdir / "logs" / name)
    rows = {size: report.steps(turns, jobs[size].config.batch_size) for size, turns in runs.items()}
    write(workdir / f"sweep_{name}.json", config, sizes=rows, failures=failures, rounds=rounds)
    report.draw_sweep(name, rows, workdir / f"sweep_{name}.png")


def benchmark(config: ConfigDict, workdir: Path, compare: list[str], dicom: str, rounds: int, seconds: float) -> None:
    """Measure everything but the sweeps, write the files and print the table; see the module's docstring."""
    results: dict[str, Any] = {"preparation": time_preparation(config, dicom)}
    if config.predict.image:
        results["prediction"] = time_prediction(config)
    systems = ["machine", "jax", "training", *(system for name in compare for system in COMPARED[name])]
    jobs = {system: Job(system, config, seconds) for system in systems}
    runs, failures = take_turns(jobs, rounds, workdir / "logs")
    if failures.keys() & systems[:2]:
        raise UserError("; ".join(failures.values()))
    results |= report.summarise(runs, config.batch_size) | {"rounds": rounds, "failures": failures}
    content = write(workdir / "benchmark.json", config, **results)
    print("\n" + report.write_markdown(content, workdir / "benchmark.md"))


def run(
    config: ConfigDict,
    workdir: Path,
    compare: list[str],
    sweeps: list[str],
    dicom: str,
    rounds: int,
    seconds: float,
) -> None:
    """Run the sweeps, or without any the benchmark."""
    for name in sweeps:
        sweep(name, config, workdir, rounds, seconds)
    if not sweeps:
        benchmark(config, workdir, compare, dicom, rounds, seconds)


if __name__ == "__main__":
    launch(
        run,
        config="The network and its training.",
        workdir="Folder of the measurements, the table and the figures.",
        compare=flags.DEFINE_multi_enum("compare", [], list(COMPARED), "A system to compare with; may be repeated."),
        sweeps=flags.DEFINE_multi_enum("sweep", [], list(SWEEPS), "Vary this, and measure nothing else."),
        dicom=flags.DEFINE_string("dicom", "", "Folder with scans of LIDC-IDRI, to time the preparation of nodules."),
        rounds=flags.DEFINE_integer("rounds", 3, "Number of turns of each system.", lower_bound=1),
        seconds=flags.DEFINE_float("seconds", 3.0, "In a turn, the calls of each part are repeated for so long."),
    )
