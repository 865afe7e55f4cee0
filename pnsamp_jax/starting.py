"""The state from which the training of a fold starts: of a checkpoint, of a trained network, or random."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax import processes
from pnsamp_jax.data import schema
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
    folder = ensemble.chosen_folder("config.init", init)
    networks = ensemble.load(folder)
    name = f"fold_{fold}"
    if name not in networks.members:
        name = sorted(networks.members)[fold % len(networks.members)]
    if networks.spacing_mm != spacing_mm:
        raise UserError(f"config.init={init}: receives voxels of {networks.spacing_mm} mm, not {spacing_mm} mm")
    variables = networks.members[name].variables
    wanted = {"params": state.params, "batch_stats": state.batch_stats}
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(jnp.shape, wanted):
        raise UserError(f"config.init={init}: has other layers than config.model; use the config of its training")
    fold_of = layout.fold_of_patients(folder / "folds.json")
    tested = run.records[schema.PATIENT_ID][run.indices(fold)["test"]].tolist()
    seen = sorted({patient for patient in tested if patient in fold_of and f"fold_{fold_of[patient]}" != name})
    if seen:
        raise UserError(
            f"config.init={init}: fold {fold} would be tested on {len(seen)} of the patients that its network {name} "
            f"was trained on, such as {seen[0]}, so the scores would not hold for others; fine-tune on other patients"
        )
    variables = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), wanted, variables)
    average = None if state.average is None else jax.tree.map(jnp.copy, variables)
    return TrainState(state.step, variables["params"], variables["batch_stats"], state.opt_state, average)
