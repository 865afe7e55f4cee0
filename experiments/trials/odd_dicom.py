"""Odd CTs in DICOM: folders, slices, damaged files, geometry, elements and stored pixels."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import DTypeLike

from experiments.trials import odd_kinds
from experiments.trials.odd_kinds import SAME, Case, Expected, Kind, Maker, Scan, edited, link, put, replace
from pnsamp_jax.ct.volume import Volume

Change = Callable[[pydicom.Dataset, int, Scan], object]  # of the dataset of a slice, by its index

NONE = "0 DICOM CT series"

# Folders: the name of slice i, and further files

NAMES: dict[str, Callable[[int], str]] = {
    "in another order": lambda i: f"{i * 7919 % 10007:05}.dcm",
    "without suffix": "IM{:04}".format,
    "nested": lambda i: f"{i % 3}/{i % 7}/{i:04}.dcm",
    "not ASCII": "Übersicht 日本 {:04}.dcm".format,
    "with quotes and newlines": 'it\'s a "slice"\n{:04} .dcm'.format,
    "not UTF-8": lambda i: os.fsdecode(b"\xff%04d.dcm" % i),
    "called .nii": "{:04}.nii".format,
}


def _named_by(name_of: Callable[[int], str]) -> Maker:
    return lambda scan, folder: Case(link(scan, folder, name_of))


def _with(change: Callable[[Scan, Path], object], inside: str = "ct") -> Maker:
    """Return a maker that changes a folder with the clean slices; `change` may return another path for the user."""

    def make(scan: Scan, folder: Path) -> Case:
        result = change(scan, link(scan, folder / inside))
        return Case(result if isinstance(result, Path) else folder / inside)

    return make


def _with_slice(**elements: Any) -> Maker:
    """Return a maker that adds a copy of the slice at the point with changed elements."""

    def change(scan: Scan, folder: Path) -> None:
        ds = pydicom.dcmread(scan.files[scan.middle])
        put(ds, **elements)
        replace(folder / "more.dcm", ds)

    return _with(change)


def _with_series(depth: float, **elements: Any) -> Maker:
    """Return a maker that adds a mirrored copy of all slices, shifted by `depth` spacings, with changed elements."""

    def change(scan: Scan, folder: Path) -> None:
        affine = scan.volume.affine.copy()
        affine[:3, 3] += depth * affine[:3, 0]
        odd_kinds.write_series(scan.files, folder / "second", Volume(scan.volume.array[:, ::-1], affine), **elements)

    return _with(change)


FOLDERS: dict[str, tuple[Maker, Expected]] = {
    "the clean scan": (_with(lambda scan, folder: None), SAME),
    "a folder called .nii": (_with(lambda scan, folder: None, "ct.nii"), SAME),
    "a link that loops": (_with(lambda scan, folder: (folder / "loop").symlink_to("..")), SAME),
    "a link to nowhere": (_with(lambda scan, folder: (folder / "more.dcm").symlink_to("nowhere")), "cannot be read"),
    "a link to /dev/zero": (_with(lambda scan, folder: (folder / "more.dcm").symlink_to("/dev/zero")), SAME),
    "a pipe beside": (_with(lambda scan, folder: os.mkfifo(folder / "pipe.dcm")), SAME),
    "junk beside": (_with(lambda scan, folder: (folder / "DICOMDIR").write_bytes(bytes(range(256)))), SAME),
    "a structured report beside": (_with_slice(Modality="SR", PixelData=None), SAME),
    "a localizer beside": (_with_slice(ImageType="ORIGINAL\\PRIMARY\\LOCALIZER"), SAME),
    "a slice twice": (_with_slice(SOPInstanceUID="1.2.3"), SAME),
    "a slice twice, with other pixels": (_with_slice(RescaleSlope="2"), "same depth"),
    "all slices twice": (_with(lambda scan, folder: link(scan, folder, "b{}".format)), SAME),
    "a second series": (_with_series(0.5, SeriesInstanceUID="1.2.3"), "2 DICOM CT series"),
    "a second phase": (_with_series(0), "same depth"),
    "a second patient in between": (_with_series(0.5, PatientID="another"), "PatientID differs"),
    "a second frame in between": (_with_series(0.5, FrameOfReferenceUID="1.2.3"), "FrameOfReferenceUID differs"),
    "an empty folder": (lambda scan, folder: Case(folder), NONE),
    "no such folder": (lambda scan, folder: Case(folder / "nowhere"), "no such file or folder"),
    "a single file": (_with(lambda scan, folder: folder / "0000.dcm"), "whole series"),
}

# Slices: which are kept (the k-th from the slice at the point, the i-th of n), and what is expected


def _only(kept: Callable[[int, int, int], bool]) -> Maker:
    def make(scan: Scan, folder: Path) -> Case:
        which = [i for i in range(len(scan.files)) if kept(i - scan.middle, i, len(scan.files))]
        return Case(link(scan, folder, which=which), None if scan.middle in which else odd_kinds.without_middle(scan))

    return make


SLICES: dict[str, tuple[Callable[[int, int, int], bool], Expected]] = {
    "one lost at the point": (lambda k, i, n: k != 0, SAME),
    "two lost at the point": (lambda k, i, n: k not in (0, 1), "mm to the next slice"),
    "all but the ends lost": (lambda k, i, n: i in (0, n - 1), "spacing|PixelSpacing"),
    "the ends lost": (lambda k, i, n: 0 < i < n - 1, SAME),
    "the half with the point lost": (lambda k, i, n: k > 2, "outside"),
    "one": (lambda k, i, n: k == 0, "at least 2"),
}

# Damage: a change of a file's bytes, what is expected if all files have it, and if only the file at the point has it:
# a file that cannot be recognised as a slice counts as missing, and a single missing slice is interpolated.


def _bytes(change: Callable[[bytes], bytes], which: str) -> Maker:
    def make(scan: Scan, folder: Path) -> Case:
        link(scan, folder)
        for i in range(len(scan.files)) if which == "all" else [scan.middle]:
            replace(folder / f"{i:04}.dcm", change(scan.files[i].read_bytes()))
        return Case(folder, odd_kinds.without_middle(scan) if which == "one" else None)

    return make


def _syntax(uid: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"1.2.840.10008.1.2.1\0", uid.ljust(20, b"\0"), 1)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], Expected, Expected]] = {
    "cut to nothing": (lambda data: b"", NONE, SAME),
    "cut in the header": (lambda data: data[:700], NONE, SAME),
    "cut in half": (lambda data: data[: len(data) // 2], "truncated", "truncated"),
    "cut by a byte": (lambda data: data[:-1], "truncated", "truncated"),
    "a zeroed header": (lambda data: data[:132] + bytes(600) + data[732:], NONE, SAME),
    "a web page": (lambda data: b"<!DOCTYPE html><html>Please log in</html>", NONE, SAME),
    "big endian in name": (_syntax(b"1.2.840.10008.1.2.2"), NONE, SAME),
    "RLE in name": (_syntax(b"1.2.840.10008.1.2.5"), "decoded", "decoded"),
}

# Geometry: a change of the affine, or of the order of the axes


def _moved(change: Callable[[np.ndarray], np.ndarray]) -> Maker:
    def make(scan: Scan, folder: Path) -> Case:
        volume = Volume(scan.volume.array, change(scan.volume.affine))
        point = volume.to_lps(scan.volume.to_index(scan.point))
        return Case(odd_kinds.write_series(scan.files, folder, volume), volume, point)

    return make


def _turned(axes: Sequence[int], signs: Sequence[int], half: Sequence[int] = (10, 20, 20)) -> Maker:
    def make(scan: Scan, folder: Path) -> Case:
        part = scan.around(half)
        volume = odd_kinds.turned(part, axes, signs)
        return Case(odd_kinds.write_series([scan.files[0]] * len(volume.array), folder, volume), part)

    return make


GEOMETRY: dict[str, tuple[Maker, Expected]] = {
    "tilted gantry": (_moved(odd_kinds.sheared), SAME),
    "oblique": (_moved(odd_kinds.rotated), SAME),
    "coronal": (_turned((1, 0, 2), (1, -1, 1)), SAME),
    "sagittal": (_turned((2, 0, 1), (1, -1, 1)), SAME),
    "prone, feet first": (_turned((0, 1, 2), (1, -1, -1)), SAME),
    "smaller than the patch": (_turned((0, 1, 2), (1, 1, 1), (3, 8, 8)), SAME),
    "oblong voxels": (_moved(odd_kinds.scaled(4, 1.5, 0.5)), SAME),
    "metres taken for mm": (_moved(odd_kinds.scaled(1e-3, 1e-3, 1e-3)), "spacing"),
    "micrometres taken for mm": (_moved(odd_kinds.scaled(1e3, 1e3, 1e3)), "spacing"),
    "slices half a metre apart": (_moved(odd_kinds.scaled(200, 1, 1)), "spacing"),
}

# Elements of all slices, or of the slice at the point: values, and what is expected

HARMLESS: dict[str | None, str] = {
    None: "PatientID FrameOfReferenceUID StudyInstanceUID SOPInstanceUID RescaleSlope", "": "NumberOfFrames",
    "NaN": "SliceThickness GantryDetectorTilt", "nonsense": "SpecificCharacterSet", "\xff\xfe^\0": "PatientName",
}  # fmt: skip
ABSURD: dict[str, list[Any]] = {  # the message names the element
    "PixelSpacing": [None, "0\\0", "-0.7\\-0.7", "NaN\\NaN", "half\\half", "0.7", "0,7\\0,7", "1e999\\1"],
    "ImagePositionPatient": [None, "NaN\\0\\0", "here", "1\\2"],
    "ImageOrientationPatient": [None, "0\\0\\0\\0\\0\\0", "2\\0\\0\\0\\2\\0", "1\\0\\0\\0.5\\0.8\\0"],
    "RescaleSlope": ["0", "NaN", "one", "1\\2", "1e300", "1e-9"], "RescaleIntercept": ["-1024\\0", "1e300", "-1e6"],
    "Rows": [None, 0, 65535], "Columns": [0, 65535], "HighBit": [0], "RescaleType": ["Z_EFF"],
    "NumberOfFrames": ["2", "many", "999999999"],
}  # fmt: skip
OTHERS: list[tuple[str, Any, Expected]] = [
    ("ImagePositionPatient", "0\\0\\0", "is the same"), ("PixelSpacing", "1e6\\1e6", "spacing"), ("Rows", 1, "Rows x"),
    ("Columns", 7, "Rows x"), ("BitsAllocated", 0, "damaged"), ("BitsAllocated", 8, "damaged"),
    ("Modality", "MR", NONE), ("BitsStored", 0, "damaged"), ("PixelRepresentation", 7, "damaged"),
    ("PixelData", None, "no pixel data"), ("SamplesPerPixel", 3, "color images"),
]  # fmt: skip
ONE: list[tuple[str, Any, Expected]] = [
    ("PixelSpacing", "1.4\\1.4", "PixelSpacing differs"), ("ImagePositionPatient", "0\\0\\0", "line|next"),
    ("ImageOrientationPatient", "0.99985\\0.01745\\0\\-0.01745\\0.99985\\0", "ImageOrientationPatient differs"),
    ("RescaleSlope", "1e9", "RescaleSlope"), ("RescaleType", "MGML", "RescaleType"), ("PatientID", "B", "PatientID"),
    ("FrameOfReferenceUID", "1.2.3", "FrameOfReferenceUID"), ("SeriesInstanceUID", "1.2.3", "2 DICOM CT series"),
]  # fmt: skip

# Stored pixels: a change, and what is expected


def _stored(dtype: DTypeLike, slope: float, intercept: float, bits: int | None = None, **elements: Any) -> Change:
    """Return a change that stores the HU of the clean scan in another way."""

    def change(ds: pydicom.Dataset, i: int, scan: Scan) -> None:
        kind, width = np.dtype(dtype), bits or 8 * np.dtype(dtype).itemsize
        low = 0 if kind.kind == "u" else -(2 ** (width - 1))
        values = np.clip(np.rint((scan.volume.array[i] - float(intercept)) / slope), low, low + 2**width - 1)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * kind.itemsize, width, width - 1
        ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept = int(kind.kind == "i"), slope, intercept
        data = values.astype(kind).tobytes()
        put(ds, **{"PixelPaddingValue": None, "PixelData": data + b"\0" * (len(data) % 2)} | elements)

    return change


def _padded(first: int, last: int) -> Change:
    def change(ds: pydicom.Dataset, i: int, scan: Scan) -> None:
        ds.add_new("PixelPaddingValue", "SS", first)
        ds.add_new("PixelPaddingRangeLimit", "SS", last)

    return change


PIXELS: dict[str, tuple[Change | dict[str, Any], Expected]] = {
    "unsigned": (_stored("<u2", 1, -1024), SAME),
    "signed, without offset": (_stored("<i2", 1, 0), SAME),
    "signed, without rescale": (_stored("<i2", 1, 0, RescaleSlope=None, RescaleIntercept=None), SAME),
    "unsigned, without rescale": (_stored("<u2", 1, -1024, RescaleIntercept=None), "RescaleIntercept"),
    "of 32 bits": (_stored("<i4", 1e-5, -1024), SAME),
    "of 8 bits": (_stored("u1", 16, -1024), 9.0),  # half a step of 16, and both are rounded
    "negated": (_stored("<i2", -1, 100), SAME),
    "signed and unsigned by turns": (lambda ds, i, scan: _stored(["<i2", "<u2"][i % 2], 1, -1024)(ds, i, scan), SAME),
    "at the upper end": (_stored("<u2", 1, -1024, 12, HighBit=15), "HighBit"),
    "padded": (_padded(-2000, -1500), SAME),
    "padded, with the body": (_padded(-2000, 2000), "PixelPaddingRangeLimit"),
    "with a lookup table": ({"ModalityLUTSequence": [pydicom.Dataset()]}, "ModalityLUTSequence"),
    "of two frames": (lambda ds, i, scan: put(ds, PixelData=ds.PixelData * 2), "Rows x Columns"),
}


def kinds() -> list[Kind]:
    """Return all kinds."""
    result = [Kind(f"names {name}", _named_by(name_of), SAME) for name, name_of in NAMES.items()]
    result += [Kind(name, *kind) for name, kind in (FOLDERS | GEOMETRY).items()]
    result += [Kind(f"slices: {name}", _only(kept), expected) for name, (kept, expected) in SLICES.items()]
    for name, (change, of_all, of_one) in DAMAGE.items():
        result.append(Kind(f"all files: {name}", _bytes(change, "all"), of_all))
        result.append(Kind(f"one file: {name}", _bytes(change, "one"), of_one))
    rows: list[tuple[str, Any, Expected]] = []
    rows += [(keyword, value, SAME) for value, keywords in HARMLESS.items() for keyword in keywords.split()]
    rows += [(keyword, value, keyword) for keyword, values in ABSURD.items() for value in values]
    for keyword, value, expected in rows + OTHERS:
        result.append(Kind(f"{keyword} = {value!r}", edited({keyword: value}), expected))
    for keyword, value, expected in ONE:
        result.append(Kind(f"one {keyword} = {value!r}", edited({keyword: value}, "one"), expected))
    result += [Kind(f"pixels {name}", edited(pixels), expected) for name, (pixels, expected) in PIXELS.items()]
    return result
