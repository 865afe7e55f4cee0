"""What the odd image files share: voxels around the point, and damage to bytes."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.trials.odd_kinds import Case, Maker, Scan, scaled
from pnsamp_jax.ct.volume import Volume

HALF = (12, 40, 40)  # voxels on either side of the point that are written; the whole scan would only take longer
metres, micrometres = scaled(1e-3, 1e-3, 1e-3), scaled(1e3, 1e3, 1e3)


def image(
    write: Callable[[Volume], tuple[bytes, bytes]],
    name: str,
    move: Callable[[np.ndarray], np.ndarray] | None = None,
    apart: str = "",
) -> Maker:
    """Return a maker of an image file.

    Args:
      write: returns the header and the voxels.
      name: of the file.
      move: change of the affine.
      apart: name of a second file for the voxels.
    """

    def make(scan: Scan, folder: Path) -> Case:
        part = scan.around(HALF)
        volume = Volume(part.array, move(part.affine)) if move else part
        header, voxels = write(volume)
        (folder / name).write_bytes(header if apart else header + voxels)
        if apart:
            (folder / apart).write_bytes(voxels)
        return Case(folder / name, volume, volume.to_lps(part.to_index(scan.point)))

    return make


def half(data: bytes) -> bytes:
    """Return the first half."""
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """Change the byte in the middle."""
    return half(data) + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


def gz(data: bytes) -> bytes:
    """Compress as gzip does."""
    return gzip.compress(data, 1)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:60],
    "cut in half": half,
    "cut by a byte": lambda data: data[:-1],
}
