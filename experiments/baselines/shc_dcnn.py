"""SHC-DCNN's second stage: random forests on spherical harmonics of the surface and on a network's features.

Buty et al., "Characterization of lung nodule malignancy using hybrid shape and appearance features", MICCAI 2016.

    pip install -e ".[experiments]"
    python -m experiments.baselines.shc_dcnn --config shc_dcnn --workdir runs/shc_dcnn \\
        --config.data.source=folder --config.data.root=/path/to/nodules [--mask_run=runs/m]

From the paper: spherical harmonic coefficients of the segmented surface for the shape, features of a network for the
appearance (three orthogonal planes, `pnsamp_jax/models/shc_dcnn.py`), both in one vector, and a random forest.
Chosen here: the paper maps the surface onto the sphere by a conformal map; here the harmonics are those of the radius
r(theta, phi) about the centroid, which treats a nodule as star-shaped (in a direction with several crossings the last
one counts). Also chosen: real harmonics up to degree 6, in mm; the norm of each degree in addition to them
(coefficients change as the nodule turns, norms do not); and a forest for each of the nine ratings.

The mask is the readers' 50 % consensus, as in the paper, or with `--mask_run` a predicted one. A mask of fewer than 8
voxels has no meaningful surface. All its shape features are 0, in training and in the test, so that the forests rate
such a nodule by its appearance, and by the fact that it is so small.
"""

from functools import cache, partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage
from scipy.special import sph_harm_y

from experiments.baselines import second_stage
from experiments.baselines.subsets import Subset, for_each_nodule

DEGREE = 6
DIRECTIONS = 500
SMALLEST = 8  # voxels
BLUR = 0.7  # standard deviation in voxels: rounds off the voxels' corners
STEP = 0.25  # voxels along a ray
PAD = 4  # voxels around the mask, over 5 times BLUR, so that the blurred surface closes


@cache
def fibonacci_directions(count: int) -> np.ndarray:
    """Return unit vectors spread evenly over the sphere, on a Fibonacci lattice: (count, 3)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    phi = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - z**2)
    return np.stack([z, ring * np.sin(phi), ring * np.cos(phi)], axis=-1)


def harmonics(directions: np.ndarray, degree: int) -> np.ndarray:
    """Compute real orthonormal spherical harmonics: (n, 3) unit vectors, polar axis first -> (n, (degree + 1)^2).

    The harmonic of degree n and order m lies in column n^2 + n + m.
    """
    theta, phi = (
        np.arccos(np.clip(directions[:, 0], -1, 1)),
        np.arctan2(directions[:, 1], directions[:, 2]) % (2 * np.pi),
    )
    columns = []
    for n in range(degree + 1):
        for m in range(-n, n + 1):
            y = sph_harm_y(n, abs(m), theta, phi)
            part = y.imag if m < 0 else y.real
            columns.append(part * (1 if m == 0 else np.sqrt(2) * (-1) ** m))
    return np.stack(columns, axis=-1)


@cache
def _least_squares() -> np.ndarray:
    """Return the matrix that turns radii into coefficients: ((DEGREE + 1)^2, DIRECTIONS)."""
    return np.linalg.pinv(harmonics(fibonacci_directions(DIRECTIONS), DEGREE))


def coefficients(radii: np.ndarray) -> np.ndarray:
    """Fit coefficients to radii in the `fibonacci_directions` by least squares: (DIRECTIONS,) -> ((DEGREE + 1)^2,)."""
    return _least_squares() @ radii


def energies(values: np.ndarray) -> np.ndarray:
    """Return the norm of the coefficients of each degree, which no rotation changes: ((N + 1)^2,) -> (N + 1,)."""
    degrees = int(np.sqrt(len(values)))
    return np.array([np.linalg.norm(values[n**2 : (n + 1) ** 2]) for n in range(degrees)])


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest component that is connected by faces: (S, S, S) bool -> bool."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the background
    return mask & (components == np.argmax(sizes))


def radii(solid: np.ndarray) -> np.ndarray:
    """Measure the radius of a solid's surface about its centroid, in voxels.

    The surface is where the slightly blurred solid falls to half of its maximum, which is below 1 for a thin solid. A
    ray that does not meet the surface has radius 0.

    Args:
      solid: (S, S, S) bool, not empty.

    Returns:
      (DIRECTIONS,) in the order of `fibonacci_directions`.
    """
    (box,) = ndimage.find_objects(solid.astype(np.uint8))
    solid = np.pad(solid[box].astype(float), PAD)
    level = ndimage.gaussian_filter(solid, BLUR, mode="constant")
    level /= level.max()
    centre = np.argwhere(solid).mean(axis=0)
    along = np.arange(0, np.linalg.norm(solid.shape), STEP)
    points = centre[:, None, None] + fibonacci_directions(DIRECTIONS).T[:, :, None] * along
    values = ndimage.map_coordinates(level, points, order=1, mode="constant")
    inside = values >= 0.5
    last = len(along) - 1 - np.argmax(inside[:, ::-1], axis=1)
    rows = np.arange(DIRECTIONS)
    inner, outer = values[rows, last], values[rows, np.minimum(last + 1, len(along) - 1)]
    crossing = along[last] + STEP * (inner - 0.5) / np.maximum(inner - outer, 1e-9)
    return np.where(inside.any(axis=1), crossing, 0.0)


def shape_features(image: np.ndarray, mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return coefficients and energies in mm: (S, S, S) bool -> (56,), 0 if the mask is too small."""
    del image  # only the network uses it
    solid = largest_component(mask)
    if solid.sum() < SMALLEST:
        return np.zeros((DEGREE + 1) ** 2 + DEGREE + 1)
    values = coefficients(radii(solid) * spacing_mm)
    return np.concatenate([values, energies(values)])


def run(config: ConfigDict, workdir: Path, mask_run: Path | None = None, network_workdir: Path | None = None) -> dict:
    """Cross-validate SHC-DCNN on the config's nodules, and return the content of results.json."""
    measure = for_each_nodule(partial(shape_features, spacing_mm=config.spacing_mm))

    def predict(train: Subset, test: Subset, seed: int) -> np.ndarray:
        train_x, test_x = (np.concatenate([subset.features, measure(subset)], axis=1) for subset in (train, test))
        return second_stage.forest_ratings(train_x, train.labels, test_x, seed)

    return second_stage.cross_validate(
        config,
        workdir,
        predict,
        {"name": "shc_dcnn"},
        network=network_workdir or workdir,
        mask_run=mask_run,
    )


if __name__ == "__main__":
    second_stage.launch_method(run, "mask_run", "network_workdir")
