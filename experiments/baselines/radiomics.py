"""The classical baseline: shape and HU features of a nodule, and a random forest for each rating.

    pip install -e ".[experiments]"
    python -m experiments.baselines.radiomics --config radiomics --workdir runs/radiomics \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The features are those of the *readers' own* mask (50 % consensus), which the network does not receive: an advantage of
the forest. With `--mask_run` they are those of the masks that a trained PN-SAMP predicts, so that both have the same
input.
"""

from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage, stats
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from experiments.baselines import second_stage
from experiments.baselines.subsets import Subset, for_each_nodule

SHELL_MM = 3.0  # thickness of the surroundings that are measured
RIM_MM = 1.5  # thickness of the nodule's edge, at least one voxel
PERCENTILES = (5, 25, 50, 75, 95)


def shape_features(mask: np.ndarray, spacing_mm: float) -> list[float]:
    """Return 12 features: volume, diameters, axes and their ratios, surface, sphericity, solidity and extents."""
    points = np.argwhere(mask) * spacing_mm
    volume = len(points) * spacing_mm**3
    faces = sum(np.abs(np.diff(np.pad(mask, 1).astype(np.int8), axis=axis)).sum() for axis in range(3))
    surface = faces * spacing_mm**2 * 2 / 3  # on average over directions, a voxel surface is 3/2 of the smooth one
    spread = np.cov(points.T) if len(points) > 1 else np.zeros((3, 3))
    axes = 4 * np.sqrt(np.maximum(np.linalg.eigvalsh(spread)[::-1], 0)) + spacing_mm
    try:
        hull = ConvexHull(points)
        solidity, diameter = volume / max(hull.volume, volume), pdist(points[hull.vertices]).max()
    except (QhullError, ValueError):  # too few voxels, or all in one plane
        solidity, diameter = 1.0, float(np.ptp(points, axis=0).max())
    ball_surface = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3)
    extents = np.sort(np.ptp(points, axis=0) + spacing_mm)
    return [
        volume,
        np.cbrt(6 * volume / np.pi),
        diameter + spacing_mm,
        *axes,
        axes[1] / axes[0],
        axes[2] / axes[0],
        surface,
        ball_surface / surface,
        solidity,
        extents.prod() / volume,
    ]


def intensity_features(hu: np.ndarray, mask: np.ndarray, spacing_mm: float) -> list[float]:
    """Return 16 features: HU inside the nodule, in its rim and around it, and the gradient at its edge."""
    inside = hu[mask]
    distance = ndimage.distance_transform_edt(~mask) * spacing_mm
    shell = hu[(distance > 0) & (distance <= max(SHELL_MM, spacing_mm))]
    rim = hu[mask & (ndimage.distance_transform_edt(mask) * spacing_mm <= max(RIM_MM, spacing_mm))]
    gradient = np.sqrt(sum(ndimage.sobel(hu, axis=axis) ** 2 for axis in range(3))) / (32 * spacing_mm)
    edge = gradient[mask ^ ndimage.binary_dilation(mask)]
    varied = inside.std() > 0
    return [
        inside.mean(),
        inside.std(),
        inside.max(),
        *np.percentile(inside, PERCENTILES),
        float(stats.skew(inside)) if varied else 0.0,
        float(stats.kurtosis(inside)) if varied else 0.0,
        (inside > 200).mean(),
        (inside < -400).mean(),
        rim.mean(),
        shell.mean(),
        shell.std(),
        edge.mean(),
    ]


def features(image: np.ndarray, mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return all features: (S, S, S) HU and bool -> (28,) float64. An empty mask counts as the central voxel."""
    if not mask.any():
        mask = np.zeros_like(mask)
        mask[tuple(side // 2 for side in mask.shape)] = True
    hu = image.astype(np.float64)
    return np.array(shape_features(mask, spacing_mm) + intensity_features(hu, mask, spacing_mm))


def run(config: ConfigDict, workdir: Path, mask_run: Path | None = None) -> dict:
    """Cross-validate the forest on the config's nodules, and return the content of results.json."""
    measure = for_each_nodule(partial(features, spacing_mm=config.spacing_mm))

    def predict(train: Subset, test: Subset, seed: int) -> np.ndarray:
        return second_stage.forest_ratings(measure(train), train.labels, measure(test), seed)

    return second_stage.cross_validate(config, workdir, predict, {"name": "radiomics_forest"}, mask_run=mask_run)


if __name__ == "__main__":
    second_stage.launch_method(run, "mask_run")
