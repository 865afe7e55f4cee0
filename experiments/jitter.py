"""How much predictions change when the point moves: each test nodule is predicted from points up to 5 mm away.

    python -m experiments.jitter --config table_32 --workdir runs/tables/pn_samp_m --context=cube \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Each nodule is predicted by the network of the fold that tested it, as the program does, at its own point and at
`--points` others, drawn uniformly from the ball of `--radius` mm. Prints, and writes to jitter.json in the workdir:
the absolute change of the expected malignancy, how often the likeliest class of malignancy stays the same, and the
Dice coefficient of the masks with the mask at the nodule's own point.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.launch import launch
from pnsamp_jax import intervals, metrics, outlines
from pnsamp_jax.config import read_settings
from pnsamp_jax.ct.read import Image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import MarkedNodule, consensus_centroid, patch_affine, require_usable
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import asking, ensemble
from pnsamp_jax.inference.masks import THRESHOLD, central_component, onto_grid
from pnsamp_jax.inference.requests import Failure, Located, Request, locate_in
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.tables import read_tables


def offsets(count: int, radius_mm: float, seed: int) -> np.ndarray:
    """Return the zero offset, followed by offsets drawn uniformly from a ball: (1 + count, 3) mm."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.vstack([np.zeros(3), directions * radius_mm * np.cbrt(random.random((count, 1)))])


def predict_at_offsets(
    networks: ensemble.Networks, marked: MarkedNodule, moves_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Predict a nodule from each of N points.

    Args:
      networks: that predict.
      marked: the nodule and its CT.
      moves_mm: (N, 3) offsets of the points from the nodule's own point.

    Returns:
      The expected malignancy (N,), its likeliest class (N,), and the Dice coefficient of each mask with the first.
    """
    centre = consensus_centroid(marked.readers) if marked.centre_mm is None else marked.centre_mm
    located = [_locate(networks, marked, centre + move) for move in moves_mm]
    batch_size = asking.batch_size_of(len(located))
    located = asking.centred(located, networks, batch_size)
    images = np.stack([one.hu for one in located])
    predictions = ensemble.predict(networks, np.resize(images, (batch_size, *images.shape[1:])))
    assert predictions.mask is not None
    grid = (networks.patch_size, networks.spacing_mm)
    masks = []
    for one, probability in zip(located, predictions.mask, strict=False):
        mask = Volume(
            central_component(probability > THRESHOLD), patch_affine(one.centre_mm(networks.spacing_mm), *grid)
        )
        masks.append(onto_grid(mask, images[0].shape, patch_affine(centre, *grid)).array)
    p = predictions.mean_probabilities[: len(images), schema.MALIGNANCY]
    return metrics.expected(p), metrics.arg_max(p), [outlines.dice(mask, masks[0]) for mask in masks]


def _locate(networks: ensemble.Networks, marked: MarkedNodule, point_mm: np.ndarray) -> Located:
    nodule_id = marked.nodule.nodule_id
    request = Request(nodule_id, nodule_id, Path(), point_mm)
    found = locate_in(Image(marked.ct, None), request, networks.patch_size, networks.spacing_mm)
    if isinstance(found, Failure):
        raise UserError(f"--radius: takes points out of the image of {nodule_id}; choose a smaller one")
    return found


def run(config: ConfigDict, workdir: Path, context: str, points: int, radius_mm: float) -> dict:
    """Move the points of the test nodules of one context, and write jitter.json; see the module's docstring.

    Args:
      config: of the run.
      workdir: of the run.
      context: of the nodules.
      points: number of points in addition to a nodule's own.
      radius_mm: their largest distance from it.

    Returns:
      The content of jitter.json.

    Raises:
      UserError: there is no such run, it tested no such nodule, or a point lies outside of its image.
    """
    settings = read_settings(config)
    layout.check_config(workdir, settings.fields)
    table, networks = read_tables(workdir), ensemble.load(workdir)
    chosen = table["context"] == context
    fold_of = dict(zip(table["nodule_id"][chosen], table["fold"][chosen].astype(int), strict=True))
    if not fold_of:
        raise UserError(f"--context={context}: the run tested no such nodule")
    changes: list[float] = []
    same_class: list[float] = []
    dice: list[float] = []
    patients: list[str] = []
    for series in tqdm(settings.source.series(), unit="series"):
        for marked in require_usable(settings.source.load(series), fold_of):
            member = networks.member(fold_of[marked.nodule.nodule_id])
            moves_mm = offsets(points, radius_mm, seed=len(patients))
            expected, likeliest, overlap = predict_at_offsets(member, marked, moves_mm)
            changes.append(np.abs(expected[1:] - expected[0]).mean())
            same_class.append((likeliest[1:] == likeliest[0]).mean())
            dice.append(float(np.mean(overlap[1:])))
            patients.append(marked.nodule.patient_id)
    results: dict[str, Any] = {"context": context, "nodules": len(patients), "points": points, "radius_mm": radius_mm}
    for name, values in (("change", changes), ("same_class", same_class), ("dice", dice)):
        results[name] = {
            "mean": float(np.mean(values)),
            "interval": intervals.mean_interval(values, np.array(patients)),
        }
    results["change"]["largest_tenth"] = float(np.quantile(changes, 0.9))
    write_text(workdir / "jitter.json", json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    launch(
        run,
        config="The config of the run.",
        workdir="Workdir of the run.",
        context=flags.DEFINE_string("context", "cube", "Context of the nodules: ct, cube, slab or simulated."),
        points=flags.DEFINE_integer("points", 8, "Number of points for each nodule in addition to its own."),
        radius_mm=flags.DEFINE_float("radius", 5.0, "Largest distance in mm of these points from the nodule's own."),
    )
