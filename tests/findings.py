"""Synthetic findings for tests: a ball in smooth noise."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from pnsamp_jax.data import schema
from pnsamp_jax.inference.diameters import Diameters
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.what_if import WhatIf


def make_finding(nodule_id="nodule_1", seed=0, size=64, known=True, **changes):
    """Return a finding of a ball with a radius of 4 to 12 mm, with the readers' outline and ratings if `known`."""
    random = np.random.default_rng(seed)
    spacing_mm = 0.6 * 64 / size
    distance_mm = spacing_mm * np.linalg.norm(np.indices((size,) * 3) - (size - 1) / 2, axis=0)
    radius_mm = random.uniform(4, 12)
    noise = ndimage.gaussian_filter(random.normal(0, 150, (size,) * 3), 1)
    hu = np.where(distance_mm < radius_mm, 30, -800) + noise
    probabilities = random.dirichlet(np.full(schema.MAX_CLASSES, 0.7), len(schema.RATINGS)) * schema.CLASS_EXISTS
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    mask = distance_mm < 0.9 * radius_mm
    fields: dict[str, Any] = {
        "nodule_id": nodule_id,
        "image": "scans/case.nii.gz",
        "point_mm": np.array([-61.25, 40.5, -120.75]),
        "spacing_mm": spacing_mm,
        "hu": hu.astype(np.int16),
        "mask": mask,
        "probabilities": probabilities,
        "ensemble_spread": 0.21,
        "flip_spread": 0.08,
        "contributions": {name: random.normal(0, 0.3) for name in [*schema.RATING_NAMES[:-1], "image"]},
        "saliency": (ndimage.gaussian_filter(random.normal(size=(size,) * 3), 4) * mask).astype(np.float32),
        "volume_mm3": mask.sum() * spacing_mm**3,
        "diameters": Diameters(1.8 * radius_mm, 1.6 * radius_mm),
        "readers_mask": distance_mm < radius_mm if known else None,
        "truth": random.integers(1, 5, len(schema.RATINGS)) if known else None,
    }
    return Finding(**fields | changes)


def make_additive(nodule_id="nodule_1", seed=0, **changes):
    """Return a finding of two networks whose malignancy is a sum over the attributes, so that its ratings move.

    No nodule of spiculation 5 is known, nor any with another internal structure than this one's.
    """
    random = np.random.default_rng(seed)
    logits, class_terms = random.normal(0, 1.5, (2, 4, 5)), random.normal(size=(2, 8, 6, 5))
    for attribute, rating in enumerate(schema.RATINGS[:-1]):
        class_terms[:, attribute, rating.classes :] = np.nan
    class_terms[:, schema.RATING_NAMES.index("spiculation"), 4] = np.nan
    finding = make_finding(nodule_id, seed, **changes)
    probabilities = finding.probabilities.copy()
    odds = np.exp(logits)
    probabilities[schema.MALIGNANCY, :5] = (odds / odds.sum(axis=-1, keepdims=True)).mean(axis=(0, 1))
    expected = probabilities @ np.arange(1, schema.MAX_CLASSES + 1)
    own = np.where(schema.NOMINAL, probabilities.argmax(axis=1) + 1, expected)[:-1]
    structure = schema.RATING_NAMES.index("internal_structure")
    others = np.arange(1, schema.MAX_CLASSES + 1) != own[structure]
    class_terms[:, structure, others] = np.nan
    contributions = random.normal(0, 0.3, 8)
    return replace(
        finding,
        probabilities=probabilities,
        contributions={**dict(zip(schema.RATING_NAMES, contributions, strict=False)), "image": 0.0},
        average_malignancy=float(expected[schema.MALIGNANCY] - contributions.sum()),
        what_if=WhatIf(logits, class_terms, own),
    )
