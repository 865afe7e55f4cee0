"""The files of a run's workdir: which config it belongs to, how its nodules are split, and who is training a fold.

config.json       the config of the run, which decides who may use the workdir again
folds.json        the split, with patient ids, see `split`
readers.csv       the readers' ratings of the cohort's nodules, see `tables`
fold_<k>/lock     held by the process that is training or testing the fold
num_epochs_<n>/   the results after n epochs, of a training that then went on for more
lock              held while they are moved there
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable, write_text
from pnsamp_jax.workdir.folders import trained_folds

SUBSETS = ("train", "validation", "test")  # of a fold
Fold = dict[str, list[str]]  # nodule ids of each subset
RESTORE = "restore it from a copy, or choose another --workdir"

# Fields of a config that do not change what a run trains, so that they may differ when a workdir is used again.
FREE_FIELDS = (
    *("fold", "checkpoint", "refit_copies", "fit_threshold", "test_flips"),
    *("log_every_steps", "steps_per_call", "distributed"),
    *("data.cache", "data.workers", "data.beam", "data.pipeline", "data.diagnosis", "data.background"),
)
FREE_SECTIONS = ("predict.",)
# Fields in which the processes of one run may differ. All others decide what they exchange, and when.
OWN_FIELDS = ("distributed", "data.cache", "data.workers", "data.beam")
# What a test and an evaluation write, by which a training is known to be finished.
RESULTS = ("results.json", "predictions.csv", "fold_*/predictions.csv", "fold_*/calibration.json", "figures/*.png")


def fold_folder(workdir: Path, fold: int) -> Path:
    """Return the folder of a fold."""
    return workdir / f"fold_{fold}"


def flatten(fields: dict, prefix: str = "") -> dict:
    """Return nested fields as one dictionary with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def is_free(field: str) -> bool:
    """Return whether a field, named as in `flatten`, changes no training: a workdir may be used with another."""
    return field in FREE_FIELDS or field.startswith(FREE_SECTIONS)


def is_own(field: str) -> bool:
    """Return whether a field, named as in `flatten`, may differ between the processes of one run."""
    return field in OWN_FIELDS or field.startswith(FREE_SECTIONS)


def difference(fields: dict, stored: dict, longer: bool = False) -> str | None:
    """Describe the first field in which a config computes something else than a stored one, or return None.

    Args:
      fields: of this run's config, as JSON.
      stored: of the other config, as JSON.
      longer: whether this run may have more epochs. It may only at a constant learning rate: then its first steps are
        those of the other run.
    """
    here, there = flatten(fields), flatten(stored)
    for field in sorted(here.keys() | there.keys()):
        if is_free(field) or here.get(field) == there.get(field):
            continue
        found = f"there config.{field} is {there.get(field)!r}, here {here.get(field)!r}"
        if not (longer and field == "num_epochs" and _is_longer(fields, stored)):
            return found
        if here["schedule"] != "constant":
            return f"{found}, and the learning rate of config.schedule={here['schedule']} spans all epochs"
    return None


def _is_longer(fields: dict, stored: dict | None) -> bool:
    """Return whether a config has more epochs than a stored one, if there is one."""
    return stored is not None and fields["num_epochs"] > stored.get("num_epochs", np.inf)


def check_config(workdir: Path, fields: dict, longer: bool = False) -> None:
    """Raise UserError if the workdir holds a run of another config, naming the first field that differs.

    Args:
      workdir: to check.
      fields: of this run's config, as JSON.
      longer: whether this run may train on for more epochs, see `difference`.
    """
    stored = _read_config(workdir)
    if stored is None:
        if trained_folds(workdir):  # folds.json alone is of a run that was killed at its start
            raise UserError(f"{workdir}: holds a run but no config.json; choose another --workdir")
        return
    if found := difference(fields, stored, longer):
        more = not longer and difference(fields, stored, longer=True) is None
        advice = "train on with --mode train" if more else "choose another --workdir"
        raise UserError(f"{workdir} belongs to another config: {found}; {advice} or use the same config")


def claim(workdir: Path, fields: dict, longer: bool = False) -> None:
    """Write config.json for a run, unless the workdir belongs to another; see `check_config`.

    The results of a training that goes on for more epochs are set aside, since those of the longer one take their
    place fold by fold.

    Args:
      workdir: of the run.
      fields: of its config, as JSON.
      longer: whether the run may go on for more epochs than the workdir was trained, see `difference`.

    Raises:
      UserError: the workdir belongs to another config, or another process works on a fold of a shorter training.
    """
    if not _is_longer(fields, _read_config(workdir)):
        write_config(workdir, fields)
        return
    with FileLock(workdir.absolute() / "lock"), ExitStack() as folds:  # another process may train on another fold
        check_config(workdir, fields, longer)
        stored = _read_config(workdir)
        if stored is not None and _is_longer(fields, stored):
            for folder in sorted(workdir.glob("fold_*/")):
                folds.enter_context(locked(folder))
            _set_aside_results(workdir, stored["num_epochs"])
        write_config(workdir, fields)


def _set_aside_results(workdir: Path, num_epochs: int) -> None:
    """Move the results after this number of epochs to a folder of their own."""
    aside = workdir / f"num_epochs_{num_epochs}"
    paths = [path for pattern in RESULTS for path in workdir.glob(pattern)]
    for path in paths:
        target = aside / path.relative_to(workdir)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    if paths:
        print(readable(f"{workdir}: goes on after epoch {num_epochs}; the results until then are now in {aside}"))


def _read_config(workdir: Path) -> dict | None:
    """Return the fields in config.json, or None if there is no such file."""
    path = workdir / "config.json"
    try:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError("not a config")
        return fields
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it if the workdir belongs to this config") from error


def write_config(workdir: Path, fields: dict) -> None:
    """Write config.json, which claims the workdir for a config."""
    write_text(workdir / "config.json", json.dumps(fields, indent=2))


@contextmanager
def locked(fold_folder: Path) -> Iterator[None]:
    """Keep other processes off a fold until the block ends or this process dies.

    Different folds of one workdir may be trained at the same time. This process may lock the same fold again.

    Raises:
      UserError: another process is working on the fold.
    """
    fold_folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(fold_folder.absolute() / "lock", timeout=0, is_singleton=True).acquire()
    except Timeout:
        reason = "another run is at work on it; wait until it ends, or choose another --workdir"
        raise UserError(f"{fold_folder}: {reason}") from None
    with lock:
        yield


def fold_of_patients(path: Path) -> dict[str, int]:
    """Read from folds.json, of a workdir or of exported weights, the fold whose test set holds each patient.

    Raises:
      UserError: there is no such file, it is damaged, or a patient is in the test sets of two folds.
    """
    found: dict[str, int] = {}
    try:
        tested = [fold["test"]["patients"] for fold in json.loads(path.read_bytes())["folds"]]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, so nobody knows which patients each network saw") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); {RESTORE}") from error
    for fold, patients in enumerate(tested):
        for patient in patients:
            if found.setdefault(patient, fold) != fold:
                raise UserError(
                    f"{path}: patient {patient} is in the test sets of two folds, so every network saw this patient; "
                    "use a run whose config.split is 'patient'"
                )
    return found


def write_fold_of_patients(path: Path, tested: dict[str, int]) -> None:
    """Write a folds.json that holds the patients of the test sets alone, for `fold_of_patients`."""
    folds = [
        sorted(patient for patient, own in tested.items() if own == fold) for fold in range(1 + max(tested.values()))
    ]
    path.write_text(json.dumps({"folds": [{"test": {"patients": patients}} for patients in folds]}, indent=1))
