"""The two tables of the `folder` source, nodules.csv and ratings.csv; `folder` describes them.

What would mislead without an error is refused here: a patient under two spellings, who would be split over the folds;
a nodule that is listed twice; and ratings that are not on the scales of `schema`.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.csv_tables import Row, is_missing, number, read_table
from pnsamp_jax.data.spellings import bare, difference
from pnsamp_jax.errors import UserError

NODULE_COLUMNS = ("nodule_id", "patient_id", "image", "mask", "x_mm", "y_mm", "z_mm")
RATING_COLUMNS = ("nodule_id", "reader", *schema.RATING_NAMES)
CONTEXTS = ("ct", "cube", "slab", "simulated")
SYNONYMS = {"scan": "ct"}  # of contexts, in nodules.csv


@dataclass(frozen=True)
class NoduleRow:
    """One line of nodules.csv with the nodule's ratings from ratings.csv."""

    nodule: Nodule
    image: str
    mask: str
    centre_mm: np.ndarray
    context: str
    mask_label: int | None  # of the nodule in a label map; None for a mask with one bit per reader


def read_rows(root: str) -> dict[str, list[NoduleRow]]:
    """Read both tables, unless they are unchanged, and return the rows of nodules.csv with their ratings, by image.

    Raises:
      UserError: a table is missing or malformed, a nodule or a patient is named twice, or a rating is no class; names
        the file, the line and the column.
    """
    paths = [Path(root) / name for name in ("nodules.csv", "ratings.csv")]
    return _read_rows(root, *(path.read_bytes() if path.is_file() else None for path in paths))


@lru_cache(maxsize=1)  # once per process, not once per series
def _read_rows(root: str, *content: bytes | None) -> dict[str, list[NoduleRow]]:
    """Read both tables, whose content decides whether they were read before."""
    ratings = _read_ratings(Path(root) / "ratings.csv")
    rows: dict[str, list[NoduleRow]] = {}
    named: dict[tuple, str] = {}  # the first nodule or line for each thing that must not be named twice
    sharing: dict[tuple[str, str], list[NoduleRow]] = {}  # by the files of the image and of the mask
    for where, line in read_table(Path(root) / "nodules.csv", NODULE_COLUMNS, optional=("context", "mask_label")):
        nodule_id, image, mask = line["nodule_id"], _path(root, line["image"]), _path(root, line["mask"])
        if named.setdefault(("nodule", nodule_id), where) != where:
            raise UserError(f"{where}: nodule_id '{nodule_id}' appears twice; ids must be unique")
        files = _file(root, image), _file(root, mask)
        _require_one_patient(where, line["patient_id"], image, files[0], named)
        context = line.get("context", "").lower()
        context = "ct" if is_missing(context) else SYNONYMS.get(context, context)
        if context not in CONTEXTS:
            raise UserError(f"{where}, column context: '{line['context']}' is none of {', '.join(CONTEXTS)}")
        centre = np.array([number(where, line, column) for column in ("x_mm", "y_mm", "z_mm")])
        by_reader = np.array(ratings.pop(nodule_id, []), int).reshape(-1, len(schema.RATINGS))
        label = _label(where, line)
        row = NoduleRow(Nodule(nodule_id, line["patient_id"], by_reader), image, mask, centre, context, label)
        for other in sharing.setdefault(files, []):
            if None in (label, other.mask_label) or label == other.mask_label:
                shared = "mask" if label != other.mask_label or label is None else f"label {label} of the same mask"
                raise UserError(
                    f"{where}: names the same {shared} as nodule_id '{other.nodule.nodule_id}'; name the label of "
                    "each in a column mask_label, or give each a mask of its own"
                )
        sharing[files].append(row)
        rows.setdefault(image, []).append(row)
    if not rows:
        raise UserError(f"{root}/nodules.csv: contains no nodule; add one line per nodule")
    if ratings:
        raise _unknown_nodule(root, min(ratings), [key[1] for key in named if key[0] == "nodule"])
    return rows


def _path(root: str, text: str) -> str:
    """Return a path of nodules.csv, relative to the root or absolute, which may be written as on Windows."""
    path = os.path.normpath(os.path.expanduser(text))
    if "\\" in path and not os.path.exists(os.path.join(root, path)):
        path = os.path.normpath(path.replace("\\", "/"))
    return path


def _file(root: str, path: str) -> str:
    """Return the file or folder of a path of nodules.csv, which is the same through links and other spellings."""
    return os.path.realpath(os.path.join(root, path))


def _unknown_nodule(root: str, nodule_id: str, known: list[str]) -> UserError:
    """Return the error of a nodule that has ratings but no line in nodules.csv, where another spelling may be."""
    spelling = next((other for other in known if bare(other) == bare(nodule_id)), None)
    advice = "; add it there"
    if spelling is not None:
        advice = f", but '{spelling}' is: {difference(nodule_id, spelling)}; write the id in one way"
    return UserError(f"{root}/ratings.csv: nodule_id '{nodule_id}' is not in nodules.csv{advice}")


def _require_one_patient(where: str, patient_id: str, image: str, file: str, named: dict[tuple, str]) -> None:
    """Raise UserError if a patient has two spellings, or an image two patients: they would be split over the folds.

    Args:
      where: the line of nodules.csv.
      patient_id: as it is there.
      image: likewise.
      file: of the image, see `_file`.
      named: what the lines above name; those of this line are added.
    """
    spelling = named.setdefault(("patient", bare(patient_id)), patient_id)
    if spelling != patient_id:
        raise UserError(
            f"{where}, column patient_id: {difference(patient_id, spelling)}; write the id of a patient in one way, "
            "and those of two patients more differently"
        )
    owner, first = named.setdefault(("image", file), patient_id), named.setdefault(("path", file), image)
    if owner != patient_id:
        same = f"{image} is" if image == first else f"{image} is {first},"
        raise UserError(
            f"{where}, column patient_id: {same} an image of patient '{owner}' in a line above, and here of "
            f"'{patient_id}'; correct one of them"
        )


def _label(where: str, line: Row) -> int | None:
    """Return the label of a nodule in a label map, or None if its line names none."""
    if is_missing(line.get("mask_label", "")):
        return None
    label = number(where, line, "mask_label")
    if label != int(label) or label < 1:
        raise UserError(f"{where}, column mask_label: '{line['mask_label']}' is not a whole number from 1")
    return int(label)


def _read_ratings(path: Path) -> dict[str, list[list[int]]]:
    """Return the rows of nine ratings by nodule id, one per reader."""
    ratings: dict[str, list[list[int]]] = {}
    seen = set()
    for where, line in read_table(path, RATING_COLUMNS, blank=schema.RATING_NAMES):
        nodule_id, reader = line["nodule_id"], line["reader"]
        if (nodule_id, bare(reader)) in seen:
            raise UserError(f"{where}: reader '{reader}' rates nodule_id '{nodule_id}' twice; keep one line")
        seen.add((nodule_id, bare(reader)))
        ratings.setdefault(nodule_id, []).append([_rating(where, line, rating) for rating in schema.RATINGS])
    return ratings


def _rating(where: str, line: Row, rating: schema.Rating) -> int:
    """Return a rating, 0 if it is missing."""
    if is_missing(line[rating.name]):
        return 0
    value = number(where, line, rating.name)
    # One rating of LIDC-IDRI is a class that does not exist, which the label policy (`cohort`) treats as missing.
    known = rating.name == "internal_structure" and value == rating.classes + 1
    if value not in range(1, rating.classes + 1) and not known:
        raise UserError(
            f"{where}, column {rating.name}: {value:g} is not a class 1..{rating.classes}; leave the cell blank if "
            "the rating is missing"
        )
    return int(value)
