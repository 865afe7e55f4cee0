"""Kinds of odd CTs, and ways to write a clean scan once more with a small change.

A kind makes its files from a clean scan in an empty folder, and states how a reader must respond: with the clean
scan's patch, within a tolerance, or with a refusal that matches an expression.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import ArrayLike
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

from pnsamp_jax.ct.volume import Volume

# HU. Headers hold some seven digits, which moves a sample by less than 0.001 mm; at the steepest edge that is a
# fraction of a HU, and then both patches are rounded.
SAME = 2.0

AXES = (0, 1, 2)  # d, h, w


class Scan(NamedTuple):
    """A clean series.

    Attributes:
      volume: its HU.
      files: of its slices, along d.
      point: (3,) LPS mm, the centre of the patches.
    """

    volume: Volume
    files: list[Path]
    point: np.ndarray

    @property
    def middle(self) -> int:
        """Return the index of the slice nearest to the point."""
        return int(np.rint(self.volume.to_index(self.point)[0]))

    def around(self, half: ArrayLike) -> Volume:
        """Return the part of the scan within `half` (3,) voxels of the point."""
        middle = np.rint(self.volume.to_index(self.point)).astype(int)
        low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, self.volume.array.shape)
        return crop(self.volume, low, high)


class Case(NamedTuple):
    """The input of a reader.

    Attributes:
      path: that a user would give.
      truth: the volume in the files; None for the clean scan's.
      point: (3,) LPS mm; None for the clean scan's.
    """

    path: Path
    truth: Volume | None = None
    point: np.ndarray | None = None


Maker = Callable[[Scan, Path], Case]
Expected = float | str


class Kind(NamedTuple):
    """A way in which a CT is odd.

    Attributes:
      name: unique.
      make: (scan, empty folder) -> Case.
      expected: the largest allowed difference in HU between a voxel of the patch and the truth; or a regular
        expression that is found in the refusal.
    """

    name: str
    make: Maker
    expected: Expected


class Unavailable(Exception):
    """This machine cannot make the kind, because a codec is not installed."""


def named(what: str, changes: dict) -> str:
    """Return the name of a kind that is described by its changes."""
    values = (f"{name} = {getattr(value, '__name__', value)!r}" for name, value in changes.items())
    return f"{what}: {', '.join(values) or 'plain'}"


# Volumes


def crop(volume: Volume, low: np.ndarray, high: np.ndarray) -> Volume:
    """Return the part of a volume from index `low` (3,) up to, but not including, `high` (3,)."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_lps(low)
    return Volume(np.ascontiguousarray(volume.array[tuple(map(slice, low, high))]), affine)


def turned(volume: Volume, axes: Sequence[int], signs: Sequence[int]) -> Volume:
    """Return the same voxels at the same positions, stored with permuted and then reversed axes."""
    array = volume.array.transpose(axes)
    affine = np.eye(4)
    affine[:3, :3] = volume.affine[:3, list(axes)] * signs
    first = [0 if sign > 0 else size - 1 for sign, size in zip(signs, array.shape, strict=True)]
    affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, list(axes)] @ first
    return Volume(np.ascontiguousarray(array[tuple(slice(None, None, sign) for sign in signs)]), affine)


def scaled(*factors: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scales the voxels of an affine along d, h and w."""

    def change(affine: np.ndarray) -> np.ndarray:
        return affine * [*factors, 1]

    change.__name__ = f"scaled{factors}"
    return change


def sheared(affine: np.ndarray) -> np.ndarray:
    """Tilt the depth axis of an affine by 20 degrees, like a tilted gantry."""
    tilt = np.tan(np.radians(20)) * np.linalg.norm(affine[:3, 0]) / np.linalg.norm(affine[:3, 1])
    return np.column_stack([affine[:, 0] + tilt * affine[:, 1], affine[:, 1:]])


def rotated(affine: np.ndarray) -> np.ndarray:
    """Rotate an affine, so that none of its axes runs along the body."""
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    return turn @ affine


# DICOM files


def put(ds: pydicom.Dataset, **elements: Any) -> None:
    """Set elements by keyword. Text is written as it is, even if it is not allowed; None deletes the element."""
    for keyword, value in elements.items():
        number = tag_for_keyword(keyword)
        assert number is not None, f"DICOM has no element {keyword}"
        tag = pydicom.tag.Tag(number)
        if value is None:
            ds.pop(tag, None)
        elif isinstance(value, str):
            data = value.encode("latin-1") + b" " * (len(value) % 2)
            ds[tag] = RawDataElement(tag, dictionary_VR(tag), len(data), data, 0, False, True)
        else:
            setattr(ds, keyword, value)


def link(
    scan: Scan, folder: Path, name: Callable[[int], str] = "{:04}.dcm".format, which: Iterable[int] | None = None
) -> Path:
    """Put clean slices into a folder, as hard links, which take no space.

    Args:
      scan: with the slices.
      folder: that may not exist yet.
      name: of the file, from the index of the slice.
      which: indices of the slices; all by default.

    Returns:
      The folder.
    """
    for i in range(len(scan.files)) if which is None else which:
        (folder / name(i)).parent.mkdir(parents=True, exist_ok=True)
        os.link(scan.files[i], folder / name(i))
    return folder


def replace(path: Path, content: bytes | pydicom.Dataset) -> None:
    """Give a file other content; if it is a link to a clean slice, the slice is not changed."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save_as(path)


def edited(change: dict | Callable[[pydicom.Dataset, int, Scan], object], which: str = "all") -> Maker:
    """Return a maker of a series in which "all" slices or the "one" at the point are changed.

    Args:
      change: elements for `put`, or a function of (dataset, index, scan).
      which: "all" or "one".
    """

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


def write_series(templates: Iterable[Path], folder: Path, volume: Volume, **elements: Any) -> Path:
    """Write a volume, whose w and h axes are perpendicular, as a series with the headers of other files.

    Args:
      templates: a file for each slice.
      folder: of the series.
      volume: to write.
      **elements: further changes of the headers, see `put`.

    Returns:
      The folder.
    """
    spacing = volume.spacing
    axes = volume.affine[:3, 2] / spacing[2], volume.affine[:3, 1] / spacing[1]
    for i, (hu, template) in enumerate(zip(volume.array, templates, strict=False)):
        ds = pydicom.dcmread(template)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = pydicom.uid.generate_uid()
        ds.Rows, ds.Columns = hu.shape
        ds.PixelData = (hu - np.int16(ds.RescaleIntercept)).astype("<i2").tobytes()
        geometry = {
            "ImagePositionPatient": volume.to_lps(np.array([i, 0, 0])),
            "ImageOrientationPatient": np.concatenate(axes),
            "PixelSpacing": spacing[1:],
        }
        put(ds, **{name: "\\".join(f"{x:.9g}" for x in values) for name, values in geometry.items()}, **elements)
        replace(folder / f"{i:04}.dcm", ds)
    return folder


def without_middle(scan: Scan) -> Volume:
    """Return the scan with the mean of its neighbours as the slice at the point, as a reader fills a missing slice."""
    array, i = scan.volume.array.copy(), scan.middle
    array[i] = np.rint(array[i - 1] / 2 + array[i + 1] / 2)
    return Volume(array, scan.volume.affine)
