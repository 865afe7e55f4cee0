"""A cross-validation of seconds on simulated voxels, and whether two of them ended the same, for the trials."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict
from pnsamp_jax.configs import base

from pnsamp_jax import train
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.state import state_shapes
from pnsamp_jax.workdir.checkpoint import Checkpoints

WRITTEN = ("folds.json", "readers.csv", "predictions.csv", "results.json")
WRITTEN_OF_FOLD = ("predictions.csv", "calibration.json", "metrics.jsonl")


def small_config(cache: Path, **changes) -> ConfigDict:
    """24 simulated nodules, 16 voxels, a thin network."""
    config = base.get_config()
    config.patch_size, config.spacing_mm, config.batch_size = 16, 2.0, 2
    config.num_folds, config.num_epochs, config.validation_fraction = 2, 6, 0.3
    config.data.phantom_nodules, config.data.margin, config.data.cache = 24, 2, str(cache)
    config.model.features, config.model.mask_features = (2, 2, 4, 4), (2, 2, 2, 2)
    config.update_from_flattened_dict(changes)
    return config


def start(workdir: Path, cache: Path, log: Path | None, **changes) -> subprocess.Popen:
    """Starts the training of the small config in a process of its own; what it says is added to `log`, or without one
    is left to read."""
    command = [sys.executable, "-m", __name__, str(workdir), str(cache), json.dumps(changes)]
    if log is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def arrays(workdir: Path, fold: int, which: str) -> list[np.ndarray]:
    """All arrays of the best or the last checkpoint of a fold."""
    config = small_config(Path())
    task = train.make_task(config)
    like = state_shapes(task.model, task.patch_size, len(task.windows))
    with Checkpoints(workdir / f"fold_{fold}" / "checkpoints") as checkpoints:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(like, which))]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def differences(ours: Path, theirs: Path) -> list[str]:
    """What of two finished runs is not equal to the bit: tables, results, and every array of both checkpoints."""
    folds = sorted(path.name for path in theirs.glob("fold_*"))
    names = [*WRITTEN, *(f"{fold}/{name}" for fold in folds for name in WRITTEN_OF_FOLD)]
    different = [name for name in names if _content(ours / name) != _content(theirs / name)]
    for fold in folds:
        for which in ("best", "last"):
            number = int(fold.removeprefix("fold_"))
            pairs = zip(arrays(ours, number, which), arrays(theirs, number, which), strict=True)
            if not all(a.tobytes() == b.tobytes() for a, b in pairs):
                different.append(f"{fold}, {which} checkpoint")
    return different


def empty(workdir: Path) -> Path:
    """The folder for a trial's runs.

    Raises:
      UserError: there is something in it.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir: {workdir} is not empty; take another")
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def launch(name: str, measure: Callable[[Path], dict]) -> None:
    """The command line of a trial, beside its own flags; a user's mistake becomes one line.

    Writes what `measure` finds in --workdir as <name>.json, prints it, and ends with status 1 where its `failures` is
    not empty.
    """
    workdir = flags.DEFINE_string("workdir", None, "Where the runs go; must be empty.")

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        folder = Path(workdir.value)
        try:
            result = measure(folder)
        except UserError as error:
            sys.exit(f"{name}: {error}")
        with atomic_path(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1))
        print(json.dumps(result, indent=1))
        sys.exit(1 if result["failures"] else 0)

    flags.mark_flags_as_required(["workdir"])
    app.run(main)


def main() -> None:
    """Trains the small config: what `start` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("changes", type=json.loads)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    try:
        train.train_and_evaluate(small_config(arguments.cache, **arguments.changes), arguments.workdir)
    except (UserError, OSError) as error:
        sys.exit(f"small_run: {error}")


if __name__ == "__main__":
    main()
