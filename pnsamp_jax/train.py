"""Cross-validation: train each fold, test it on the nodules that it never saw, and evaluate all folds together."""

import threading
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from pnsamp_jax import evaluate, input_pipeline, steps
from pnsamp_jax.allocator import give_back_freed_memory
from pnsamp_jax.config import read_settings, use_compilation_cache
from pnsamp_jax.data import schema
from pnsamp_jax.errors import Interrupted, UserError, noted_sigterm
from pnsamp_jax.files import readable
from pnsamp_jax.inference import ensemble
from pnsamp_jax.run import Run, open_run
from pnsamp_jax.state import TrainState, create_state, learning_rates
from pnsamp_jax.testing import restore, test_fold
from pnsamp_jax.workdir import layout, tables
from pnsamp_jax.workdir.checkpoint import Checkpoints, set_aside_damaged
from pnsamp_jax.workdir.metrics_log import MetricsLog

AFTER_PHANTOM = """
These voxels are simulated: the scores show that the code works, and nothing about patients. After a few epochs, scores
below the best constant are to be expected. The networks that come with the package, on a real nodule:

    pnsamp predict --example --out runs/example
"""


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Run the cross-validation that the config describes from wherever it stopped, and evaluate it.

    Returns:
      The content of results.json.
    """
    return cross_validate(config, workdir, train=True)


def test_and_evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Test the folds that were trained in `workdir` again, and evaluate them; see `train_and_evaluate`."""
    return cross_validate(config, workdir, train=False)


def cross_validate(config: ConfigDict, workdir: Path, train: bool) -> dict:
    """Train (if `train`), test and evaluate the folds that the config names; see `train_and_evaluate`."""
    _ = read_settings(config).task  # refuses an unknown model before anything is written
    run = open_run(config, workdir, longer=train).on_device()
    use_compilation_cache(run.settings.cache)
    give_back_freed_memory()  # of the records, which the host need not hold twice
    with ExitStack() as locks:
        for fold in run.settings.folds:
            locks.enter_context(layout.locked(run.fold_folder(fold)))
        layout.check_config(workdir, run.settings.fields)  # until the locks, another process may have trained on
        for fold in run.settings.folds:
            if train:
                train_fold(run, fold)
            test_fold(run, fold)
    tables.gather_predictions(workdir)
    results = evaluate.evaluate(workdir)
    if results["source"] == "phantom":
        print(AFTER_PHANTOM)
    return results


def train_fold(run: Run, fold: int) -> None:
    """Train one fold to its last step, from its last checkpoint if there is one.

    Raises:
      UserError: the loss is not finite (the last good checkpoint is kept), or another process works on the fold.
      Interrupted: a SIGTERM arrived; the state is saved.
    """
    folder = run.fold_folder(fold)
    with layout.locked(folder), ExitStack() as stack:
        for line in set_aside_damaged(folder / "checkpoints"):
            print(readable(f"{line}; fold {fold} goes on from the last good checkpoint, or anew where there is none"))
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
        sigterm = stack.enter_context(noted_sigterm())
        state = _first_state(run, fold, checkpoints)
        last_step = run.settings.num_epochs * _steps_per_epoch(run, fold)
        if int(state.step) < last_step:
            log = stack.enter_context(MetricsLog(folder, int(state.step), run.settings.fields))
            _train_steps(run, fold, state, last_step, checkpoints, log, sigterm)


def _train_steps(
    run: Run,
    fold: int,
    state: TrainState,
    last_step: int,
    checkpoints: Checkpoints,
    log: MetricsLog,
    sigterm: threading.Event,
) -> None:
    """Take the steps from `state` to the last one, logging, validating and saving at their intervals."""
    settings, indices, seed = run.settings, run.indices(fold), fold_seed(run.settings.seed, fold)
    first_step, steps_per_epoch = int(state.step), _steps_per_epoch(run, fold)
    rates = learning_rates(settings.schedule, settings.learning_rate, last_step)
    train_step = steps.compile_train_step(settings.task)
    state = steps.replicate(state)
    batches = input_pipeline.train_batches(
        run.records,
        indices["train"],
        pipeline=settings.pipeline,
        seed=seed,
        steps=range(first_step, last_step),
        batch_size=settings.batch_size,
    )
    bar = tqdm(batches, desc=f"Fold {fold}", initial=first_step, total=last_step, unit="step", mininterval=1)
    bar.set_postfix_str("compiling; this takes up to a minute on a CPU")
    for step, batch in enumerate(bar, start=first_step + 1):
        state, measured = train_step(state, batch, seed, rates[step - 1])
        if step == first_step + 1:
            bar.set_postfix_str("")
            give_back_freed_memory()  # of the compilation, before the step takes its own
        if step % settings.log_every_steps == 0 or step == last_step:
            scores = {name: float(value) for name, value in measured.items()}
            scores["learning_rate"] = float(rates[step - 1])
            _require_finite(scores["loss"], fold, step, checkpoints.last_step)
            log.write("train", step, scores)
            bar.set_postfix(loss=f"{scores['loss']:.3f}")
        if step % (settings.checkpoint_every_epochs * steps_per_epoch) == 0 or step == last_step:
            scores, slices = validate(run, state, indices["validation"])
            _require_finite(scores["loss"], fold, step, checkpoints.last_step)
            log.write("validation", step, scores, slices)
            checkpoints.save(state, settings.fields, scores["loss"])
        if sigterm.is_set() and step < last_step:
            if checkpoints.last_step != step:  # an infinite loss: not validated, so never the best
                checkpoints.save(state, settings.fields, float("inf"))
            raise Interrupted(
                f"fold {fold}: told to stop (SIGTERM); the checkpoint of step {step} is saved; the same command goes "
                "on from there"
            )


def validate(run: Run, state: TrainState, nodules: np.ndarray) -> tuple[dict[str, float], np.ndarray | None]:
    """Test a state on the nodules at the given indices.

    Returns:
      The mean loss, its terms and Dice; and the slices (n, 3, H, W) of the first batch, see `steps.eval_step`, for a
      model that segments.
    """
    eval_step, batch_size = steps.compile_eval_step(run.settings.task), run.settings.batch_size
    parts: list[dict[str, np.ndarray]] = []
    shown = None
    for batch, count in input_pipeline.eval_batches(run.records, nodules, batch_size):
        scores = eval_step(state.variables, batch)
        slices = scores.pop("slices", None)
        if slices is not None and not parts:
            shown = np.asarray(slices)[:count]
        parts.append({name: values[:count] for name, values in jax.device_get(scores).items()})
    return {name: float(np.concatenate([part[name] for part in parts]).mean()) for name in parts[0]}, shown


def fold_seed(seed: int, fold: int) -> int:
    """Return a seed for each fold, so that folds differ in their initial weights and batches too."""
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0])


def _first_state(run: Run, fold: int, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the last checkpoint, or the initial one."""
    if checkpoints.last_step is not None:
        return restore(run, checkpoints, "last", longer=True)
    model, patch_size, channels, average = run.settings.task.shape
    state = create_state(model, patch_size, channels, fold_seed(run.settings.seed, fold), average)
    return _start_from(run, fold, state) if run.settings.init else state


def _start_from(run: Run, fold: int, state: TrainState) -> TrainState:
    """Return the initial state with the weights of a trained network, to fine-tune it.

    A fold starts from the network of the same number, or of that number modulo the number of networks.

    Raises:
      UserError: the network has other layers or voxels than the run's, or was trained on patients who are to test the
        fold.
    """
    init, spacing_mm = run.settings.init, run.settings.geometry.spacing_mm
    folder = ensemble.chosen_folder("config.init", init)
    networks = ensemble.load(folder)
    name = sorted(networks.members)[fold % len(networks.members)]
    if networks.spacing_mm != spacing_mm:
        raise UserError(f"config.init={init}: receives voxels of {networks.spacing_mm} mm, not {spacing_mm} mm")
    variables = networks.members[name].variables
    wanted = {"params": state.params, "batch_stats": state.batch_stats}
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(jnp.shape, wanted):
        raise UserError(f"config.init={init}: has other layers than config.model; use the config of its training")
    fold_of = layout.fold_of_patients(folder / "folds.json")
    tested = run.records[schema.PATIENT_ID][run.indices(fold)["test"]].tolist()
    seen = sorted({patient for patient in tested if f"fold_{fold_of.get(patient)}" not in (name, "fold_None")})
    if seen:
        raise UserError(
            f"config.init={init}: its network {name} was trained on {len(seen)} patients who are to test fold {fold}, "
            f"such as {seen[0]}, so the scores would not hold for other patients; fine-tune on patients it did not see"
        )
    variables = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), wanted, variables)
    average = None if state.average is None else jax.tree.map(jnp.copy, variables)
    return TrainState(state.step, variables["params"], variables["batch_stats"], state.opt_state, average)


def _steps_per_epoch(run: Run, fold: int) -> int:
    return max(1, len(run.indices(fold)["train"]) // run.settings.batch_size)


def _require_finite(loss: float, fold: int, step: int, last_good: int | None) -> None:
    if not np.isfinite(loss):
        kept = "no checkpoint was saved yet" if last_good is None else f"the checkpoint of step {last_good} is kept"
        raise UserError(f"fold {fold}, step {step}: the loss is {loss}; {kept}; lower config.learning_rate")
