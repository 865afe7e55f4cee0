"""Table 2: malignancy, of all systems that rate it; see experiments/tables.py.

python -m experiments.table2 --config configs/table_32.py --workdir runs/tables [--systems=pn_samp_m,mcnn]
"""

import numpy as np

from experiments.comparison import tables
from experiments.comparison.scores import (
    Figure,
    auc_difference,
    auc_figure,
    constant_hits,
    hits,
    mean_figure,
    reader_hits,
)
from experiments.comparison.systems import PN_SAMP
from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import Table

SHOWN = [
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
NOTES = [
    "Malignancy is the radiologists' suspicion, rated without pathology. AUC: rated over 3 against under 3.",
    "Best constant: the one answer that is best on these very nodules. One reader: each reader against the rounded "
    "mean of the others, on the nodules with two readers at least; its difference is to PN-SAMP M on those nodules.",
    "The intervals of the differences draw patients; DeLong's p takes nodules as independent, though those of a "
    "patient are alike, and nothing is corrected for the number of comparisons.",
    "MCNN answers 1 or 5, so that its off-by-one is the accuracy of benign against malignant.",
    "Paper: Wu et al., ISBI 2018, off-by-one in per cent; other nodules, and folds that patients cross.",
]


def baselines(table: Table, reference: np.ndarray | None, resamples: int) -> list[tables.Row]:
    """The best constant and one reader; `reference` is the best-within-one off-by-one of PN-SAMP M."""
    patients = table["patient_id"]
    constant, constant_scores = constant_hits(table, schema.MALIGNANCY)
    reader_scores, readers = reader_hits(table, schema.MALIGNANCY)
    rows = []
    for name, scores, masses in (
        (f"Best constant ({constant})", constant_scores, None),
        ("One reader", reader_scores, readers),
    ):
        figure = mean_figure(scores, patients, resamples, masses)
        row = {"system": name, "n": int((~np.isnan(scores)).sum()), ARG_MAX: figure, WITHIN_ONE: figure}
        if reference is not None:
            difference = scores - reference
            row[WITHIN_ONE_DIFFERENCE] = mean_figure(difference, patients, resamples, masses, signed=True)
        rows.append(row)
    rows[0]["AUC"] = Figure(0.5)
    return rows


def system_row(key: str, table: Table, reference: Table | None, resamples: int) -> tables.Row:
    """What a system scores, and by how much it differs from PN-SAMP M."""
    patients, within = table["patient_id"], hits(table, "within_one", schema.MALIGNANCY)
    row = {
        "system": tables.name_of(key),
        "n": int((~np.isnan(within)).sum()),
        ARG_MAX: mean_figure(hits(table, "arg_max", schema.MALIGNANCY), patients, resamples),
        WITHIN_ONE: mean_figure(within, patients, resamples),
        "AUC": auc_figure(table, resamples),
        "paper": tables.published(key, "malignancy"),
    }
    if reference is not None and key != PN_SAMP:
        difference = within - hits(reference, "within_one", schema.MALIGNANCY)
        row[WITHIN_ONE_DIFFERENCE] = mean_figure(difference, patients, resamples, signed=True)
        row[AUC_DIFFERENCE], row["DeLong p"] = auc_difference(table, reference, resamples)
    return row


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """The page of one context."""
    reference = runs.get(PN_SAMP)
    within = None if reference is None else hits(reference, "within_one", schema.MALIGNANCY)
    rows = baselines(next(iter(runs.values())), within, resamples)
    for key in SHOWN:
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
    names = [tables.drawn_name(key, runs) for key in SHOWN]
    notes = [*tables.told_note(SHOWN), *NOTES]
    return tables.Page("Table 2. Malignancy", {"": rows}, notes, names, panels)


if __name__ == "__main__":
    tables.launch("table2", SHOWN, build)
