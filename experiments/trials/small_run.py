"""A cross-validation that takes seconds on simulated voxels, and the comparison of two such runs, for the trials."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.launch import launch, path_flag
from pnsamp_jax import train
from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.state import state_shapes
from pnsamp_jax.workdir.checkpoint import Checkpoints

FILES = ("folds.json", "readers.csv", "predictions.csv", "results.json")
FILES_OF_FOLD = ("predictions.csv", "calibration.json", "metrics.jsonl")


def small_config(cache: Path, **changes: Any) -> ConfigDict:
    """Return a config with 24 simulated nodules, 16 voxels and a thin network."""
    config = base.get_config()
    config.patch_size, config.spacing_mm, config.batch_size = 16, 2.0, 2
    config.num_folds, config.num_epochs, config.validation_fraction = 2, 6, 0.3
    config.data.phantom_nodules, config.data.margin, config.data.cache = 24, 2, str(cache)
    config.model.features, config.model.mask_features = (2, 2, 4, 4), (2, 2, 2, 2)
    config.update_from_flattened_dict(changes)
    return config


def start(workdir: Path, cache: Path, log: Path | None, **changes: Any) -> subprocess.Popen:
    """Start the training of the small config in its own process.

    Args:
      workdir: of the run.
      cache: folder of prepared patches and compiled programs.
      log: file to which the output is appended; None to leave it in the process's pipe.
      **changes: of the config, by field.
    """
    command = [sys.executable, "-m", __name__, f"--workdir={workdir}", f"--cache={cache}"]
    command.append(f"--changes={json.dumps(changes)}")
    if log is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def arrays(workdir: Path, fold: int, which: str) -> list[np.ndarray]:
    """Return all arrays of the best or the last checkpoint of a fold."""
    task = read_settings(small_config(Path())).task
    like = state_shapes(task.model, task.patch_size, len(task.windows))
    with Checkpoints(workdir / f"fold_{fold}" / "checkpoints") as checkpoints:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(like, which))]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return what is not bitwise equal in two finished runs: tables, results, and the arrays of both checkpoints."""
    folds = sorted(path.name for path in theirs.glob("fold_*"))
    names = [*FILES, *(f"{fold}/{name}" for fold in folds for name in FILES_OF_FOLD)]
    different = [name for name in names if _content(ours / name) != _content(theirs / name)]
    for fold in folds:
        for which in ("best", "last"):
            number = int(fold.removeprefix("fold_"))
            pairs = zip(arrays(ours, number, which), arrays(theirs, number, which), strict=True)
            if not all(a.tobytes() == b.tobytes() for a, b in pairs):
                different.append(f"{fold}, {which} checkpoint")
    return different


def make_empty(workdir: Path) -> Path:
    """Create and return the folder for a trial's runs.

    Raises:
      UserError: the folder is not empty.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir: {workdir} is not empty; choose another")
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


flags.disclaim_key_flags()  # the flags defined here belong to the trial, so that its --help lists them


def launch_trial(name: str, measure: Callable[..., dict], **options: flags.FlagHolder) -> None:
    """Run a trial from the command line.

    Prints the results of `measure` and writes them to <name>.json in --workdir. The exit status is 1 if its `failures`
    are not empty.

    Args:
      name: of the trial.
      measure: called with the workdir and the values of the options by name.
      **options: the trial's own flags, by the name of the argument of `measure`.
    """

    def run_trial(workdir: Path, **values: Any) -> None:
        results = measure(workdir, **values)
        write_text(workdir / f"{name}.json", json.dumps(results, indent=1))
        print(json.dumps(results, indent=1))
        sys.exit(1 if results["failures"] else 0)

    launch(run_trial, config="", workdir="Folder of the runs; must be empty.", **options)


def run(workdir: Path, cache: Path, changes: str) -> None:
    """Train the small config, in the process that `start` starts."""
    train.train_and_evaluate(small_config(cache, **json.loads(changes)), workdir)


if __name__ == "__main__":
    launch(
        run,
        workdir="Workdir of the run.",
        cache=path_flag("cache", "Folder of prepared patches and compiled programs.", required=True),
        changes=flags.DEFINE_string("changes", "{}", "Changes of the config by field, as JSON."),
    )
