"""Test the networks of a cross-validation on the nodules of any source, each by those that never saw its patient.

    python -m experiments.held_out --config pn_samp_plus --networks runs/plus --out runs/plus_elsewhere \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The networks are those of a run's workdir, or exported weights. A patient in the test set of a fold is tested by the
network of that fold; a patient whom no fold knows, by all networks together. So the same networks can be judged on
slabs, cubes and whole scans, whichever they were trained on. Answers are calibrated as in a prediction, and averaged
over flips if the config says so; but each patch stays where the readers' consensus has its centre. The output folder
is like a workdir: predictions.csv, readers.csv, results.json and figures.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.launch import launch, path_flag, require_new
from pnsamp_jax import evaluate, testing
from pnsamp_jax.config import Settings, read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.input_pipeline import Arrays
from pnsamp_jax.run import Run, load_records
from pnsamp_jax.workdir import layout, tables

ALL_FOLDS = -1  # in the column `fold`: the mean of all networks


def test_elsewhere(config: ConfigDict, networks: Path, out: Path) -> dict:
    """Test trained networks on the nodules of a config; see the module's docstring.

    Args:
      config: names the nodules, and how they are asked about (`test_flips`).
      networks: workdir of a run, or exported weights. Where a fold is missing, the patients that it tests and those
        whom no fold knows are left out.
      out: folder to write.

    Returns:
      The content of results.json.

    Raises:
      UserError: the config has another grid than the networks, none of its nodules can be tested, or `out` exists.
    """
    require_new(out)
    settings = read_settings(config)
    records, parts = unseen(settings, networks)
    out.mkdir(parents=True)
    layout.write_config(out, settings.fields)
    run = Run(out, settings, records, folds=[])
    for fold, (members, nodules) in parts.items():
        run.fold_folder(fold).mkdir()
        testing.write_predictions(run, fold, members, nodules, run.fold_folder(fold) / "predictions.csv")
    tables.write_readers(out / "readers.csv", records)
    tables.gather_predictions(out)
    return evaluate.evaluate(out)


def unseen(settings: Settings, networks: Path) -> tuple[Arrays, dict[int, tuple[ensemble.Networks, np.ndarray]]]:
    """Read nodules, and find for each the networks that never saw its patient.

    Args:
      settings: name the nodules.
      networks: see `test_elsewhere`.

    Returns:
      The records, and by fold (`ALL_FOLDS` for all of them) its networks and the indices of their nodules.

    Raises:
      UserError: the settings have another grid than the networks, or none of the nodules can be tested.
    """
    asked = ensemble.load(networks)
    grid = (settings.geometry.patch_size, settings.geometry.spacing_mm)
    if grid != (asked.patch_size, asked.spacing_mm):
        raise UserError(
            f"{networks}: receives {asked.patch_size} voxels of {asked.spacing_mm} mm, the config gives {grid[0]} of "
            f"{grid[1]} mm; use the config of the networks"
        )
    tested = layout.fold_of_patients(networks / "folds.json")
    by_fold = {fold: asked.member(fold) for fold in set(tested.values()) if f"fold_{fold}" in asked.members}
    if len(by_fold) == 1 + max(tested.values()):
        by_fold[ALL_FOLDS] = asked
    records = load_records(settings)
    fold_of = np.array([tested.get(patient, ALL_FOLDS) for patient in records[schema.PATIENT_ID].tolist()])
    if not np.isin(fold_of, list(by_fold)).any():
        raise UserError(f"{networks}: none of the nodules' patients is in the test set of a fold that is trained")
    parts = {fold: (members, np.flatnonzero(fold_of == fold)) for fold, members in by_fold.items()}
    return records, {fold: part for fold, part in parts.items() if len(part[1])}


if __name__ == "__main__":
    launch(
        test_elsewhere,
        config="The config that names the nodules; of the same grid as the networks.",
        networks=path_flag("networks", "Workdir of a run, or exported weights.", required=True),
        out=path_flag("out", "Folder to write; must not exist.", required=True),
    )
