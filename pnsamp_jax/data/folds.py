"""Cross-validation: which nodules train, validate and test in each fold."""

import numpy as np

from pnsamp_jax.errors import UserError

SPLITS = ("patient", "nodule")


def _deal(groups: np.ndarray, classes: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deals whole groups into parts of given sizes, each class spread alike.

    Groups are taken in random order, the largest first, and each goes where it fills the largest gap between a
    part's count of every class and its due share.

    Args:
      groups: (N,) group of each item.
      classes: (N,) class of each item.
      parts: (P,) share of the items due to each part, summing to 1.
      rng: decides the order among groups of a size, and the part among equals.

    Returns:
      (N,) int: the part of each item.
    """
    names, group = np.unique(groups, return_inverse=True)
    labels, label = np.unique(classes, return_inverse=True)
    table = np.zeros((len(names), len(labels)))
    np.add.at(table, (group, label), 1)
    due = parts[:, None] * table.sum(axis=0)
    # Per class, a nodule counts for its share of the class, so that a rare class is spread as evenly as a common one.
    scale = np.maximum(table.sum(axis=0), 1)
    have = np.zeros_like(due)
    part_of = np.zeros(len(names), int)
    order = rng.permutation(len(names))
    for index in order[np.argsort(-table[order].sum(axis=1), kind="stable")]:
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
    """Splits nodules into folds, the same for the same arguments whatever the order of the nodules.

    Args:
      nodule_ids: (N,) unique ids.
      patient_ids: (N,) patient of each.
      classes: (N,) class to stratify by.
      num_folds: number of folds; each nodule is tested in exactly one.
      validation_fraction: share of each fold's training part that is held out to choose the checkpoint.
      split: "patient" keeps a patient's nodules together; "nodule" lets them part, as in the paper (about 70 % of
        test nodules then share a patient with a training nodule).
      seed: decides the split.

    Returns:
      One {"train": ids, "validation": ids, "test": ids} for each fold, ids sorted.

    Raises:
      UserError: too few patients (or nodules) for the folds, or an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"config.split: '{split}' is none of {', '.join(SPLITS)}")
    order = np.argsort(nodule_ids)
    ids, classes = np.asarray(nodule_ids)[order], np.asarray(classes)[order]
    groups = np.asarray(patient_ids)[order] if split == "patient" else ids
    if len(np.unique(groups)) < num_folds + 1 or num_folds < 2:
        raise UserError(
            f"config.num_folds: {num_folds} folds need at least 2 folds and {num_folds + 1} {split}s, but the cohort "
            f"has {len(np.unique(groups))}; lower config.num_folds or take a larger cohort"
        )
    rng = np.random.default_rng(seed)
    test_part = _deal(groups, classes, np.full(num_folds, 1 / num_folds), rng)
    folds = []
    for fold in range(num_folds):
        rest = np.flatnonzero(test_part != fold)
        shares = np.array([1 - validation_fraction, validation_fraction])
        held_out = _deal(groups[rest], classes[rest], shares, rng) == 1
        parts = {"train": rest[~held_out], "validation": rest[held_out], "test": np.flatnonzero(test_part == fold)}
        empty = [name for name, part in parts.items() if len(part) == 0]
        if empty:
            raise UserError(
                f"config.num_folds: the {empty[0]} part of fold {fold} is empty with {len(ids)} nodules; "
                "lower config.num_folds, raise config.validation_fraction or take a larger cohort"
            )
        folds.append({name: ids[part].tolist() for name, part in parts.items()})
    return folds
