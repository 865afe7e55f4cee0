"""Odd CTs as NIfTI, NRRD and MetaImage files in all orientations, and odd points."""

import gzip
import itertools
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from experiments.trials.odd_kinds import SAME, Case, Kind, Maker, Scan, named, rotated, scaled, sheared, turned
from pnsamp_jax.ct.volume import AIR, Volume

HALF = (12, 40, 40)  # voxels of what is written round the point: the whole scan would only take longer
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
metres, micrometres = scaled(1e-3, 1e-3, 1e-3), scaled(1e3, 1e3, 1e3)


def image(write: Callable[[Volume], tuple[bytes, bytes]], name: str, move=None, apart: str = "") -> Maker:
    """A maker of an image file: `write` gives its header and voxels, these may lie `apart`; `move` its affine."""

    def make(scan: Scan, folder: Path) -> Case:
        part = scan.around(HALF)
        volume = Volume(part.array, move(part.affine)) if move else part
        header, voxels = write(volume)
        (folder / name).write_bytes(header if apart else header + voxels)
        if apart:
            (folder / apart).write_bytes(voxels)
        return Case(folder / name, volume, volume.to_lps(part.to_index(scan.point)))

    return make


# NIfTI


def nifti(volume: Volume, values=None, dtype="<i2", kind=nibabel.Nifti1Header, forms=(1, 1), **fields) -> bytes:
    """The bytes of a NIfTI file.

    Args:
      volume: what is in it.
      values: what is stored, as a function of the HU (d, h, w).
      dtype: of a stored value.
      kind: of header.
      forms: the codes of sform and qform.
      **fields: of the header, as they come; a dict gives elements of one.
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
        for place, element in value.items() if isinstance(value, dict) else [((), value)]:
            data[name][place] = element
    return data.tobytes().ljust(start, b"\0") + array.astype(dtype).tobytes()


def _nii(name: str = "ct.nii", damage: Callable[[bytes], bytes] = bytes, move=None, **fields) -> Maker:
    return image(lambda volume: (damage(nifti(volume, **fields)), b""), name, move)


def _holes(value: float) -> Maker:
    """A maker of floats with a value that is no HU in every second row, which is then air."""

    def make(scan: Scan, folder: Path) -> Case:
        volume = scan.around(HALF)
        odd = np.arange(volume.array.shape[1])[:, None] % 2 == 1
        data = nifti(volume, lambda hu: np.where(odd, value, hu), "<f4")
        (folder / "ct.nii").write_bytes(data)
        return Case(folder / "ct.nii", Volume(np.where(odd, np.int16(AIR), volume.array), volume.affine))

    return make


NIFTI = {
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
    "not an image": [{"name": "ct"}],
    "header": [{"name": "ct.mha"}],
}  # fmt: skip
VALUES = {
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

# NRRD and MetaImage: headers of text, in which _ stands for a blank, and None leaves a field out


def _words(values) -> str:
    return " ".join(f"{value:.9g}" for value in np.ravel(values))


def _vector(values) -> str:
    return f"({_words(values).replace(' ', ',')})"


def _lines(between: str, fields: dict, changed: dict, volume: Volume) -> bytes:
    for name, value in changed.items():
        fields[name.replace("_", " ")] = value(volume) if callable(value) else value
    return "".join(f"{name}{between}{value}\n" for name, value in fields.items() if value is not None).encode()


def _nrrd(voxels="<i2", name="ct.nrrd", pack=bytes, damage=bytes, move=None, apart="", **changed) -> Maker:
    def write(volume):
        fields = {"type": "short", "dimension": 3, "space": "left-posterior-superior", "endian": "little",
                  "encoding": "raw", "sizes": _words(volume.array.shape[::-1]),
                  "space directions": " ".join(_vector(volume.affine[:3, axis]) for axis in (2, 1, 0)),
                  "space origin": _vector(volume.affine[:3, 3]), "data file": apart or None}  # fmt: skip
        header, data = (
            b"NRRD0004\n" + _lines(": ", fields, changed, volume) + b"\n",
            pack(volume.array.astype(voxels).tobytes()),
        )
        return (header, data) if apart else (damage(header + data), b"")

    return image(write, name, move, apart)


def _meta(voxels="<i2", name="ct.mha", pack=bytes, damage=bytes, move=None, apart="", **changed) -> Maker:
    def write(volume):
        data = pack(volume.array.astype(voxels).tobytes())
        fields = {"ObjectType": "Image", "NDims": 3, "BinaryData": "True", "ElementType": "MET_SHORT",
                  "TransformMatrix": _words((volume.affine[:3, 2::-1] / volume.spacing[::-1]).T),
                  "Offset": _words(volume.affine[:3, 3]), "ElementSpacing": _words(volume.spacing[::-1]),
                  "DimSize": _words(volume.array.shape[::-1]), "CompressedDataSize": len(data)}  # fmt: skip
        last = {"ElementDataFile": changed.get("ElementDataFile", apart or "LOCAL")}  # which ends the header
        others = {key: value for key, value in changed.items() if key not in last}
        header = _lines(" = ", fields, others | last, volume)
        return (header, data) if apart else (damage(header + data), b"")

    return image(write, name, move, apart)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    return _half(data) + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


def _gz(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def _zlib(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def one_more(volume: Volume) -> str:
    """The size of a volume, and a slice more."""
    return _words(np.array(volume.array.shape[::-1]) + (0, 0, 1))


NRRD = {
    SAME: [
        {}, {"voxels": ">i2", "endian": "big"}, {"voxels": "<f4", "type": "float"}, {"move": sheared},
        {"name": "ct.nhdr", "apart": "a"}, {"pack": _gz, "encoding": "gzip"},
    ],
    "cannot be read": [{"type": "decimal"}, {"sizes": "0 80 20"}, {"name": "ct.nhdr", "data_file": "a"}],
    "claims": [{"sizes": "1000000 1000000 1000000"}],
    "truncated": [{"sizes": "1000 1000 1000"}, {"sizes": one_more}],
    "sizes": [{"sizes": "many many many"}, {"sizes": None}],
    "header": [{"dimension": 99}],
    "3D": [{"dimension": 4, "type": "uchar", "sizes": "3 9 9 9", "space_directions": "none (1,0,0) (0,1,0) (0,0,1)",
            "kinds": "RGB-color domain domain domain"}],
    "space origin": [{"space_origin": None}, {"space_origin": "(nan,0,0)"}],
    "space directions": [{"space_directions": None}, {"space_directions": "(inf,0,0) (0,1,0) (0,0,1)"}],
    "space units": [{"move": metres, "space_units": '"m" "m" "m"'}],
    "data file": [{"name": "ct.nhdr", "data_file": "%s%n 0 4 1"}],
    "encoding": [{"encoding": "bzip2"}],
}  # fmt: skip
META = {
    SAME: [
        {}, {"voxels": ">i2", "BinaryDataByteOrderMSB": "True"}, {"voxels": "<f4", "ElementType": "MET_FLOAT"},
        {"name": "ct.mhd", "apart": "a"}, {"pack": _zlib, "CompressedData": "True"}, {"move": rotated},
    ],
    "header": [{"NDims": 99}, {"NDims": -3}, {"damage": lambda data: b"NDims = 3\n" + data}],
    "DimSize": [{"DimSize": "7 6"}, {"NDims": 4}],
    "claims": [{"DimSize": "1000000 1000000 1000000"}, {"DimSize": "4294967297 1 1"}, {"DimSize": "0 80 20"}],
    "truncated": [{"DimSize": "1000 1000 1000"}, {"DimSize": one_more}],
    "ElementSpacing": [{"ElementSpacing": None}, {"ElementSpacing": "nan 0.7 2.5"}, {"ElementSpacing": "0,7 0,7 2,5"}],
    "spacing": [{"ElementSpacing": "0 0 0"}, {"move": micrometres}],
    "Offset": [{"Offset": None}, {"Offset": "nan 0 0"}],
    "direction": [{"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, {"TransformMatrix": "2 0 0 0 2 0 0 0 2"}],
    "mm and HU": [{"BinaryData": "False"}, {"ElementToIntensityFunctionSlope": 2}, {"DistanceUnits": "cm"}],
    "3D": [{"ElementNumberOfChannels": 3}],
    "beside it": [{"name": "ct.mhd", "ElementDataFile": "a"}],
    "ElementDataFile": [{"name": "ct.mhd", "ElementDataFile": "%s%n 0 4 1"}],
    "CompressedDataSize": [{"pack": _zlib, "CompressedData": "True", "CompressedDataSize": None}],
    "UTF-8": [{"name": os.fsdecode(b"\xff.mha")}],
}  # fmt: skip
DAMAGE = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:60],
    "cut in half": _half,
    "cut by a byte": lambda data: data[:-1],
}
GZIP = {
    "whole": (_gz, SAME),
    "of two parts": (lambda data: _gz(data[:999]) + _gz(data[999:]), SAME),
    "with 128 MB more": (lambda data: _gz(data + bytes(1 << 27)), SAME),
    "cut in half": (lambda data: _half(_gz(data)), "cut off"),
    "of a half": (lambda data: _gz(_half(data)), "truncated"),
    "with a flipped byte": (lambda data: _flipped(_gz(data)), "cannot be read"),
    "not packed": (bytes, "cannot be read"),
}

# Orientations and points


def _placed(place=None, mm=None, half=HALF, turn=((0, 1, 2), (1, 1, 1))) -> Maker:
    """A maker of a sound file with its axes turned.

    The point is the scan's, or in mm, or at a place (d, h, w) between the volume's rims 0 and 1.
    """

    def make(scan: Scan, folder: Path) -> Case:
        part = scan.around(half)
        (folder / "ct.nii").write_bytes(nifti(turned(part, *turn)))
        point = part.to_lps(np.array(place) * part.array.shape - 0.5) if place else mm
        return Case(folder / "ct.nii", part, point)

    return make


POINTS = {
    SAME: [(1e-4, 0.5, 1 - 1e-4), (0.5, 0.51, 0.52), (1 - 1e-4,) * 3],
    "outside": [(-1e-3, 0.5, 0.5), (0.5, 1.001, 0.5), (0.5, 0.5, -9e5), (1e300, 0, 0)],
}


def kinds() -> list[Kind]:
    """All of them."""
    found = [Kind("NIfTI: smaller than the patch", _placed(half=(3, 20, 20)), SAME)]
    for axes, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        name = " ".join(f"{'-' if sign < 0 else '+'}{'dhw'[axis]}" for axis, sign in zip(axes, signs, strict=True))
        found.append(Kind(f"axes {name}", _placed(turn=(axes, signs)), SAME))
    for what, maker, table in (("NIfTI", _nii, NIFTI), ("NRRD", _nrrd, NRRD), ("MetaImage", _meta, META)):
        found += [Kind(named(what, row), maker(**row), expected) for expected, rows in table.items() for row in rows]
        for name, damage in DAMAGE.items():
            found.append(Kind(f"{what}: {name}", maker(damage=damage), "truncated|cannot be read|header"))
    found += [Kind(f"NIfTI: {name}", _nii(**row), expected) for name, (row, expected) in VALUES.items()]
    found += [Kind(f"NIfTI: {value} in places", _holes(value), SAME) for value in (np.nan, -np.inf)]
    found += [Kind(f"gzip: {name}", _nii("ct.nii.gz", change), expected) for name, (change, expected) in GZIP.items()]
    for damage, expected in ((_half, "cut off"), (_flipped, "cannot be read")):
        packed = _nrrd(pack=lambda data, damage=damage: damage(_gz(data)), encoding="gzip")
        found.append(Kind(f"NRRD: gzip, {damage.__name__}", packed, expected))
        packed = _meta(pack=lambda data, damage=damage: damage(_zlib(data)), CompressedData="True")
        found.append(Kind(f"MetaImage: zlib, {damage.__name__}", packed, expected))
    for expected, places in POINTS.items():
        found += [Kind(f"a point at {place}", _placed(place), expected) for place in places]
    for x in (np.nan, np.inf):
        found.append(Kind(f"a point at {x} mm", _placed(mm=np.array([x, 0, 0])), "outside"))
    return found
