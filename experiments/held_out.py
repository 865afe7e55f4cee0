"""Test the networks of a cross-validation on the nodules of another folder, each by those that never saw its patient.

    python -m experiments.held_out --config pn_samp_plus --workdir runs/plus --root /path/to/other/nodules \\
        --out runs/plus_other [--config.fold=0]

A patient of the run is tested by the network of the fold whose test set holds the patient; a patient whom the run does
not know, by all networks together. So the same network can be judged on slabs, cubes and whole scans, whichever it was
trained on. The output folder is like the workdir of a run: predictions.csv, readers.csv, results.json and figures.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.launch import launch, path_flag
from pnsamp_jax import evaluate, train
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.input_pipeline import Arrays
from pnsamp_jax.run import Run, load_folds, load_records
from pnsamp_jax.workdir import layout, tables

ALL_FOLDS = -1  # in the column `fold`: the mean of all networks


def test_elsewhere(config: ConfigDict, workdir: Path, root: Path, out: Path) -> dict:
    """Test the trained folds of a run on another folder's nodules; see the module's docstring.

    Args:
      config: of the run.
      workdir: of the run.
      root: folder in the layout of the `folder` source.
      out: folder to write.

    Returns:
      The content of results.json.

    Raises:
      UserError: a fold is not trained, or no nodule of the folder belongs to a fold that is tested.
    """
    settings = read_settings(config)
    layout.check_config(workdir, settings.fields)
    own = load_records(settings)
    folds = load_folds(settings, own, workdir / "folds.json")
    patients = fold_of_patients(own, folds)
    other_config = config.copy_and_resolve_references()
    other_config.data.source, other_config.data.root = "folder", str(root)
    other_settings = read_settings(other_config)
    records = load_records(other_settings)
    run = Run(workdir, settings, records, folds)
    fold_of = np.array([patients.get(patient, ALL_FOLDS) for patient in records[schema.PATIENT_ID].tolist()])
    networks = {fold: train.load_fold(run, fold)[0] for fold in settings.folds}
    if len(networks) == settings.num_folds:
        first = networks[settings.folds[0]]
        members = {name: member for each in networks.values() for name, member in each.members.items()}
        networks[ALL_FOLDS] = first._replace(members=members)
    if not np.isin(fold_of, list(networks)).any():
        raise UserError(f"{root}: none of its patients is in the test set of a fold that is trained")
    out.mkdir(parents=True, exist_ok=True)
    layout.write_config(out, other_settings.fields)
    for fold, asked in networks.items():
        nodules = np.flatnonzero(fold_of == fold)
        if len(nodules):
            folder = layout.fold_folder(out, fold)
            folder.mkdir(exist_ok=True)
            train.write_predictions(run, fold, asked, nodules, folder / "predictions.csv")
    described = {name: values for name, values in records.items() if name not in (schema.IMAGE, schema.MASK)}
    tables.write_readers(out / "readers.csv", described)
    tables.gather_predictions(out)
    return evaluate.evaluate(out)


def fold_of_patients(records: Arrays, folds: list[layout.Fold]) -> dict[str, int]:
    """Return the fold whose test set holds each patient of a run."""
    patient_of = dict(zip(records[schema.NODULE_ID].tolist(), records[schema.PATIENT_ID].tolist(), strict=True))
    found: dict[str, int] = {}
    for index, fold in enumerate(folds):
        for nodule in fold["test"]:
            if found.setdefault(patient_of[nodule], index) != index:
                raise UserError(
                    f"folds.json: patient {patient_of[nodule]} is in the test sets of two folds, so every network saw "
                    "this patient; use a run whose config.split is 'patient'"
                )
    return found


if __name__ == "__main__":
    launch(
        test_elsewhere,
        config="The config of the run.",
        workdir="Workdir of the run.",
        root=path_flag("root", "Folder with the other nodules.", required=True),
        out=path_flag("out", "Folder to write.", required=True),
    )
