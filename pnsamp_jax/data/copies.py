"""Nodules that were listed twice under two names, which would be in the training and the test subset of a fold."""

import hashlib
from typing import Any

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError


def require_no_copies(records: dict[str, Any]) -> None:
    """Raise UserError if two patients have the same voxels, or a patient has the same nodule twice.

    The middle plane of each patch tells which may be the same, and only those are compared as a whole. Planes of a
    single value, as of an image of nothing, tell nothing.

    Args:
      records: stacked records, in memory or as `on_disk.open_records` returns them.
    """
    seen: dict[bytes, list[int]] = {}
    for index, plane in enumerate(_middle_planes(records[schema.IMAGE])):
        if np.ptp(plane) == 0:
            continue
        alike = seen.setdefault(hashlib.sha256(plane).digest(), [])
        for other in alike:
            _require_two(records, other, index)
        alike.append(index)


def _middle_planes(images: Any) -> Any:
    """Return the middle planes (h, w) of images (n, d, h, w), one after the other."""
    middle = images.shape[1] // 2
    return images[:, middle] if isinstance(images, np.ndarray) else images.planes(middle)


def _require_two(records: dict[str, Any], first: int, second: int) -> None:
    """Raise UserError if the records at two indices are of one nodule, or of one image under two patients."""
    pair = np.array([first, second])
    one, other = (
        f"'{records[schema.NODULE_ID][index]}' (patient '{records[schema.PATIENT_ID][index]}')" for index in pair
    )
    if len(np.unique(records[schema.IMAGE][pair], axis=0)) > 1:
        return
    if len(set(records[schema.PATIENT_ID][pair])) > 1:
        raise UserError(
            f"{one} and {other} have the same voxels, as if an image was copied under another name; correct "
            "patient_id or give the second patient's own image"
        )
    if len(np.unique(records[schema.MASK][pair], axis=0)) == 1:
        raise UserError(f"{one} and {other} have the same voxels and the same mask, so they are one nodule; keep one")
