"""The nodules of a fold as a second stage reads them: their records, a network's features, and masks.

The masks are the readers' 50 % consensus, as in the published methods, or those of a trained network, which needs to
be told no more than where a nodule is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from pnsamp_jax import train
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir import layout

Split = dict[str, list[str]]


class Part(NamedTuple):
    """Nodules of one part of a fold, and what a method may read of them.

    Attributes:
      records: under the names of `schema`, n nodules on the leading axis; voxels are cut to (S, S, S), the patch size.
      features: (n, F) float32 of the network, None without one.
      masks: (n, S, S, S) bool: the readers' 50 % consensus, or predicted.
    """

    records: dict[str, np.ndarray]
    features: np.ndarray | None
    masks: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """(n, 9) mean rating over the readers, NaN where nobody rated."""
        return cohort.mean_rating(self.records[schema.RATING_COUNTS])

    @property
    def labels(self) -> np.ndarray:
        """(n, 9) class of the mean rounded half up, 0 where nobody rated."""
        return cohort.rounded_rating(self.records[schema.RATING_COUNTS])


def consensus(shares: np.ndarray) -> np.ndarray:
    """The readers' 50 % consensus: (n, S, S, S) shares in `schema.MASK_UNIT`s -> bool.

    Of a nodule thinner than a voxel, in which no voxel reaches one half, those with the largest share.
    """
    most = shares.max(axis=(1, 2, 3), keepdims=True)
    return shares >= np.clip(most, 1, schema.MASK_UNIT // 2)


def each_nodule(measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Part], np.ndarray]:
    """From features of a nodule, (image, mask) -> (F,), to features of a part, (n, F).

    They are remembered by nodule and mask, since with the readers' masks a nodule is the same in every fold.
    """
    known = {}

    def features(part: Part) -> np.ndarray:
        nodules = zip(part.records[schema.NODULE_ID], part.records[schema.IMAGE], part.masks, strict=True)
        rows = []
        for nodule_id, image, mask in tqdm(nodules, desc="Features", total=len(part.masks), leave=False):
            key = nodule_id, np.packbits(mask).tobytes()
            if key not in known:
                known[key] = measure(image, mask)
            rows.append(known[key])
        return np.array(rows)

    return features


def open_mask_run(run: Path, config: ConfigDict) -> ConfigDict:
    """The config of another run whose masks are to be read.

    Raises:
      UserError: the run is not there, or has another grid than `config`.
    """
    if not (run / "config.json").is_file() or not (run / "folds.json").is_file():
        raise UserError(f"mask_run: {run} holds no run; train a network that segments into it first")
    theirs = ConfigDict(json.loads((run / "config.json").read_text()))
    fields = theirs.model.to_dict().items()  # JSON knows no tuples, and a model's fields are hashed
    theirs.model = ConfigDict({name: tuple(value) if isinstance(value, list) else value for name, value in fields})
    for field in ("patch_size", "spacing_mm"):
        if theirs[field] != config[field]:
            raise UserError(
                f"mask_run: {run} has config.{field} {theirs[field]}, this run {config[field]}; set it alike"
            )
    for field in ("cache", "workers", "pipeline"):
        theirs.data[field] = config.data[field]
    return theirs


def predicted_masks(
    run: Path, config: ConfigDict, splits: dict[int, Split], nodule_ids: list[str]
) -> dict[int, dict[str, np.ndarray]]:
    """Masks of all nodules for each fold, from the network of another run that did not see the fold's test nodules.

    Args:
      run: workdir of a trained network that segments.
      config: of that run, see `open_mask_run`.
      splits: nodule ids by part, for each fold.
      nodule_ids: of the nodules whose masks are wanted.

    Returns:
      For each fold, by nodule id, (S S S / 8,) uint8: the mask's voxels as bits.

    Raises:
      UserError: the run has another split, lacks a nodule, or does not segment.
    """
    tested = [set(fold["test"]["nodules"]) for fold in json.loads((run / "folds.json").read_text())["folds"]]
    for fold, split in splits.items():
        if fold >= len(tested) or tested[fold] != set(split["test"]):
            raise UserError(
                f"mask_run: {run} tests other nodules in fold {fold}, so its network may have seen this run's test "
                "nodules; train it on the same data with the same seed, split and num_folds"
            )
    records = layout.place_records(config, layout.load_records(config))
    place = {nodule_id: index for index, nodule_id in enumerate(records[schema.NODULE_ID].tolist())}
    lost = [nodule_id for nodule_id in nodule_ids if nodule_id not in place]
    if lost:
        raise UserError(f"mask_run: {run} has no nodule '{lost[0]}'; train it on the same data and cohorts")
    places = np.array([place[nodule_id] for nodule_id in nodule_ids])
    masks = {}
    for fold in splits:
        said = train.predict_nodules(config, records, places, run / f"fold_{fold}")
        if "mask" not in said:
            raise UserError(f"mask_run: the network of {run} does not segment; take a PN-SAMP with a segmentation")
        bits = np.packbits(said["mask"].reshape(len(places), -1), axis=1)
        masks[fold] = dict(zip(nodule_ids, bits, strict=True))
    return masks


def make_part(
    records: dict, places: np.ndarray, patch_size: int, features: np.ndarray | None, masks: dict | None
) -> Part:
    """The nodules at the given places of the records; `masks` by nodule id as of `predicted_masks`, or None."""
    chosen = {name: np.asarray(values[places]) for name, values in records.items()}
    margin = (chosen[schema.IMAGE].shape[1] - patch_size) // 2
    inner = slice(margin, margin + patch_size)
    for name in (schema.IMAGE, schema.MASK):
        chosen[name] = chosen[name][:, inner, inner, inner]
    if masks is None:
        return Part(chosen, features, consensus(chosen[schema.MASK]))
    bits = np.stack([masks[nodule_id] for nodule_id in chosen[schema.NODULE_ID].tolist()])
    voxels = np.unpackbits(bits, axis=1).astype(bool)
    return Part(chosen, features, voxels.reshape(chosen[schema.MASK].shape))
