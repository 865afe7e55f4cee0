"""How fast PN-SAMP trains and predicts, in how much memory, and beside other toolkits.

    python -m experiments.benchmark --config configs/pn_samp_m.py --workdir runs/benchmark --config.batch_size=2 \\
        --compare=native --compare=torch --compare=keras [--config.model.dtype=bfloat16] [--dicom=/path/to/LIDC-IDRI]
    python -m experiments.benchmark --config configs/pn_samp_m.py --workdir runs/benchmark --sweep=batch

Batch, patch size and precision are the config's. The systems take turns, each in a process of its own. The workdir has
then benchmark.json with every figure, benchmark.md with the table, and logs/. If `config.predict` has an image and
points, that prediction is timed too. A sweep varies the batch, the voxels on a side of the patch or the
devices that the CPU is made to look like (real ones would be faster), and writes sweep_<name>.json and .png.
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

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.speed import report
from experiments.speed.worker import Job
from pnsamp_jax import config as settings
from pnsamp_jax.data import lidc, schema
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.prepare import make_records
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path

COMPARED = {"native": ("native",), "torch": ("torch", "torch_compile"), "keras": ("keras",)}
SWEEPS = {"batch": (1, 2, 4, 8, 16, 32, 64), "patch": (32, 48, 64, 96), "devices": (1, 2)}
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(os.cpu_count()),  # PyTorch's; JAX and TensorFlow take all cores by themselves
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # so that compile times are honest
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # so that the memory is what is needed
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),  # one, for each system
}


def take_turn(job: Job, log: Path) -> dict:
    """Runs a job in a process of its own, whose messages go to `log`; UserError if it finds nothing."""
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | ENVIRONMENT
    if job.devices:
        flag = f"--xla_force_host_platform_device_count={job.devices}"
        variables |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    command = [sys.executable, "-m", "experiments.speed.worker"]
    with log.open("w") as file:
        done = subprocess.run(command, input=pickle.dumps(job), stdout=subprocess.PIPE, stderr=file, env=variables)
    if done.returncode:  # negative: ended by a signal, such as 9 for want of memory
        last = ["", *filter(str.strip, log.read_text(errors="replace").splitlines())][-1]
        raise UserError(f"status {done.returncode}, {last[:200]} (see {log})")
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(jobs: dict[str, Job], rounds: int, logs: Path) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Lets jobs take turns, so that slow drifts of the machine hit all of them alike: what was found in each round, by
    job; and why a job failed, which then has no further turn and is left out."""
    found, failures = {name: [] for name in jobs}, {}
    for number in range(1, rounds + 1):
        for name in [name for name in jobs if name not in failures]:
            try:
                found[name].append(take_turn(jobs[name], logs / f"{name}.log"))
            except UserError as error:
                failures[name] = str(error)
            print(f"round {number} of {rounds}: {name} {failures.get(name, 'done')}", flush=True)
    return {name: turns for name, turns in found.items() if name not in failures}, failures


def time_prediction(config: ConfigDict) -> dict[str, float]:
    """Seconds from the start of the prediction that the config describes to its table: `cold_s` without compiled
    programs, `warm_s` with those that the first run left."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pnsamp_jax.main", "--config=configs/predict.py"]
        command += [f"--config.predict.{name}={value}" for name, value in config.predict.items()]
        command += [f"--config.data.cache={folder}", "--workdir"]
        found = {}
        for name in ("cold_s", "warm_s"):
            start = time.perf_counter()
            with subprocess.Popen([*command, f"{folder}/{name}"]) as process:
                while process.poll() is None and not Path(folder, name, "predictions.csv").exists():
                    time.sleep(0.01)
                found[name] = time.perf_counter() - start
            if process.returncode:
                raise UserError("config.predict: the prediction failed, as told above")
        return found


def time_preparation(config: ConfigDict, dicom: str) -> dict[str, float]:
    """Seconds to read, cluster and rasterise the whole archive's annotations; with DICOM files, to index them too, and
    to make the stored patches of some indexed series, in one process."""
    found = {}

    def timed(name: str, call: Callable, *args: object) -> object:
        start = time.perf_counter()
        result = call(*args)
        found[name] = time.perf_counter() - start
        return result

    nodules = timed("cluster_s", lidc.nodules, timed("read_s", lidc.read_scans))
    timed("rasterise_s", lambda: [lidc.reader_masks(it.annotations, it.scan.slice_z_mm) for it in nodules])
    if dicom:
        source, geometry = LidcSource(dicom), settings.geometry(config)
        series = timed("index_s", source.series)[:5]
        made = timed("series_s", lambda: [make_records(source, one, geometry) for one in series])
        found["nodules"] = sum(len(records[schema.NODULE_ID]) for records in made)
    return found


def write(path: Path, config: ConfigDict, **results: object) -> dict:
    """Writes results as JSON, with what they are of, and gives all of it."""
    results["machine"] = {"system": platform.platform(), "cores": os.cpu_count()}
    results["config"] = json.loads(config.to_json())
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2))
    return results


def sweep(name: str, config: ConfigDict, workdir: Path, rounds: int, seconds: float) -> None:
    """Writes what a training step and a forward pass cost at several sizes; one that fails is told in the file."""
    field, jobs = {"batch": "batch_size", "patch": "patch_size"}.get(name), {}
    for size in SWEEPS[name]:
        sized = ConfigDict(config.to_dict() | ({field: size} if field else {}))
        jobs[str(size)] = Job("training", sized, seconds, ("train_step", "forward"), 0 if field else size)
    runs, failures = take_turns(jobs, rounds, workdir / "logs" / name)
    rows = {size: report.steps(turns, jobs[size].config.batch_size) for size, turns in runs.items()}
    write(workdir / f"sweep_{name}.json", config, sizes=rows, failures=failures, rounds=rounds)
    report.draw_sweep(name, rows, workdir / f"sweep_{name}.png")


def benchmark(config: ConfigDict, workdir: Path, compare: list[str], dicom: str, rounds: int, seconds: float) -> None:
    """Measures all but the sweeps, prints the table and fills the workdir; see the module."""
    found = {"preparation": time_preparation(config, dicom)}
    found |= {"prediction": time_prediction(config)} if config.predict.image else {}
    systems = ["machine", "jax", "training", *(system for name in compare for system in COMPARED[name])]
    jobs = {system: Job(system, config, seconds) for system in systems}
    runs, failures = take_turns(jobs, rounds, workdir / "logs")
    if failures.keys() & systems[:2]:
        raise UserError("; ".join(failures.values()))
    found |= report.figures(runs, config.batch_size) | {"rounds": rounds, "failures": failures}
    results = write(workdir / "benchmark.json", config, **found)
    print("\n" + report.write_markdown(results, workdir / "benchmark.md"))


def launch() -> None:
    """The command line; a user's mistake becomes one line."""
    config = config_flags.DEFINE_config_file("config", None, "The network, and how it is trained.")
    workdir = flags.DEFINE_string("workdir", None, "Where the figures, the table and the pictures go.")
    compare = flags.DEFINE_multi_enum("compare", [], list(COMPARED), "Beside which system; may be given repeatedly.")
    sweeps = flags.DEFINE_multi_enum("sweep", [], list(SWEEPS), "What is varied; nothing else is measured then.")
    dicom = flags.DEFINE_string("dicom", "", "Folder with scans of LIDC-IDRI, to time how a nodule is prepared.")
    rounds = flags.DEFINE_integer("rounds", 3, "How many turns each system has.", lower_bound=1)
    seconds = flags.DEFINE_float("seconds", 3.0, "For how long calls are begun, of each part in a turn.")

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        folder, length = Path(workdir.value), (rounds.value, seconds.value)
        try:
            for name in sweeps.value:
                sweep(name, config.value, folder, *length)
            if not sweeps.value:
                benchmark(config.value, folder, compare.value, dicom.value, *length)
        except UserError as error:
            sys.exit(f"benchmark: {error}")

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    launch()
