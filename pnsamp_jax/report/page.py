"""One HTML file that shows findings: a table of the nodules and, for each, a viewer and its ratings.

The file loads nothing: its data stand inside it as JSON, and a nodule's voxels are unpacked when it is opened. Voxels
are HU in steps of `HU_STEP` from `AIR` on, 256 levels, so that the greys of either window of the network are right to
within two of 256. For 20 real nodules of LIDC-IDRI, 64 voxels on a side, that makes some 2.6 MB.
"""

import base64
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np

from pnsamp_jax.ct.volume import AIR
from pnsamp_jax.data import schema
from pnsamp_jax.files import atomic_path, readable
from pnsamp_jax.inference.finding import Finding

TEMPLATE = Path(__file__).with_name("page.html")
HU_STEP = 8  # 256 levels end at 1016 HU, above soft tissue, contrast and most calcifications
SALIENCY_CELLS = 32  # on a side, at most: finer than what a network tells apart

# What the classes of a rating mean, from 1 on, as LIDC-IDRI asked its readers.
CLASS_WORDS = {
    "subtlety": ("extremely subtle", "moderately subtle", "fairly subtle", "moderately obvious", "obvious"),
    "internal_structure": ("soft tissue", "fluid", "fat", "air"),
    "calcification": ("popcorn", "laminated", "solid", "non-central", "central", "absent"),
    "sphericity": ("linear", "ovoid/linear", "ovoid", "ovoid/round", "round"),
    "margin": ("poorly defined", "near poorly defined", "medium", "near sharp", "sharp"),
    "lobulation": ("none", "nearly none", "medium", "near marked", "marked"),
    "spiculation": ("none", "nearly none", "medium", "near marked", "marked"),
    "texture": ("non-solid", "non-solid/mixed", "part solid", "solid/mixed", "solid"),
    "malignancy": (
        "highly unlikely",
        "moderately unlikely",
        "indeterminate",
        "moderately suspicious",
        "highly suspicious",
    ),
}


def write_page(findings: list[Finding], title: str, path: Path) -> None:
    """Writes the page of findings.

    Args:
      findings: in the order of the table's rows; their ids differ.
      title: what was read, in the user's words.
      path: of the HTML file.
    """
    content = {
        "lowest_hu": AIR,
        "step_hu": HU_STEP,
        "ratings": [{"name": rating.name, "words": CLASS_WORDS[rating.name]} for rating in schema.RATINGS],
        "findings": [_describe(finding) for finding in findings],
    }
    fields = {
        "title": html.escape(readable(title)),
        "data": json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda field: fields[field[1]], template)  # in one pass: a title may hold {{data}}
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _describe(finding: Finding) -> dict:
    """One finding as JSON; numbers as predictions.csv has them, null where there is none."""
    truth = np.zeros(len(schema.RATINGS), int) if finding.truth is None else finding.truth
    return {
        "nodule_id": finding.nodule_id,
        "image": readable(finding.image),
        "point_mm": [_number(value) for value in finding.point_mm],
        "spacing_mm": _number(finding.spacing_mm),
        "size": len(finding.hu),
        "diameter_mm": _number(finding.diameter_mm),
        "volume_mm3": _number(finding.volume_mm3),
        "suspicion": _number(finding.suspicion),
        "probabilities": [
            [_number(value) for value in row[: rating.classes]]
            for row, rating in zip(finding.probabilities, schema.RATINGS, strict=True)
        ],
        "arg_max": finding.arg_max.tolist(),
        "within_one": finding.within_one.tolist(),
        "expected": [_number(value) for value in finding.expected],
        "truth": [int(value) or None for value in truth],
        "ensemble_spread": _number(finding.ensemble_spread),
        "flip_spread": _number(finding.flip_spread),
        "contributions": {name: _number(value) for name, value in finding.contributions.items()},
        "hu": _pack(_levels(finding.hu)),
        "mask": _text(np.packbits(finding.mask)),
        "readers_mask": None if finding.readers_mask is None else _text(np.packbits(finding.readers_mask)),
        "saliency": None if finding.saliency is None else _coarse(finding.saliency),
    }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _levels(hu: np.ndarray) -> np.ndarray:
    """HU as uint8 levels, `HU_STEP` apart."""
    return np.clip(np.rint((hu.astype(np.float32) - AIR) / HU_STEP), 0, 255).astype(np.uint8)


def _coarse(saliency: np.ndarray) -> dict:
    """Means over blocks of voxels as uint8: 128 is 0, and 1 and 255 are minus and plus `strongest`."""
    size = len(saliency)
    block = next(width for width in range(-(-size // SALIENCY_CELLS), size + 1) if size % width == 0)
    cells = size // block
    means = saliency.astype(np.float64).reshape(cells, block, cells, block, cells, block).mean(axis=(1, 3, 5))
    strongest = float(np.abs(means).max())
    levels = np.rint(128 + 127 * means / (strongest or 1.0)).astype(np.uint8)
    return {"cells": cells, "strongest": _number(strongest), **_pack(levels)}


def _pack(levels: np.ndarray) -> dict:
    """A cube of uint8, compressed; running sums modulo 256 along its first `summed` axes restore it.

    Differences suit smooth voxels, as of thick slices, and harm noisy ones, so whatever packs best is taken.
    """
    forms = [levels]
    for axis in range(levels.ndim):
        forms.append(np.diff(forms[-1], axis=axis, prepend=np.uint8(0)))
    texts = [_text(form) for form in forms]
    summed = min(range(len(texts)), key=lambda axes: len(texts[axes]))
    return {"summed": summed, "voxels": texts[summed]}


def _text(array: np.ndarray) -> str:
    """The bytes of an array, compressed, in base64."""
    packer = zlib.compressobj(strategy=zlib.Z_RLE)  # noise has no repeats to search for: as small, and in no time
    return base64.b64encode(packer.compress(array.tobytes()) + packer.flush()).decode("ascii")
