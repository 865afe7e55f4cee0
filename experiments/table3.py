"""Table 3: the nine ratings and their means, by system; see comparison/tables.py.

    python -m experiments.table3 --config table_32 --workdir runs/tables [--systems=pn_samp_m,cnn_mtl]

Systems that need a mask are shown with the readers' own masks, with which they are harder to beat.
"""

from collections.abc import Callable
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
from pnsamp_jax.workdir.tables import Table, as_in_paper, nominal

SHOWN = ["radiomics", "shc_dcnn", "cnn_mtl", "pn_samp_c", "pn_samp_s1", "pn_samp_s2", PN_SAMP, "pn_samp_mean"]
DECODINGS = {"within_one": "Off-by-one, best within one", "arg_max": "Off-by-one, arg max"}
NINE = list(range(len(schema.RATINGS)))
ORDINAL = [index for index, rating in enumerate(schema.RATINGS) if not rating.nominal]
SIX = [index for index in ORDINAL if schema.RATING_NAMES[index] != "subtlety"]
MEAN_OF_NINE = "mean of nine, as in the paper"
MEANS = {
    "mean of the seven ordinal": ORDINAL,
    "mean of the six ordinal that CNN-MTL rates": SIX,
    MEAN_OF_NINE: NINE,
}
EXACT = " (exact)"  # behind the ratings whose accuracy it is
NOTES = [
    f"Accuracy is off-by-one, but exact{EXACT} for internal structure and calcification: they are nominal, and their "
    "true class is the modal rating of the readers. The mean of nine takes the rounded mean of all nine and is off by "
    "one throughout, as in the paper.",
    "Best constant: for each rating the one class (in brackets) that is best on these very nodules. One reader: each "
    "reader against the rounded mean of the others, on the n nodules in brackets, which have at least two readers; "
    "the difference is to PN-SAMP M on those nodules.",
    "Paper: Wu et al., ISBI 2018, in per cent; other nodules, and patients may be in several folds.",
]


class Column(NamedTuple):
    """The scores behind one column.

    Attributes:
      name: heading of the column.
      scores: (N, 9) accuracies, NaN where undefined; None if the system was not run.
      in_paper: the same with all ratings off by one and against their rounded means; None if the system was not run.
      masses: (N, 9) weight of each nodule within a rating's mean; None for 1.
      details: number printed in brackets for each rating; empty for none.
    """

    name: str
    scores: np.ndarray | None
    in_paper: np.ndarray | None
    masses: np.ndarray | None = None
    details: tuple[int, ...] = ()

    def cell(self, index: int, patients: np.ndarray, resamples: int) -> tables.Cell:
        """Return the cell of the rating with an index."""
        if self.scores is None:
            return tables.NOT_RUN
        masses = None if self.masses is None else self.masses[:, index]
        estimate = mean_estimate(self.scores[:, index], patients, resamples, masses)
        return estimate._replace(note=f"({self.details[index]})") if self.details else estimate

    def mean(self, name: str, patients: np.ndarray, resamples: int, reference: "Column | None" = None) -> tables.Cell:
        """Return the cell of one of `MEANS`, or of its difference from that of another column."""
        indices, kind = MEANS[name], "in_paper" if name == MEAN_OF_NINE else "scores"
        scores = getattr(self, kind)
        if scores is None:
            return tables.NOT_RUN
        if reference is not None:
            scores = scores - getattr(reference, kind)
        masses = None if self.masses is None else self.masses[:, indices]
        return mean_of_ratings_estimate(scores[:, indices], patients, resamples, masses, signed=reference is not None)


def columns_of(runs: dict[str, Table], decoding: str) -> list[Column]:
    """Return the columns of the best constant, of one reader, and of the systems."""
    table = next(iter(runs.values()))
    constants = tuple(constant_hits(table, index)[0] for index in NINE)
    readers = tuple(int((~np.isnan(reader_hits(table, index)[0])).sum()) for index in NINE)
    masses = np.stack([reader_hits(table, index)[1] for index in NINE], axis=1)

    def both(score: Callable[[Table, int], np.ndarray], table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Return a score of each of the nine ratings, (N, 9), of a table as it is and as in the paper."""
        own, paper = (np.stack([score(one, index) for index in NINE], axis=1) for one in (table, as_in_paper(table)))
        return own, paper

    columns = [
        Column("best constant", *both(lambda one, index: constant_hits(one, index)[1], table), details=constants),
        Column("one reader", *both(lambda one, index: reader_hits(one, index)[0], table), masses, readers),
    ]
    for key in SHOWN:
        if key in runs:
            scores, in_paper = both(lambda one, index: hits(one, decoding, index), runs[key])
            columns.append(Column(tables.name_of(key), scores, in_paper))
        else:
            columns.append(Column(tables.name_of(key), None, None))
    return columns


def block(runs: dict[str, Table], decoding: str, resamples: int) -> list[tables.Row]:
    """Return the rows of one decoding."""
    table, columns = next(iter(runs.values())), columns_of(runs, decoding)
    patients, rated = table["patient_id"], (table["truth"] > 0).sum(axis=0)
    rows: list[tables.Row] = []
    for index, rating in enumerate(schema.RATINGS):
        cells = {column.name: column.cell(index, patients, resamples) for column in columns}
        name = rating.name.replace("_", " ") + EXACT * int(nominal(table)[index])
        rows.append({"rating": name, "n": int(rated[index]), **cells})
    for name in MEANS:
        cells = {column.name: column.mean(name, patients, resamples) for column in columns}
        rows.append({"rating": name, "n": len(patients), **cells})
    rows.append(
        {
            "rating": "mean of nine, paper's own",
            **{tables.name_of(key): tables.published(key, "mean") for key in SHOWN},
        }
    )
    if PN_SAMP in runs:
        (reference,) = (column for column in columns if column.name == tables.name_of(PN_SAMP))
        compared = [column for column in columns if column is not reference]
        for name in MEANS:
            cells = {column.name: column.mean(name, patients, resamples, reference) for column in compared}
            rows.append({"rating": f"{name}, against PN-SAMP M", **cells})
    return tables.fill(rows, ["rating", "n", *(column.name for column in columns)])


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """Build the page of one context."""
    blocks = {title: block(runs, decoding, resamples) for decoding, title in DECODINGS.items()}
    panels = []
    for row in blocks[DECODINGS["within_one"]][: len(NINE) + len(MEANS)]:
        paper = [tables.published(key, "mean") if row["rating"] == MEAN_OF_NINE else "-" for key in SHOWN]
        lines = {name: row[name] for name in ("best constant", "one reader")}
        panels.append(tables.dots(str(row["rating"]), [row[tables.name_of(key)] for key in SHOWN], paper, lines))
    names = [tables.name_in_figure(key, runs) for key in SHOWN]
    notes = [*tables.readers_note(SHOWN), *NOTES]
    return tables.Page("Table 3. The nine ratings", blocks, notes, names, panels)


if __name__ == "__main__":
    tables.launch_table("table3", SHOWN, build)
