"""The `folder` source: one's own nodules as images, masks and two tables.

    root/nodules.csv   nodule_id, patient_id, image, mask, x_mm, y_mm, z_mm  [, context]
    root/ratings.csv   nodule_id, reader, and the nine ratings; one row for each nodule and reader
    root/images/       NIfTI, NRRD or MetaImage, HU; `image` and `mask` are paths relative to root
    root/masks/        unsigned 8-bit: bit r is set where reader r marked the voxel (0/1 for a single mask)

The point is the nodule's centre in LPS mm, as DICOM and ITK have it. Further columns are ignored. A rating may be
left blank; a nodule without rows in ratings.csv has no ratings. `context` says what surrounds the nodule: "ct" (a
whole scan or a crop with true context, the default), "cube" or "slab" (see `keys.CONTEXT`).
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pnsamp_jax.data import keys
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.data.volumes import Volume, read_image
from pnsamp_jax.errors import UserError

NODULE_COLUMNS = ("nodule_id", "patient_id", "image", "mask", "x_mm", "y_mm", "z_mm")
RATING_COLUMNS = ("nodule_id", "reader", *keys.RATING_NAMES)
CONTEXTS = ("ct", "cube", "slab")


@dataclass(frozen=True)
class Row:
    """One line of nodules.csv with its lines of ratings.csv."""

    nodule: Nodule
    image: str
    mask: str
    centre_mm: np.ndarray
    context: str


@dataclass(frozen=True)
class FolderSource:
    """Nodules from a folder in the layout above; a series is one image file."""

    root: str

    name = "folder"

    def series(self) -> list[str]:
        """The image files, relative to the root, in order.

        Raises:
          UserError: a table is missing or malformed (file, line and column are named), or nodule ids repeat.
        """
        return sorted(read_rows(self.root))

    def load(self, series: str) -> list[MarkedNodule]:
        """The nodules of one image file, with voxels.

        Raises:
          UserError: a file is missing or unreadable, or a point lies outside its image.
        """
        ct = read_image(Path(self.root) / series)
        return [_load_nodule(self.root, row, ct) for row in read_rows(self.root)[series]]

    def description(self) -> dict:
        """What decides the content: the root and both tables."""
        tables = b"".join((Path(self.root) / name).read_bytes() for name in ("nodules.csv", "ratings.csv"))
        root, digest = str(Path(self.root).resolve()), hashlib.sha256(tables).hexdigest()
        return {"source": self.name, "root": root, "tables": digest}


@lru_cache(maxsize=1)  # once in each process that prepares
def read_rows(root: str) -> dict[str, list[Row]]:
    """The rows of nodules.csv, with their ratings, by image file."""
    ratings = _read_ratings(Path(root) / "ratings.csv")
    rows, seen = {}, set()
    for where, line in _read_table(Path(root) / "nodules.csv", NODULE_COLUMNS):
        nodule_id = line["nodule_id"]
        if nodule_id in seen:
            raise UserError(f"{where}: nodule_id '{nodule_id}' appears twice; ids must be unique")
        seen.add(nodule_id)
        context = line.get("context") or "ct"
        if context not in CONTEXTS:
            raise UserError(f"{where}, column context: '{context}' is none of {', '.join(CONTEXTS)}")
        centre = np.array([_number(where, line, column) for column in ("x_mm", "y_mm", "z_mm")])
        readings = np.array(ratings.pop(nodule_id, []), int).reshape(-1, len(keys.RATINGS))
        nodule = Nodule(nodule_id, line["patient_id"], readings)
        rows.setdefault(line["image"], []).append(Row(nodule, line["image"], line["mask"], centre, context))
    if ratings:
        raise UserError(f"{root}/ratings.csv: nodule_id '{min(ratings)}' is not in nodules.csv; add it there")
    if not rows:
        raise UserError(f"{root}/nodules.csv: holds no nodule")
    return rows


def _read_ratings(path: Path) -> dict[str, list[list[int]]]:
    ratings = {}
    for where, line in _read_table(path, RATING_COLUMNS):
        row = []
        for rating in keys.RATINGS:
            value = _number(where, line, rating.name) if line[rating.name] else 0
            # Up to 6 for any rating: one reading of LIDC-IDRI has a class that its rating lacks, and the label
            # policy takes it as missing.
            if value != int(value) or not 0 <= value <= keys.MAX_CLASSES:
                raise UserError(f"{where}, column {rating.name}: {value:g} is not a class 1..{rating.classes}")
            row.append(int(value))
        ratings.setdefault(line["nodule_id"], []).append(row)
    return ratings


def _load_nodule(root: str, row: Row, ct: Volume) -> MarkedNodule:
    index = ct.to_index(row.centre_mm)
    if (index < -0.5).any() or (index > np.array(ct.array.shape) - 0.5).any():
        raise UserError(
            f"{root}/nodules.csv: the point of '{row.nodule.nodule_id}' lies outside {row.image}; "
            "x_mm, y_mm and z_mm are LPS mm (NIfTI viewers show RAS: negate x and y)"
        )
    mask = read_image(Path(root) / row.mask)
    bits = mask.array.astype(np.uint8)
    readers = [bits >> bit & 1 for bit in range(8) if (bits >> bit & 1).any()]
    if not readers:
        raise UserError(f"{root}/{row.mask}: the mask marks no voxel; a nodule needs at least one")
    masks = Volume(np.stack(readers).astype(bool), mask.affine)
    return MarkedNodule(row.nodule, ct, masks, row.context, row.centre_mm)


def _read_table(path: Path, columns: tuple[str, ...]):
    """Yields ("file, line n", row) of a CSV file, after checking that it is there and has the columns."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; the folder source needs nodules.csv and ratings.csv (see README)")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}, line 1: no column {', '.join(missing)}; expected {', '.join(columns)}")
            for line in reader:
                where = f"{path}, line {reader.line_num}"
                short = [column for column in reader.fieldnames if line[column] is None]
                if short or None in line:
                    raise UserError(f"{where}: {'too few' if short else 'too many'} fields for the columns of line 1")
                empty = [name for name in columns if not line[name].strip() and name not in keys.RATING_NAMES]
                if empty:
                    raise UserError(f"{where}, column {empty[0]}: is empty")
                yield where, {name: value.strip() for name, value in line.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _number(where: str, line: dict, column: str) -> float:
    try:
        value = float(line[column])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{where}, column {column}: '{line[column]}' is not a number")
    return value
