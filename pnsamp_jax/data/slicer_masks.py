"""Overlapping segments as 3D Slicer saves them: a .seg.nrrd of several layers, each of which is a label map.

    Segment0_Name:=nodule    Segment0_Layer:=0    Segment0_LabelValue:=1
    Segment1_Name:=vessel    Segment1_Layer:=1    Segment1_LabelValue:=1

Segments that do not overlap share one layer; such a file is an ordinary label map.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pnsamp_jax.ct.image_files import read_file
from pnsamp_jax.ct.itk_files import header_fields
from pnsamp_jax.ct.volume import Volume, check_geometry
from pnsamp_jax.errors import UserError, list_names


class Segment(NamedTuple):
    """A segment's name, and where it is: the voxels of one layer that have its value."""

    name: str
    layer: int
    value: int


def layered_segments(path: Path) -> list[Segment]:
    """Return the segments of a file that has several layers of them; none of any other file.

    Raises:
      UserError: the header does not say in which layer a segment is.
    """
    if path.suffix.lower() not in (".nrrd", ".nhdr") or not path.is_file():
        return []
    try:
        fields = header_fields(str(path))
    except OSError:  # which reading the file reports
        return []
    layers, kind = (fields.get(name, "").partition(" ")[0] for name in ("sizes", "kinds"))
    if fields.get("dimension") != "4" or kind != "list" or layers == "1" or not layers.isdecimal():
        return []
    return _segments(path, fields, int(layers))


def label_names(path: Path) -> dict[int, str]:
    """Return the names of the segments of 3D Slicer that share one layer, by their labels; none of any other file.

    Raises:
      UserError: the header does not say in which layer a segment is.
    """
    if path.suffix.lower() not in (".nrrd", ".nhdr"):
        return {}
    return {segment.value: segment.name for segment in _segments(path, header_fields(str(path)), 1)}


def numbered(segments: Sequence[Segment]) -> dict[int, Segment]:
    """Return segments by the number that names them: their value, or where two have the same, their place from 1."""
    values = [segment.value for segment in segments]
    numbers = values if len(set(values)) == len(values) else range(1, len(values) + 1)
    return dict(zip(numbers, segments, strict=True))


def _segments(path: Path, fields: dict[str, str], layers: int) -> list[Segment]:
    """Return the segments that the header of a file with so many layers lists."""
    numbers = sorted(int(match[1]) for match in map(re.compile(r"Segment(\d+)_ID").fullmatch, fields) if match)
    found = []
    for number in numbers:
        name, layer, value = (
            fields.get(f"Segment{number}_{field}", f"={default}").lstrip("=").strip()
            # Slicer before 4.11 gave each segment a layer of its own.
            for field, default in (("Name", ""), ("Layer", number if layers > 1 else 0), ("LabelValue", 1))
        )
        if not (layer.isdecimal() and value.isdecimal() and int(layer) < layers):
            raise UserError(
                f"{path}: Segment{number} is in layer '{layer}' of {layers} with value '{value}'; save the "
                "segmentation again"
            )
        found.append(Segment(name.encode("latin-1").decode("utf-8", "replace"), int(layer), int(value)))
    return found


def read_segment(path: Path, segments: Sequence[Segment], label: int | None) -> Volume:
    """Read one of the segments that `layered_segments` returns.

    Args:
      path: the file.
      segments: all of them.
      label: the value of the segment; where two have the same, its place in the list of segments, from 1. None if
        there is only one segment.

    Returns:
      (d, h, w) bool, on the segmentation's own grid.

    Raises:
      UserError: there are several segments and none is named, or the file is damaged.
    """
    named = numbered(segments)
    listed = list_names({number: segment.name for number, segment in named.items()})
    if label is None and len(segments) > 1:
        raise UserError(
            f"{path}: holds {len(segments)} overlapping segments ({listed}); name the nodule's number in a column "
            "mask_label of nodules.csv"
        )
    if label is not None and label not in named:
        raise UserError(f"{path}: holds no segment {label}, as mask_label names it, but {listed}; correct nodules.csv")
    segment = segments[0] if label is None else named[label]
    array, affine = read_file(str(path), segment.layer)
    return check_geometry(path, Volume(np.equal(array, segment.value), affine))
