"""The mean of several runs: their probabilities averaged, nodule by nodule, and evaluated like any other run.

    python -m experiments.comparison.ensemble --workdir runs/ensemble --runs=runs/a,runs/b

The runs must have tested the same nodules in the same folds. A rating that one of them lacks is left blank, and so
is Dice, since no run keeps its masks.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.comparison.runs import read_run, require_same
from pnsamp_jax import evaluate
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.workdir.tables import Table


def mean_probabilities(tables: list[Table]) -> np.ndarray | None:
    """(N, 9, 6), NaN in the ratings that a run lacks; None where no rating is left."""
    mean = np.mean([table["probabilities"] for table in tables], axis=0)
    return None if np.isnan(mean[:, :, 0]).all() else mean


def run(workdir: Path, members: list[Path]) -> dict:
    """Averages finished runs into a workdir, which `evaluate` and the tables read; gives the results.

    Raises:
      UserError: the workdir holds another run, or the members are not of the same nodules and folds.
    """
    if len(members) < 2:
        raise UserError("--runs: needs two workdirs at least, as in --runs=runs/a,runs/b")
    tables = {member: read_run(member) for member in members}
    require_same(tables)
    described = json.loads((members[0] / "config.json").read_text())
    described["model"] |= {"name": "ensemble", "members": [os.path.relpath(member, workdir) for member in members]}
    _claim(workdir, described)
    for name in ("folds.json", "readers.csv"):
        with atomic_path(workdir / name) as temporary:
            shutil.copyfile(members[0] / name, temporary)
    table, mean = tables[members[0]], mean_probabilities(list(tables.values()))
    for fold in np.unique(table["fold"]).astype(int):
        tested = table["fold"] == fold
        names = {schema.NODULE_ID: "nodule_id", schema.PATIENT_ID: "patient_id", schema.RATING_COUNTS: "rating_counts"}
        records = {key: table[name][tested] for key, name in names.items()}
        path, no_mask = workdir / f"fold_{fold}" / "predictions.csv", np.full(tested.sum(), np.nan)
        tables.write_predictions(path, int(fold), records, no_mask, None if mean is None else mean[tested])
    tables.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


def _claim(workdir: Path, described: dict) -> None:
    path = workdir / "config.json"
    if path.exists() and json.loads(path.read_text())["model"] != described["model"]:
        raise UserError(f"{workdir}: belongs to another run; take another --workdir")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(described, indent=2))


def main(argv: list[str]) -> None:
    """Averages the runs; a user's mistake becomes one line."""
    del argv
    try:
        run(Path(flags.FLAGS.workdir), [Path(member) for member in flags.FLAGS.runs])
    except UserError as error:
        sys.exit(f"ensemble: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Where the averaged run goes.", required=True)
    flags.DEFINE_list("runs", None, "The workdirs of the runs, separated by commas.", required=True)
    app.run(main)
