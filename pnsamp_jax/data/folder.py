"""The `folder` source: the user's own nodules as images, masks and two tables.

    root/nodules.csv   nodule_id, patient_id, image, mask, x_mm, y_mm, z_mm  [, context, mask_label]
    root/ratings.csv   nodule_id, reader, and the nine ratings; one row per nodule and reader
    root/images/       NIfTI, NRRD or MetaImage in HU; `image` and `mask` are paths relative to root
    root/masks/        unsigned 8-bit: bit r is set where reader r marked the voxel (0/1 or 0/255 for one mask)

The point is the nodule's centre in LPS mm, the coordinates of DICOM and ITK. Further columns are ignored. A rating may
be left blank; a nodule without rows in ratings.csv has no ratings. `context` states what surrounds the nodule: "ct"
(a whole scan or a crop with true context, the default), "cube" or "slab" (see `schema.CONTEXT`). `mask_label` is the
label of the nodule where `mask` is a label map, as 3D Slicer and nnU-Net write it.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.itk_files import data_file
from pnsamp_jax.ct.read import read_ct, read_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.csv_tables import Row, number, read_table
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.errors import UserError

NODULE_COLUMNS = ("nodule_id", "patient_id", "image", "mask", "x_mm", "y_mm", "z_mm")
RATING_COLUMNS = ("nodule_id", "reader", *schema.RATING_NAMES)
MISSING = ("", "nan", "na", "n/a", "none", "null")  # how tables write that a rating is missing
CONTEXTS = ("ct", "cube", "slab")
MAX_OFFSET_MM = 20.0  # from a nodule's point to its mask; a larger distance means that a file lost its geometry


@dataclass(frozen=True)
class NoduleRow:
    """One line of nodules.csv with the nodule's ratings from ratings.csv."""

    nodule: Nodule
    image: str
    mask: str
    centre_mm: np.ndarray
    context: str
    mask_label: int | None  # of the nodule in a label map; None for a mask with one bit per reader


@dataclass(frozen=True)
class FolderSource:
    """Nodules of a folder in the layout above; a series is one image file."""

    root: str

    name = "folder"

    def series(self) -> list[str]:
        """Return the image files, relative to the root and sorted.

        Raises:
          UserError: a table is missing or malformed, or a nodule id appears twice; names file, line and column.
        """
        return sorted(read_rows(self.root))

    def load(self, series: str) -> list[MarkedNodule]:
        """Return the nodules of one image file with their voxels.

        Raises:
          UserError: a file is missing or unreadable, a point lies outside its image or far from its mask, or a mask
            is empty or has values above 255.
        """
        ct = read_ct(Path(self.root) / series)
        return [_load_nodule(self.root, row, ct) for row in read_rows(self.root)[series]]

    def description(self) -> dict[str, Any]:
        """Return the root and a digest of both tables and of the size and date of every image and mask.

        Raises:
          UserError: see `series`.
        """
        root, digest = Path(self.root), hashlib.sha256()
        files = {name for rows in read_rows(self.root).values() for row in rows for name in (row.image, row.mask)}
        for name in sorted(files):
            for path in _files_of(root / name):
                stamp = (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None
                digest.update(f"{name} {stamp}\n".encode())
        for name in ("nodules.csv", "ratings.csv"):
            digest.update((root / name).read_bytes())
        return {"source": self.name, "root": str(root.resolve()), "content": digest.hexdigest()}


def _files_of(path: Path) -> list[Path]:
    """Return the files whose change changes an image: its own, that of its voxels, or those of a DICOM series."""
    if path.is_dir():
        return sorted(part for part in path.rglob("*") if part.is_file())
    if path.suffix.lower() in (".mhd", ".nhdr") and path.is_file():
        return [path, Path(data_file(str(path)))]
    return [path]


@lru_cache(maxsize=1)  # once per process, not once per series
def read_rows(root: str) -> dict[str, list[NoduleRow]]:
    """Read both tables and return the rows of nodules.csv with their ratings, by image file.

    Raises:
      UserError: see `FolderSource.series`.
    """
    ratings = _read_ratings(Path(root) / "ratings.csv")
    rows: dict[str, list[NoduleRow]] = {}
    seen = set()
    shared: dict[tuple[str, str], NoduleRow] = {}  # the first row that names each image and mask
    for where, line in read_table(Path(root) / "nodules.csv", NODULE_COLUMNS):
        nodule_id = line["nodule_id"]
        if nodule_id in seen:
            raise UserError(f"{where}: nodule_id '{nodule_id}' appears twice; ids must be unique")
        seen.add(nodule_id)
        context = line.get("context") or "ct"
        if context not in CONTEXTS:
            raise UserError(f"{where}, column context: '{context}' is none of {', '.join(CONTEXTS)}")
        centre = np.array([number(where, line, column) for column in ("x_mm", "y_mm", "z_mm")])
        by_reader = np.array(ratings.pop(nodule_id, []), int).reshape(-1, len(schema.RATINGS))
        nodule = Nodule(nodule_id, line["patient_id"], by_reader)
        label = _label(where, line)
        row = NoduleRow(nodule, line["image"], line["mask"], centre, context, label)
        rows.setdefault(line["image"], []).append(row)
        sharing = shared.setdefault((line["image"], line["mask"]), row)
        if sharing is not row and None in (label, sharing.mask_label):
            raise UserError(
                f"{where}: names the same mask as nodule_id '{sharing.nodule.nodule_id}'; name the label of each in a "
                "column mask_label, or give each a mask of its own"
            )
    if ratings:
        raise UserError(f"{root}/ratings.csv: nodule_id '{min(ratings)}' is not in nodules.csv; add it there")
    if not rows:
        raise UserError(f"{root}/nodules.csv: contains no nodule; add one line per nodule")
    return rows


def _label(where: str, line: Row) -> int | None:
    """Return the label of a nodule in a label map, or None if its line names none."""
    if not line.get("mask_label"):
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
        if (nodule_id, reader) in seen:
            raise UserError(f"{where}: reader '{reader}' rates nodule_id '{nodule_id}' twice; keep one line")
        seen.add((nodule_id, reader))
        row = []
        for rating in schema.RATINGS:
            rated = line[rating.name].lower() not in MISSING
            value = number(where, line, rating.name) if rated else 0
            # Any rating may be up to 6: one rating of LIDC-IDRI is a class that does not exist, which the label policy
            # (`cohort`) treats as missing.
            if value != int(value) or not 0 <= value <= schema.MAX_CLASSES:
                raise UserError(f"{where}, column {rating.name}: {value:g} is not a class 1..{rating.classes}")
            row.append(int(value))
        ratings.setdefault(nodule_id, []).append(row)
    return ratings


def _load_nodule(root: str, row: NoduleRow, ct: Volume) -> MarkedNodule:
    if not ct.holds(row.centre_mm):
        raise UserError(
            f"{root}/nodules.csv: the point of '{row.nodule.nodule_id}' lies outside {row.image}; "
            "x_mm, y_mm and z_mm are LPS mm (NIfTI viewers show RAS: negate x and y)"
        )
    mask = read_image(Path(root) / row.mask)
    if row.mask_label is not None:
        mask = Volume((mask.array == row.mask_label).astype(np.int16), mask.affine)
    for value in (mask.array.min(), mask.array.max()):
        if not 0 <= value <= 255:
            raise UserError(f"{root}/{row.mask}: contains {value}; a mask has 0/1, or 0..255 with one bit per reader")
    marked = np.argwhere(mask.array)
    if not len(marked):
        raise UserError(f"{root}/{row.mask}: the mask marks no voxel; a nodule needs at least one")
    offset_mm = np.linalg.norm(mask.to_lps(marked) - row.centre_mm, axis=1).min()
    if offset_mm > MAX_OFFSET_MM:
        raise UserError(
            f"{root}/{row.mask}: the mask lies {offset_mm:.0f} mm from the point of '{row.nodule.nodule_id}' in "
            "nodules.csv; save the mask with the geometry of its image"
        )
    bits = mask.array
    if np.isin(bits, (0, 255)).all():  # another way to write one mask, rather than eight readers who agree
        bits = bits > 0
    readers = [bits >> bit & 1 for bit in range(8) if (bits >> bit & 1).any()]
    _require_bits(f"{root}/{row.mask}", bits, len(readers), row.nodule)
    masks = Volume(np.stack(readers).astype(bool), mask.affine)
    return MarkedNodule(row.nodule, ct, masks, row.context, row.centre_mm)


def _require_bits(path: str, mask: np.ndarray, readers: int, nodule: Nodule) -> None:
    """Raise UserError if the values of a mask cannot be one bit per reader, as those of a label map or interpolation.

    Args:
      path: of the mask.
      mask: (d, h, w) its values.
      readers: number of different bits in them.
      nodule: with its ratings, one row per reader, or none.
    """
    values = np.unique(mask[mask > 0])
    rated = len(nodule.ratings)
    # Two readers may agree in every voxel, as ten times in LIDC-IDRI; three never do there.
    alike = len(values) == 1 and readers > (2 if rated else 1)
    if readers > rated > 0 or alike:
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise UserError(
            f"{path}: its values ({shown}) would be the bits of {readers} readers"
            + (" who agree in every voxel" if alike else f", but ratings.csv has {rated} for '{nodule.nodule_id}'")
            + "; if they are labels, name the nodule's in a column mask_label of nodules.csv"
        )
