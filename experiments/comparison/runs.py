"""Finished runs over the same nodules: reading them, and refusing runs that cannot be compared."""

import csv
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.tables import Table, nominal_rule, rated, read_tables


def is_complete(workdir: Path, folds: Collection[int]) -> bool:
    """Return whether a workdir holds results and the predictions of every test nodule of these folds."""
    paths = [workdir / name for name in ("results.json", "folds.json", "predictions.csv")]
    if not all(path.is_file() for path in paths):
        return False
    split = json.loads(paths[1].read_text())["folds"]
    with paths[2].open(newline="") as file:
        tested = {row["nodule_id"] for row in csv.DictReader(file)}
    return all(tested.issuperset(split[fold]["test"]["nodules"]) for fold in folds)


def select(table: Table, chosen: np.ndarray) -> Table:
    """Return the chosen nodules (bool mask or indices) of a table."""
    return {name: values[chosen] for name, values in table.items()}


def read_run(workdir: Path, folds: Collection[int] | None = None) -> Table:
    """Read the tables of a run, sorted by nodule id; see `workdir.tables.read_tables`.

    Args:
      workdir: of the run.
      folds: whose test nodules to read; all by default.

    Raises:
      UserError: a table is missing or damaged, or a rating is blank for some nodules but not for all, so that its
        metrics would rest on another n than those of other runs.
    """
    table = read_tables(workdir)
    if folds is not None:
        table = select(table, np.isin(table["fold"], list(folds)))
    table = select(table, np.argsort(table["nodule_id"]))
    blank = rated(table) & (table["arg_max"] == 0)
    if blank.any():
        nodule, rating = np.argwhere(blank)[0]
        raise UserError(
            f"{workdir / 'predictions.csv'}: nodule '{table['nodule_id'][nodule]}' has no "
            f"{schema.RATING_NAMES[rating]}, which other nodules have; run it again"
        )
    return table


def require_same(tables: dict[Path, Table]) -> None:
    """Raise UserError unless all runs tested the same nodules in the same folds against the same ratings.

    Args:
      tables: of the runs, by workdir.

    Raises:
      UserError: names the two workdirs and the first nodule in which they differ.
    """
    for workdir, table in tables.items():
        for other_workdir, other in tables.items():
            missing = np.setdiff1d(other["nodule_id"], table["nodule_id"])
            if missing.size:
                raise UserError(
                    f"{workdir}: did not test nodule '{missing[0]}' ({missing.size} missing of "
                    f"{len(other['nodule_id'])}), which {other_workdir} did; only runs over the same nodules can be "
                    "compared, so run it again"
                )
    (first_workdir, first), *rest = tables.items()
    for workdir, table in rest:
        if nominal_rule(table) != nominal_rule(first):
            raise UserError(
                f"{workdir}: its config.data.nominal is '{nominal_rule(table)}', in {first_workdir} "
                f"'{nominal_rule(first)}'; only runs with the same labels can be compared"
            )
        for name in ("patient_id", "fold", "context", "truth"):
            differs = (table[name] != first[name]).reshape(len(table["nodule_id"]), -1).any(axis=1)
            if differs.any():
                raise UserError(
                    f"{workdir}: the {name} of nodule '{table['nodule_id'][differs][0]}' differs from that in "
                    f"{first_workdir}; only runs with the same split of the same data can be compared"
                )
