"""Table 1: segmentation. Dice of the networks that segment, and of one reader; see comparison/tables.py.

python -m experiments.table1 --config table_32 --workdir runs/tables [--systems=pn_samp_m]
"""

import numpy as np

from experiments.comparison import tables
from experiments.comparison.scores import mean_estimate
from experiments.comparison.systems import PN_SAMP
from pnsamp_jax import intervals, metrics
from pnsamp_jax.outlines import TOLERANCE_MM
from pnsamp_jax.workdir.tables import Table

SHOWN = ["unet3d", "pn_samp_seg", "pn_samp_s1", "pn_samp_s2", PN_SAMP]
THREE = "Dice, at least three readers"
COLUMNS = ["system", "n", "Dice", THREE, "HD95, mm", "NSD", "over folds, mean (SEM)", "paper", "against PN-SAMP M"]
NOTES = [
    "The mask is the one that a prediction writes, the component at the centre of the patch; it is compared with the "
    "readers' 50 % consensus.",
    "One reader: each reader against the 50 % consensus of the others, on nodules with at least three readers; the "
    f'column "{THREE}" has all systems on these nodules, and the reader\'s difference is to PN-SAMP M there.',
    "HD95: 95 % of either surface lie no further from the other. NSD: share of both surfaces that lies within "
    f"{TOLERANCE_MM:g} mm of the other.",
    "Paper: Wu et al., ISBI 2018, mean over folds; other nodules, and patients may be in several folds.",
]


def over_folds(table: Table) -> str:
    """Format the mean of the folds' mean Dice and its standard error, as in the paper."""
    folds = [metrics.mean_score(table["dice"][table["fold"] == fold]) for fold in np.unique(table["fold"])]
    mean, error = intervals.mean_and_sem(folds)
    return "-" if np.isnan(error) else f"{100 * mean:.2f} ({100 * error:.2f})"


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """Build the page of one context."""
    table, reference = next(iter(runs.values())), runs.get(PN_SAMP)

    patients, three = table["patient_id"], ~np.isnan(table["reader_dice"])

    def dice_cells(dice: np.ndarray, compare: bool) -> tables.Row:
        cells: tables.Row = {"n": int((~np.isnan(dice)).sum()), "Dice": mean_estimate(dice, patients, resamples)}
        cells[THREE] = mean_estimate(np.where(three, dice, np.nan), patients, resamples)
        if compare and reference is not None:
            difference = dice - reference["dice"]
            cells["against PN-SAMP M"] = mean_estimate(difference, patients, resamples, signed=True)
        return cells

    systems: list[tables.Row] = []
    for key in SHOWN:
        row: tables.Row = {
            "system": tables.name_of(key),
            "n": tables.NOT_RUN,
            "paper": tables.published(key, "dice"),
        }
        if key in runs:
            row |= dice_cells(runs[key]["dice"], key != PN_SAMP)
            row["NSD"] = mean_estimate(runs[key]["nsd"], patients, resamples)
            row["HD95, mm"] = mean_estimate(runs[key]["hd95_mm"], patients, resamples)._replace(factor=1)
            row["over folds, mean (SEM)"] = over_folds(runs[key])
        systems.append(row)
    reader: tables.Row = {"system": "One reader", **dice_cells(table["reader_dice"], compare=True)}
    *systems, reader = rows = tables.fill([*systems, reader], COLUMNS)
    panel = tables.dots(
        "Dice",
        [row["Dice"] for row in systems],
        [row["paper"] for row in systems],
        {"one reader": reader["Dice"]},
    )
    names = [tables.name_in_figure(key, runs) for key in SHOWN]
    return tables.Page("Table 1. Segmentation", {"": rows}, NOTES, names, [panel])


if __name__ == "__main__":
    tables.launch_table("table1", SHOWN, build)
