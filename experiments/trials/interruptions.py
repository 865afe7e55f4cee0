"""Kills a training again and again, and checks that what it ends with is what it would have ended with in peace.

    python -m experiments.trials.interruptions --workdir runs/interruptions --kills=50

A small cross-validation is run once without a disturbance. Then it is started on a fresh workdir, its programs
compiled but its patches still to prepare, killed (SIGKILL) after a random time, and started again, until it
finishes; and all of that anew until there were enough kills. Where each kill struck is told from what was on the
disk. Compared, to the bit: every array of both checkpoints of each fold, predictions, results, split, calibration
and metrics. Writes interruptions.json.
"""

import random
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

from absl import flags

from experiments.trials import small_run
from pnsamp_jax.errors import UserError

FIRST_S = 3.0  # before that Python is still importing
PATIENCE = 0.7  # of the time that a run takes at most; what it has done before is not done again


def stage(workdir: Path) -> str:
    """What a run was at, from what it has left on the disk so far."""
    folds = sorted(workdir.glob("fold_*/metrics.jsonl"))
    tested = sorted(workdir.glob("fold_*/predictions.csv"))
    if (workdir / "results.json").exists():
        return "after the evaluation"
    if not (workdir / "folds.json").exists():
        return "start and preparation"
    if any(workdir.glob("fold_*/checkpoints/*orbax-checkpoint-tmp*")):
        return "saving a checkpoint"
    if len(tested) == small_run.small_config(Path()).num_folds:
        return "evaluation"
    return "between folds" if len(tested) == len(folds) else f"training fold {len(folds) - 1}"


def run_with_kills(workdir: Path, log: Path, longest_s: float, kills: int, draw: random.Random) -> Counter:
    """Runs a training to its end through at most so many kills; gives how many struck in which stage.

    Raises:
      UserError: the training failed by itself.
    """
    struck = Counter()
    while True:
        process = small_run.start(workdir, workdir.with_name(f"{workdir.name}-cache"), log)
        patience = draw.uniform(FIRST_S, longest_s) if struck.total() < kills else None
        try:
            if process.wait(patience) != 0:
                raise UserError(f"{workdir}: the training failed by itself; its output stands in {log}")
            return struck
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            struck[stage(workdir)] += 1


def measure(workdir: Path, kills: int, seed: int) -> dict:
    """Kills trainings until there were enough kills; see the module.

    Returns:
      `kills` by stage, `runs` and `failures`, each the name of a run and what differs.

    Raises:
      UserError: the workdir is not empty, or a training failed by itself.
    """
    draw, log = random.Random(seed), small_run.empty(workdir) / "output.txt"
    run_with_kills(workdir / "in_peace", log, float("inf"), 0, draw)

    def fresh(name: str) -> Path:
        """A new workdir, with compiled programs beside it: or most kills would strike the compiler."""
        shutil.copytree(workdir / "in_peace-cache" / "xla", workdir / f"{name}-cache" / "xla")
        return workdir / name

    began = time.monotonic()
    run_with_kills(fresh("timed"), log, float("inf"), 0, draw)
    longest_s = PATIENCE * (time.monotonic() - began)
    struck, runs, failures = Counter(), 0, []
    while struck.total() < kills:
        runs += 1
        name = f"run_{runs}"
        struck += run_with_kills(fresh(name), log, longest_s, kills - struck.total(), draw)
        found = small_run.differences(workdir / name, workdir / "in_peace")
        failures += [f"{name}: {what}" for what in found]
        print(f"{name}: {struck.total()} of {kills} kills so far, {found or 'all is equal'}", flush=True)
        if not found:
            shutil.rmtree(workdir / name)
            shutil.rmtree(workdir / f"{name}-cache")
    return {"kills": dict(struck), "runs": runs, "failures": failures}


def launch() -> None:
    """The command line."""
    kills = flags.DEFINE_integer("kills", 50, "How often to kill in all.")
    seed = flags.DEFINE_integer("seed", 0, "Decides when.")
    small_run.launch("interruptions", lambda workdir: measure(workdir, kills.value, seed.value))


if __name__ == "__main__":
    launch()
