"""How much the answers move when the point does: test nodules, each asked about from points up to 5 mm off.

    python -m experiments.jitter --config configs/table_32.py --workdir runs/tables/pn_samp_m --context=cube \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Each nodule is asked of the network of the fold that tested it, at its own point and at `--points` further ones, drawn
evenly from the ball of `--radius` mm. Prints, and writes to jitter.json in the workdir, the absolute change of the
expected malignancy, how often the likeliest class of malignancy stays, and the Dice of the masks with the one of the
nodule's own point.
"""

import json
import sys
from pathlib import Path

import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from pnsamp_jax import config as settings
from pnsamp_jax import metrics
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import MarkedNodule, consensus_centroid, patch_affine, sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.masks import central_component, onto_grid
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.tables import read_tables


def offsets(count: int, radius_mm: float, seed: int) -> np.ndarray:
    """(1 + count, 3) mm: none, then points drawn evenly from a ball."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.vstack([np.zeros(3), directions * radius_mm * np.cbrt(random.random((count, 1)))])


def ask(asked: ensemble.Networks, marked: MarkedNodule, moves: np.ndarray) -> tuple:
    """What networks say of a nodule from each of N points.

    Returns:
      (N,) expected malignancy, (N,) likeliest class, and the Dice of each mask with the first.
    """
    centre = consensus_centroid(marked.readers) if marked.centre_mm is None else marked.centre_mm
    cube = (asked.patch_size, asked.spacing_mm)
    images = np.stack([np.rint(sample(marked.ct, centre + move, *cube)) for move in moves]).astype(np.int16)
    answers = ensemble.predict(asked, images)
    masks = []
    for move, share in zip(moves, answers.mask, strict=True):
        mask = Volume(central_component(share > 0.5), patch_affine(centre + move, *cube))
        masks.append(onto_grid(mask, images[0].shape, patch_affine(centre, *cube)).array)
    p = answers.probabilities[:, schema.MALIGNANCY]
    sums = [int(mask.sum() + masks[0].sum()) for mask in masks]
    dice = [2 * (mask & masks[0]).sum() / total if total else 1.0 for mask, total in zip(masks, sums, strict=True)]
    return metrics.expected(p), metrics.arg_max(p), dice


def run(config: ml_collections.ConfigDict, workdir: Path, context: str, count: int, radius_mm: float) -> dict:
    """Moves the points of the test nodules of one context, and writes jitter.json; see the module.

    Raises:
      UserError: the run is not there, or tested no such nodule.
    """
    layout.check(config, workdir)
    table, asked, source = read_tables(workdir), ensemble.load(workdir), settings.source(config)
    chosen = table["context"] == context
    fold_of = dict(zip(table["nodule_id"][chosen], table["fold"][chosen].astype(int), strict=True))
    if not fold_of:
        raise UserError(f"--context={context}: the run tested no such nodule")
    changes, kept, dices, patients = [], [], [], []
    for series in tqdm(source.series(), unit="series"):
        for marked in source.load(series):
            if marked.nodule.nodule_id not in fold_of:
                continue
            one = ensemble.of_fold(asked, fold_of[marked.nodule.nodule_id])
            expected, likeliest, dice = ask(one, marked, offsets(count, radius_mm, seed=len(patients)))
            changes.append(np.abs(expected[1:] - expected[0]).mean())
            kept.append((likeliest[1:] == likeliest[0]).mean())
            dices.append(np.mean(dice[1:]))
            patients.append(marked.nodule.patient_id)
    figures = {"context": context, "nodules": len(patients), "points": count, "radius_mm": radius_mm}
    for name, values in (("change", changes), ("same_class", kept), ("dice", dices)):
        figures[name] = {"mean": float(np.mean(values)), "interval": metrics.mean_interval(values, np.array(patients))}
    figures["change"]["largest_tenth"] = float(np.quantile(changes, 0.9))
    with atomic_path(workdir / "jitter.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=1))
    return figures


def launch() -> None:
    """The command line; a user's mistake becomes one line."""
    config = config_flags.DEFINE_config_file("config", None, "The config file of the run.")
    workdir = flags.DEFINE_string("workdir", None, "The run.")
    context = flags.DEFINE_string("context", "cube", "Which nodules: ct, cube, slab or simulated.")
    points = flags.DEFINE_integer("points", 8, "How many points beside its own each nodule is asked from.")
    radius = flags.DEFINE_float("radius", 5.0, "mm, how far off they lie at most.")

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        try:
            figures = run(config.value, Path(workdir.value), context.value, points.value, radius.value)
        except UserError as error:
            sys.exit(f"jitter: {error}")
        print(json.dumps(figures, indent=1))

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    launch()
