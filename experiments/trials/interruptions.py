"""Kill a training again and again, and check that it ends as it would have ended without the kills.

    python -m experiments.trials.interruptions --workdir runs/interruptions --kills=50

A small cross-validation is run once without interruption. Then it is started in a new workdir, with its programs
compiled but its patches still to be prepared, killed (SIGKILL) after a random time, and started again until it
finishes. All of this is repeated until there were enough kills. The files of the run show what each kill interrupted.
Compared bit by bit are every array of both checkpoints of each fold, the predictions, results, split, temperatures and
metrics. Writes interruptions.json.
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

FIRST_S = 3.0  # earlier, Python is still importing
LONGEST = 0.7  # of the duration of a run; a run that goes on does not repeat what is done


def stage(workdir: Path) -> str:
    """Return what a run was doing, judged by the files that it has written so far."""
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


def run_with_kills(workdir: Path, log: Path, longest_s: float, kills: int, draw: random.Random) -> Counter[str]:
    """Run a training to its end through at most so many kills.

    Args:
      workdir: of the run.
      log: file to which its output is appended.
      longest_s: until a kill at most.
      kills: at most.
      draw: draws the time of each kill.

    Returns:
      The number of kills in each stage.

    Raises:
      UserError: the training failed by itself.
    """
    killed: Counter[str] = Counter()
    while True:
        process = small_run.start(workdir, workdir.with_name(f"{workdir.name}-cache"), log)
        seconds = draw.uniform(FIRST_S, longest_s) if killed.total() < kills else None
        try:
            if process.wait(seconds) != 0:
                raise UserError(f"{workdir}: the training failed by itself; see its output in {log}")
            return killed
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed[stage(workdir)] += 1


def measure(workdir: Path, kills: int, seed: int) -> dict:
    """Kill trainings until there were enough kills; see the module's docstring.

    Returns:
      `kills` by stage; the number of `runs`; and `failures`, each the name of a run and what differs.

    Raises:
      UserError: the workdir is not empty, or a training failed by itself.
    """
    draw, log = random.Random(seed), small_run.make_empty(workdir) / "output.txt"
    uninterrupted = workdir / "uninterrupted"
    run_with_kills(uninterrupted, log, float("inf"), 0, draw)

    def new_workdir(name: str) -> Path:
        """Return a workdir with compiled programs in its cache; otherwise most kills would interrupt the compiler."""
        shutil.copytree(workdir / "uninterrupted-cache" / "xla", workdir / f"{name}-cache" / "xla")
        return workdir / name

    began = time.monotonic()
    run_with_kills(new_workdir("timed"), log, float("inf"), 0, draw)
    longest_s = LONGEST * (time.monotonic() - began)
    killed: Counter[str] = Counter()
    runs, failures = 0, []
    while killed.total() < kills:
        runs += 1
        name = f"run_{runs}"
        killed += run_with_kills(new_workdir(name), log, longest_s, kills - killed.total(), draw)
        different = small_run.differences(workdir / name, uninterrupted)
        failures += [f"{name}: {what}" for what in different]
        print(f"{name}: {killed.total()} of {kills} kills so far, {different or 'all is equal'}", flush=True)
        if not different:
            shutil.rmtree(workdir / name)
            shutil.rmtree(workdir / f"{name}-cache")
    return {"kills": dict(killed), "runs": runs, "failures": failures}


if __name__ == "__main__":
    small_run.launch_trial(
        "interruptions",
        measure,
        kills=flags.DEFINE_integer("kills", 50, "Number of kills in all."),
        seed=flags.DEFINE_integer("seed", 0, "Decides the times of the kills."),
    )
