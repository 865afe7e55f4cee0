"""What a kind of odd CT is, and how a clean scan is written once more, a little different.

A kind makes its files from a clean scan in an empty folder, and states what a reader has to make of them: the clean
scan's patch, within a tolerance, or a refusal that holds a word.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

from pnsamp_jax.ct.volume import Volume

# HU. Headers hold some seven digits, which moves a sample by less than 0.001 mm; at the steepest edge that is a
# fraction of a HU, and then both patches are rounded.
SAME = 2.0


class Scan(NamedTuple):
    """A clean series: its HU, the files of its slices along d, and the (3,) point in LPS mm where patches are cut."""

    volume: Volume
    files: list[Path]
    point: np.ndarray

    @property
    def middle(self) -> int:
        """The slice nearest to the point."""
        return int(np.rint(self.volume.to_index(self.point)[0]))

    def around(self, half) -> Volume:
        """The part of the scan within `half` (3,) voxels of the point."""
        middle = np.rint(self.volume.to_index(self.point)).astype(int)
        low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, self.volume.array.shape)
        return crop(self.volume, low, high)


class Case(NamedTuple):
    """The path that a user would give; the volume and the (3,) point in LPS mm if they are not the clean scan's."""

    path: Path
    truth: Volume | None = None
    point: np.ndarray | None = None


Maker = Callable[[Scan, Path], Case]


class Kind(NamedTuple):
    """A way to be odd.

    Attributes:
      name: unique.
      make: (scan, empty folder) -> Case.
      expected: by how many HU a voxel of the patch may differ from the truth; or a regular expression that is found in
        the refusal.
    """

    name: str
    make: Maker
    expected: float | str


class Unavailable(Exception):
    """This machine cannot make the kind, for want of a codec."""


def named(what: str, changes: dict) -> str:
    """The name of a kind that is told by its changes."""
    values = (f"{name} = {getattr(value, '__name__', value)!r}" for name, value in changes.items())
    return f"{what}: {', '.join(values) or 'plain'}"


# Volumes


def crop(volume: Volume, low, high) -> Volume:
    """The part of a volume from index `low` (3,) up to, not including, `high` (3,)."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_lps(low)
    return Volume(np.ascontiguousarray(volume.array[tuple(map(slice, low, high))]), affine)


def turned(volume: Volume, axes, signs) -> Volume:
    """The same voxels in the same place, stored with permuted and then reversed axes."""
    array = volume.array.transpose(axes)
    affine = np.eye(4)
    affine[:3, :3] = volume.affine[:3, list(axes)] * signs
    first = [0 if sign > 0 else size - 1 for sign, size in zip(signs, array.shape, strict=True)]
    affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, list(axes)] @ first
    return Volume(np.ascontiguousarray(array[tuple(slice(None, None, sign) for sign in signs)]), affine)


def scaled(*factors: float) -> Callable[[np.ndarray], np.ndarray]:
    """Another voxel size along d, h, w, as a function of an affine."""

    def change(affine):
        return affine * [*factors, 1]

    change.__name__ = f"scaled{factors}"
    return change


def sheared(affine: np.ndarray) -> np.ndarray:
    """An affine whose depth axis leans by 20 degrees, as a tilted gantry's does."""
    lean = np.tan(np.radians(20)) * np.linalg.norm(affine[:3, 0]) / np.linalg.norm(affine[:3, 1])
    return np.column_stack([affine[:, 0] + lean * affine[:, 1], affine[:, 1:]])


def rotated(affine: np.ndarray) -> np.ndarray:
    """An affine with axes along none of the body's."""
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    return turn @ affine


# DICOM files


def put(ds: pydicom.Dataset, **elements) -> None:
    """Sets elements: text goes into the file as it is, however forbidden; None deletes."""
    for keyword, value in elements.items():
        tag = pydicom.tag.Tag(tag_for_keyword(keyword))
        if value is None:
            ds.pop(tag, None)
        elif isinstance(value, str):
            data = value.encode("latin-1") + b" " * (len(value) % 2)
            ds[tag] = RawDataElement(tag, dictionary_VR(tag), len(data), data, 0, False, True)
        else:
            setattr(ds, keyword, value)


def link(scan: Scan, folder: Path, name: Callable[[int], str] = "{:04}.dcm".format, which=None) -> Path:
    """Puts clean slices into a folder, as links that cost no room; `which` are their indices, by default all."""
    for i in range(len(scan.files)) if which is None else which:
        (folder / name(i)).parent.mkdir(parents=True, exist_ok=True)
        os.link(scan.files[i], folder / name(i))
    return folder


def replace(path: Path, content: bytes | pydicom.Dataset) -> None:
    """Gives a file, which may be a link to a clean one, other content."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save_as(path)


def edited(change: dict | Callable, which: str = "all") -> Maker:
    """A maker of a series of which "all" slices or the "one" at the point are changed: by `put`, or by a function."""

    def make(scan: Scan, folder: Path) -> Case:
        link(scan, folder)
        for i in range(len(scan.files)) if which == "all" else [scan.middle]:
            ds = pydicom.dcmread(scan.files[i])
            if callable(change):
                change(ds, i, scan)
            else:
                put(ds, **change)
            replace(folder / f"{i:04}.dcm", ds)
        return Case(folder)

    return make


def write_series(templates: Iterable[Path], folder: Path, volume: Volume, **elements) -> Path:
    """Writes a volume, whose w and h axes are perpendicular, as a series with the headers of other files."""
    spacing = volume.spacing
    axes = volume.affine[:3, 2] / spacing[2], volume.affine[:3, 1] / spacing[1]
    for i, (hu, template) in enumerate(zip(volume.array, templates, strict=False)):
        ds = pydicom.dcmread(template)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = pydicom.uid.generate_uid()
        ds.Rows, ds.Columns = hu.shape
        ds.PixelData = (hu - np.int16(ds.RescaleIntercept)).astype("<i2").tobytes()
        geometry = {
            "ImagePositionPatient": volume.to_lps((i, 0, 0)),
            "ImageOrientationPatient": np.concatenate(axes),
            "PixelSpacing": spacing[1:],
        }
        put(ds, **{name: "\\".join(f"{x:.9g}" for x in values) for name, values in geometry.items()}, **elements)
        replace(folder / f"{i:04}.dcm", ds)
    return folder


def without_middle(scan: Scan) -> Volume:
    """The scan with the slice at the point as the mean of its neighbours: so a reader makes up for a lost one."""
    array, i = scan.volume.array.copy(), scan.middle
    array[i] = np.rint(array[i - 1] / 2 + array[i + 1] / 2)
    return Volume(array, scan.volume.affine)
