"""The nodules of a fold as input of a second stage: their records, a network's features, and masks.

The masks are the readers' 50 % consensus, as in the published methods, or the predictions of a trained network, which
needs only the position of a nodule.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from pnsamp_jax import testing
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import Run, load_records
from pnsamp_jax.workdir.layout import Fold

Masks = dict[str, np.ndarray]  # by nodule id, (S S S / 8,) uint8: a bit for each voxel


class Subset(NamedTuple):
    """The training or test nodules of a fold, and the input that a method may use.

    Attributes:
      records: under the names of `schema`, n nodules on the leading axis; voxels are cropped to (S, S, S), the patch
        size.
      network_features: (n, F) float32; None for a method without a network.
      masks: (n, S, S, S) bool: the readers' 50 % consensus, or predicted.
      nominal: how the nominal ratings become one class, one of `cohort.NOMINAL_RULES`.
    """

    records: schema.Records
    network_features: np.ndarray | None
    masks: np.ndarray
    nominal: str = cohort.NOMINAL_RULES[0]

    @property
    def features(self) -> np.ndarray:
        """Return the features of the method's network, (n, F) float32."""
        assert self.network_features is not None, "the method has no network"
        return self.network_features

    @property
    def means(self) -> np.ndarray:
        """Return the mean ratings over the readers, (n, 9), NaN where nobody rated."""
        return cohort.mean_rating(self.records[schema.RATING_COUNTS])

    @property
    def labels(self) -> np.ndarray:
        """Return the classes of the ratings, (n, 9), 0 where nobody rated; see `cohort.labels`."""
        return cohort.labels(self.records[schema.RATING_COUNTS], self.nominal)


def consensus(shares: np.ndarray) -> np.ndarray:
    """Return the readers' 50 % consensus: (n, S, S, S) shares in `schema.MASK_UNIT`s -> bool.

    For a nodule so thin that no voxel reaches one half, return the voxels with the largest share.
    """
    largest = shares.max(axis=(1, 2, 3), keepdims=True)
    return shares >= np.clip(largest, 1, schema.MASK_UNIT // 2)


def for_each_nodule(measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Subset], np.ndarray]:
    """Turn a function of one nodule, (image, mask) -> (F,), into a function of a subset -> (n, F).

    The results are kept by nodule and mask: with the readers' masks, a nodule has the same features in every fold.
    """
    known: dict[tuple[str, bytes], np.ndarray] = {}

    def features(subset: Subset) -> np.ndarray:
        nodules = zip(subset.records[schema.NODULE_ID], subset.records[schema.IMAGE], subset.masks, strict=True)
        rows = []
        for nodule_id, image, mask in tqdm(nodules, desc="Features", total=len(subset.masks), leave=False):
            key = nodule_id, np.packbits(mask).tobytes()
            if key not in known:
                known[key] = measure(image, mask)
            rows.append(known[key])
        return np.array(rows)

    return features


def read_mask_config(mask_run: Path, config: ConfigDict) -> ConfigDict:
    """Return the config of another run whose masks are to be used.

    Raises:
      UserError: there is no such run, or its grid differs from that of `config`.
    """
    if not (mask_run / "config.json").is_file() or not (mask_run / "folds.json").is_file():
        raise UserError(f"mask_run: {mask_run} holds no run; train a network that segments into it first")
    theirs = ConfigDict(json.loads((mask_run / "config.json").read_text()))
    for field in ("patch_size", "spacing_mm"):
        if theirs[field] != config[field]:
            raise UserError(
                f"mask_run: {mask_run} has config.{field} {theirs[field]}, this run {config[field]}; give both the "
                "same"
            )
    for field in ("cache", "workers", "beam", "pipeline"):
        theirs.data[field] = config.data[field]
    return theirs


def predicted_masks(
    mask_run: Path, config: ConfigDict, folds: dict[int, Fold], nodule_ids: list[str]
) -> dict[int, Masks]:
    """Predict the masks of nodules for each fold, by the network that another run did not train on its test nodules.

    Args:
      mask_run: workdir of a trained network that segments.
      config: of that run, see `read_mask_config`.
      folds: nodule ids by subset, for each fold.
      nodule_ids: of the nodules whose masks are needed.

    Returns:
      The masks of the nodules, for each fold.

    Raises:
      UserError: the run has another split, lacks a nodule, or does not segment.
    """
    tested = [set(fold["test"]["nodules"]) for fold in json.loads((mask_run / "folds.json").read_text())["folds"]]
    for fold, subsets in folds.items():
        if fold >= len(tested) or tested[fold] != set(subsets["test"]):
            raise UserError(
                f"mask_run: {mask_run} tests other nodules in fold {fold}, so its network may have been trained on "
                "this run's test nodules; train it on the same data with the same seed, split and num_folds"
            )
    settings = read_settings(config)
    run = Run(mask_run, settings, load_records(settings), folds=[]).on_device()
    index_of = {nodule_id: index for index, nodule_id in enumerate(run.records[schema.NODULE_ID].tolist())}
    missing = [nodule_id for nodule_id in nodule_ids if nodule_id not in index_of]
    if missing:
        raise UserError(f"mask_run: {mask_run} has no nodule '{missing[0]}'; train it on the same data and cohorts")
    indices = np.array([index_of[nodule_id] for nodule_id in nodule_ids])
    masks = {}
    for fold in folds:
        networks, _ = testing.load_fold(run, fold)
        outputs = testing.predict_nodules(run, networks, indices, flips=settings.test_flips, masks=True)
        if "mask" not in outputs:
            raise UserError(f"mask_run: the network of {mask_run} does not segment; use a PN-SAMP with a segmentation")
        bits = np.packbits(outputs["mask"].reshape(len(indices), -1), axis=1)
        masks[fold] = dict(zip(nodule_ids, bits, strict=True))
    return masks


def make_subset(
    records: schema.Records, indices: np.ndarray, patch_size: int, features: np.ndarray | None, masks: Masks | None
) -> Subset:
    """Return the nodules at the given indices of the records, with predicted masks or the readers' (None)."""
    chosen = {name: np.asarray(values[indices]) for name, values in records.items()}
    margin = (chosen[schema.IMAGE].shape[1] - patch_size) // 2
    inner = slice(margin, margin + patch_size)
    for name in (schema.IMAGE, schema.MASK):
        chosen[name] = chosen[name][:, inner, inner, inner]
    if masks is None:
        return Subset(chosen, features, consensus(chosen[schema.MASK]))
    bits = np.stack([masks[nodule_id] for nodule_id in chosen[schema.NODULE_ID].tolist()])
    voxels = np.unpackbits(bits, axis=1).astype(bool)
    return Subset(chosen, features, voxels.reshape(chosen[schema.MASK].shape))
