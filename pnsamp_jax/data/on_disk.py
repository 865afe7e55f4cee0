"""Prepared records whose voxels stay on disk: each nodule's are read when they are asked for.

The file of a prepared series (see `series_files`) is an uncompressed .npz, so the voxels of a nodule are consecutive
bytes of it. Memory holds their places and the small fields of all nodules, about a kilobyte a nodule.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.data.series_files import Member, iter_series, join_records, read_field
from pnsamp_jax.errors import UserError

VOXELS = (schema.IMAGE, schema.MASK)
PLACE = np.dtype([("file", np.int64), ("offset", np.int64)])  # the index of a file, and a byte in it
Layout = tuple[tuple[int, ...], np.dtype]  # the shape and the type of an array
LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a zip archive: the lengths of its name and of its extra field


@dataclass(frozen=True, eq=False)
class ArraysOnDisk:
    """N arrays of one shape and type in files; indexing with (n,) integers reads n of them.

    Attributes:
      paths: of the files.
      places: (N,) of type `PLACE`, where each array begins.
      shape: (N, ...), as of a NumPy array.
      dtype: of the values.
    """

    paths: list[Path]
    places: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Read the arrays at the given indices: (n,) int -> (n, ...).

        Raises:
          UserError: a file is gone, or shorter than it was when it was opened.
        """
        arrays = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for array, place in zip(arrays, self.places[indices], strict=True):
            array[...] = self._read(place, 0, array.size).reshape(array.shape)
        return arrays

    def planes(self, index: int) -> Iterator[np.ndarray]:
        """Yield one plane of each array, at an index of its first axis, without reading the others.

        Raises:
          UserError: as `__getitem__`.
        """
        size = int(np.prod(self.shape[2:]))
        for place in self.places:
            yield self._read(place, index * size, size).reshape(self.shape[2:])

    def _read(self, place: np.ndarray, first: int, count: int) -> np.ndarray:
        """Return so many consecutive values of an array from the first one on."""
        file, offset = place.tolist()
        try:
            values = np.fromfile(self.paths[file], self.dtype, count, offset=offset + first * self.dtype.itemsize)
            return values.reshape(count)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.paths[file]}: changed while in use ({reason}); run again") from error


def open_records(files: Iterable[Path], member: Member | None = None) -> dict[str, Any]:
    """Return the records of `read_records` with the voxels as `ArraysOnDisk`.

    Args:
      files: of the series, see `prepare.Prepared`.
      member: selects the nodules, see `iter_series`.

    Raises:
      UserError: a file is damaged, a nodule id appears twice, or no nodule is selected. Damaged voxels are not
        noticed, since a file has one checksum for those of all its nodules.
    """
    paths = list(files)
    layouts: dict[str, Layout] = {}

    def read(number: int, file: BinaryIO, series: np.lib.npyio.NpzFile, name: str, chosen: np.ndarray) -> np.ndarray:
        if name not in VOXELS:
            return read_field(file, series, name, chosen)
        first, layout = _locate(file, series, name)
        if layouts.setdefault(name, layout) != layout:
            raise ValueError(f"{name} {layout}, and {layouts[name]} in {paths[0]}")
        shape, dtype = layout
        places = np.empty(len(chosen), PLACE)
        places["file"], places["offset"] = number, first + chosen * dtype.itemsize * int(np.prod(shape))
        return places

    parts = [
        records for number, path in enumerate(paths) for records in iter_series([path], member, partial(read, number))
    ]
    records: dict[str, Any] = join_records(parts)
    for name, (shape, dtype) in layouts.items():
        records[name] = ArraysOnDisk(paths, records[name], (len(records[name]), *shape), dtype)
    return records


def _locate(file: BinaryIO, series: np.lib.npyio.NpzFile, name: str) -> tuple[int, Layout]:
    """Return the byte at which the values of a stacked array begin, and the layout of one of those stacked."""
    assert series.zip is not None  # it is open
    file.seek(series.zip.getinfo(f"{name}.npy").header_offset)
    header = file.read(LOCAL_HEADER.size)
    file.seek(sum(LOCAL_HEADER.unpack(header)), 1)
    np.lib.format.read_magic(file)
    (_, *shape), fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError(f"{name} is stored in another order")
    return file.tell(), (tuple(shape), dtype)
