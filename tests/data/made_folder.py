"""A folder of three made-up nodules in the layout of the `folder` source, and ways to change it."""

import csv

import numpy as np
from ct_files import write_itk

from pnsamp_jax.data import schema
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.patches import Unusable, patch_affine
from pnsamp_jax.errors import UserError

AFFINE = patch_affine((10, -20, 30), 21, 1.0)
NODULES = [
    {"nodule_id": "a_n00", "patient_id": "a", "image": "images/a.nrrd", "mask": "masks/a0.nrrd"},
    {"nodule_id": "a_n01", "patient_id": "a", "image": "images/a.nrrd", "mask": "masks/a1.nrrd"},
    {"nodule_id": "b_n00", "patient_id": "b", "image": "images/b.nrrd", "mask": "masks/b0.nrrd"},
]
POINTS = {"a_n00": (10, -20, 30), "a_n01": (12, -22, 33), "b_n00": (10, -20, 30)}
RATINGS = {
    "a_n00": [[5, 1, 6, 3, 3, 3, 4, 5, 5], [5, 1, 6, 3, 5, 3, 4, 5, 4]],
    "a_n01": [[3, 1, 3, 4, 4, 1, 1, 5, 1]],
    "b_n00": [[2, 1, 6, 4, 4, 2, 2, 4, 3]],
}


def tables():
    """Return the rows of both tables."""
    nodules = [
        {**row, **dict(zip(("x_mm", "y_mm", "z_mm"), POINTS[row["nodule_id"]], strict=True))} for row in NODULES
    ]
    ratings = [
        {"nodule_id": nodule_id, "reader": reader, **dict(zip(schema.RATING_NAMES, row, strict=True))}
        for nodule_id, rows in RATINGS.items()
        for reader, row in enumerate(rows)
    ]
    return nodules, ratings


def write_table(path, rows, columns=None):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def block(low, high, value=1):
    """Return a mask with one value from index `low` to below `high`, and 0 elsewhere.

    Where it could be taken for a box that was saved in place of an outline, its corners are cut off.
    """
    mask = np.zeros((21, 21, 21), np.uint8)
    sides = np.subtract(high, low)
    from_middle = np.abs(np.moveaxis(np.indices(sides), 0, -1) - (sides - 1) / 2)
    corners = (from_middle >= sides / 4).all(axis=-1) & (np.sort(sides) >= (2, 5, 5)).all()
    mask[tuple(map(slice, low, high))] = np.where(corners, 0, value)
    return mask


def write_folder(root):
    for name in ("images", "masks"):
        (root / name).mkdir()
    nodules, ratings = tables()
    write_table(root / "nodules.csv", nodules)
    write_table(root / "ratings.csv", ratings)
    hu = np.random.default_rng(0).integers(-1000, 400, (2, 21, 21, 21)).astype(np.int16)
    for name, voxels in zip("ab", hu, strict=True):
        write_itk(root / "images" / f"{name}.nrrd", voxels, AFFINE)
    both = block((8, 8, 8), (13, 13, 13), 1) | block((9, 8, 8), (13, 13, 13), 4)  # readers 0 and 2
    write_itk(root / "masks" / "a0.nrrd", both, AFFINE)
    write_itk(root / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14)), AFFINE)
    write_itk(root / "masks" / "b0.nrrd", block((9, 9, 9), (12, 12, 12)), AFFINE)


def change(root, table, line, **cells):
    """Change cells in one line of a table; line 2 is the first after the header."""
    with (root / table).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[line - 2].update(cells)
    write_table(root / table, rows)


def replace(root, table, old, new):
    """Replace bytes that occur once in a table."""
    data = (root / table).read_bytes()
    assert data.count(old) == 1
    (root / table).write_bytes(data.replace(old, new))


def load(root, series="images/a.nrrd"):
    """Return the nodules of an image; raise the reason why one is unusable."""
    found = FolderSource(str(root)).load(series)
    for one in found:
        if isinstance(one, Unusable):
            raise UserError(one.reason)
    return found
