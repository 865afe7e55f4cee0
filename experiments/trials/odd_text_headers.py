"""Odd CTs as NRRD and MetaImage files, whose headers are text.

In the names of fields _ stands for a blank; a field of None is left out.
"""

import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from experiments.trials.odd_images import DAMAGE, flipped, gz, half, image, metres, micrometres
from experiments.trials.odd_kinds import SAME, Expected, Kind, Maker, named, rotated, sheared
from pnsamp_jax.ct.volume import Volume


def _words(values: ArrayLike) -> str:
    return " ".join(f"{value:.9g}" for value in np.ravel(values))


def _vector(values: ArrayLike) -> str:
    return f"({_words(values).replace(' ', ',')})"


def _lines(between: str, fields: dict, changed: dict, volume: Volume) -> bytes:
    for name, value in changed.items():
        fields[name.replace("_", " ")] = value(volume) if callable(value) else value
    return "".join(f"{name}{between}{value}\n" for name, value in fields.items() if value is not None).encode()


def _nrrd(
    voxels: DTypeLike = "<i2",
    name: str = "ct.nrrd",
    pack: Callable[[bytes], bytes] = bytes,
    damage: Callable[[bytes], bytes] = bytes,
    move: Callable[[np.ndarray], np.ndarray] | None = None,
    apart: str = "",
    **changed: Any,
) -> Maker:
    def write(volume: Volume) -> tuple[bytes, bytes]:
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


def _meta(
    voxels: DTypeLike = "<i2",
    name: str = "ct.mha",
    pack: Callable[[bytes], bytes] = bytes,
    damage: Callable[[bytes], bytes] = bytes,
    move: Callable[[np.ndarray], np.ndarray] | None = None,
    apart: str = "",
    **changed: Any,
) -> Maker:
    def write(volume: Volume) -> tuple[bytes, bytes]:
        data = pack(volume.array.astype(voxels).tobytes())
        fields = {"ObjectType": "Image", "NDims": 3, "BinaryData": "True", "ElementType": "MET_SHORT",
                  "TransformMatrix": _words((volume.affine[:3, 2::-1] / volume.spacing[::-1]).T),
                  "Offset": _words(volume.affine[:3, 3]), "ElementSpacing": _words(volume.spacing[::-1]),
                  "DimSize": _words(volume.array.shape[::-1]), "CompressedDataSize": len(data)}  # fmt: skip
        last = {"ElementDataFile": changed.get("ElementDataFile", apart or "LOCAL")}  # this field ends the header
        first = {key: value for key, value in changed.items() if key not in last}
        header = _lines(" = ", fields, first | last, volume)
        return (header, data) if apart else (damage(header + data), b"")

    return image(write, name, move, apart)


def _zlib(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def one_more(volume: Volume) -> str:
    """Return the size of a volume with one slice more, as text."""
    return _words(np.array(volume.array.shape[::-1]) + (0, 0, 1))


NRRD: dict[Expected, list[dict[str, Any]]] = {
    SAME: [
        {}, {"voxels": ">i2", "endian": "big"}, {"voxels": "<f4", "type": "float"}, {"move": sheared},
        {"name": "ct.nhdr", "apart": "a"}, {"pack": gz, "encoding": "gzip"},
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
META: dict[Expected, list[dict[str, Any]]] = {
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
    "in the same folder": [{"name": "ct.mhd", "ElementDataFile": "a"}],
    "ElementDataFile": [{"name": "ct.mhd", "ElementDataFile": "%s%n 0 4 1"}],
    "CompressedDataSize": [{"pack": _zlib, "CompressedData": "True", "CompressedDataSize": None}],
    "UTF-8": [{"name": os.fsdecode(b"\xff.mha")}],
}  # fmt: skip


def kinds() -> list[Kind]:
    """Return all kinds."""
    result = []
    for name, maker, table in (("NRRD", _nrrd, NRRD), ("MetaImage", _meta, META)):
        for expected, rows in table.items():
            result += [Kind(named(name, row), maker(**row), expected) for row in rows]
        for damage_name, damage in DAMAGE.items():
            result.append(Kind(f"{name}: {damage_name}", maker(damage=damage), "truncated|cannot be read|header"))
    damages: dict[Callable[[bytes], bytes], str] = {half: "cut off", flipped: "cannot be read"}
    for damage, complaint in damages.items():

        def damaged_gz(data: bytes, damage: Callable[[bytes], bytes] = damage) -> bytes:
            return damage(gz(data))

        def damaged_zlib(data: bytes, damage: Callable[[bytes], bytes] = damage) -> bytes:
            return damage(_zlib(data))

        result.append(Kind(f"NRRD: gzip, {damage.__name__}", _nrrd(pack=damaged_gz, encoding="gzip"), complaint))
        packed = _meta(pack=damaged_zlib, CompressedData="True")
        result.append(Kind(f"MetaImage: zlib, {damage.__name__}", packed, complaint))
    return result
