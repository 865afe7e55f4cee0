"""The rows of predictions.csv and the same fields in predictions.json."""

import json

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.inference.conformal import COVERAGES
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.requests import Failure

MASK_FILE = "masks/{}.nii.gz"  # by nodule id
POINT_COLUMNS = ("x_mm", "y_mm", "z_mm")
WORDS = tuple(f"{name}_words" for name in schema.RATING_NAMES)  # the meaning of the likeliest classes
TRUST = ("malignancy_set", "unsure")
RANGES = ("volume_low_mm3", "volume_high_mm3", "diameter_low_mm", "diameter_high_mm")
TEXTS = (
    "nodule_id",
    "image",
    "status",
    "mask",
    "note",
    *WORDS,
    "malignancy_set",
)  # other columns hold numbers and booleans


def columns() -> list[str]:
    """Return the columns of predictions.csv, in order."""
    names = ["nodule_id", "image", *POINT_COLUMNS, "status", "mask", "volume_mm3", "diameter_mm"]
    for rating in schema.RATINGS:
        names += [f"{rating.name}_pred"]
        names += [f"{rating.name}_{what}" for what in ("within_one", "expected") if not rating.nominal]
        names += [f"{rating.name}_p{k}" for k in range(1, rating.classes + 1)]
    return [
        *names,
        "short_diameter_mm",
        "mean_diameter_mm",
        "truncated",
        "note",
        *WORDS,
        *TRUST,
        *RANGES,
        schema.NODULE_LIKE,
    ]


def row_of(finding: Finding) -> dict:
    """Return the row of predictions.csv of an answered request. Where nothing is segmented, it has no measurements."""
    row: dict[str, str | int] = {"nodule_id": finding.nodule_id, "image": finding.image, "status": finding.status}
    row |= {name: f"{value:.6g}" for name, value in zip(POINT_COLUMNS, finding.point_mm, strict=True)}
    if finding.note:
        row["note"] = finding.note
    if not finding.segmented:
        return row
    row["mask"] = MASK_FILE.format(finding.nodule_id)
    row["volume_mm3"] = f"{finding.volume_mm3:.6g}"
    row |= {f"{which}diameter_mm": f"{value:.6g}" for which, value in _axes(finding)}
    row["truncated"] = "true" if finding.truncated else "false"
    for index, rating in enumerate(schema.RATINGS):
        row[f"{rating.name}_pred"] = int(finding.arg_max[index])
        if not rating.nominal:
            row[f"{rating.name}_within_one"] = int(finding.within_one[index])
            row[f"{rating.name}_expected"] = f"{finding.expected[index]:.6g}"
        p = finding.probabilities[index, : rating.classes]
        row |= {f"{rating.name}_p{k}": f"{value:.6g}" for k, value in enumerate(p, start=1)}
    return row | dict(zip(WORDS, finding.words, strict=True)) | _trust(finding)


def _trust(finding: Finding) -> dict[str, str]:
    """Return the columns that tell how far an answer can be trusted, as far as the networks know."""
    found = {}
    if finding.malignancy_set:
        found["malignancy_set"] = ";".join(map(str, finding.malignancy_set))
        found["unsure"] = "true" if finding.unsure else "false"
    if finding.volume_range_mm3 and finding.diameter_range_mm:
        values = zip(RANGES, (*finding.volume_range_mm3, *finding.diameter_range_mm), strict=True)
        found |= {name: f"{value:.6g}" for name, value in values if np.isfinite(value)}
    if finding.nodule_like is not None:
        found[schema.NODULE_LIKE] = f"{finding.nodule_like:.6g}"
    return found


def _axes(finding: Finding) -> list[tuple[str, float]]:
    """Return the diameters with what stands before "diameter_mm" in their columns."""
    axes = finding.diameters
    return [("", axes.long_mm), ("short_", axes.short_mm), ("mean_", axes.mean_mm)]


def failed_row(failure: Failure) -> dict:
    """Return the row of a nodule that could not be predicted, without coordinates in mm if none were given."""
    request = failure.request
    row = {"nodule_id": request.nodule_id, "image": request.image, "status": failure.reason}
    if request.point_mm is not None:
        row |= {name: f"{value:.6g}" for name, value in zip(POINT_COLUMNS, request.point_mm, strict=True)}
    return row


def details(finding: Finding | None) -> dict:
    """Return the fields of predictions.json that are not in the row; all are None if there is no finding."""
    if finding is None or not finding.segmented:
        return dict.fromkeys(("malignancy_spread", "suspicion", "contributions", "class_sets", "patch_centre_mm"))
    spreads = {"ensemble": finding.ensemble_spread, "flips": finding.flip_spread}
    return {
        "malignancy_spread": {name: None if np.isnan(value) else value for name, value in spreads.items()},
        "suspicion": finding.malignant_probability,
        "contributions": finding.contributions,
        "class_sets": None if finding.class_sets is None else _class_sets(finding.class_sets),
        "patch_centre_mm": [float(f"{value:.6g}") for value in finding.patch_centre_mm],
    }


def _class_sets(sets: np.ndarray) -> dict[str, dict[str, list[int]]]:
    """Return the classes in the sets by stated coverage and rating."""
    return {
        str(coverage): {
            name: [int(k) + 1 for k in np.flatnonzero(classes)]
            for name, classes in zip(schema.RATING_NAMES, of_ratings, strict=True)
        }
        for coverage, of_ratings in zip(COVERAGES, sets, strict=True)
    }


def described(finding: Finding) -> dict:
    """Return the fields of a finding in predictions.json."""
    return typed(row_of(finding)) | details(finding)


def typed(row: dict) -> dict:
    """Return a row of predictions.csv with numbers and booleans in place of their texts, None where it has none."""
    values = {name: row.get(name) for name in columns()}
    return {name: v if name in TEXTS or v is None else json.loads(str(v)) for name, v in values.items()}
