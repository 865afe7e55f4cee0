"""What the methods with a scikit-learn stage share: cross-validation, classifiers, and the way to probabilities.

A second stage is fitted on the training and validation nodules of a fold together, since it selects nothing on the
validation nodules. Their features come from a network that was trained on most of them, as in the published methods;
the test nodules are new to both stages. Cohort, folds and metrics are those of the networks, and so is the number of
nodules: a method answers for every nodule, from as much as it could measure of it.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier

from experiments.baselines.subsets import Masks, Subset, make_subset, predicted_masks, read_mask_config
from experiments.launch import launch, path_flag
from pnsamp_jax import evaluate, testing, train
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.run import Run, open_run
from pnsamp_jax.workdir import tables
from pnsamp_jax.workdir.layout import fold_folder

TREES = 500
SMALLEST_SD = 1e-6  # classes; a regression that fits without error still gives a distribution

Predict = Callable[[Subset, Subset, int], np.ndarray]  # (train, test, seed) -> (m, 9, 6), see `cross_validate`


# From numbers to probabilities


def no_answers(count: int) -> np.ndarray:
    """Return (count, 9, 6) NaN, to be filled in for the ratings that a method predicts."""
    return np.full((count, *schema.CLASS_EXISTS.shape), np.nan)


def gaussian_classes(mean: np.ndarray, sd: np.ndarray | float, classes: int) -> np.ndarray:
    """Return the mass of a Gaussian around each class: (n,), (n,) or () -> (n, classes).

    Class k has the mass in [k - 1/2, k + 1/2), as a mean rating is rounded; the first and last class also have the
    mass beyond the scale.
    """
    edges = np.arange(1.5, classes)
    spread = np.maximum(np.broadcast_to(sd, mean.shape), SMALLEST_SD)
    below = norm.cdf((edges - mean[:, None]) / spread[:, None])
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def classify(make: Callable, train_x: np.ndarray, train_labels: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Fit a classifier for each rating, and predict the test nodules.

    Args:
      make: () -> a scikit-learn classifier.
      train_x: (n, F).
      train_labels: (n, 9) classes, 0 for missing.
      test_x: (m, F).

    Returns:
      (m, 9, 6) probabilities; NaN for a rating that no training nodule has.
    """
    probabilities = no_answers(len(test_x))
    for index in range(len(schema.RATINGS)):
        rated = train_labels[:, index] > 0
        classes = np.unique(train_labels[rated, index])
        if len(classes):
            probabilities[:, index] = 0.0
        if len(classes) == 1:  # not every classifier accepts a single class
            probabilities[:, index, classes - 1] = 1.0
        elif len(classes):
            model = make().fit(train_x[rated], train_labels[rated, index])
            probabilities[:, index, model.classes_ - 1] = model.predict_proba(test_x)
    return probabilities


def forest(seed: int) -> RandomForestClassifier:
    """Return the random forest that every method with a forest uses."""
    return RandomForestClassifier(TREES, min_samples_leaf=3, random_state=seed)


def forest_ratings(train_x: np.ndarray, train_labels: np.ndarray, test_x: np.ndarray, seed: int) -> np.ndarray:
    """Fit a forest for each rating: (n, F), (n, 9) classes with 0 for missing, (m, F) -> (m, 9, 6)."""
    return classify(partial(forest, seed), train_x, train_labels, test_x)


# Cross-validation


def open_stage(config: ConfigDict, workdir: Path, method: dict[str, str], network: Path | None) -> Run:
    """Open the workdir of a method, and that of its network.

    Raises:
      UserError: the config is not the method's, or a workdir belongs to another config or method.
    """
    if config.model.name != method["name"]:
        raise UserError(f"config.model.name: '{config.model.name}' is not '{method['name']}'; use the method's config")
    path = workdir / "second_stage.json"
    stored = json.loads(path.read_text()) if path.is_file() else method
    if stored != method:
        raise UserError(
            f"{workdir} belongs to another method: there {stored}, here {method}; choose another --workdir"
        )
    network_folds = None if network in (None, workdir) else open_run(config, network).folds
    run = open_run(config, workdir)
    if network_folds not in (None, run.folds):
        raise UserError(f"{network}/folds.json: is not the split of {workdir}; choose another --workdir")
    return run


def is_tested(workdir: Path, method: dict[str, str], fold: int, nodule_ids: list[str]) -> bool:
    """Return whether the workdir holds the method's predictions of all test nodules of a fold."""
    folder = fold_folder(workdir, fold)
    path, note = folder / "predictions.csv", folder / "second_stage.json"
    # A predictions.csv that is not noted may be the network's.
    if not path.is_file() or not note.is_file() or json.loads(note.read_text()) != method:
        return False
    with path.open(newline="") as file:
        return {row["nodule_id"] for row in csv.DictReader(file)} == set(nodule_ids)


def write_fold(workdir: Path, method: dict[str, str], fold: int, test: Subset, probabilities: np.ndarray) -> None:
    """Write a fold's predictions, and then note whose they are in the fold's second_stage.json."""
    folder = fold_folder(workdir, fold)
    tables.write_predictions(folder / "predictions.csv", fold, test.records, test.nominal, {}, probabilities)
    write_text(folder / "second_stage.json", json.dumps(method, indent=1))


def read_subsets(run: Run, fold: int, network: Path | None, masks: Masks | None) -> tuple[Subset, Subset]:
    """Return the training and the test nodules of a fold, after training the fold's network if it is not trained."""
    indices = run.indices(fold)
    chosen = np.union1d(indices["train"], indices["validation"]), indices["test"]
    features: list[np.ndarray | None] = [None, None]
    if network is not None:
        network_run = dataclasses.replace(run, workdir=network)
        train.train_fold(network_run, fold)
        networks, _ = testing.load_fold(network_run, fold)
        flips = run.settings.test_flips
        features = [testing.predict_nodules(network_run, networks, nodules, flips)["features"] for nodules in chosen]
    patch_size = run.settings.geometry.patch_size
    seen, unseen = (
        make_subset(run.records, nodules, patch_size, values, masks)._replace(nominal=run.settings.nominal)
        for nodules, values in zip(chosen, features, strict=True)
    )
    return seen, unseen


def cross_validate(
    config: ConfigDict,
    workdir: Path,
    predict: Predict,
    method: dict[str, str],
    *,
    network: Path | None = None,
    mask_run: Path | None = None,
) -> dict:
    """Run the folds that the config names, from wherever they stopped, and evaluate them.

    Args:
      config: of the network, or of the data alone if the method has no network.
      workdir: for the tables and results of any run, and second_stage.json.
      predict: (train, test, seed) -> (m, 9, 6) probabilities: NaN in the ratings that the method does not predict.
      method: what decides the results in addition to the config; "name" is the config's `model.name`. A workdir
        belongs to one method.
      network: workdir of the network, whose folds are trained unless they are complete; methods may share it. None
        if the method has no network.
      mask_run: workdir of a trained network, see `predicted_masks`; None for the readers' consensus.

    Returns:
      The content of results.json.
    """
    if mask_run is not None:
        mask_config = read_mask_config(mask_run, config)
        method = {**method, "mask_run": os.path.relpath(mask_run, workdir)}
    run = open_stage(config, workdir, method, network)
    todo = {
        fold: run.folds[fold]
        for fold in run.settings.folds
        if not is_tested(workdir, method, fold, run.folds[fold]["test"])
    }
    masks: dict[int, Masks] = {}
    if mask_run is not None and todo:
        masks = predicted_masks(mask_run, mask_config, todo, run.records[schema.NODULE_ID].tolist())
    if network is not None:
        run = run.on_device()
    write_text(workdir / "second_stage.json", json.dumps(method, indent=1))
    for fold in todo:
        seen, unseen = read_subsets(run, fold, network, masks.get(fold))
        write_fold(workdir, method, fold, unseen, predict(seen, unseen, run.settings.seed))
    tables.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


# Command line

flags.disclaim_key_flags()  # the flags defined here belong to the method, so that its --help lists them
OPTIONS: dict[str, Callable[[str], Any]] = {
    "mask_run": lambda name: path_flag(name, "Workdir of a trained network whose masks replace the readers'."),
    "network_workdir": lambda name: path_flag(
        name, "Workdir of the network, which methods may share; --workdir by default."
    ),
    "attributes": lambda name: flags.DEFINE_string(
        name, "none", "Attributes next to the features: none, readers (an oracle) or predicted."
    ),
}


def launch_method(run: Callable[..., dict], *options: str) -> None:
    """Run a method from the command line: `run(config, workdir, **options)`, with flags named in `OPTIONS`."""
    launch(
        run,
        config="The config of the method.",
        workdir="Folder of the tables and figures.",
        **{name: OPTIONS[name](name) for name in options},
    )
