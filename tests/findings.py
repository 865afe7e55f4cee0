"""Synthetic findings for tests: a ball in smooth noise."""

from typing import Any

import numpy as np
from scipy import ndimage

from pnsamp_jax.data import schema
from pnsamp_jax.inference.diameters import Diameters
from pnsamp_jax.inference.finding import Finding


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
