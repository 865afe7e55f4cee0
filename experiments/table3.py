"""Table 3: the nine ratings and their mean, by system; see experiments/tables.py.

    python -m experiments.table3 --config configs/table_32.py --workdir runs/tables [--systems=pn_samp_m,cnn_mtl]

Of the systems that have to be given a mask, the form with the readers' own is shown: it is the harder to beat.
"""

from typing import NamedTuple

import numpy as np

from experiments.comparison import tables
from experiments.comparison.scores import constant_hits, hits, mean_figure, mean_of_ratings_figure, reader_hits
from experiments.comparison.systems import PN_SAMP
from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import Table

SHOWN = ["radiomics", "shc_dcnn", "cnn_mtl", "pn_samp_c", "pn_samp_s1", "pn_samp_s2", PN_SAMP, "pn_samp_mean"]
DECODINGS = {"within_one": "Off-by-one, best within one", "arg_max": "Off-by-one, arg max"}
NINE = list(range(len(schema.RATINGS)))
SEVEN = [place for place, name in enumerate(schema.RATING_NAMES) if name not in ("subtlety", "internal_structure")]
MEANS = {"mean of nine": NINE, "mean of the seven that CNN-MTL rates": SEVEN}
NOTES = [
    "Best constant: for each rating the one answer (in brackets) that is best on these very nodules. One reader: each "
    "reader against the rounded mean of the others, on the n nodules in brackets, which have two readers at least; "
    "its difference is to PN-SAMP M on those nodules.",
    "Paper: Wu et al., ISBI 2018, in per cent; other nodules, and folds that patients cross.",
]


class Column(NamedTuple):
    """What one column rests on.

    Attributes:
      name: its heading.
      scores: (N, 9) off-by-one, NaN where there is none; None if the system was not run.
      masses: (N, 9) what each nodule counts within a rating's mean, None for 1.
      details: of each rating, printed in brackets; empty for none.
    """

    name: str
    scores: np.ndarray | None
    masses: np.ndarray | None = None
    details: tuple[int, ...] = ()

    def figure(self, place: int, patients: np.ndarray, resamples: int) -> tables.Cell:
        """The cell of one rating."""
        if self.scores is None:
            return tables.NOT_RUN
        masses = None if self.masses is None else self.masses[:, place]
        figure = mean_figure(self.scores[:, place], patients, resamples, masses)
        return figure._replace(note=f"({self.details[place]})") if self.details else figure

    def mean(
        self, places: list[int], patients: np.ndarray, resamples: int, reference: np.ndarray | None = None
    ) -> tables.Cell:
        """The cell of the mean over some ratings, or of its difference to the reference's scores (N, 9)."""
        if self.scores is None:
            return tables.NOT_RUN
        scores = self.scores if reference is None else self.scores - reference
        masses = None if self.masses is None else self.masses[:, places]
        return mean_of_ratings_figure(scores[:, places], patients, resamples, masses, signed=reference is not None)


def columns_of(runs: dict[str, Table], decoding: str) -> list[Column]:
    """The best constant, one reader, and the systems."""
    table = next(iter(runs.values()))
    constants, constant_scores = zip(*(constant_hits(table, place) for place in NINE), strict=True)
    reader_scores, masses = (np.stack(it, axis=1) for it in zip(*(reader_hits(table, k) for k in NINE), strict=True))
    readers = tuple(int(n) for n in (~np.isnan(reader_scores)).sum(axis=0))
    columns = [
        Column("best constant", np.stack(constant_scores, axis=1), details=constants),
        Column("one reader", reader_scores, masses, readers),
    ]
    for key in SHOWN:
        scores = np.stack([hits(runs[key], decoding, k) for k in NINE], axis=1) if key in runs else None
        columns.append(Column(tables.name_of(key), scores))
    return columns


def block(runs: dict[str, Table], decoding: str, resamples: int) -> list[tables.Row]:
    """The rows of one decoding."""
    table, columns = next(iter(runs.values())), columns_of(runs, decoding)
    patients, rated = table["patient_id"], (table["truth"] > 0).sum(axis=0)
    rows = []
    for place, rating in enumerate(schema.RATINGS):
        cells = {column.name: column.figure(place, patients, resamples) for column in columns}
        rows.append({"rating": rating.name.replace("_", " "), "n": int(rated[place]), **cells})
    for name, places in MEANS.items():
        cells = {column.name: column.mean(places, patients, resamples) for column in columns}
        rows.append({"rating": name, "n": len(patients), **cells})
    rows.append(
        {"rating": "mean of nine, paper", **{tables.name_of(key): tables.published(key, "mean") for key in SHOWN}}
    )
    if PN_SAMP in runs:
        (reference,) = (column for column in columns if column.name == tables.name_of(PN_SAMP))
        others = [column for column in columns if column is not reference]
        for name, places in MEANS.items():
            cells = {column.name: column.mean(places, patients, resamples, reference.scores) for column in others}
            rows.append({"rating": f"{name}, against PN-SAMP M", **cells})
    return tables.fill(rows, ["rating", "n", *(column.name for column in columns)])


def build(runs: dict[str, Table], resamples: int) -> tables.Page:
    """The page of one context."""
    blocks = {title: block(runs, decoding, resamples) for decoding, title in DECODINGS.items()}
    panels = []
    for row in blocks[DECODINGS["within_one"]][: len(NINE) + 1]:
        paper = [tables.published(key, "mean") if row["rating"] == "mean of nine" else "-" for key in SHOWN]
        lines = {name: row[name] for name in ("best constant", "one reader")}
        panels.append(tables.dots(row["rating"], [row[tables.name_of(key)] for key in SHOWN], paper, lines))
    names = [tables.drawn_name(key, runs) for key in SHOWN]
    notes = [*tables.told_note(SHOWN), *NOTES]
    return tables.Page("Table 3. The nine ratings", blocks, notes, names, panels)


if __name__ == "__main__":
    tables.launch("table3", SHOWN, build)
