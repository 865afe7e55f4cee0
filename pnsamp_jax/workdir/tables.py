"""The two tables that an evaluation is computed from, written and read as CSV.

predictions.csv  one row for each nodule, from the fold that did not train on it: the model's predictions and the
                 rounded mean of the readers. Columns that the model does not predict are blank.
readers.csv      one row for each nodule: its readers' ratings, for the baselines.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pnsamp_jax import metrics
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.csv_tables import read_table
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path

Table = dict[str, np.ndarray]


def prediction_columns() -> list[str]:
    """Return the columns of predictions.csv, in order."""
    columns = ["nodule_id", "patient_id", "fold", "dice"]
    for rating in schema.RATINGS:
        columns += [f"{rating.name}_true", f"{rating.name}_pred", f"{rating.name}_within_one"]
        columns += [f"{rating.name}_p{k}" for k in range(1, rating.classes + 1)]
    return columns


def reader_columns() -> list[str]:
    """Return the columns of readers.csv, in order; `<rating>_n<k>` is how many readers gave class k."""
    columns = ["nodule_id", "context", "reader_dice", "diameter_mm"]
    return columns + [f"{rating.name}_n{k}" for rating in schema.RATINGS for k in range(1, rating.classes + 1)]


def write_predictions(
    path: Path, fold: int, records: dict[str, np.ndarray], dice: np.ndarray, probabilities: np.ndarray | None
) -> None:
    """Write one fold's predictions.

    Args:
      path: of the CSV file.
      fold: number of the fold that tested these nodules.
      records: of the N test nodules.
      dice: (N,), NaN without a segmentation.
      probabilities: (N, 9, 6), NaN in ratings that the model does not predict; None without ratings.
    """
    labels = cohort.rounded_rating(records[schema.RATING_COUNTS])
    rows = []
    for row_index, nodule_id in enumerate(records[schema.NODULE_ID]):
        row = {"nodule_id": nodule_id, "patient_id": records[schema.PATIENT_ID][row_index], "fold": fold}
        row["dice"] = _cell(dice[row_index])
        for index, rating in enumerate(schema.RATINGS):
            row[f"{rating.name}_true"] = labels[row_index, index] or ""
            if probabilities is None or np.isnan(probabilities[row_index, index]).all():
                continue
            p = probabilities[row_index, index, : rating.classes]
            row[f"{rating.name}_pred"] = metrics.arg_max(p[None])[0]
            row[f"{rating.name}_within_one"] = metrics.best_within_one(p[None])[0]
            row |= {f"{rating.name}_p{k}": _cell(value) for k, value in enumerate(p, start=1)}
        rows.append(row)
    _write(path, prediction_columns(), rows)


def gather_predictions(workdir: Path) -> None:
    """Join the predictions of all tested folds into predictions.csv, sorted by nodule id.

    Raises:
      UserError: a fold's table is malformed; predictions.csv stays as it is.
    """
    rows = []
    for path in sorted(workdir.glob("fold_*/predictions.csv")):
        rows += _read(path, prediction_columns())
    _write(workdir / "predictions.csv", prediction_columns(), sorted(rows, key=lambda row: row["nodule_id"]))


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
      dice, reader_dice, diameter_mm (float, NaN where blank), truth, arg_max, within_one (N, 9) int with 0 where
      blank, probabilities (N, 9, 6) float and rating_counts (N, 9, 6) int.

    Raises:
      UserError: a table is missing, malformed, or lacks a nodule.
    """
    predictions = _read(workdir / "predictions.csv", prediction_columns())
    if not predictions:
        raise UserError(f"{workdir / 'predictions.csv'}: holds no nodule; run --mode train first")
    readers = {row["nodule_id"]: row for row in _read(workdir / "readers.csv", reader_columns())}
    lost = [row["nodule_id"] for row in predictions if row["nodule_id"] not in readers]
    if lost:
        raise UserError(f"{workdir / 'readers.csv'}: has no row for nodule '{lost[0]}' of predictions.csv")
    rows = [readers[row["nodule_id"]] | row for row in predictions]
    try:
        return {
            **{name: np.array([row[name] for row in rows]) for name in ("nodule_id", "patient_id", "context")},
            **{name: _floats(rows, [name])[:, 0] for name in ("fold", "dice", "reader_dice", "diameter_mm")},
            "truth": _ratings(rows, "_true"),
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


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def _floats(rows: list[dict], names: Iterable[str]) -> np.ndarray:
    values = np.array([[float(row[name] or "nan") for name in names] for row in rows])
    too_large = values[np.abs(values) > 1e9]  # infinite, or beyond the range of an integer
    if len(too_large):
        raise ValueError(f"{too_large[0]:g}")
    return values


def _ratings(rows: list[dict], suffix: str) -> np.ndarray:
    return np.nan_to_num(_floats(rows, [name + suffix for name in schema.RATING_NAMES])).astype(int)


def _classes(rows: list[dict], infix: str) -> np.ndarray:
    values = np.zeros((len(rows), *schema.CLASS_EXISTS.shape))
    for index, rating in enumerate(schema.RATINGS):
        names = [f"{rating.name}{infix}{k}" for k in range(1, rating.classes + 1)]
        values[:, index, : rating.classes] = _floats(rows, names)
    return values


def _write(path: Path, columns: list[str], rows: list[dict]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path, columns: list[str]) -> list[dict]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run --mode train first")
    return [row for _, row in read_table(path, columns, blank=columns)]
