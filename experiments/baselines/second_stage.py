"""What the methods with a scikit-learn stage share: cross-validation, classifiers, and the way to probabilities.

A second stage sees the nodules of a fold's training and validation part together, since it selects nothing on the
validation part. The features of those nodules come from a network that was trained on most of them, as in the
published methods; the test nodules are new to both stages. It shares the cohort, the folds and every metric with the
networks, and the number of nodules too: one on which a method cannot run counts as wrong (see `count_as_wrong`).
"""

import csv
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier

from experiments.baselines.parts import Part, Split, make_part, open_mask_run, predicted_masks
from pnsamp_jax import config as settings
from pnsamp_jax import evaluate, train
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.workdir import layout, tables

TREES = 500
SMALLEST_SD = 1e-6  # classes; a regression that fits without error still gives a distribution

Predict = Callable[[Part, Part, int], np.ndarray]  # (train, test, seed) -> (m, 9, 6), see `cross_validate`


# From numbers to probabilities


def no_answers(count: int) -> np.ndarray:
    """(count, 9, 6) NaN, to be filled in for the ratings that a method gives."""
    return np.full((count, *schema.CLASS_EXISTS.shape), np.nan)


def gaussian_classes(mean: np.ndarray, sd: np.ndarray | float, classes: int) -> np.ndarray:
    """The mass of a Gaussian round each class: (n,), (n,) or () -> (n, classes).

    Class k has what lies in [k - 1/2, k + 1/2), as a mean rating is rounded; the ends are open.
    """
    edges = np.arange(1.5, classes)
    spread = np.maximum(np.broadcast_to(sd, mean.shape), SMALLEST_SD)
    below = norm.cdf((edges - mean[:, None]) / spread[:, None])
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def classify(make: Callable, train_x: np.ndarray, train_labels: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Fits a classifier for each rating.

    Args:
      make: () -> a scikit-learn classifier.
      train_x: (n, F).
      train_labels: (n, 9) classes with 0 for missing.
      test_x: (m, F).

    Returns:
      (m, 9, 6) probabilities; NaN for a rating that no training nodule has.
    """
    probabilities = no_answers(len(test_x))
    for place in range(len(schema.RATINGS)):
        rated = train_labels[:, place] > 0
        classes = np.unique(train_labels[rated, place])
        if len(classes):
            probabilities[:, place] = 0.0
        if len(classes) == 1:  # which not every classifier takes
            probabilities[:, place, classes - 1] = 1.0
        elif len(classes):
            model = make().fit(train_x[rated], train_labels[rated, place])
            probabilities[:, place, model.classes_ - 1] = model.predict_proba(test_x)
    return probabilities


def forest(seed: int) -> RandomForestClassifier:
    """The random forest of every method that has one."""
    return RandomForestClassifier(TREES, min_samples_leaf=3, random_state=seed)


def forest_ratings(train_x: np.ndarray, train_labels: np.ndarray, test_x: np.ndarray, seed: int) -> np.ndarray:
    """A forest for each rating: (n, F), (n, 9) classes with 0 for missing, (m, F) -> (m, 9, 6)."""
    return classify(partial(forest, seed), train_x, train_labels, test_x)


def count_as_wrong(truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives the nodules on which a method could not run the worst answer there is, so that n stays the same.

    That answer is the class farthest from the truth, for certain. It is an end of the scale and at least two classes
    off, so off-by-one is wrong in either decoding, and in the AUC a suspicious nodule ranks below all others and a
    benign one above. To leave such nodules out instead would flatter a method for what it cannot do.

    Args:
      truth: (n, 9) classes, 0 for missing.
      probabilities: (n, 9, 6). NaN in every rating where the method could not run; NaN for every nodule in a rating
        that the method does not give.

    Returns:
      (n, 9, 6) without the first kind of NaN, and (n,) bool: which nodules had it.
    """
    blank = np.isnan(probabilities).all(axis=-1)
    unanswered = blank.all(axis=1)
    given = ~blank[~unanswered].all(axis=0) if not unanswered.all() else np.ones(len(schema.RATINGS), bool)
    ends = np.array([rating.classes for rating in schema.RATINGS])
    farthest = np.where(truth - 1 > ends - truth, 1, ends)
    worst = (np.arange(1, schema.MAX_CLASSES + 1) == farthest[..., None]).astype(float)
    return np.where((unanswered[:, None] & given)[..., None], worst, probabilities), unanswered


# Cross-validation


def open_stage(config: ConfigDict, workdir: Path, method: dict[str, str], network: Path | None) -> tuple:
    """Opens a workdir, and that of its network, for a method; gives the records and the folds.

    Raises:
      UserError: the config is not the method's, or a workdir belongs to another config or method.
    """
    if config.model.name != method["name"]:
        raise UserError(
            f"config.model.name: '{config.model.name}' is not '{method['name']}'; take the method's config"
        )
    path = workdir / "second_stage.json"
    there = json.loads(path.read_text()) if path.is_file() else method
    if there != method:
        raise UserError(f"{workdir} belongs to another method: there {there}, here {method}; take another --workdir")
    splits = [layout.open_run(config, network)[1]] if network not in (None, workdir) else []
    records, folds = layout.open_run(config, workdir)
    if splits and splits[0] != folds:
        raise UserError(f"{network / 'folds.json'}: is another split than {workdir} has; take another --workdir")
    return records, folds


def is_tested(workdir: Path, fold: int, nodule_ids: list[str]) -> bool:
    """Whether the method's predictions of a fold are there for all its test nodules."""
    path = workdir / f"fold_{fold}" / "predictions.csv"
    # A predictions.csv that is not noted may be the network's own.
    if str(fold) not in read_unanswered(workdir) or not path.is_file():
        return False
    with path.open(newline="") as file:
        return {row["nodule_id"] for row in csv.DictReader(file)} == set(nodule_ids)


def read_unanswered(workdir: Path) -> dict[str, dict]:
    """What `write_fold` noted of each fold: {fold: {"nodules": n, "unanswered": [ids]}}."""
    path = workdir / "unanswered.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_fold(workdir: Path, fold: int, test: Part, probabilities: np.ndarray) -> None:
    """Writes a fold's predictions, and then notes it and its nodules that count as wrong in unanswered.json."""
    probabilities, unanswered = count_as_wrong(test.labels, probabilities)
    no_mask = np.full(len(unanswered), np.nan)
    tables.write_predictions(workdir / f"fold_{fold}" / "predictions.csv", fold, test.records, no_mask, probabilities)
    note = {"nodules": len(unanswered), "unanswered": test.records[schema.NODULE_ID][unanswered].tolist()}
    with atomic_path(workdir / "unanswered.json") as temporary:
        temporary.write_text(json.dumps({**read_unanswered(workdir), str(fold): note}, indent=1))


def read_parts(
    config: ConfigDict, fold: int, records: dict, split: Split, network: Path | None, masks: dict | None
) -> tuple[Part, Part]:
    """The training and the test part of a fold; trains the fold's network as far as it is not."""
    if network is not None:
        train.train_fold(config, fold, records, split, network / f"fold_{fold}")
    of_part, parts = layout.part_places(config, records, split), []
    for places in (np.union1d(of_part["train"], of_part["validation"]), of_part["test"]):
        features = None
        if network is not None:
            features = train.predict_nodules(config, records, places, network / f"fold_{fold}")["features"]
        parts.append(make_part(records, places, config.patch_size, features, masks))
    return parts[0], parts[1]


def cross_validate(
    config: ConfigDict,
    workdir: Path,
    predict: Predict,
    method: dict[str, str],
    *,
    network: Path | None = None,
    mask_run: Path | None = None,
    reason: str = "no answer",
) -> dict:
    """Runs the folds that the config names, from wherever they stopped, and evaluates them.

    Args:
      config: of the network, or of the data alone where there is none.
      workdir: gets the tables and results of any run, second_stage.json and unanswered.json.
      predict: (train, test, seed) -> (m, 9, 6) probabilities: NaN in the ratings that the method does not give, and
        in all ratings of a nodule on which it cannot run.
      method: what, beside the config, decides the results; its "name" is the config's `model.name`. A workdir
        belongs to one method.
      network: workdir whose fold_<k> hold the network's checkpoints, trained as far as they are not; methods may
        share one. None if the method reads no features of a network.
      mask_run: workdir of a trained network, see `predicted_masks`; None for the readers' consensus.
      reason: why it cannot run on some nodules, for the line that is printed.

    Returns:
      The results, as in results.json.
    """
    if mask_run is not None:
        mask_config = open_mask_run(mask_run, config)
        method = {**method, "mask_run": os.path.relpath(mask_run, workdir)}
    records, folds = open_stage(config, workdir, method, network)
    todo = [fold for fold in layout.chosen_folds(config) if not is_tested(workdir, fold, folds[fold]["test"])]
    masks = {}
    if network is not None or mask_run is not None:
        jax.config.update("jax_compilation_cache_dir", str(settings.cache_folder(config) / "xla"))
    if mask_run is not None and todo:
        splits, nodule_ids = {fold: folds[fold] for fold in todo}, records[schema.NODULE_ID].tolist()
        masks = predicted_masks(mask_run, mask_config, splits, nodule_ids)
    if network is not None:
        records = layout.place_records(config, records)
    with atomic_path(workdir / "second_stage.json") as temporary:
        temporary.write_text(json.dumps(method, indent=1))
    for fold in todo:
        part, test = read_parts(config, fold, records, folds[fold], network, masks.get(fold))
        write_fold(workdir, fold, test, predict(part, test, config.seed))
    tables.gather_predictions(workdir)
    results = evaluate.evaluate(workdir)
    notes = read_unanswered(workdir).values()
    wrong, nodules = sum(len(note["unanswered"]) for note in notes), sum(note["nodules"] for note in notes)
    if wrong:
        print(f"{wrong} of {nodules} nodules could not be rated ({reason}) and count as wrong")
    return results


# Command line

flags.disclaim_key_flags()  # they are the method's own, and so stand in its --help
OPTIONS = {
    "mask_run": (Path, "Workdir of a trained network whose masks are read instead of the readers'."),
    "network_workdir": (Path, "Workdir of the network, which methods may share; --workdir by default."),
    "attributes": (str, "Attributes beside the features: none, readers (an oracle) or predicted."),
}


def launch(run: Callable[..., dict], *options: str) -> None:
    """Command line of a method: its flags, then `run(config, workdir, **options)`; a user's mistake is one line.

    Flags are defined here rather than on import, so that a program may import several methods.
    """
    config = config_flags.DEFINE_config_file("config", None, "The config file.")
    workdir = flags.DEFINE_string("workdir", None, "Where tables and pictures go.")
    holders = {name: flags.DEFINE_string(name, None, OPTIONS[name][1]) for name in options}

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        given = {name: OPTIONS[name][0](holder.value) for name, holder in holders.items() if holder.value}
        try:
            run(config.value, Path(workdir.value), **given)
        except UserError as error:
            sys.exit(f"{Path(sys.argv[0]).stem}: {error}")

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
