"""The split of a run, in folds.json of its workdir: made once, and read for as long as it fits the data."""

import json
from pathlib import Path

import numpy as np

from pnsamp_jax.data.folds import make_folds
from pnsamp_jax.data.spellings import bare
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.workdir.folders import trained_folds
from pnsamp_jax.workdir.layout import RESTORE, SUBSETS, Fold


def load_folds(
    path: Path,
    nodule_ids: np.ndarray,
    patient_ids: np.ndarray,
    classes: np.ndarray,
    *,
    cohort: str,
    split: str,
    seed: int,
    num_folds: int,
    validation_fraction: float,
) -> list[Fold]:
    """Read the split of a cohort from folds.json, or make it (see `make_folds`) and write it.

    A split that exists is never made again: it is what the trained folds have seen.

    Args:
      path: of folds.json.
      nodule_ids: (N,) of the cohort.
      patient_ids: (N,).
      classes: (N,) by which the folds are stratified.
      cohort: its name, kept in the file.
      split: "patient" or "nodule".
      seed: decides the split.
      num_folds: number of folds.
      validation_fraction: share of each fold's training nodules that is held out for validation.

    Raises:
      UserError: the file was made for other nodules, patients or settings, is damaged, or is missing from a workdir
        with a trained fold.
    """
    patient_of = dict(zip(nodule_ids.tolist(), patient_ids.tolist(), strict=True))
    header = {"cohort": cohort, "split": split, "seed": seed}
    if path.exists():
        stored, folds, patients = _read_folds(path)
        for field, value in {**header, "num_folds": num_folds}.items():
            if stored[field] != value:
                raise UserError(
                    f"{path}: was made for {field} {stored[field]!r}, not {value!r}; choose another --workdir"
                )
        if {nodule for fold in folds for nodule in fold["test"]} != patient_of.keys():
            raise UserError(f"{path}: was made for other nodules than the data now hold; choose another --workdir")
        _require_patients(path, folds, patients, patient_of)
        return folds
    trained = trained_folds(path.parent)
    if trained:  # another version may make another split, in which networks are tested on nodules they have seen
        raise UserError(f"{path}: missing, though {trained[0].name} is trained; {RESTORE}")
    folds = make_folds(
        nodule_ids,
        patient_ids,
        classes,
        num_folds=num_folds,
        validation_fraction=validation_fraction,
        split=split,
        seed=seed,
    )
    _write_folds(path, header, folds, patient_of)
    return folds


def _write_folds(path: Path, header: dict, folds: list[Fold], patient_of: dict[str, str]) -> None:
    """Write a split with the settings that it was made with and the patients of each subset."""
    described = [
        {subset: {"nodules": ids, "patients": sorted({patient_of[i] for i in ids})} for subset, ids in fold.items()}
        for fold in folds
    ]
    write_text(path, json.dumps({**header, "folds": described}, indent=1))


def _read_folds(path: Path) -> tuple[dict, list[Fold], list[dict[str, list[str] | None]]]:
    """Read the settings that folds.json was made with, its folds, and the patients of each subset, if it has them."""
    try:
        content = json.loads(path.read_bytes())
        described = content.pop("folds")
        folds = [{subset: fold[subset]["nodules"] for subset in SUBSETS} for fold in described]
        patients = [{subset: fold[subset].get("patients") for subset in SUBSETS} for fold in described]
        header = {field: content[field] for field in ("cohort", "split", "seed")} | {"num_folds": len(folds)}
        return header, folds, patients
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); {RESTORE}") from error


def _require_patients(path: Path, folds: list[Fold], stored: list[dict], patient_of: dict[str, str]) -> None:
    """Raise UserError if a subset's nodules are now of other patients, who may then be in another subset too."""
    for number, (fold, patients) in enumerate(zip(folds, stored, strict=True)):
        for subset in SUBSETS:
            if patients[subset] is None:  # of a file that was written without them
                continue
            then = {bare(patient): patient for patient in patients[subset]}
            now = {bare(patient_of[nodule]): patient_of[nodule] for nodule in fold[subset] if nodule in patient_of}
            changes = [f"{then[min(then.keys() - now)]} then"] if then.keys() - now else []
            changes += [f"{now[min(now.keys() - then)]} now"] if now.keys() - then else []
            if changes:
                raise UserError(
                    f"{path}: was made for other patients than the data now have (in the {subset} set of fold "
                    f"{number}: {', '.join(changes)}), who may be trained and tested on; choose another --workdir"
                )
