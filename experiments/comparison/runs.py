"""Finished runs over the same nodules: reads them, and refuses those that cannot be compared."""

import csv
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.tables import Table, rated, read_tables


def is_complete(workdir: Path, folds: Collection[int]) -> bool:
    """Whether a workdir holds results that rest on every test nodule of these folds."""
    paths = [workdir / name for name in ("results.json", "folds.json", "predictions.csv")]
    if not all(path.is_file() for path in paths):
        return False
    split = json.loads(paths[1].read_text())["folds"]
    with paths[2].open(newline="") as file:
        tested = {row["nodule_id"] for row in csv.DictReader(file)}
    return all(tested.issuperset(split[fold]["test"]["nodules"]) for fold in folds)


def only(table: Table, chosen: np.ndarray) -> Table:
    """The chosen nodules (bool or indices) of a table."""
    return {name: values[chosen] for name, values in table.items()}


def read_run(workdir: Path, folds: Collection[int] | None = None) -> Table:
    """The tables of a run as `predictions.read_tables` gives them, by nodule id; of these folds, or of all.

    Raises:
      UserError: a table is missing or damaged, or a rating is blank for some nodules but not for all, so that its
        figures would not rest on the same n as those of other runs.
    """
    table = read_tables(workdir)
    if folds is not None:
        table = only(table, np.isin(table["fold"], list(folds)))
    table = only(table, np.argsort(table["nodule_id"]))
    blank = rated(table) & (table["arg_max"] == 0)
    if blank.any():
        nodule, rating = np.argwhere(blank)[0]
        raise UserError(
            f"{workdir / 'predictions.csv'}: nodule '{table['nodule_id'][nodule]}' has no "
            f"{schema.RATING_NAMES[rating]}, though others have; run it again"
        )
    return table


def require_same(tables: dict[Path, Table]) -> None:
    """Refuses runs that did not test the same nodules in the same folds against the same readings.

    Raises:
      UserError: names the two workdirs and the first nodule in which they differ.
    """
    runs = list(tables.items())
    for workdir, table in runs:
        for other, its in runs:
            lost = np.setdiff1d(its["nodule_id"], table["nodule_id"])
            if lost.size:
                raise UserError(
                    f"{workdir}: did not test nodule '{lost[0]}' ({lost.size} missing of {len(its['nodule_id'])}), "
                    f"which {other} did; only runs over the same nodules can be compared, so run it again"
                )
    for workdir, table in runs[1:]:
        for name in ("patient_id", "fold", "context", "truth"):
            differs = (table[name] != runs[0][1][name]).reshape(len(table["nodule_id"]), -1).any(axis=1)
            if differs.any():
                raise UserError(
                    f"{workdir}: the {name} of nodule '{table['nodule_id'][differs][0]}' is another than in "
                    f"{runs[0][0]}; only runs with one split of the same data can be compared"
                )
