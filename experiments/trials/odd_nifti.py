"""Odd CTs as NIfTI files, in all orientations, and odd points."""

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import DTypeLike

from experiments.trials.odd_images import DAMAGE, HALF, flipped, gz, half, image, metres, micrometres
from experiments.trials.odd_kinds import (
    AXES,
    SAME,
    Case,
    Expected,
    Kind,
    Maker,
    Scan,
    named,
    rotated,
    sheared,
    turned,
)
from pnsamp_jax.ct.volume import AIR, Volume

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def nifti(
    volume: Volume,
    values: Callable[[np.ndarray], np.ndarray] | None = None,
    dtype: DTypeLike = "<i2",
    kind: type = nibabel.Nifti1Header,
    forms: tuple[int, int] = (1, 1),
    **fields: Any,
) -> bytes:
    """Return the bytes of a NIfTI file.

    Args:
      volume: of the file.
      values: the stored values as a function of the HU (d, h, w).
      dtype: of a stored value.
      kind: class of the header.
      forms: the codes of sform and qform.
      **fields: of the header; a dict sets elements of a field.
    """
    header = kind(endianness=">" if str(dtype).startswith(">") else "<")
    array = values(volume.array) if values else volume.array
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]]
    header.set_data_shape(array.shape[::-1])
    header.set_data_dtype(dtype)
    header.set_qform(to_ras, forms[1], strip_shears=True)
    header.set_sform(to_ras, forms[0])
    header.set_xyzt_units("mm")
    data, start = header.structarr, header.single_vox_offset
    sound = {"vox_offset": start, "scl_slope": 1, "scl_inter": 0, "magic": header.single_magic}
    for name, value in (sound | fields).items():
        for index, element in value.items() if isinstance(value, dict) else [((), value)]:
            data[name][index] = element
    return data.tobytes().ljust(start, b"\0") + array.astype(dtype).tobytes()


def _nii(
    name: str = "ct.nii",
    damage: Callable[[bytes], bytes] = bytes,
    move: Callable[[np.ndarray], np.ndarray] | None = None,
    **fields: Any,
) -> Maker:
    return image(lambda volume: (damage(nifti(volume, **fields)), b""), name, move)


def _holes(value: float) -> Maker:
    """Return a maker of floats with a value that is no HU in every second row, which must be read as air."""

    def make(scan: Scan, folder: Path) -> Case:
        volume = scan.around(HALF)
        odd = np.arange(volume.array.shape[1])[:, None] % 2 == 1
        data = nifti(volume, lambda hu: np.where(odd, value, hu), "<f4")
        (folder / "ct.nii").write_bytes(data)
        return Case(folder / "ct.nii", Volume(np.where(odd, np.int16(AIR), volume.array), volume.affine))

    return make


NIFTI: dict[Expected, list[dict[str, Any]]] = {
    SAME: [
        {}, {"dtype": "<i4"}, {"dtype": "<f8"}, {"dtype": ">i2"}, {"kind": nibabel.Nifti2Header}, {"scl_slope": 0},
        {"forms": (1, 0)}, {"forms": (0, 1), "move": rotated}, {"forms": (1, 0), "move": sheared}, {"xyzt_units": 0},
        {"name": "%s%n.nii"}, {"name": os.fsdecode(b"\xff.nii")}, {"name": "CT.NII"},
    ],
    "HU of a chest": [{"scl_slope": 1e30}, {"scl_slope": 1e-30}],
    "sform": [{"forms": (0, 0)}, {"srow_x": {3: 9e3}}, {"srow_x": {0: 1.5}}, {"sform_code": 99}],
    "spacing or origin": [
        {"srow_x": np.nan}, {"forms": (1, 0), "srow_z": 0}, {"forms": (0, 1), "qoffset_z": np.nan}, {"move": metres},
        {"forms": (0, 1), "pixdim": {1: np.nan}}, {"forms": (0, 1), "pixdim": {3: np.inf}}, {"move": micrometres},
    ],
    "pixdim": [{"forms": (0, 1), "pixdim": {1: 0}}, {"forms": (0, 1), "pixdim": {1: -1}}],
    "xyzt_units": [{"move": micrometres, "xyzt_units": 3}],
    "claims": [{"dim": dict.fromkeys((1, 2, 3), 32767)}, {"dim": {1: 0}}, {"dim": {3: -7}}],
    "truncated": [{"dim": {3: 32767}}, {"vox_offset": 2e9}],
    "cannot be read": [{"datatype": 999}, {"vox_offset": np.nan}, {"forms": (0, 1), "quatern_b": 5}],
    "vox_offset": [{"vox_offset": 0}],
    "type": [{"dtype": RGB}, {"dtype": "<c8"}],
    "is a NIfTI image; rename it": [{"name": "ct"}, {"name": "ct.mha"}],
}  # fmt: skip
VALUES: dict[str, tuple[dict[str, Any], Expected]] = {
    "uint16 from -1024": ({"values": lambda hu: hu + 1024, "dtype": "<u2", "scl_inter": -1024}, SAME),
    "in quarters": ({"values": lambda hu: np.clip(hu, -8192, 8191) * 4, "scl_slope": 0.25}, SAME),
    "4D of one": ({"values": lambda hu: hu[None]}, SAME),
    "4D of two": ({"values": lambda hu: np.stack([hu, hu])}, "3D"),
    "2D": ({"values": lambda hu: hu[0]}, "3D"),
    "one slice": ({"values": lambda hu: hu[:1]}, "at least two"),
    "windowed to 8 bits": ({"values": lambda hu: np.clip(hu / 6 + 200, 0, 255), "dtype": "u1"}, "HU of a chest"),
    "normalised": ({"values": lambda hu: (hu + 1024) / 4096, "dtype": "<f4"}, "HU of a chest"),
    "without their offset": ({"values": lambda hu: hu + 1024, "dtype": "<u2"}, "HU of a chest"),
    "all NaN": ({"values": lambda hu: hu * np.nan, "dtype": "<f4"}, "HU of a chest"),
}

GZIP: dict[str, tuple[Callable[[bytes], bytes], Expected]] = {
    "whole": (gz, SAME),
    "of two parts": (lambda data: gz(data[:999]) + gz(data[999:]), SAME),
    "with 128 MB more": (lambda data: gz(data + bytes(1 << 27)), "bytes more than"),
    "cut in half": (lambda data: half(gz(data)), "cut off"),
    "of a half": (lambda data: gz(half(data)), "truncated"),
    "with a flipped byte": (lambda data: flipped(gz(data)), "cannot be read"),
    "not packed": (bytes, SAME),
}

# Orientations and points


def _placed(
    fraction: Sequence[float] | None = None,
    mm: np.ndarray | None = None,
    half: Sequence[int] = HALF,
    axes: Sequence[int] = AXES,
    signs: Sequence[int] = (1, 1, 1),
) -> Maker:
    """Return a maker of a sound file with its axes turned.

    The point is the scan's; or `mm`; or at a fraction (d, h, w) of the volume between its ends, 0 and 1.
    """

    def make(scan: Scan, folder: Path) -> Case:
        part = scan.around(half)
        (folder / "ct.nii").write_bytes(nifti(turned(part, axes, signs)))
        point = part.to_lps(np.array(fraction) * part.array.shape - 0.5) if fraction else mm
        return Case(folder / "ct.nii", part, point)

    return make


POINTS: dict[Expected, list[tuple[float, ...]]] = {
    SAME: [(1e-4, 0.5, 1 - 1e-4), (0.5, 0.51, 0.52), (1 - 1e-4,) * 3],
    "outside": [(-1e-3, 0.5, 0.5), (0.5, 1.001, 0.5), (0.5, 0.5, -9e5), (1e300, 0, 0)],
}


def kinds() -> list[Kind]:
    """Return all kinds."""
    result = [Kind("NIfTI: smaller than the patch", _placed(half=(3, 20, 20)), SAME)]
    for axes, signs in itertools.product(itertools.permutations(AXES), itertools.product((1, -1), repeat=3)):
        name = " ".join(f"{'-' if sign < 0 else '+'}{'dhw'[axis]}" for axis, sign in zip(axes, signs, strict=True))
        result.append(Kind(f"axes {name}", _placed(axes=axes, signs=signs), SAME))
    for expected, rows in NIFTI.items():
        result += [Kind(named("NIfTI", row), _nii(**row), expected) for row in rows]
    for name, damage in DAMAGE.items():
        result.append(Kind(f"NIfTI: {name}", _nii(damage=damage), "truncated|cannot be read|header"))
    result += [Kind(f"NIfTI: {name}", _nii(**row), expected) for name, (row, expected) in VALUES.items()]
    result += [Kind(f"NIfTI: {value} in places", _holes(value), SAME) for value in (np.nan, -np.inf)]
    result += [Kind(f"gzip: {name}", _nii("ct.nii.gz", change), expected) for name, (change, expected) in GZIP.items()]
    for expected, fractions in POINTS.items():
        result += [Kind(f"a point at {fraction}", _placed(fraction), expected) for fraction in fractions]
    for x in (np.nan, np.inf):
        result.append(Kind(f"a point at {x} mm", _placed(mm=np.array([x, 0, 0])), "outside"))
    return result
