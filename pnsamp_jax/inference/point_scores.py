"""Scores of points: the names by which detectors give them, and which points a lowest score keeps."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pnsamp_jax.ct.notes import note
from pnsamp_jax.data.csv_tables import Row, is_missing, number, plain_name
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference.requests import Points, Request

# In the order in which they are looked for. LUNA16's column `class` is none: it tells true candidates from false ones.
SCORES = (
    *("probability", "score", "label_scores"),  # grand-challenge.org and LUNA16, many detectors, MONAI
    *("pred_scores", "pred_score", "confidence", "scores", "prob", "conf"),  # nnDetection, YOLO and others
)
MOST_LISTED = 12  # columns in a message
ROUNDING = 1e-6  # of a score of 1 in single precision


def score_name(fields: Iterable[str]) -> str | None:
    """Return which of the fields of a point holds its score, as it is spelt there; None if none does."""
    known = {plain_name(field): field for field in reversed(list(fields))}
    return next((known[plain_name(name)] for name in SCORES if plain_name(name) in known), None)


def score_of_row(where: str, row: Row) -> float | None:
    """Return the score of a row of a table; None if it has none. Raise UserError if it is not a number."""
    name = score_name(row)
    return None if name is None or is_missing(row[name]) else number(where, row, name)


def score_of_entry(where: str, entry: Mapping[str, Any]) -> float | None:
    """Return the score of a point in a JSON file; None if it has none. Raise UserError if it is not a number."""
    name = score_name(field for field, value in entry.items() if value is not None)
    if name is None:
        return None
    if isinstance(entry[name], bool) or not isinstance(entry[name], int | float) or not math.isfinite(entry[name]):
        raise UserError(f"{where}: its score '{entry[name]}' is not a number; correct it")
    return float(entry[name])


def with_score(source: str, points: Points, min_score: float) -> list[Request]:
    """Return the requests whose score is not below the lowest one, and those without a score.

    Args:
      source: the file of the points, or the field in which they were typed.
      points: what was read from it.
      min_score: the lowest score; all points are kept if it is 0.

    Raises:
      UserError: `min_score` is negative or not finite, no point has a score, several fields may be the score, or
        scores are not on the scale of `min_score`.
    """
    if not 0 <= min_score < math.inf:
        raise UserError(f"config.predict.min_score: {min_score:g}; give the lowest score to keep, 0 or more")
    if not min_score or not points.requests:
        return points.requests
    scores = [request.score for request in points.requests if request.score is not None]
    if not scores:
        listed = ", ".join(points.fields[:MOST_LISTED]) + (", ..." if len(points.fields) > MOST_LISTED else "")
        named = f", or call the scores one of {', '.join(SCORES)} (the file has {listed})" if listed else ""
        raise UserError(
            f"{source}: no point has a score, but config.predict.min_score is {min_score:g}; set it to 0{named}"
        )
    names = [field for field in points.fields if score_name([field])]
    if len(names) > 1:
        raise UserError(f"{source}: {' and '.join(names)} may both be the score; keep one of them")
    if min_score <= 1 < max(scores) - ROUNDING:
        raise UserError(
            f"{source}: has a score of {max(scores):g}, as if in per cent, but config.predict.min_score is "
            f"{min_score:g}; give both on the same scale"
        )
    if len(scores) < len(points.requests):
        lacking = len(points.requests) - len(scores)
        note(f"{source}: {lacking} of {len(points.requests)} points have no score, and are kept")
    return [request for request in points.requests if request.score is None or request.score >= min_score]
