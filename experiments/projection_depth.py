"""How deep TumorNet's projection should be: what a forest makes of projections through more or less of the patch.

    pip install -e ".[experiments]"
    python -m experiments.projection_depth --config table_32 --workdir runs/projection_depth \\
        --config.data.source=folder --config.data.root=/path/to/nodules

TumorNet itself would have to be trained for each depth. Instead, each of its three projections is described by the
mean, the standard deviation and the maximum in rings about its centre, and a random forest predicts from these whether
the radiologists find the nodule suspicious. Prints the AUC by the depth, for each context, on the protocol's folds.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.baselines import second_stage
from experiments.comparison.scores import AucInputs, Estimate
from experiments.comparison.systems import config_of
from experiments.launch import launch
from pnsamp_jax import intervals, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.models.tumornet import project
from pnsamp_jax.run import open_run

DEPTHS = (1.0, 0.5, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625)  # shares of the patch
RINGS = 8  # in each projection, as far as the nearest edge
BATCH = 64  # nodules that are projected at a time
RESAMPLES = 2000  # of the patients


def describe(views: np.ndarray) -> np.ndarray:
    """Describe projections (N, S, S, V) by the mean, standard deviation and maximum in each ring: (N, 3 V RINGS).

    The rings are equally wide; the corners of a projection belong to none.
    """
    size = views.shape[1]
    offsets = np.arange(size) - (size - 1) / 2
    ring = np.floor(np.hypot(*np.meshgrid(offsets, offsets)) / (size / 2) * RINGS)
    inside = [views[:, ring == index] for index in range(RINGS)]  # each (N, pixels, V)
    return np.concatenate([of(pixels, axis=1) for pixels in inside for of in (np.mean, np.std, np.max)], axis=1)


def features(images: np.ndarray, windows: tuple[tuple[float, float], ...], depth: float) -> np.ndarray:
    """Describe the projections of patches (N, S, S, S) HU, in TumorNet's window, through a share of the patch."""
    rows = []
    for start in range(0, len(images), BATCH):
        windowed = transforms.window(jnp.asarray(images[start : start + BATCH]), windows)
        rows.append(describe(np.asarray(project(windowed[..., 0], depth))))
    return np.concatenate(rows)


def run(config: ConfigDict, workdir: Path) -> dict[str, list[Estimate]]:
    """Return the AUC for each of `DEPTHS` by context, and print it.

    Raises:
      UserError: the config, the data or the workdir do not fit.
    """
    opened = open_run(config_of("tumornet", config), workdir)
    settings = opened.settings
    scores, positive, patients, contexts = [], [], [], []
    for fold in settings.folds:
        train, test = second_stage.read_subsets(opened, fold, None, None)
        suspicious = [subset.labels[:, schema.MALIGNANCY] > 3 for subset in (train, test)]
        of_depth = []
        for depth in DEPTHS:
            seen, unseen = (
                features(subset.records[schema.IMAGE], settings.task.windows, depth) for subset in (train, test)
            )
            forest = second_stage.forest(settings.seed).fit(seen, suspicious[0])
            of_depth.append(forest.predict_proba(unseen)[:, 1])
        scores.append(np.array(of_depth))
        positive.append(suspicious[1])
        patients.append(test.records[schema.PATIENT_ID])
        contexts.append(test.records[schema.CONTEXT])
    score, truth, patient, context = (np.concatenate(it, axis=-1) for it in (scores, positive, patients, contexts))
    found = {}
    for name in np.unique(context).tolist():
        chosen = context == name
        found[name] = [_auc(row[chosen], truth[chosen], patient[chosen]) for row in score]
        print(f"\n{name}, n = {chosen.sum()}, {truth[chosen].sum()} suspicious\n\n| depth, mm | AUC |\n|---|---|")
        for depth, estimate in zip(DEPTHS, found[name], strict=True):
            print(f"| {depth * settings.geometry.patch_size * settings.geometry.spacing_mm:.1f} | {estimate} |")
    return found


def _auc(score: np.ndarray, positive: np.ndarray, patients: np.ndarray) -> Estimate:
    inputs = AucInputs(score, positive, np.ones(len(score)))
    return Estimate(inputs.auc(inputs.weights), intervals.cluster_bootstrap(inputs.auc, patients, RESAMPLES))


if __name__ == "__main__":
    launch(run, config="The protocol, as that of the tables.", workdir="Folder of the folds.")
