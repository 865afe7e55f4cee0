"""What the readers of image files share: the size that a header claims, and voxels as int16 HU."""

import math
import os
import zlib

import numpy as np

from pnsamp_jax.ct.volume import AIR
from pnsamp_jax.errors import UserError

MAX_VOXELS = 2**30  # 1024 x 1024 x 1024; no CT is larger
CHUNK = 1 << 14  # bytes to decompress at once; they expand at most a thousandfold


def to_int16(stored: np.ndarray, slope: float = 1, intercept: float = 0) -> np.ndarray:
    """Scale stored values (d, h, w) to int16, with NaN and values below `AIR` set to `AIR`.

    Each plane is converted on its own, to save memory.
    """
    array = np.empty(stored.shape, np.int16)
    for plane, values in zip(array, stored, strict=True):
        if values.dtype.kind != "i" or values.dtype.itemsize > 2 or (slope, intercept) != (1, 0):
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.nan_to_num(values * np.float64(slope) + intercept, nan=AIR)
            values = np.rint(np.clip(values, AIR, np.iinfo(np.int16).max))
        np.maximum(values, np.int16(AIR), out=plane, casting="unsafe")
    return array


def check_size(path: str, shape: tuple[int, ...], bytes_per_voxel: int, available: int, exact: bool = True) -> None:
    """Check that a header describes one 3D image of a plausible size, which takes all bytes that there are.

    Too many bytes are as wrong as too few: then a slice, a column or a header of the data file's own is not accounted
    for, and what is read is another part of the body.

    Args:
      path: named in the error.
      shape: (w, h, d, ...) voxels.
      bytes_per_voxel: as stored.
      available: bytes of voxels in the file.
      exact: whether there may not be more bytes; False where the header says that others come first.

    Raises:
      UserError: the header does not.
    """
    text = " x ".join(map(str, shape))
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise UserError(f"{path}: has {text} voxels; give one 3D image")
    if not 0 < math.prod(shape) <= MAX_VOXELS:
        raise UserError(f"{path}: the header claims {text} voxels; correct it")
    needed = math.prod(shape) * bytes_per_voxel
    if needed > available:
        raise UserError(f"{path}: truncated, has fewer voxels than the {text} of its header; copy the file again")
    if exact and needed < available:
        raise UserError(
            f"{path}: holds {available - needed} bytes more than the {text} voxels of its header, so that either is "
            "wrong; export the image again"
        )


def stored_bytes(path: str, start: int, compressed: bool) -> int:
    """Return the number of bytes in a file from `start` on, after decompression of zlib or gzip.

    Decompression verifies the checksums, which ITK does not do.
    """
    with open(path, "rb") as file:
        file.seek(start)
        if not compressed:
            return os.path.getsize(path) - start
        size, inflate = 0, zlib.decompressobj(47)  # 47: detect zlib or gzip
        while data := file.read(CHUNK):
            size += len(inflate.decompress(data))
            while inflate.unused_data:  # the next of several concatenated gzip files
                rest, inflate = inflate.unused_data, zlib.decompressobj(47)
                size += len(inflate.decompress(rest))
    if not inflate.eof:
        raise EOFError("the compressed voxels are cut off")
    return size
