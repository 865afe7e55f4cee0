"""The networks of a run, one for each fold: reading them, and averaging their predictions.

They are read from the workdir of a run, or from the files that `experiments/export_weights.py` keeps of one:

    config.json                    of the run
    fold_<k>/checkpoints/          of the training; in exported weights fold_<k>/weights/ instead
    fold_<k>/calibration.json      temperatures, mask shift, limits and mean features, see `calibration`

A fold is ready once it is tested, which writes its calibration.json.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import pnsamp_jax
from pnsamp_jax import steps
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable, user_path
from pnsamp_jax.inference import calibration, likeness
from pnsamp_jax.inference.flips import FLIPS, Answer, Ask, Flip, at_once, one_by_one
from pnsamp_jax.inference.openvino_program import OpenVINOProgram
from pnsamp_jax.inference.predictions import Predictions, with_own_thresholds
from pnsamp_jax.models.pn_samp import PNSAMP
from pnsamp_jax.models.pn_samp_plus import PNSAMPPlus
from pnsamp_jax.state import TrainState, state_shapes
from pnsamp_jax.task import Windows, build_model
from pnsamp_jax.workdir.checkpoint import WHICH, Checkpoints, load_weights
from pnsamp_jax.workdir.folders import fold_folders
from pnsamp_jax.workdir.heads import copies_to_refit, with_heads
from pnsamp_jax.workdir.layout import difference

RUNTIMES = ("jax", "openvino")
SHIPPED = Path(pnsamp_jax.__file__).with_name("weights")  # the networks that come with the package


class Network(NamedTuple):
    """One trained network.

    Attributes:
      variables: parameters and batch statistics.
      temperatures: (9,) float32 of the ratings.
      mean_features: (F,) over the fold's validation nodules; None if not known.
      mask_shift: added to the logits of the mask, see `inference.calibration`.
      class_limits: (2, 9, 6) of the sets of classes, see `inference.conformal`; None if not known.
      extent_limits: (2, 2) of volume and diameter, see `inference.extent`; None if not known.
      class_terms: (8, 6, 5) float32, see `inference.what_if`; None if not known.
      likeness: (F + 1,), see `inference.likeness`; None if not known.
      mask_adaptation: share for `masks.adapted`.
    """

    variables: dict
    temperatures: np.ndarray
    mean_features: np.ndarray | None
    mask_shift: float = 0.0
    class_limits: np.ndarray | None = None
    extent_limits: np.ndarray | None = None
    class_terms: np.ndarray | None = None
    likeness: np.ndarray | None = None
    mask_adaptation: float = 0.0


class Networks(NamedTuple):
    """Networks of one architecture.

    Attributes:
      model: the architecture.
      patch_size: voxels on a side of its input.
      spacing_mm: size of a voxel.
      windows: (width, centre) in HU of each input channel.
      members: by the name of their fold.
      simulated: whether they were trained on simulated voxels, which say nothing about a real CT.
      programs: what answers for each member in place of JAX; None for JAX itself.
      fitted_threshold: whether each mask has a threshold of its own, which `predict` shifts to one half; see
        `masks.best_threshold`.
    """

    model: nn.Module
    patch_size: int
    spacing_mm: float
    windows: Windows
    members: dict[str, Network]
    simulated: bool = False
    programs: dict[str, Ask] | None = None
    fitted_threshold: bool = False

    def member(self, fold: int) -> "Networks":
        """Return the network of one fold alone.

        Raises:
          UserError: the fold has no network.
        """
        name = f"fold_{fold}"
        if name not in self.members:
            raise UserError(f"{name}: is not trained and tested; ready are {', '.join(self.members)}")
        return self._replace(members={name: self.members[name]})

    @property
    def mask_adaptation(self) -> float:
        """Return the mean share for `masks.adapted` over the networks."""
        return float(np.mean([network.mask_adaptation for network in self.members.values()]))

    def nodule_like(self, predictions: Predictions) -> np.ndarray | None:
        """Return the mean score over the networks of N nodules, (N,); None if a network has no head or no features.

        Args:
          predictions: of all these networks.
        """
        return likeness.mean_scores([one.likeness for one in self.members.values()], predictions.features)

    def ask(self, network: Network) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """Return a network as a function that JAX can trace, from images (N, S, S, S) to `steps.predict_step`'s."""
        static = (self.model, self.patch_size, self.windows)
        calibrated = (jnp.asarray(network.temperatures), jnp.float32(network.mask_shift))
        return partial(steps.predict_step, *static, network.variables, *calibrated)


def predict(networks: Networks, images: np.ndarray, flips: bool = True) -> Predictions:
    """Ask all networks about nodules.

    Args:
      networks: at least one.
      images: (N, S, S, S) HU around the nodules, S at least the patch size, of which the centre is used; N is a
        multiple of the number of local devices.
      flips: whether to predict all eight flips of the patch, or the patch as it is only.
    """
    chosen = FLIPS if flips else FLIPS[:1]
    count = len(networks.members) * len(chosen)
    mask: Any = None
    rest: dict[str, list[np.ndarray]] = {"probabilities": [], "features": []}
    for outputs in _answers(networks, images, chosen):
        if "mask" in outputs:
            mask = (0.0 if mask is None else mask) + outputs["mask"] / count
        for name, values in rest.items():
            if name in outputs:
                values.append(outputs[name])

    def stacked(values: list[np.ndarray]) -> np.ndarray | None:
        if not values:
            return None
        return np.concatenate(values).reshape(len(networks.members), len(chosen), *values[0].shape[1:])

    predictions = Predictions(mask, stacked(rest["probabilities"]), stacked(rest["features"]))
    if mask is None or not networks.fitted_threshold:
        return predictions
    return with_own_thresholds(predictions, networks.spacing_mm, networks.mask_adaptation)


def _answers(networks: Networks, images: np.ndarray, flips: tuple[Flip, ...]) -> Iterator[Answer]:
    """Yield the answers of the networks in turn, in the way that is fastest on the device; see `inference.flips`."""
    static = (networks.model, networks.patch_size, networks.windows)
    calibrated = [(one.variables, one.temperatures, one.mask_shift) for one in networks.members.values()]
    if networks.programs:
        return one_by_one([networks.programs[name] for name in networks.members], images, flips, workers=1)
    if jax.default_backend() == "cpu":  # where one forward pass keeps one and a half cores busy
        step = steps.compile_predict_step(*static)
        return one_by_one([partial(step, *one) for one in calibrated], images, flips, min(4, os.cpu_count() or 1))
    step = steps.compile_predict_flips_step(*static)
    return at_once([partial(step, *one, flips) for one in calibrated], images)


def chosen_folder(field: str, value: str) -> Path:
    """Return the folder of the networks that a field of a config names.

    Args:
      field: its name, for the message.
      value: the workdir of a run, or "shipped" for the networks that come with the package.

    Raises:
      UserError: no networks come with this version of the package.
    """
    if value != "shipped":
        return user_path(value)
    if not SHIPPED.is_dir():
        raise UserError(f"{field}: no weights come with this version; train some first, and give their workdir")
    return SHIPPED


def described(networks: Networks | None, name: str, flips: bool) -> dict[str, Any]:
    """Return which networks predict, how and on which day (UTC), as the first fields of predictions.json.

    Args:
      networks: that predict; None if there was nothing to ask.
      name: the workdir that they are from, or "shipped".
      flips: whether they predict all flips.
    """
    return {
        "checkpoint": "shipped with pnsamp_jax" if name == "shipped" else name,
        "version": pnsamp_jax.__version__,
        "networks": len(networks.members) if networks else 0,
        "flips": len(FLIPS) if flips else 1,
        "trained_on_simulated_voxels": networks.simulated if networks else None,
        "date": datetime.now(UTC).date().isoformat(),
    }


def load(folder: Path, runtime: str = "jax") -> Networks:
    """Read the networks of a folder. Folds that are not tested yet are left out and named on stderr.

    Args:
      folder: the workdir of a run, or exported weights.
      runtime: what computes their answers, one of `RUNTIMES`. Gradients, for the saliency, are always JAX's.

    Raises:
      UserError: the folder holds no network that is ready, the networks do not predict mask and ratings, or a
        calibration belongs to another checkpoint than config.json names; or the runtime is none, or not installed.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"runtime: '{runtime}' is none of {', '.join(RUNTIMES)}")
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text())
        fields = config["model"] | {"dtype": "float32"}
        model, windows = build_model(fields)
        patch_size, spacing_mm = config["patch_size"], config["spacing_mm"]
        simulated, fitted_threshold = config["data"]["source"] == "phantom", config.get("fit_threshold", False)
        if not (isinstance(patch_size, int) and min(patch_size, spacing_mm) > 0 and config["checkpoint"] in WHICH):
            raise ValueError("patch_size, spacing_mm or checkpoint is out of range")
    except FileNotFoundError as error:
        raise UserError(f"{config_file}: no such file; give the workdir of a training") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config_file}: is not the config of a run ({error}); give the workdir of a training"
        ) from error
    whole = isinstance(model, PNSAMPPlus) or (isinstance(model, PNSAMP) and model.segment and model.rate)
    if not whole:
        raise UserError(f"{config_file}: its network lacks the mask or the ratings; use a PN-SAMP Plus, M, S1 or S2")
    like = state_shapes(model, patch_size, len(windows), config.get("average_decay", 0.0) > 0)
    members = {fold.name: _load_member(fold, like, config) for fold in _tested_folds(folder)}
    networks = Networks(model, patch_size, spacing_mm, windows, members, simulated, None, fitted_threshold)
    if runtime == "jax":
        return networks
    programs: dict[str, Ask] = {name: OpenVINOProgram(networks.ask(one)) for name, one in members.items()}
    return networks._replace(programs=programs)


def _tested_folds(folder: Path) -> list[Path]:
    """Return the folders of the folds that are trained and tested."""
    trained = [fold for fold in fold_folders(folder) if (fold / "weights").is_dir() or (fold / "checkpoints").is_dir()]
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
    return tested


def _load_member(fold: Path, like: TrainState, config: dict[str, Any]) -> Network:
    """Read the network of a tested fold from its weights, or else from its checkpoints.

    Args:
      fold: its folder.
      like: a state of the same shapes.
      config: of the run. Exported weights hold the heads that were fitted again.
    """
    path, which, copies = fold / "calibration.json", config["checkpoint"], copies_to_refit(config)
    fitted = calibration.read(path)
    if fitted.fitted_threshold not in (None, config.get("fit_threshold", False)):
        raise UserError(
            f"{path}: belongs to another config.fit_threshold than {fold.parent / 'config.json'}; run --mode evaluate "
            "on this workdir, which writes it anew"
        )
    if (fold / "weights").is_dir():
        variables = load_weights(fold / "weights", like.variables)
    else:
        with Checkpoints(fold / "checkpoints") as checkpoints:
            found = difference(config, checkpoints.config(which), longer=which == "best")
            if found:
                raise UserError(f"{fold}: saved by another config than config.json beside it: {found}; restore that")
            state = checkpoints.restore(like, which)
        variables = state.variables
        if fitted.step != int(state.step):
            raise UserError(
                f"{path}: belongs to the {fitted.checkpoint} checkpoint, step {fitted.step}, but "
                f"config.json names the {which} one, now step {int(state.step)}; run --mode evaluate on this workdir, "
                "which writes it anew"
            )
        if copies:
            variables = with_heads(fold, int(state.step), copies, variables)
    temperatures = fitted.temperatures.astype(np.float32)
    fields = fitted._asdict()
    same = ("mask_shift", "class_limits", "extent_limits", "class_terms", "likeness", "mask_adaptation")
    return Network(variables, temperatures, fitted.features, **{name: fields[name] for name in same})
