"""Table 2: malignancy, of all systems that rate it; see comparison/tables.py.

python -m experiments.table2 --config table_32 --workdir runs/tables [--systems=pn_samp_m,mcnn]
"""

import numpy as np

from experiments.comparison import tables
from experiments.comparison.scores import (
    Estimate,
    auc_difference,
    auc_estimate,
    constant_hits,
    hits,
    mean_estimate,
    reader_hits,
)
from experiments.comparison.systems import PN_SAMP, SYSTEMS
from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import Table

SHOWN = [
    "depth",
    "diameter",
    "radiomics",
    "radiomics_predicted",
    "tumornet",
    "tumornet_readers",
    "tumornet_predicted",
    "shc_dcnn",
    "shc_dcnn_predicted",
    "mcnn",
    "cnn_mtl",
    "pn_samp_c",
    "pn_samp_s1",
    "pn_samp_s2",
    PN_SAMP,
    "pn_samp_mean",
]
ARG_MAX, WITHIN_ONE = "off-by-one, arg max", "off-by-one, best within one"
WITHIN_ONE_DIFFERENCE, AUC_DIFFERENCE = "best within one, against PN-SAMP M", "AUC, against PN-SAMP M"
COLUMNS = ["system", "n", ARG_MAX, WITHIN_ONE, "AUC", "paper", WITHIN_ONE_DIFFERENCE, AUC_DIFFERENCE, "DeLong p"]
SLAB_NOTE = (
    "A slab ends one slice beyond its nodule, so the depth of the image file alone tells the nodule's size: AUC and "
    "ratings on slabs are optimistic, as Dice is, for every system that sees where the volume ends."
)
NOTES = [
    "Malignancy is the radiologists' suspicion, rated without pathology. AUC: rated over 3 against under 3.",
    "Best constant: the one class that is best on these very nodules. One reader: each reader against the rounded "
    "mean of the others, on nodules with at least two readers; the difference is to PN-SAMP M on those nodules.",
    "The intervals of the differences resample patients; DeLong's p treats nodules as independent, though nodules of "
    "one patient resemble each other, and nothing is corrected for the number of comparisons.",
    "MCNN predicts 1 or 5, so its off-by-one is the accuracy of benign against malignant.",
    "Paper: Wu et al., ISBI 2018, off-by-one in per cent; other nodules, and patients may be in several folds.",
]


def baselines(table: Table, reference: np.ndarray | None, resamples: int) -> list[tables.Row]:
    """Return the rows of the best constant and of one reader.

    Args:
      table: of any system.
      reference: (N,) best-within-one off-by-one of PN-SAMP M; None if it was not run.
      resamples: of the patients.
    """
    patients = table["patient_id"]
    constant, constant_scores = constant_hits(table, schema.MALIGNANCY)
    reader_scores, readers = reader_hits(table, schema.MALIGNANCY)
    rows: list[tables.Row] = []
    for name, scores, masses in (
        (f"Best constant ({constant})", constant_scores, None),
        ("One reader", reader_scores, readers),
    ):
        estimate = mean_estimate(scores, patients, resamples, masses)
        row: tables.Row = {"system": name, "n": int((~np.isnan(scores)).sum()), ARG_MAX: estimate}
        row[WITHIN_ONE] = estimate
        if reference is not None:
            difference = scores - reference
            row[WITHIN_ONE_DIFFERENCE] = mean_estimate(difference, patients, resamples, masses, signed=True)
        rows.append(row)
    rows[0]["AUC"] = Estimate(0.5)
    return rows


def system_row(key: str, table: Table, reference: Table | None, resamples: int) -> tables.Row:
    """Return the row of a system, with its differences from PN-SAMP M if that was run."""
    patients, within = table["patient_id"], hits(table, "within_one", schema.MALIGNANCY)
    row: tables.Row = {
        "system": tables.name_of(key),
        "n": int((~np.isnan(within)).sum()),
        ARG_MAX: mean_estimate(hits(table, "arg_max", schema.MALIGNANCY), patients, resamples),
        WITHIN_ONE: mean_estimate(within, patients, resamples),
        "AUC": auc_estimate(table, resamples),
        "paper": tables.published(key, "malignancy"),
    }
    if reference is not None and key != PN_SAMP:
        difference = within - hits(reference, "within_one", schema.MALIGNANCY)
        row[WITHIN_ONE_DIFFERENCE] = mean_estimate(difference, patients, resamples, signed=True)
        row[AUC_DIFFERENCE], row["DeLong p"] = auc_difference(table, reference, resamples)
    return row


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """Build the page of one context."""
    reference, table = runs.get(PN_SAMP), next(iter(runs.values()))
    within = None if reference is None else hits(reference, "within_one", schema.MALIGNANCY)
    slabs = bool((table["context"] == "slab").all())
    shown = [key for key in SHOWN if slabs or not SYSTEMS[key].slabs_only]
    rows = baselines(table, within, resamples)
    for key in shown:
        if key in runs:
            rows.append(system_row(key, runs[key], reference, resamples))
        else:
            paper = tables.published(key, "malignancy")
            rows.append({"system": tables.name_of(key), "n": tables.NOT_RUN, "paper": paper})
    rows = tables.fill(rows, COLUMNS)
    constant, reader, *systems = rows
    panels = [
        tables.dots(
            column,
            [row[column] for row in systems],
            [row["paper"] if column != "AUC" else "-" for row in systems],
            {"best constant": constant[column], "one reader": reader[column]},
        )
        for column in (ARG_MAX, WITHIN_ONE, "AUC")
    ]
    names = [tables.name_in_figure(key, runs) for key in shown]
    notes = [*([SLAB_NOTE] if slabs else []), *tables.readers_note(shown), *NOTES]
    return tables.Page("Table 2. Malignancy", {"": rows}, notes, names, panels)


if __name__ == "__main__":
    tables.launch_table("table2", SHOWN, build)
