"""Table 3: the nine ratings and their mean, by system; see comparison/tables.py.

    python -m experiments.table3 --config table_32 --workdir runs/tables [--systems=pn_samp_m,cnn_mtl]

Systems that need a mask are shown with the readers' own masks, with which they are harder to beat.
"""

from typing import NamedTuple

import numpy as np

from experiments.comparison import tables
from experiments.comparison.scores import (
    constant_hits,
    hits,
    mean_estimate,
    mean_of_ratings_estimate,
    reader_hits,
)
from experiments.comparison.systems import PN_SAMP
from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import Table

SHOWN = ["radiomics", "shc_dcnn", "cnn_mtl", "pn_samp_c", "pn_samp_s1", "pn_samp_s2", PN_SAMP, "pn_samp_mean"]
DECODINGS = {"within_one": "Off-by-one, best within one", "arg_max": "Off-by-one, arg max"}
NINE = list(range(len(schema.RATINGS)))
SEVEN = [index for index, name in enumerate(schema.RATING_NAMES) if name not in ("subtlety", "internal_structure")]
MEANS = {"mean of nine": NINE, "mean of the seven that CNN-MTL rates": SEVEN}
NOTES = [
    "Best constant: for each rating the one class (in brackets) that is best on these very nodules. One reader: each "
    "reader against the rounded mean of the others, on the n nodules in brackets, which have at least two readers; "
    "the difference is to PN-SAMP M on those nodules.",
    "Paper: Wu et al., ISBI 2018, in per cent; other nodules, and patients may be in several folds.",
]


class Column(NamedTuple):
    """The scores behind one column.

    Attributes:
      name: heading of the column.
      scores: (N, 9) off-by-one, NaN where undefined; None if the system was not run.
      masses: (N, 9) weight of each nodule within a rating's mean; None for 1.
      details: number printed in brackets for each rating; empty for none.
    """

    name: str
    scores: np.ndarray | None
    masses: np.ndarray | None = None
    details: tuple[int, ...] = ()

    def cell(self, index: int, patients: np.ndarray, resamples: int) -> tables.Cell:
        """Return the cell of the rating with an index."""
        if self.scores is None:
            return tables.NOT_RUN
        masses = None if self.masses is None else self.masses[:, index]
        estimate = mean_estimate(self.scores[:, index], patients, resamples, masses)
        return estimate._replace(note=f"({self.details[index]})") if self.details else estimate

    def mean(
        self, indices: list[int], patients: np.ndarray, resamples: int, reference: np.ndarray | None = None
    ) -> tables.Cell:
        """Return the cell of the mean over some ratings, or of its difference from the reference's scores (N, 9)."""
        if self.scores is None:
            return tables.NOT_RUN
        scores = self.scores if reference is None else self.scores - reference
        masses = None if self.masses is None else self.masses[:, indices]
        return mean_of_ratings_estimate(scores[:, indices], patients, resamples, masses, signed=reference is not None)


def columns_of(runs: dict[str, Table], decoding: str) -> list[Column]:
    """Return the columns of the best constant, of one reader, and of the systems."""
    table = next(iter(runs.values()))
    constants, constant_scores = zip(*(constant_hits(table, index) for index in NINE), strict=True)
    by_rating = [reader_hits(table, index) for index in NINE]
    reader_scores, masses = (np.stack([pair[k] for pair in by_rating], axis=1) for k in (0, 1))
    readers = tuple(int(n) for n in (~np.isnan(reader_scores)).sum(axis=0))
    columns = [
        Column("best constant", np.stack(constant_scores, axis=1), details=constants),
        Column("one reader", reader_scores, masses, readers),
    ]
    for key in SHOWN:
        scores = np.stack([hits(runs[key], decoding, index) for index in NINE], axis=1) if key in runs else None
        columns.append(Column(tables.name_of(key), scores))
    return columns


def block(runs: dict[str, Table], decoding: str, resamples: int) -> list[tables.Row]:
    """Return the rows of one decoding."""
    table, columns = next(iter(runs.values())), columns_of(runs, decoding)
    patients, rated = table["patient_id"], (table["truth"] > 0).sum(axis=0)
    rows: list[tables.Row] = []
    for index, rating in enumerate(schema.RATINGS):
        cells = {column.name: column.cell(index, patients, resamples) for column in columns}
        rows.append({"rating": rating.name.replace("_", " "), "n": int(rated[index]), **cells})
    for name, indices in MEANS.items():
        cells = {column.name: column.mean(indices, patients, resamples) for column in columns}
        rows.append({"rating": name, "n": len(patients), **cells})
    rows.append(
        {"rating": "mean of nine, paper", **{tables.name_of(key): tables.published(key, "mean") for key in SHOWN}}
    )
    if PN_SAMP in runs:
        (reference,) = (column for column in columns if column.name == tables.name_of(PN_SAMP))
        compared = [column for column in columns if column is not reference]
        for name, indices in MEANS.items():
            cells = {column.name: column.mean(indices, patients, resamples, reference.scores) for column in compared}
            rows.append({"rating": f"{name}, against PN-SAMP M", **cells})
    return tables.fill(rows, ["rating", "n", *(column.name for column in columns)])


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """Build the page of one context."""
    blocks = {title: block(runs, decoding, resamples) for decoding, title in DECODINGS.items()}
    panels = []
    for row in blocks[DECODINGS["within_one"]][: len(NINE) + 1]:
        paper = [tables.published(key, "mean") if row["rating"] == "mean of nine" else "-" for key in SHOWN]
        lines = {name: row[name] for name in ("best constant", "one reader")}
        panels.append(tables.dots(str(row["rating"]), [row[tables.name_of(key)] for key in SHOWN], paper, lines))
    names = [tables.name_in_figure(key, runs) for key in SHOWN]
    notes = [*tables.readers_note(SHOWN), *NOTES]
    return tables.Page("Table 3. The nine ratings", blocks, notes, names, panels)


if __name__ == "__main__":
    tables.launch_table("table3", SHOWN, build)
