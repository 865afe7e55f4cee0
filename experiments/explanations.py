"""Check the explanations of a run: the saliency, and what the attributes contribute to the malignancy.

    python -m experiments.explanations --config pn_samp_plus --workdir runs/plus --nodules=100 \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Four checks, each of which could fail (see `experiments.checks`):

- randomisation: explanations have to change when the network's layers are randomised, from the output to the input;
- deletion and insertion: the voxels that the saliency names have to matter more than those of other orders;
- redrawn: of phantom nodules that are drawn with and without the evidence of one attribute, the attribute's
  contribution has to change as the malignancy does;
- ratings: the contribution of an attribute should follow the rating that it is named after.

Test nodules are explained by the network that never saw their patient; all networks together are asked about nodules
of the phantom. Folds that are not tested yet are left out. Writes explanations.json, .md and .png to the
workdir.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy import stats

from experiments.checks import deletion, figure, randomisation, ratings, redrawn
from experiments.launch import launch
from pnsamp_jax import intervals, metrics
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.asking import batch_size_of
from pnsamp_jax.run import load_folds, load_records
from pnsamp_jax.workdir import layout

BATCH_SIZE = 16
VISIBLE = 0.05  # classes; a redrawn nodule whose malignancy changes less does not show in which direction


def mean_result(values: np.ndarray, patients: np.ndarray) -> dict:
    """Return the mean of (N,) values with its patient-clustered interval."""
    return {"value": metrics.mean_score(values), "interval": intervals.mean_interval(values, patients)}


def chosen_nodules(folds: list[layout.Fold], ready: list[int], count: int, seed: int) -> dict[int, list[str]]:
    """Return the ids of at most `count` test nodules by fold, drawn from those of the folds that are ready."""
    pairs = [(fold, nodule_id) for fold in ready for nodule_id in folds[fold]["test"]]
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return {fold: [pairs[i][1] for i in sorted(drawn) if pairs[i][0] == fold] for fold in ready}


def randomisation_results(found: list[dict[str, dict[str, np.ndarray]]], patients: np.ndarray) -> dict:
    """Return the mean rank correlation by measure and layer, over the nodules of all folds."""
    return {
        measure: {
            layer: mean_result(np.concatenate([fold[measure][layer] for fold in found]), patients)
            for layer in found[0][measure]
        }
        for measure in randomisation.MEASURES
    }


def deletion_results(changes: np.ndarray, patients: np.ndarray) -> dict:
    """Return for both curves the mean change of each order, and by how much the saliency is ahead of it.

    Args:
      changes: (N, orders, 2, shares) of `deletion.check`; large is good.
      patients: (N,).
    """
    areas = changes.mean(axis=-1)  # (N, orders, 2)
    results: dict[str, Any] = {}
    for curve, name in enumerate(deletion.CURVES):
        results[name] = {
            order: {
                "change": mean_result(areas[:, i, curve], patients),
                "saliency_ahead": mean_result(areas[:, 0, curve] - areas[:, i, curve], patients),
                "curve": changes[:, i, curve].mean(axis=0).tolist(),
            }
            for i, order in enumerate(deletion.ORDERS)
        }
    return results


def agreement(contribution: np.ndarray, malignancy: np.ndarray) -> dict:
    """Return how two changes agree, (N,) each: the share of equal signs where visible, and the rank correlation."""
    visible = np.abs(malignancy) >= VISIBLE
    same = np.sign(contribution[visible]) == np.sign(malignancy[visible])
    varied = len(malignancy) > 2 and np.ptp(malignancy) > 0 and np.ptp(contribution) > 0
    return {
        "same_sign": float(same.mean()) if visible.any() else None,
        "visible": int(visible.sum()),
        "rank_correlation": float(stats.spearmanr(contribution, malignancy).statistic) if varied else None,
    }


def redrawn_results(changes: redrawn.Redrawn) -> dict:
    """Return for each attribute, and for all together, how its contribution follows the malignancy."""
    results: dict[str, Any] = {}
    largest = np.abs(changes.contributions).argmax(axis=-1)
    for i, name in enumerate(redrawn.EVIDENCE):
        malignancy, own = changes.malignancy[:, i], changes.own[:, i]
        results[name] = {
            "rating": mean_result(changes.rating[:, i], changes.patients),
            "malignancy": mean_result(malignancy, changes.patients),
            "contribution": mean_result(own, changes.patients),
            "changes_most": float((largest[:, i] == schema.RATING_NAMES.index(name)).mean()),
            **agreement(own, malignancy),
        }
    results["all"] = agreement(changes.own.ravel(), changes.malignancy.ravel())
    return results


def run(config: ConfigDict, workdir: Path, nodules: int, phantoms: int, seed: int) -> dict:
    """Run the checks, write the files and print the table; see the module's docstring.

    Args:
      config: of the run.
      workdir: of the run.
      nodules: how many test nodules.
      phantoms: how many nodules of the phantom.
      seed: of the choice of nodules, of random weights and of noise.

    Returns:
      The content of explanations.json.

    Raises:
      UserError: there is no such run, or none of its folds is tested.
    """
    settings = read_settings(config)
    layout.check_config(workdir, settings.fields)
    if not (workdir / "folds.json").is_file():  # `load_folds` would write it
        raise UserError(f"{workdir / 'folds.json'}: no such file; give the workdir of a training")
    if min(nodules, phantoms) < 1:
        raise UserError("--nodules and --phantoms: give positive numbers")
    networks = ensemble.load(workdir)
    records = load_records(settings)
    folds = load_folds(settings, records, workdir / "folds.json")
    ready = [fold for fold in range(len(folds)) if f"fold_{fold}" in networks.members]
    batch_size = batch_size_of(min(BATCH_SIZE, nodules))
    correlations, changes, rated, patients = [], [], [], []
    for fold, chosen in chosen_nodules(folds, ready, nodules, seed).items():
        indices = np.flatnonzero(np.isin(records[schema.NODULE_ID], chosen))
        if not len(indices):
            continue
        member, stored = networks.member(fold), np.asarray(records[schema.IMAGE][indices])
        correlations.append(randomisation.check(member, stored, batch_size, seed))
        changes.append(deletion.check(member, stored, batch_size, seed))
        rated.append(ratings.check(member, stored, batch_size))
        patients.append(np.asarray(records[schema.PATIENT_ID])[indices])
    clusters, redrawings = np.concatenate(patients), redrawn.check(networks, phantoms, seed)
    results = {
        "folds": ready,
        "nodules": len(clusters),
        "phantoms": len(redrawings.patients),
        "randomisation": randomisation_results(correlations, clusters),
        "deletion": deletion_results(np.concatenate(changes), clusters),
        "redrawn": redrawn_results(redrawings),
        "ratings": ratings.follow(*(np.concatenate(parts) for parts in zip(*rated, strict=True))),
    }
    write_text(workdir / "explanations.json", json.dumps(results, indent=1))
    text = figure.markdown(results)
    write_text(workdir / "explanations.md", text)
    figure.draw(results, redrawings, workdir / "explanations.png")
    print(text)
    return results


if __name__ == "__main__":
    launch(
        run,
        config="The config of the run.",
        workdir="Workdir of the run.",
        nodules=flags.DEFINE_integer("nodules", 100, "Number of test nodules, drawn from all tested folds."),
        phantoms=flags.DEFINE_integer("phantoms", 40, "Number of nodules of the phantom."),
        seed=flags.DEFINE_integer("seed", 0, "Seed of the choice of nodules, of random weights and of noise."),
    )
