"""The two tables that an evaluation is computed from, written and read as CSV.

predictions.csv  one row for each nodule, from the fold that did not train on it: the model's predictions and the
                 readers' class of each rating (`cohort.labels`). Columns that the model does not predict are blank.
readers.csv      one row for each nodule: its readers' ratings, for the baselines.

The nominal ratings have a modal class, and no class "best within one". So that the mean of nine ratings can be
computed as the paper does, their rounded means are kept too. With `config.data.nominal=mean` all nine are treated
alike.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.csv_tables import read_table
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.workdir.folders import fold_folders, number

Table = dict[str, np.ndarray]

OUTLINE_SCORES = ("dice", "hd95_mm", "nsd")  # of the predicted mask against the readers' consensus, see `outlines`


def prediction_columns(nominal: str, likeness: bool = False) -> list[str]:
    """Return the columns of predictions.csv, in order.

    Args:
      nominal: how the nominal ratings are treated, one of `cohort.NOMINAL_RULES`.
      likeness: whether there is a column `schema.NODULE_LIKE`.
    """
    dice, *further = OUTLINE_SCORES
    columns = ["nodule_id", "patient_id", "fold", dice]
    for rating in schema.RATINGS:
        columns += [f"{rating.name}_true", f"{rating.name}_pred"]
        if nominal == "mean" or not rating.nominal:
            columns.append(f"{rating.name}_within_one")
        columns += [f"{rating.name}_p{k}" for k in range(1, rating.classes + 1)]
    if nominal == "modal":
        further += [f"{rating.name}_rounded_mean" for rating in schema.RATINGS if rating.nominal]
    return columns + further + [schema.NODULE_LIKE] * likeness


def reader_columns() -> list[str]:
    """Return the columns of readers.csv, in order; `<rating>_n<k>` is how many readers gave class k."""
    columns = ["nodule_id", "context", "reader_dice", "diameter_mm"]
    return columns + [f"{rating.name}_n{k}" for rating in schema.RATINGS for k in range(1, rating.classes + 1)]


def write_predictions(
    path: Path,
    fold: int,
    records: dict[str, np.ndarray],
    nominal: str,
    scores: Mapping[str, np.ndarray],
    probabilities: np.ndarray | None,
) -> None:
    """Write one fold's predictions.

    Args:
      path: of the CSV file.
      fold: number of the fold that tested these nodules.
      records: of the N test nodules.
      nominal: how the nominal ratings are treated, one of `cohort.NOMINAL_RULES`.
      scores: (N,) each of those of `OUTLINE_SCORES` and `schema.NODULE_LIKE` that are known, by name.
      probabilities: (N, 9, 6), NaN in ratings that the model does not predict; None without ratings.
    """
    columns = prediction_columns(nominal, schema.NODULE_LIKE in scores)
    labels = cohort.labels(records[schema.RATING_COUNTS], nominal)
    rounded = cohort.rounded_rating(records[schema.RATING_COUNTS])
    rows = []
    for row_index, nodule_id in enumerate(records[schema.NODULE_ID]):
        row = {"nodule_id": nodule_id, "patient_id": records[schema.PATIENT_ID][row_index], "fold": fold}
        row |= {
            name: _cell(scores[name][row_index]) for name in (*OUTLINE_SCORES, schema.NODULE_LIKE) if name in scores
        }
        for index, rating in enumerate(schema.RATINGS):
            row[f"{rating.name}_true"] = labels[row_index, index] or ""
            row[f"{rating.name}_rounded_mean"] = rounded[row_index, index] or ""
            if probabilities is None or np.isnan(probabilities[row_index, index]).all():
                continue
            p = probabilities[row_index, index, : rating.classes]
            row[f"{rating.name}_pred"] = metrics.arg_max(p[None])[0]
            row[f"{rating.name}_within_one"] = metrics.best_within_one(p[None])[0]
            row |= {f"{rating.name}_p{k}": _cell(value) for k, value in enumerate(p, start=1)}
        rows.append({name: row[name] for name in columns if name in row})
    _write(path, columns, rows)


def gather_predictions(workdir: Path) -> None:
    """Join the predictions of all tested folds into predictions.csv, sorted by nodule id.

    Raises:
      UserError: a fold's table is malformed; predictions.csv stays as it is.
    """
    paths = _of_folds(workdir)
    rule = _rule_of(paths[0]) if paths else cohort.NOMINAL_RULES[0]
    rows = [row for path in paths for row in _read(path, prediction_columns(rule))]
    columns = prediction_columns(rule, any(schema.NODULE_LIKE in row for row in rows))
    _write(workdir / "predictions.csv", columns, sorted(rows, key=lambda row: row["nodule_id"]))


def require_whole_folds(workdir: Path, tested: list[set[str]]) -> None:
    """Raise UserError if the table of a tested fold does not hold exactly the nodules that the fold tests.

    Args:
      workdir: of the run.
      tested: ids of the nodules that each fold tests.
    """
    for path in _of_folds(workdir):
        fold = number(path.parent)
        found = {row["nodule_id"] for row in _read(path, ["nodule_id"])}
        if fold >= len(tested) or found != tested[fold]:
            raise UserError(
                f"{path}: does not hold the nodules that fold {fold} of folds.json tests; remove it, and run --mode "
                "evaluate, which writes it anew"
            )


def _of_folds(workdir: Path) -> list[Path]:
    return [path for fold in fold_folders(workdir) if (path := fold / "predictions.csv").is_file()]


def write_readers(path: Path, records: dict[str, np.ndarray]) -> None:
    """Write the readers' ratings of every nodule in `records`."""
    rows = []
    for row_index, nodule_id in enumerate(records[schema.NODULE_ID]):
        row = {"nodule_id": nodule_id, "context": records[schema.CONTEXT][row_index]}
        row |= {name: _cell(records[name][row_index]) for name in (schema.READER_DICE, schema.DIAMETER)}
        for index, rating in enumerate(schema.RATINGS):
            rating_counts = records[schema.RATING_COUNTS][row_index, index]
            row |= {f"{rating.name}_n{k}": rating_counts[k - 1] for k in range(1, rating.classes + 1)}
        rows.append(row)
    _write(path, reader_columns(), rows)


def read_tables(workdir: Path) -> Table:
    """Read both tables, joined by nodule.

    Returns:
      Arrays with the N nodules of predictions.csv on the leading axis: nodule_id, patient_id, context (str), fold,
      dice, hd95_mm, nsd, nodule_like, reader_dice, diameter_mm (float, NaN where blank), truth, rounded_mean, arg_max,
      within_one (N, 9) int with 0 where blank, probabilities (N, 9, 6) float, rating_counts (N, 9, 6) int and nominal
      (N, 9) bool: which ratings are scored by exact accuracy and have no class best within one, the same in every row.

    Raises:
      UserError: a table is missing, malformed, or lacks a nodule.
    """
    rule = _rule_of(workdir / "predictions.csv")
    predictions = _read(workdir / "predictions.csv", prediction_columns(rule))
    if not predictions:
        raise UserError(f"{workdir / 'predictions.csv'}: holds no nodule; run --mode train first")
    readers = {row["nodule_id"]: row for row in _read(workdir / "readers.csv", reader_columns())}
    lost = [row["nodule_id"] for row in predictions if row["nodule_id"] not in readers]
    if lost:
        raise UserError(f"{workdir / 'readers.csv'}: has no row for nodule '{lost[0]}' of predictions.csv")
    rows = [{schema.NODULE_LIKE: ""} | readers[row["nodule_id"]] | row for row in predictions]
    numbers = ("fold", *OUTLINE_SCORES, schema.NODULE_LIKE, "reader_dice", "diameter_mm")
    try:
        truth = _ratings(rows, "_true")
        return {
            **{name: np.array([row[name] for row in rows]) for name in ("nodule_id", "patient_id", "context")},
            **{name: _floats(rows, [name])[:, 0] for name in numbers},
            "nominal": np.tile(schema.NOMINAL & (rule == "modal"), (len(rows), 1)),
            "truth": truth,
            "rounded_mean": _ratings(rows, "_rounded_mean", truth),
            "arg_max": _ratings(rows, "_pred"),
            "within_one": _ratings(rows, "_within_one"),
            "probabilities": _classes(rows, "_p"),
            "rating_counts": np.nan_to_num(_classes(rows, "_n")).astype(int),
        }
    except ValueError as error:
        raise UserError(
            f"{workdir}: predictions.csv or readers.csv holds a value that is not a number ({error})"
        ) from error


def rated(table: Table) -> np.ndarray:
    """Return which of the nine ratings the model of a table (see `read_tables`) predicts: (9,) bool."""
    return np.any(table["arg_max"] > 0, axis=0)


def nominal(table: Table) -> np.ndarray:
    """Return which of the nine ratings of a table (see `read_tables`) are scored by exact accuracy: (9,) bool."""
    return table["nominal"][0]


def nominal_rule(table: Table) -> str:
    """Return how a table treats the nominal ratings, one of `cohort.NOMINAL_RULES`."""
    return "modal" if nominal(table).any() else "mean"


def as_in_paper(table: Table) -> Table:
    """Return the table as the paper would score it: all nine ratings by their rounded means, off by one."""
    probabilities = table["probabilities"]
    best = metrics.best_within_one(probabilities.reshape(-1, schema.MAX_CLASSES)).reshape(table["arg_max"].shape)
    blank = table["arg_max"] == 0
    return table | {
        "truth": table["rounded_mean"],
        "within_one": np.where(table["nominal"], np.where(blank, 0, best), table["within_one"]),
        "nominal": np.zeros_like(table["nominal"]),
    }


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def _floats(rows: list[dict], names: Iterable[str]) -> np.ndarray:
    values = np.array([[float(row[name] or "nan") for name in names] for row in rows])
    too_large = values[np.abs(values) > 1e9]  # infinite, or beyond the range of an integer
    if len(too_large):
        raise ValueError(f"{too_large[0]:g}")
    return values


def _ratings(rows: list[dict], suffix: str, default: int | np.ndarray = 0) -> np.ndarray:
    """Return (N, 9) int: the columns with a suffix, 0 where blank; where a rating lacks the column, the default."""
    given = np.array([name + suffix in rows[0] for name in schema.RATING_NAMES])
    columns = [name + suffix for name in np.array(schema.RATING_NAMES)[given]]
    values = np.array(np.broadcast_to(default, (len(rows), len(given))))
    values[:, given] = np.nan_to_num(_floats(rows, columns)).astype(int)
    return values


def _rule_of(path: Path) -> str:
    """Return how a predictions.csv treats the nominal ratings: a class best within one has only the rule "mean"."""
    header = path.read_text(errors="replace").partition("\n")[0] if path.is_file() else ""
    return (
        "mean"
        if any(f"{rating.name}_within_one" in header for rating in schema.RATINGS if rating.nominal)
        else "modal"
    )


def _classes(rows: list[dict], infix: str) -> np.ndarray:
    values = np.zeros((len(rows), *schema.CLASS_EXISTS.shape))
    for index, rating in enumerate(schema.RATINGS):
        names = [f"{rating.name}{infix}{k}" for k in range(1, rating.classes + 1)]
        values[:, index, : rating.classes] = _floats(rows, names)
    return values


def _write(path: Path, columns: list[str], rows: list[dict]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path, columns: list[str]) -> list[dict]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run --mode train first")
    return [row for _, row in read_table(path, columns, blank=columns)]
