"""Cross-validation folds: the training, validation and test nodules of each."""

import numpy as np

from pnsamp_jax.errors import UserError

SPLITS = ("patient", "nodule")
FEWEST_TO_TRAIN = 2  # groups that remain where one is held out though its share would be rounded to none
ADVICE = {"train": "lower config.validation_fraction or ", "test": "lower config.num_folds or "}  # if one is empty


def _deal(groups: np.ndarray, classes: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distribute whole groups over parts of given sizes, with every class and every size of group spread evenly.

    Groups of equal size and classes form a stratum. They are taken stratum by stratum, from the largest groups to the
    smallest, in random order within a stratum. With every group, each part is due its share of the items taken so far,
    and the group goes to the part where it reduces the distance between the counts per class and those due the most.
    So each part has its share of every stratum, to within a group. (Measured against the final counts instead, the
    large groups would all go to the large parts, and a small part would be filled up with the smallest groups.)

    Args:
      groups: (N,) group of each item.
      classes: (N,) class of each item.
      parts: (P,) target share of the items in each part, summing to 1.
      rng: determines the order within a stratum and breaks ties between parts.

    Returns:
      (N,) int: the part of each item.
    """
    names, group = np.unique(groups, return_inverse=True)
    labels, label = np.unique(classes, return_inverse=True)
    table = np.zeros((len(names), len(labels)))
    np.add.at(table, (group, label), 1)
    # Counts are relative to the size of the class, so that rare classes are spread as evenly as common ones.
    scale = table.sum(axis=0)
    have, due = np.zeros((2, len(parts), len(labels)))
    part_of = np.zeros(len(names), int)
    order = rng.permutation(len(names))
    strata = np.lexsort([*table[order].T, -table[order].sum(axis=1)])  # the last key, the size, comes first
    for index in order[strata]:
        due += parts[:, None] * table[index]
        before = ((have - due) / scale) ** 2
        after = ((have + table[index] - due) / scale) ** 2
        cost = (after - before).sum(axis=1)
        best = np.flatnonzero(np.isclose(cost, cost.min()))
        part_of[index] = rng.choice(best)
        have[part_of[index]] += table[index]
    return part_of[group]


def make_folds(
    nodule_ids: np.ndarray,
    patient_ids: np.ndarray,
    classes: np.ndarray,
    *,
    num_folds: int,
    validation_fraction: float,
    split: str,
    seed: int,
) -> list[dict[str, list[str]]]:
    """Split nodules into folds. The result does not depend on the order of the nodules.

    Args:
      nodule_ids: (N,) unique ids.
      patient_ids: (N,) patient of each nodule.
      classes: (N,) class of each nodule, to stratify by.
      num_folds: number of folds; each nodule is tested in exactly one.
      validation_fraction: share of each fold's remaining nodules that is held out to choose the checkpoint; at least
        one patient (or nodule) if two others remain.
      split: "patient" keeps a patient's nodules together; "nodule" splits nodules independently, as in the paper
        (about 70 % of test nodules then share a patient with a training nodule).
      seed: seed of the random split.

    Returns:
      One {"train": ids, "validation": ids, "test": ids} per fold, ids sorted.

    Raises:
      UserError: there are too few patients (or nodules) for the folds, a set would be empty, or the split is unknown.
    """
    if split not in SPLITS:
        raise UserError(f"config.split: '{split}' is none of {', '.join(SPLITS)}")
    order = np.argsort(nodule_ids)
    ids, classes = np.asarray(nodule_ids)[order], np.asarray(classes)[order]
    groups = np.asarray(patient_ids)[order] if split == "patient" else ids
    if len(np.unique(groups)) < num_folds + 1 or num_folds < 2:
        raise UserError(
            f"config.num_folds: {num_folds} must be at least 2 and less than the number of {split}s in the cohort, "
            f"{len(np.unique(groups))}; change config.num_folds or choose a larger cohort"
        )
    rng = np.random.default_rng(seed)
    test_part = _deal(groups, classes, np.full(num_folds, 1 / num_folds), rng)
    folds = []
    for fold in range(num_folds):
        rest = np.flatnonzero(test_part != fold)
        shares = np.array([1 - validation_fraction, validation_fraction])
        held_out = _deal(groups[rest], classes[rest], shares, rng) == 1
        if not held_out.any():  # of few groups, the share may be less than half of one
            held_out = _smallest(groups[rest], rng)
        parts = {"train": rest[~held_out], "validation": rest[held_out], "test": np.flatnonzero(test_part == fold)}
        empty = [name for name, part in parts.items() if len(part) == 0]
        if empty:
            raise UserError(
                f"config.num_folds: the {empty[0]} set of fold {fold} is empty with {len(ids)} nodules of "
                f"{len(np.unique(patient_ids))} patients; {ADVICE.get(empty[0], '')}choose a larger cohort"
            )
        folds.append({name: ids[part].tolist() for name, part in parts.items()})
    return folds


def _smallest(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which items are of one of the smallest groups, drawn at random: (N,) bool; none of too few groups."""
    names, counts = np.unique(groups, return_counts=True)
    if len(names) <= FEWEST_TO_TRAIN:
        return np.zeros(len(groups), bool)
    return groups == rng.choice(names[counts == counts.min()])
