"""Train on slabs and test on cubes: learn where the volume ends with the nodule, and test where it does not.

    python -m experiments.slabs_to_cubes --config table_32 --workdir runs/cubes \\
        --config.data.source=folder --config.data.root=/path/to/nodules --config.data.cohort=all \\
        --config.augment.permute=True

One network is trained on the nodules of all patients without a cube, and tested on the cubes. The workdir is like that
of a cross-validation with one fold, with its predictions and results.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.launch import launch
from pnsamp_jax import evaluate, testing, train
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import Run, in_cohort, load_records
from pnsamp_jax.workdir import layout, tables


def split_by_context(records: schema.Records, validation_fraction: float, seed: int) -> layout.Fold:
    """Split nodules into a fold whose test subset is the cubes, and whose other subsets are of other patients.

    Raises:
      UserError: there are no cubes, or no patients without a cube.
    """
    nodules, patients = records[schema.NODULE_ID], records[schema.PATIENT_ID]
    cube = records[schema.CONTEXT] == "cube"
    without_cube = np.setdiff1d(patients, patients[cube])
    if not cube.any() or len(without_cube) < 2:
        raise UserError("config.data: needs nodules in cubes, and patients that have none")
    count = max(1, round(validation_fraction * len(without_cube)))
    drawn = np.random.default_rng(seed).permutation(without_cube)[:count]
    validation = np.isin(patients, drawn)
    training = np.isin(patients, without_cube) & ~validation
    subsets = {"train": training, "validation": validation, "test": cube}
    return {subset: nodules[chosen].tolist() for subset, chosen in subsets.items()}


def run(config: ConfigDict, workdir: Path) -> dict:
    """Train from wherever it stopped, test and evaluate; see the module's docstring.

    Returns:
      The content of results.json.

    Raises:
      UserError: the settings, the data or the workdir do not fit.
    """
    settings = read_settings(config)
    layout.check_config(workdir, settings.fields)
    records = load_records(settings)
    fold = split_by_context(records, settings.validation_fraction, settings.seed)
    layout.write_config(workdir, settings.fields)
    members = in_cohort(settings, records)
    described = {name: values[members] for name, values in records.items() if name not in (schema.IMAGE, schema.MASK)}
    tables.write_readers(workdir / "readers.csv", described)
    one_fold = Run(workdir, settings, records, [fold]).on_device()
    train.train_fold(one_fold, 0)
    testing.test_fold(one_fold, 0)
    tables.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


if __name__ == "__main__":
    launch(run, config="The config to train with.", workdir="Workdir of the run.")
