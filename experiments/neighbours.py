"""Which known nodules does a nodule resemble? Its neighbours by a network's features, and how alike their ratings are.

    pip install -e ".[experiments]"
    python -m experiments.neighbours --config pn_samp_plus --workdir runs/plus --nodules=200 \\
        --config.data.source=folder --config.data.root=/path/to/nodules [--diagnoses=patients.csv]

For each test nodule, the nearest of the training and validation nodules of the same network, so that no neighbour is
of the same patient. The distance is Euclidean, of features in units of their standard deviation:

- measured: what the network's heads receive;
- attributes: the network's features of the eight attributes;
- radiomics: the 28 features of `experiments.baselines.radiomics`, of the masks that the network predicts, and of the
  *readers' own*, which the network does not receive;
- random: any nodules, for comparison.

The mean rating of the neighbours is compared with the readers' mean rating of the nodule, as the network's own rating
is. Folds that are not tested yet are left out. Writes neighbours.json, .md and .png to the workdir; the figure shows
some nodules with their neighbours by the attributes' features, with the readers' ratings and, where a table with
the columns patient_id and diagnosis is given, the patients' diagnoses.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.baselines import radiomics
from experiments.baselines.subsets import Subset, for_each_nodule, make_subset
from experiments.checks.figure import rows, spoken
from experiments.checks.gallery import draw_neighbours
from experiments.launch import launch, path_flag
from pnsamp_jax import intervals, metrics, testing
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.data.csv_tables import read_table
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import ensemble
from pnsamp_jax.models.pn_samp import AttributeHeads
from pnsamp_jax.run import Run, load_folds, load_records
from pnsamp_jax.workdir import layout

RADIOMICS, ORACLE = "radiomics, predicted masks", "radiomics, readers' masks"
SPACES = ("measured", "attributes", RADIOMICS, ORACLE, "random")
ORDINAL = np.flatnonzero(~schema.NOMINAL)


class Fold(NamedTuple):
    """The test nodules of a fold and their K neighbours, for each of the `SPACES`.

    Attributes:
      test, pool: the nodules, and those among which neighbours are looked for.
      nearest: (N, K) indices in the pool, the nearest first.
      predicted: (N, 9) the network's own expected ratings.
    """

    test: Subset
    pool: Subset
    nearest: dict[str, np.ndarray]
    predicted: np.ndarray


def nearest(test: np.ndarray, pool: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the nearest rows of a pool: (N, F), (P, F) -> (N, count), the nearest first.

    Features count in units of their standard deviation over the pool; those that do not vary there are left out.
    """
    mean, deviation = pool.mean(axis=0), pool.std(axis=0)
    varied = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    here, there = ((x[:, varied] - mean[varied]) / deviation[varied] for x in (test, pool))
    squared = (here**2).sum(axis=1)[:, None] + (there**2).sum(axis=1) - 2 * here @ there.T
    return np.argsort(squared, axis=1, kind="stable")[:, :count]


def attribute_features(networks: ensemble.Networks, measured: np.ndarray) -> np.ndarray:
    """Return the features of all attributes of a single network: (N, F) -> (N, 8 * 24)."""
    [network] = networks.members.values()
    heads = {"params": network.variables["params"]["heads"]}

    @jax.jit
    def all_features(x: jax.Array) -> jax.Array:
        fused = AttributeHeads().apply(heads, x, method="fuse")
        own = [AttributeHeads().apply(heads, r.name, fused, method="attribute_features") for r in schema.ATTRIBUTES]
        return jnp.concatenate([jnp.asarray(features) for features in own], axis=-1)

    return np.asarray(all_features(measured))


def find(run: Run, networks: ensemble.Networks, fold: int, nodules: int, count: int, seed: int) -> Fold:
    """Find the neighbours of at most `nodules` test nodules of a fold.

    Args:
      run: that trained the network.
      networks: of the fold alone.
      fold: its number.
      nodules: how many.
      count: K.
      seed: of their choice, and of the random neighbours.
    """
    random = np.random.default_rng([seed, fold])
    indices = run.indices(fold)
    chosen = np.sort(random.permutation(indices["test"])[:nodules])
    known = np.union1d(indices["train"], indices["validation"])
    size = run.settings.geometry.patch_size
    found = [testing.predict_nodules(run, networks, part, flips=False, masks=True) for part in (chosen, known)]
    test, pool = (
        make_subset(run.records, part, size, outputs["features"], None)
        for part, outputs in zip((chosen, known), found, strict=True)
    )
    measure = for_each_nodule(partial(radiomics.features, spacing_mm=networks.spacing_mm))
    outlined = [s._replace(masks=o["mask"]) for s, o in zip((test, pool), found, strict=True)]
    spaces = {
        "measured": [test.features, pool.features],
        "attributes": [attribute_features(networks, subset.features) for subset in (test, pool)],
        RADIOMICS: [measure(subset) for subset in outlined],
        ORACLE: [measure(subset) for subset in (test, pool)],
    }
    neighbours = {name: nearest(here, there, count) for name, (here, there) in spaces.items()}
    neighbours["random"] = random.integers(0, len(known), (len(chosen), count))
    return Fold(test, pool, neighbours, metrics.expected(found[0]["probabilities"]))


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean over the second axis without NaN, NaN where there is nothing else: (N, K, ...) -> (N, ...)."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def errors(folds: list[Fold]) -> dict[str, np.ndarray]:
    """Return |rating - readers' mean rating| of the neighbours' mean in each space, and of the network's own rating.

    Returns:
      (N, 9) over the nodules of all folds, NaN where readers or neighbours have no rating.
    """
    found: dict[str, list[np.ndarray]] = {}
    for fold in folds:
        for space, indices in fold.nearest.items():
            mean = mean_of_known(fold.pool.means[indices])
            found.setdefault(space, []).append(np.abs(mean - fold.test.means))
        found.setdefault("the network itself", []).append(np.abs(fold.predicted - fold.test.means))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def compare(folds: list[Fold]) -> dict[str, Any]:
    """Return the mean errors of malignancy and of the seven ordinal ratings, and the differences to `RADIOMICS`."""
    every = errors(folds)
    patients = np.concatenate([fold.test.records[schema.PATIENT_ID] for fold in folds])

    def columns(name: str) -> dict[str, np.ndarray]:
        return {
            "malignancy": every[name][:, schema.MALIGNANCY],
            "ordinal": mean_of_known(every[name][:, ORDINAL]),
        }

    def mean_result(values: np.ndarray) -> dict:
        return {"value": metrics.mean_score(values), "interval": intervals.mean_interval(values, patients)}

    results: dict[str, Any] = {"nodules": len(patients)}
    for name in every:
        own, other = columns(name), columns(RADIOMICS)
        results[name] = {
            what: {
                "error": mean_result(own[what]),
                "within_one": mean_result(np.where(np.isnan(own[what]), np.nan, own[what] <= 1)),
                "minus_radiomics": mean_result(own[what] - other[what]),
            }
            for what in own
        }
    return results


def markdown(results: dict[str, Any]) -> str:
    """Return the table of `compare` as Markdown."""
    head = ["neighbours by", "malignancy, error", "within one, %", "minus radiomics", "ordinal ratings, error"]
    body = []
    for name in (*SPACES, "the network itself"):
        malignancy, ordinal = results[name]["malignancy"], results[name]["ordinal"]
        body.append(
            [name, spoken(malignancy["error"]), f"{100 * malignancy['within_one']['value']:.1f}"]
            + [spoken(malignancy["minus_radiomics"]), spoken(ordinal["error"])]
            + [spoken(ordinal["minus_radiomics"])]
        )
    intro = (
        f"{results['nodules']} test nodules of the folds {', '.join(map(str, results['folds']))}, "
        f"{results['neighbours']} neighbours each. The error is the absolute difference of the neighbours' mean "
        "rating from the readers', in classes; means with 95 % patient-clustered intervals."
    )
    return "\n\n".join(["# Neighbours", intro, rows([*head, "minus radiomics"], *body)]) + "\n"


def read_diagnoses(path: Path | None) -> dict[str, str]:
    """Return the diagnoses by patient id of a CSV table; none without a table.

    Raises:
      UserError: see `read_table`.
    """
    if path is None:
        return {}
    return {row["patient_id"]: row["diagnosis"] for _, row in read_table(path, ("patient_id", "diagnosis"))}


def run(
    config: ConfigDict, workdir: Path, nodules: int, neighbours: int, shown: int, diagnoses: Path | None, seed: int
) -> dict[str, Any]:
    """Compare neighbours, write the files and print the table; see the module's docstring.

    Args:
      config: of the run.
      workdir: of the run.
      nodules: at most so many test nodules of each fold.
      neighbours: of each nodule.
      shown: nodules in the figure.
      diagnoses: table of the patients' diagnoses; None if there is none.
      seed: of the choice of nodules.

    Returns:
      The content of neighbours.json.

    Raises:
      UserError: there is no such run, none of its folds is tested, or the diagnoses cannot be read.
    """
    settings, known = read_settings(config), read_diagnoses(diagnoses)
    layout.check_config(workdir, settings.fields)
    if not (workdir / "folds.json").is_file():  # `load_folds` would write it
        raise UserError(f"{workdir / 'folds.json'}: no such file; give the workdir of a training")
    if min(nodules, neighbours) < 1:
        raise UserError("--nodules and --neighbours: give positive numbers")
    networks, records = ensemble.load(workdir), load_records(settings)
    whole = Run(workdir, settings, records, load_folds(settings, records, workdir / "folds.json"))
    ready = [fold for fold in range(len(whole.folds)) if f"fold_{fold}" in networks.members]
    folds = [find(whole, networks.member(fold), fold, nodules, neighbours, seed) for fold in ready]
    results = {"folds": ready, "neighbours": neighbours, **compare(folds)}
    write_text(workdir / "neighbours.json", json.dumps(results, indent=1))
    write_text(workdir / "neighbours.md", markdown(results))
    first = folds[0]
    draw_neighbours(first.test, first.pool, first.nearest["attributes"], shown, known, workdir / "neighbours.png")
    print(markdown(results))
    return results


if __name__ == "__main__":
    launch(
        run,
        config="The config of the run.",
        workdir="Workdir of the run.",
        nodules=flags.DEFINE_integer("nodules", 200, "Most test nodules of each fold."),
        neighbours=flags.DEFINE_integer("neighbours", 5, "Number of neighbours of each nodule."),
        shown=flags.DEFINE_integer("shown", 4, "Number of nodules in the figure."),
        diagnoses=path_flag("diagnoses", "CSV table with the columns patient_id and diagnosis."),
        seed=flags.DEFINE_integer("seed", 0, "Seed of the choice of nodules."),
    )
