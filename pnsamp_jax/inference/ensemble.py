"""The trained networks of a run, ready to predict: one of each fold, whose answers are averaged.

They are read from the workdir of a run, or from what `experiments/export_weights.py` keeps of one:

    config.json                    of the run
    fold_<k>/checkpoints/          of training; or, without what only training needs, fold_<k>/weights/
    fold_<k>/calibration.json      temperatures and average features, see `temperature`

A fold is ready once it is tested, which writes its calibration.json.
"""

import itertools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pnsamp_jax import models, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable
from pnsamp_jax.inference import temperature
from pnsamp_jax.models.pn_samp import PNSAMP, contributions
from pnsamp_jax.state import TrainState, state_shapes
from pnsamp_jax.workdir.checkpoint import Checkpoints, load_weights

Array = jax.Array

FLIPS = tuple(itertools.product((False, True), repeat=3))  # of depth, height and width; the first is none
LUNG_HU = -850.0  # what the saliency holds a voxel against


class Network(NamedTuple):
    """One network.

    Attributes:
      variables: parameters and batch statistics.
      temperatures: (9,) of the ratings.
      average: (F,) features of an average nodule.
    """

    variables: dict
    temperatures: Array
    average: Array


class Networks(NamedTuple):
    """Networks of one architecture.

    Attributes:
      model: the architecture.
      patch_size: voxels on a side that it sees.
      spacing_mm: size of a voxel.
      windows: (width, centre) in HU of each channel.
      members: by the name of their fold.
    """

    model: nn.Module
    patch_size: int
    spacing_mm: float
    windows: tuple[tuple[float, float], ...]
    members: dict[str, Network]


class Answers(NamedTuple):
    """What the networks say of N nodules, averaged over them and over the flips.

    Attributes:
      mask: (N, S, S, S) float32 probability.
      probabilities: (N, 9, 6) calibrated.
      ensemble_spread: (N,) standard deviation of the expected malignancy over the networks, NaN for one.
      flip_spread: (N,) the same over the flips, NaN without.
      contributions: (N, 9), see `models.pn_samp.contributions`.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    ensemble_spread: np.ndarray
    flip_spread: np.ndarray
    contributions: np.ndarray


def load(folder: Path) -> Networks:
    """Reads the networks of a folder; folds that are not tested yet are left out, and named on stderr.

    Raises:
      UserError: it holds no networks that are ready, none that predict the mask and the ratings, or one whose
        calibration is of another checkpoint than config.json names.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        fields = {name: tuple(it) if isinstance(it, list) else it for name, it in config["model"].items()}
        windows = tuple(tuple(pair) for pair in fields.pop("windows"))
        patch_size, spacing_mm, which = config["patch_size"], config["spacing_mm"], config["checkpoint"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the workdir of a training") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not the config of a run ({error}); give the workdir of a training") from error
    model = models.create(**fields | {"dtype": "float32"})
    if not isinstance(model, PNSAMP) or not (model.segment and model.rate):
        raise UserError(f"{path}: is of a network that lacks the mask or the ratings; take a PN-SAMP M, S1 or S2")
    like = state_shapes(model, patch_size, len(windows))
    trained = sorted({path.parent for kind in ("weights", "checkpoints") for path in folder.glob(f"fold_*/{kind}")})
    tested = [fold for fold in trained if (fold / "calibration.json").exists()]
    untested = [fold.name for fold in trained if fold not in tested]
    if not trained:
        raise UserError(f"{folder}: no fold is trained; run --mode train on this workdir first")
    if not tested:
        raise UserError(
            f"{folder}: no fold is tested yet, which calibrates its network; let the training end, or run "
            f"--mode evaluate --config.fold={untested[0].removeprefix('fold_')} on this workdir"
        )
    if untested:
        print(readable(f"{folder}: left out, since not tested yet: {', '.join(untested)}"), file=sys.stderr)
    members = {fold.name: _load_member(fold, like, which, config["model"]) for fold in tested}
    return Networks(model, patch_size, spacing_mm, windows, members)


def _load_member(fold: Path, like: TrainState, which: str, model: dict) -> Network:
    """The network of a tested fold, of its checkpoint "best" or "last" if it has any, else of its weights.

    Args:
      fold: its folder.
      like: a state of the same shapes.
      which: checkpoint.
      model: the fields of config.model.
    """
    path = fold / "calibration.json"
    found = temperature.read(path)
    if (fold / "weights").is_dir():
        variables = load_weights(fold / "weights", {"params": like.params, "batch_stats": like.batch_stats})
    else:
        with Checkpoints(fold / "checkpoints") as checkpoints:
            if checkpoints.config(which)["model"] != model:
                raise UserError(
                    f"{fold}: saved by another config than {fold.parent / 'config.json'}; take one workdir"
                )
            state = checkpoints.restore(like, which)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if found.step not in (None, int(state.step)):
            raise UserError(
                f"{path}: is of the {found.checkpoint} checkpoint, step {found.step}, but config.json names the "
                f"{which} one, now step {int(state.step)}; run --mode evaluate on this workdir, which writes it anew"
            )
    return Network(variables, jnp.asarray(found.temperatures, jnp.float32), jnp.asarray(found.features))


def of_fold(networks: Networks, fold: int) -> Networks:
    """The network of one fold, alone.

    Raises:
      UserError: it is not among them.
    """
    name = f"fold_{fold}"
    if name not in networks.members:
        raise UserError(f"{name}: is not trained and tested; ready are {', '.join(networks.members)}")
    return networks._replace(members={name: networks.members[name]})


@partial(jax.jit, static_argnums=(0, 1))
def answer(model: nn.Module, windows: tuple, network: Network, images: Array) -> tuple[Array, Array, Array]:
    """What a network says of (B, S, S, S) HU: mask (B, S, S, S), probabilities (B, 9, 6), contributions (B, 9)."""
    outputs = model.apply(network.variables, transforms.window(images, windows))
    probabilities = nn.softmax(outputs.ratings / network.temperatures[:, None])
    parts = contributions(
        network.variables["params"]["heads"],
        outputs.features,
        network.average,
        network.temperatures[schema.MALIGNANCY],
    )
    return nn.sigmoid(outputs.mask), probabilities, parts


def predict(networks: Networks, images: np.ndarray, flips: bool = True) -> Answers:
    """What all networks say of nodules, all in one batch.

    Args:
      networks: to ask.
      images: (N, S, S, S) HU round the nodules.
      flips: whether to average over the eight flips of the patch too.
    """
    chosen = FLIPS if flips else FLIPS[:1]

    def ask(network: Network, flip: tuple[bool, ...]) -> tuple[np.ndarray, ...]:
        axes = 1 + np.flatnonzero(flip)
        said = jax.device_get(answer(networks.model, networks.windows, network, np.flip(images, axes)))
        return np.flip(said[0], axes), *said[1:]

    mask, probabilities, parts = 0.0, [], []
    # On CPU a single forward pass keeps one core and a half busy; on other devices they would only queue.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1) as pool:
        for said in pool.map(ask, *zip(*itertools.product(networks.members.values(), chosen), strict=True)):
            mask += said[0] / (len(networks.members) * len(chosen))
            probabilities.append(said[1])
            parts.append(said[2])
    probabilities = np.stack(probabilities).reshape(len(networks.members), len(chosen), *probabilities[0].shape)
    expected = probabilities[..., schema.MALIGNANCY, :] @ np.arange(1, schema.MAX_CLASSES + 1)
    return Answers(
        mask,
        probabilities.mean(axis=(0, 1)),
        _spread(expected.mean(axis=1)),
        _spread(expected.mean(axis=0)),
        np.mean(parts, axis=0),
    )


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of (M, N) over the first axis, as of a sample; NaN for one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)


@partial(jax.jit, static_argnums=(0, 1))
def malignancy_gradient(model: nn.Module, windows: tuple, network: Network, images: Array) -> Array:
    """By how much each voxel of (B, S, S, S) HU raises the expected malignancy above what lung there would give.

    To first order: the gradient with respect to what the network sees, times its difference from lung.
    """
    inputs = transforms.window(images, windows)

    def expected(inputs: Array) -> Array:
        ratings = model.apply(network.variables, inputs).ratings[:, schema.MALIGNANCY]
        p = nn.softmax(ratings / network.temperatures[schema.MALIGNANCY])
        return (p @ jnp.arange(1.0, schema.MAX_CLASSES + 1)).sum()

    return (jax.grad(expected)(inputs) * (inputs - transforms.window(jnp.array(LUNG_HU), windows))).sum(axis=-1)


def saliency(networks: Networks, images: np.ndarray) -> np.ndarray:
    """`malignancy_gradient` averaged over the networks: (N, S, S, S) HU -> (N, S, S, S) float32."""
    arguments = networks.model, networks.windows
    return np.mean([malignancy_gradient(*arguments, network, images) for network in networks.members.values()], axis=0)
