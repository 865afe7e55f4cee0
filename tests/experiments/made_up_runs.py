"""Finished runs that are made up, so that every result and every difference is known."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import gather_predictions, write_predictions, write_readers

N = 40
RESAMPLES = 60
MALIGNANCY = schema.MALIGNANCY
TRUTH = np.where(np.arange(N) % 4 < 2, 1, 5)  # malignancy: 1, 1, 5, 5, 1, 1, ...
HALF = np.arange(N) < N // 2


def made_up_records() -> dict[str, np.ndarray]:
    """Return 40 nodules of 20 patients; two readers agree on the true malignancy, and on 4 in all other ratings."""
    rating_counts = np.zeros((N, 9, 6), np.uint8)
    rating_counts[:, :, 3] = 2
    rating_counts[:, MALIGNANCY, 3] = 0
    rating_counts[np.arange(N), MALIGNANCY, TRUTH - 1] = 2
    return {
        schema.NODULE_ID: np.array([f"n{i:02d}" for i in range(N)]),
        schema.PATIENT_ID: np.array([f"p{i // 2:02d}" for i in range(N)]),
        schema.CONTEXT: np.where(np.arange(N) < 8, "cube", "slab"),
        schema.RATING_COUNTS: rating_counts,
        schema.READER_DICE: np.where(np.arange(N) % 2, 0.8, np.nan).astype(np.float32),
        schema.DIAMETER: np.linspace(4, 20, N, dtype=np.float32),
    }


def certain(malignancy: np.ndarray, attributes: int = 4) -> np.ndarray:
    """Return (N, 9, 6) probabilities of 1 for the given malignancy (N,), and for one class of all attributes."""
    classes = np.full((N, 9), attributes)
    classes[:, MALIGNANCY] = malignancy
    return (classes[..., None] == np.arange(1, 7)).astype(float)


def make_run(
    workdir: Path,
    probabilities: np.ndarray | None,
    dice: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    nominal: str = "modal",
    records: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a finished run of two folds over the made-up nodules, or over those in `keep` (N,) bool."""
    records, fold_of = records or made_up_records(), np.arange(N) // 2 % 2
    keep = np.full(N, True) if keep is None else keep
    split = []
    for fold in range(2):
        test = (fold_of == fold) & keep
        test_records = {name: values[test] for name, values in records.items()}
        path = workdir / f"fold_{fold}" / "predictions.csv"
        predicted = None if probabilities is None else probabilities[test]
        outline_scores = (
            {} if dice is None else {"dice": dice[test], "hd95_mm": 10 * dice[test], "nsd": dice[test] / 2}
        )
        write_predictions(path, fold, test_records, nominal, outline_scores, predicted)
        split.append({"test": {"nodules": records[schema.NODULE_ID][test].tolist()}})
    write_readers(workdir / "readers.csv", records)
    gather_predictions(workdir)
    config = {"data": {"source": "folder"}, "model": {"name": "pn_samp", "segment": True, "rate": True, "windows": []}}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "folds.json").write_text(json.dumps({"folds": split}))
    (workdir / "results.json").write_text("{}")


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change each row of a CSV file in place."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def blank(workdir: Path, rating: str, nodule: str | None = None) -> None:
    """Blank the predictions of a rating, for all nodules or for one."""

    def change(row: dict) -> None:
        for column in row:
            if (
                column.startswith(rating)
                and not column.endswith(("_true", "_rounded_mean"))
                and nodule in (None, row["nodule_id"])
            ):
                row[column] = ""

    edit(workdir / "predictions.csv", change)
