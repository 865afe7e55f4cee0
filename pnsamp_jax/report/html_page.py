"""The HTML report: one file with a table of the nodules and, for each nodule, a viewer and the ratings.

The file loads nothing from elsewhere: it contains its data as JSON, and a nodule's voxels are unpacked when the nodule
is opened. Voxels are stored as HU in 256 steps of `HU_STEP`, starting from `AIR`, so that grey values in either window
of the network are exact to within 2 of 256. A report of 20 nodules of LIDC-IDRI with patches of 64^3 voxels has about
2.6 MB.
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.volume import AIR
from pnsamp_jax.data import schema
from pnsamp_jax.files import readable, write_text
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.locator import Locator

TEMPLATE = Path(__file__).with_name("html_page.html")
HU_STEP = 8  # 256 levels end at 1016 HU, above soft tissue, contrast and most calcifications
HEADER = ("checkpoint", "version", "networks", "flips", "date")
LOGIT_DIGITS = 4  # after the point
SALIENCY_CELLS = 32  # along each side, at most: a network's saliency has no finer detail


def write_page(
    findings: list[Finding],
    title: str,
    path: Path,
    failures: list[tuple[str, str, str]] | None = None,
    warning: str = "",
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write the HTML report of findings. The same arguments always give the same bytes.

    Args:
      findings: in the order of the table's rows, with unique ids.
      title: heading of the page; any text.
      path: of the HTML file.
      failures: nodules that are not predicted: id, image and reason.
      warning: shown above the nodules; "" for none.
      header: of `inference.ensemble.described`, which networks predicted and when; None where it is not known.
    """
    class_terms: list[np.ndarray] = []  # those of the same networks are kept once
    content = {
        "lowest_hu": AIR,
        "step_hu": HU_STEP,
        "ratings": [
            {"name": rating.name, "words": rating.words, "nominal": rating.nominal} for rating in schema.RATINGS
        ],
        "findings": [_describe(finding) | _what_if(finding, class_terms) for finding in findings],
        "class_terms": [_by_class(terms) for terms in class_terms],
        "failures": [[readable(text) for text in failure] for failure in failures or []],
        "warning": warning,
        "header": None if header is None else {name: header[name] for name in HEADER},
    }
    fields = {
        "title": html.escape(readable(title)),
        "data": json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    # All fields are filled in one pass, as a title may contain {{data}}.
    text = re.sub(r"\{\{(\w+)\}\}", lambda field: fields[field[1]], template)
    write_text(path, text)


def _describe(finding: Finding) -> dict:
    """Return a finding as JSON, its numbers rounded as in predictions.csv, null where a value is missing.

    Where nothing is segmented, the predicted values are left out.
    """
    truth = np.zeros(len(schema.RATINGS), int) if finding.truth is None else finding.truth
    described = {
        "nodule_id": finding.nodule_id,
        "image": readable(finding.image),
        "point_mm": [_number(value) for value in finding.point_mm],
        "centre_mm": [_number(value) for value in finding.patch_centre_mm],
        "spacing_mm": _number(finding.spacing_mm),
        "size": len(finding.hu),
        "status": finding.status,
        "note": finding.note,
        "truth": [int(value) or None for value in truth],
        "hu": _pack(_levels(finding.hu)),
        "mask": _text(np.packbits(finding.mask)),
        "readers_mask": None if finding.readers_mask is None else _text(np.packbits(finding.readers_mask)),
        "saliency": None if finding.saliency is None else _coarse(finding.saliency),
        "locator": None if finding.locator is None else _place(finding.locator),
    }
    return described | (_measurements(finding) if finding.segmented else {})


def _measurements(finding: Finding) -> dict:
    """Return the fields of a finding's mask and ratings."""
    axes = finding.diameters
    return {
        "diameter_mm": _number(axes.long_mm),
        "short_diameter_mm": _number(axes.short_mm),
        "mean_diameter_mm": _number(axes.mean_mm),
        "lung_rads_mm": axes.lung_rads_mm,
        "fleischner_mm": axes.fleischner_mm,
        "truncated": finding.truncated,
        "diameter_range_mm": _bounds(finding.diameter_range_mm),
        "volume_mm3": _number(finding.volume_mm3),
        "volume_range_mm3": _bounds(finding.volume_range_mm3),
        "malignancy_set": list(finding.malignancy_set),
        "malignant_probability": _number(finding.malignant_probability),
        "nodule_like": None if finding.nodule_like is None else _number(finding.nodule_like),
        "probabilities": [
            [_number(value) for value in row[: rating.classes]]
            for row, rating in zip(finding.probabilities, schema.RATINGS, strict=True)
        ],
        "arg_max": finding.arg_max.tolist(),
        "within_one": [int(value) or None for value in finding.within_one],  # a nominal rating has none
        "expected": [_number(value) for value in finding.expected],
        "ensemble_spread": _number(finding.ensemble_spread),
        "flip_spread": _number(finding.flip_spread),
        "contributions": {name: _number(value) for name, value in finding.contributions.items()},
        "average_malignancy": None if finding.average_malignancy is None else _number(finding.average_malignancy),
    }


def _bounds(interval: tuple[float, float] | None) -> list[float | None] | None:
    """Return an interval as JSON; None if it is not known or has no end."""
    return None if interval is None or not np.isfinite(interval).all() else [_number(end) for end in interval]


def _what_if(finding: Finding, class_terms: list[np.ndarray]) -> dict:
    """Return the numbers with which the page moves ratings, without those of `class_terms` that they point at."""
    what_if = finding.what_if
    if what_if is None or not finding.segmented:
        return {"what_if": None}
    known = [i for i, terms in enumerate(class_terms) if np.array_equal(terms, what_if.class_terms, equal_nan=True)]
    if not known:
        class_terms.append(what_if.class_terms)
    return {
        "what_if": {
            "logits": np.round(what_if.logits.astype(np.float64), LOGIT_DIGITS).tolist(),
            "own": [_number(value) for value in what_if.own],
            "class_terms": known[0] if known else len(class_terms) - 1,
        }
    }


def _by_class(class_terms: np.ndarray) -> list:
    """Return mean terms (M, 8, 6, 5) as nested lists, None in place of the five numbers of an unknown class."""
    rounded = np.round(class_terms.astype(np.float64), LOGIT_DIGITS)
    return [
        [[term.tolist() if np.isfinite(term).all() else None for term in terms] for terms in network]
        for network in rounded
    ]


def _number(value: float) -> float | None:
    """Round to 6 digits; return None for NaN and infinity, which JSON lacks."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _levels(hu: np.ndarray) -> np.ndarray:
    """Convert HU to uint8 levels that are `HU_STEP` apart."""
    return np.clip(np.rint((hu.astype(np.float32) - AIR) / HU_STEP), 0, 255).astype(np.uint8)


def _coarse(saliency: np.ndarray) -> dict:
    """Pack the means over blocks of voxels as uint8: 128 is 0, 1 is minus and 255 is plus the `strongest`."""
    size = len(saliency)
    block = next(width for width in range(-(-size // SALIENCY_CELLS), size + 1) if size % width == 0)
    cells = size // block
    means = saliency.astype(np.float64).reshape(cells, block, cells, block, cells, block).mean(axis=(1, 3, 5))
    strongest = float(np.abs(means).max())
    levels = np.rint(128 + 127 * means / (strongest or 1.0)).astype(np.uint8)
    return {"cells": cells, "strongest": _number(strongest), **_pack(levels)}


def _place(locator: Locator) -> dict:
    """Return a locator as JSON."""
    corner_mm = [_number(value) for value in locator.corner_mm]
    return {
        "shape": locator.grey.shape,
        "corner_mm": corner_mm,
        "pixel_mm": _number(locator.pixel_mm),
        **_pack(locator.grey),
    }


def _pack(levels: np.ndarray) -> dict:
    """Compress an array of uint8. To restore it, take running sums modulo 256 along the first `summed` axes.

    Differences along an axis make smooth voxels smaller, such as those of thick slices, but noisy voxels larger.
    Therefore every number of axes is tried, and the smallest result is kept.
    """
    differences = [levels]
    for axis in range(levels.ndim):
        differences.append(np.diff(differences[-1], axis=axis, prepend=np.uint8(0)))
    texts = [_text(array) for array in differences]
    summed = min(range(len(texts)), key=lambda axes: len(texts[axes]))
    return {"summed": summed, "voxels": texts[summed]}


def _text(array: np.ndarray) -> str:
    """Return the compressed bytes of an array in base64."""
    packer = zlib.compressobj(strategy=zlib.Z_RLE)  # fast: noise has no longer repeats to search for
    return base64.b64encode(packer.compress(array.tobytes()) + packer.flush()).decode("ascii")
