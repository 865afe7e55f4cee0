"""The classical baseline: shape and HU features of a nodule, and a random forest for each rating.

    pip install -e ".[experiments]"
    python -m experiments.radiomics --config configs/radiomics.py --workdir runs/radiomics \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The features are of the *readers' own* mask (50 % consensus), which the network never sees: in that the forest has it
easier. It shares the cohort, the folds and every metric with the network; a fold trains on its training and
validation part together, since nothing is selected.
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from scipy import ndimage, stats
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist
from sklearn.ensemble import RandomForestClassifier
from tqdm import tqdm

from pnsamp_jax import evaluate, predictions, train
from pnsamp_jax.data import cohort, keys
from pnsamp_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where tables and pictures go.")

SHELL_MM = 3.0  # how far round the nodule its surroundings are measured
RIM_MM = 1.5  # how deep its own edge is, one voxel at least
TREES = 500
PERCENTILES = (5, 25, 50, 75, 95)


def shape_features(mask: np.ndarray, spacing_mm: float) -> list[float]:
    """12 features: volume, diameters, axes and how they compare, surface, sphericity, solidity, extents."""
    points = np.argwhere(mask) * spacing_mm
    volume = len(points) * spacing_mm**3
    faces = sum(np.abs(np.diff(np.pad(mask, 1).astype(np.int8), axis=axis)).sum() for axis in range(3))
    surface = faces * spacing_mm**2 * 2 / 3  # a voxel surface is 3/2 of the smooth one on average over directions
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
    """16 features: HU inside, in the rim, round the nodule, and the step at its edge."""
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
    """(S, S, S) HU and share of the readers, in `keys.MASK_UNIT`s -> (28,) float64."""
    marked = mask >= keys.MASK_UNIT // 2
    if not marked.any():  # a nodule thinner than a voxel
        marked = mask == max(mask.max(), 1)
    if not marked.any():
        marked[tuple(size // 2 for size in marked.shape)] = True
    hu = image.astype(np.float64)
    return np.array(shape_features(marked, spacing_mm) + intensity_features(hu, marked, spacing_mm))


def predict(train_x: np.ndarray, train_labels: np.ndarray, test_x: np.ndarray, seed: int) -> np.ndarray:
    """Trains a forest for each rating: (n, F), (n, 9) classes with 0 for missing, (m, F) -> (m, 9, 6)."""
    probabilities = np.zeros((len(test_x), *keys.CLASS_EXISTS.shape))
    for place in range(len(keys.RATINGS)):
        rated = train_labels[:, place] > 0
        forest = RandomForestClassifier(TREES, min_samples_leaf=3, random_state=seed)
        forest.fit(train_x[rated], train_labels[rated, place])
        probabilities[:, place, forest.classes_ - 1] = forest.predict_proba(test_x)
    return probabilities


def run(config, workdir: Path) -> dict:
    """Cross-validates the forest on the config's nodules; gives the results as in results.json."""
    records, folds = train.open_run(config, workdir)
    pairs = zip(records[keys.IMAGE], records[keys.MASK], strict=True)
    x = np.array([features(*pair, config.spacing_mm) for pair in tqdm(pairs, total=len(records[keys.IMAGE]))])
    labels = cohort.rounded_rating(records[keys.VOTES])
    for fold in train.chosen_folds(config):
        test = np.isin(records[keys.NODULE_ID], folds[fold]["test"])
        probabilities = predict(x[~test], labels[~test], x[test], config.seed)
        part = {name: values[test] for name, values in records.items()}
        no_mask = np.full(test.sum(), np.nan)
        predictions.write_predictions(workdir / f"fold_{fold}" / "predictions.csv", fold, part, no_mask, probabilities)
    predictions.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


def main(argv: list[str]) -> None:
    """Runs the baseline; a user's mistake becomes one line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        run(CONFIG.value, Path(WORKDIR.value))
    except UserError as error:
        sys.exit(f"radiomics: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
