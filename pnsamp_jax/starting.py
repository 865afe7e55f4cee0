"""The state from which the training of a fold starts: of a checkpoint, of a trained network, or random."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax import processes
from pnsamp_jax.data import schema
from pnsamp_jax.data.spellings import bare
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.run import Run
from pnsamp_jax.state import TrainState, create_state, state_shapes
from pnsamp_jax.testing import restore
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.checkpoint import Checkpoints


def first_state(run: Run, fold: int, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the last checkpoint, or the initial one; in all processes, what process 0 finds.

    Args:
      run: of the fold.
      fold: its number.
      checkpoints: of the fold; they are used in process 0 only.
    """
    state = processes.on_primary(partial(_found_state, run, fold, checkpoints))
    if state is None:
        shapes = state_shapes(*run.settings.task.shape)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return processes.broadcast(state)


def require_untested(run: Run) -> None:
    """Check all folds that are to start from trained networks, before the first is trained for hours.

    Raises:
      UserError: the network of a fold was trained on patients who are to test the fold.
    """
    folds = [fold for fold in run.settings.folds if next(run.fold_folder(fold).glob("checkpoints/*/"), None) is None]
    if not run.settings.init or not folds:
        return
    networks = ensemble.load(_init_folder(run))
    for fold in folds:
        _require_untested(run, fold, _network_of(fold, networks))


def _found_state(run: Run, fold: int, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the last checkpoint, or the initial one."""
    if checkpoints.last_step is not None:
        return restore(run, checkpoints, "last", longer=True)
    model, patch_size, channels, average = run.settings.task.shape
    state = create_state(model, patch_size, channels, run.seed(fold), average)
    return _start_from(run, fold, state) if run.settings.init else state


def _start_from(run: Run, fold: int, state: TrainState) -> TrainState:
    """Return the initial state with the weights of a trained network, to fine-tune it.

    A fold starts from the network of the same number or, if there is none, of that number modulo how many there are.

    Raises:
      UserError: the network has other layers or voxels than the run's, or was trained on patients who are to test the
        fold.
    """
    init, spacing_mm = run.settings.init, run.settings.geometry.spacing_mm
    networks = ensemble.load(_init_folder(run))
    name = _network_of(fold, networks)
    if networks.spacing_mm != spacing_mm:
        raise UserError(f"config.init={init}: receives voxels of {networks.spacing_mm} mm, not {spacing_mm} mm")
    variables = networks.members[name].variables
    wanted = {"params": state.params, "batch_stats": state.batch_stats}
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(jnp.shape, wanted):
        raise UserError(f"config.init={init}: has other layers than config.model; use the config of its training")
    _require_untested(run, fold, name)
    variables = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), wanted, variables)
    average = None if state.average is None else jax.tree.map(jnp.copy, variables)
    return TrainState(state.step, variables["params"], variables["batch_stats"], state.opt_state, average)


def _init_folder(run: Run) -> Path:
    return ensemble.chosen_folder("config.init", run.settings.init)


def _network_of(fold: int, networks: ensemble.Networks) -> str:
    """Return the name of the network that a fold starts from."""
    name = f"fold_{fold}"
    return name if name in networks.members else sorted(networks.members)[fold % len(networks.members)]


def _require_untested(run: Run, fold: int, name: str) -> None:
    """Raise UserError if a network was trained on patients, however their ids are spelt, who are to test a fold."""
    fold_of = layout.fold_of_patients(_init_folder(run) / "folds.json")
    trained_on = {bare(patient) for patient, tested in fold_of.items() if f"fold_{tested}" != name}
    tested = run.records[schema.PATIENT_ID][run.indices(fold)["test"]].tolist()
    seen = sorted({patient for patient in tested if bare(patient) in trained_on})
    if seen:
        raise UserError(
            f"config.init={run.settings.init}: fold {fold} would be tested on {len(seen)} of the patients that its "
            f"network {name} was trained on, such as {seen[0]}, so the scores would not hold for others; fine-tune on "
            "other patients"
        )
