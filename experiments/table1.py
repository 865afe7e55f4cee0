"""Table 1: segmentation. Dice of the networks that segment, and of one reader; see experiments/tables.py.

python -m experiments.table1 --config configs/table_32.py --workdir runs/tables [--systems=pn_samp_m]
"""

import numpy as np

from experiments.comparison import tables
from experiments.comparison.scores import mean_figure
from experiments.comparison.systems import PN_SAMP
from pnsamp_jax import metrics
from pnsamp_jax.workdir.tables import Table

SHOWN = ["unet3d", "pn_samp_seg", "pn_samp_s1", "pn_samp_s2", PN_SAMP]
COLUMNS = ["system", "n", "Dice", "over folds, mean (SEM)", "paper", "against PN-SAMP M"]
NOTES = [
    "One reader: each reader against the 50 % consensus of the others, on the nodules with three readers at least; "
    "its difference is to PN-SAMP M on those nodules.",
    "Paper: Wu et al., ISBI 2018, mean over folds; other nodules, and folds that patients cross.",
]


def over_folds(table: Table) -> str:
    """Mean of the folds' mean Dice and its standard error, as in the paper."""
    folds = [metrics.mean_score(table["dice"][table["fold"] == fold]) for fold in np.unique(table["fold"])]
    mean, error = metrics.mean_and_sem(folds)
    return "-" if np.isnan(error) else f"{100 * mean:.2f} ({100 * error:.2f})"


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """The page of one context."""
    table, reference = next(iter(runs.values())), runs.get(PN_SAMP)

    def dice_cells(dice: np.ndarray, compare: bool) -> tables.Row:
        cells = {"n": int((~np.isnan(dice)).sum()), "Dice": mean_figure(dice, table["patient_id"], resamples)}
        if compare and reference is not None:
            difference = dice - reference["dice"]
            cells["against PN-SAMP M"] = mean_figure(difference, table["patient_id"], resamples, signed=True)
        return cells

    rows = []
    for key in SHOWN:
        rows.append({"system": tables.name_of(key), "n": tables.NOT_RUN, "paper": tables.published(key, "dice")})
        if key in runs:
            rows[-1] |= dice_cells(runs[key]["dice"], key != PN_SAMP)
            rows[-1]["over folds, mean (SEM)"] = over_folds(runs[key])
    rows.append({"system": "One reader", **dice_cells(table["reader_dice"], compare=True)})
    rows = tables.fill(rows, COLUMNS)
    systems = rows[:-1]
    panel = tables.dots(
        "Dice",
        [row["Dice"] for row in systems],
        [row["paper"] for row in systems],
        {"one reader": rows[-1]["Dice"]},
    )
    names = [tables.drawn_name(key, runs) for key in SHOWN]
    return tables.Page("Table 1. Segmentation", {"": rows}, NOTES, names, [panel])


if __name__ == "__main__":
    tables.launch("table1", SHOWN, build)
