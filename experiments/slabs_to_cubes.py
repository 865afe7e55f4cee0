"""Trains on slabs, tests on cubes: what is learnt where a volume ends with its nodule, scored where it does not.

    python -m experiments.slabs_to_cubes --config configs/table_32.py --workdir runs/cubes \\
        --config.data.source=folder --config.data.root=/path/to/nodules --config.data.cohort=all \\
        --config.augment.permute=True

One network, trained on the nodules of all patients that have no cube, and tested on the cubes; a workdir like that of
a cross-validation of one fold, with its predictions and results.
"""

import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from pnsamp_jax import config as settings
from pnsamp_jax import evaluate, train
from pnsamp_jax.allocator import keep_freed_memory
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir import layout, tables


def split_by_context(records: dict[str, np.ndarray], validation_fraction: float, seed: int) -> dict[str, list[str]]:
    """Nodule ids of each part: the cubes, and of the patients without one those to validate and to train.

    Raises:
      UserError: there are no cubes, or no patients without.
    """
    nodules, patients = records[schema.NODULE_ID], records[schema.PATIENT_ID]
    cube = records[schema.CONTEXT] == "cube"
    others = np.setdiff1d(patients, patients[cube])
    if not cube.any() or len(others) < 2:
        raise UserError("config.data: needs nodules in cubes, and patients that have none")
    drawn = np.random.default_rng(seed).permutation(others)[: max(1, round(validation_fraction * len(others)))]
    validation = np.isin(patients, drawn)
    training = np.isin(patients, others) & ~validation
    parts = {"train": training, "validation": validation, "test": cube}
    return {part: nodules[chosen].tolist() for part, chosen in parts.items()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Trains, from wherever it stopped, tests and evaluates; see the module.

    Raises:
      UserError: the settings, the data or the workdir do not fit.
    """
    settings.check(config)
    layout.check(config, workdir)
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_folder(config) / "xla"))
    records = layout.load_records(config)
    split = split_by_context(records, config.validation_fraction, config.seed)
    layout.claim(config, workdir)
    layout.write_readers(config, workdir, records)
    records = layout.place_records(config, records)
    train.train_fold(config, 0, records, split, workdir / "fold_0")
    train.test_fold(config, 0, records, split, workdir / "fold_0")
    tables.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


def launch() -> None:
    """The command line; a user's mistake becomes one line."""
    config = config_flags.DEFINE_config_file("config", None, "The config file to train with.")
    workdir = flags.DEFINE_string("workdir", None, "Where the run goes.")

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        keep_freed_memory()
        try:
            run(config.value, Path(workdir.value))
        except UserError as error:
            sys.exit(f"slabs_to_cubes: {error}")

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    launch()
