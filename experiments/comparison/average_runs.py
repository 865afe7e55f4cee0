"""Average the probabilities of several runs, nodule by nodule, and evaluate the mean like any other run.

    python -m experiments.comparison.average_runs --workdir runs/mean --runs=runs/a,runs/b

The runs must have tested the same nodules in the same folds. A rating that one of them does not predict is left blank,
and so is Dice, since a run does not keep its masks.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments.comparison.runs import read_run, require_same
from experiments.launch import launch
from pnsamp_jax import evaluate
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path, write_text
from pnsamp_jax.workdir import tables
from pnsamp_jax.workdir.tables import Table


def mean_probabilities(run_tables: list[Table]) -> np.ndarray | None:
    """Return the mean (N, 9, 6), NaN in ratings that a run does not predict; None if no rating is left."""
    mean = np.mean([table["probabilities"] for table in run_tables], axis=0)
    return None if np.isnan(mean[:, :, 0]).all() else mean


def average(workdir: Path, runs: Sequence[str | Path]) -> dict:
    """Average finished runs into a workdir that the evaluation and the tables can read.

    Args:
      workdir: of the averaged run.
      runs: workdirs of at least two runs.

    Returns:
      The content of results.json.

    Raises:
      UserError: the workdir holds another run, or the runs did not test the same nodules in the same folds.
    """
    members = [Path(run) for run in runs]
    if len(members) < 2:
        raise UserError("--runs: give at least two workdirs, as in --runs=runs/a,runs/b")
    run_tables = {member: read_run(member) for member in members}
    require_same(run_tables)
    config = json.loads((members[0] / "config.json").read_text())
    config["model"] |= {"name": "ensemble", "members": [os.path.relpath(member, workdir) for member in members]}
    _write_config(workdir, config)
    for name in ("folds.json", "readers.csv"):
        with atomic_path(workdir / name) as temporary:
            shutil.copyfile(members[0] / name, temporary)
    table, mean = run_tables[members[0]], mean_probabilities(list(run_tables.values()))
    for fold in np.unique(table["fold"]).astype(int):
        tested = table["fold"] == fold
        columns = {
            schema.NODULE_ID: "nodule_id",
            schema.PATIENT_ID: "patient_id",
            schema.RATING_COUNTS: "rating_counts",
        }
        records = {feature: table[column][tested] for feature, column in columns.items()}
        path, predicted = workdir / f"fold_{fold}" / "predictions.csv", None if mean is None else mean[tested]
        tables.write_predictions(path, int(fold), records, tables.nominal_rule(table), {}, predicted)
    tables.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


def _write_config(workdir: Path, config: dict) -> None:
    path = workdir / "config.json"
    if path.exists() and json.loads(path.read_text())["model"] != config["model"]:
        raise UserError(f"{workdir}: belongs to another run; choose another --workdir")
    write_text(path, json.dumps(config, indent=2))


if __name__ == "__main__":
    launch(
        average,
        workdir="Workdir of the averaged run.",
        runs=flags.DEFINE_list("runs", None, "The workdirs of the runs, separated by commas.", required=True),
    )
