"""Cross-validation: train each fold, test it on the nodules that it never saw, and evaluate all folds together."""

import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from pnsamp_jax import evaluate, input_pipeline, processes, steps
from pnsamp_jax.allocator import give_back_freed_memory
from pnsamp_jax.config import connect_processes, read_settings, use_compilation_cache
from pnsamp_jax.errors import Interrupted, UserError, noted_sigterm
from pnsamp_jax.files import readable
from pnsamp_jax.journal import Journal
from pnsamp_jax.refit import refit_fold
from pnsamp_jax.run import Run, open_run
from pnsamp_jax.starting import first_state, require_untested
from pnsamp_jax.state import TrainState, learning_rates
from pnsamp_jax.stepping import take_steps
from pnsamp_jax.testing import test_fold
from pnsamp_jax.workdir import layout, tables
from pnsamp_jax.workdir.checkpoint import Checkpoints, set_aside_damaged
from pnsamp_jax.workdir.folders import trained_folds
from pnsamp_jax.workdir.heads import copies_to_refit
from pnsamp_jax.workdir.metrics_log import MetricsLog

AFTER_PHANTOM = """
These voxels are simulated: the scores show that the code works, and nothing about patients. After a few epochs, scores
below the best constant are to be expected. The networks that come with the package, on a real nodule:

    pnsamp predict --example --out runs/example
"""


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Run the cross-validation that the config describes from wherever it stopped, and evaluate it.

    Several processes train together, see `processes`; after the training, process 0 tests and evaluates alone.

    Returns:
      The content of results.json; {} in the processes that end before it is written.
    """
    return cross_validate(config, workdir, train=True)


def test_and_evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Test the folds that were trained in `workdir` again, and evaluate them; see `train_and_evaluate`."""
    return cross_validate(config, workdir, train=False)


def cross_validate(config: ConfigDict, workdir: Path, train: bool) -> dict:
    """Train (if `train`), test and evaluate the folds that the config names.

    Returns:
      The content of results.json.

    Raises:
      UserError: the config, the data or the workdir do not fit, or the loss is no longer finite.
    """
    connect_processes(config)
    if not train and jax.process_count() > 1:
        raise UserError("config.distributed: only a training takes several processes; test and evaluate in one")
    _ = read_settings(config).task  # refuses an unknown model before anything is written
    if not train and not trained_folds(workdir):
        raise UserError(f"{workdir}: holds no training; correct the path, or run --mode train first")
    run = open_run(config, workdir, longer=train).on_device()
    use_compilation_cache(run.settings.cache)
    give_back_freed_memory()  # of the records, which the host need not hold twice
    with ExitStack() as locks:
        processes.on_primary(partial(_lock, run, locks))
        if train:
            processes.on_primary(partial(require_untested, run))
        alone = jax.process_count() == 1
        for fold in run.settings.folds:
            if train:
                train_fold(run, fold)
            if alone:
                _finish_fold(run, fold)
        if not alone:  # of the others, which have no part in testing
            processes.part()
            if not processes.is_primary():
                return {}
            for fold in run.settings.folds:
                _finish_fold(run, fold)
    tables.require_whole_folds(workdir, [set(fold["test"]) for fold in run.folds])
    tables.gather_predictions(workdir)
    results = evaluate.evaluate(workdir)
    if results["source"] == "phantom":
        print(AFTER_PHANTOM)
    return results


def _finish_fold(run: Run, fold: int) -> None:
    """Fit the heads of a trained fold again, if the config asks for it, and test it."""
    if copies_to_refit(run.settings.fields):
        refit_fold(run, fold)
    test_fold(run, fold)


def _lock(run: Run, locks: ExitStack) -> None:
    """Lock the folds of a run."""
    for fold in run.settings.folds:
        locks.enter_context(layout.locked(run.fold_folder(fold)))
    layout.check_config(run.workdir, run.settings.fields)  # until the locks, another run may have trained on


def train_fold(run: Run, fold: int) -> None:
    """Train one fold to its last step, from its last checkpoint if there is one.

    Raises:
      UserError: the loss is not finite (the last good checkpoint is kept), or another process works on the fold.
      Interrupted: a SIGTERM arrived; the state is saved.
    """
    folder = run.fold_folder(fold)
    with ExitStack() as stack:
        checkpoints = processes.on_primary(partial(_open_checkpoints, folder, fold, stack))
        sigterm = stack.enter_context(noted_sigterm())
        state = first_state(run, fold, checkpoints)
        first_step, last_step = int(state.step), run.settings.num_epochs * _steps_per_epoch(run, fold)
        if first_step < last_step:
            log = processes.on_primary(
                lambda: stack.enter_context(MetricsLog(folder, first_step, run.settings.fields))
            )
            journal = Journal(fold, run.settings.fields, checkpoints, log, saved=first_step or None)
            _train_steps(run, fold, state, range(first_step, last_step), journal, sigterm)


def _open_checkpoints(folder: Path, fold: int, stack: ExitStack) -> Checkpoints:
    """Lock a fold and open its checkpoints, after those that are damaged are set aside."""
    stack.enter_context(layout.locked(folder))
    for line in set_aside_damaged(folder / "checkpoints"):
        print(readable(f"{line}; fold {fold} goes on from the last good checkpoint, or anew where there is none"))
    return stack.enter_context(Checkpoints(folder / "checkpoints"))


def _train_steps(
    run: Run, fold: int, state: TrainState, taken: range, journal: Journal, sigterm: threading.Event
) -> None:
    """Take steps from `state` on, logging, validating and saving at their intervals."""
    settings, indices, seed = run.settings, run.indices(fold), run.seed(fold)
    last_step, every = taken.stop, settings.checkpoint_every_epochs * _steps_per_epoch(run, fold)
    rates = learning_rates(settings.schedule, settings.learning_rate, last_step)
    calls = take_steps(run, indices["train"], steps.replicate(state), taken, every, seed, rates)
    shown = {"initial": taken.start, "total": last_step, "disable": not processes.is_primary()}
    with tqdm(desc=f"Fold {fold}", unit="step", mininterval=1, **shown) as bar:
        bar.set_postfix_str("compiling; this takes up to a minute on a CPU")
        for call, state, measured in calls:
            if call.start == taken.start:
                bar.set_postfix_str("")
                give_back_freed_memory()  # of the compilation, before the step takes its own
            logged = [step for step in call if (step + 1) % settings.log_every_steps == 0 or step + 1 == last_step]
            values = jax.device_get(measured) if logged else {}
            for step in logged:
                scores = {name: float(np.atleast_1d(value)[step - call.start]) for name, value in values.items()}
                journal.write("train", step + 1, scores | {"learning_rate": float(rates[step])})
                bar.set_postfix(loss=f"{scores['loss']:.3f}")
            bar.update(len(call))
            step = call.stop
            if step % every == 0 or step == last_step:
                scores, slices = validate(run, state, indices["validation"])
                journal.write("validation", step, scores, slices)
                journal.save(state, step, scores["loss"])
            asked = logged or jax.process_count() == 1  # asking the other processes takes time
            if asked and step < last_step and processes.any_of(sigterm.is_set()):
                if journal.saved != step:  # an infinite loss: not validated, so never the best
                    journal.save(state, step, float("inf"))
                journal.finish()
                raise Interrupted(
                    f"fold {fold}: told to stop (SIGTERM); the checkpoint of step {step} is saved; the same command "
                    "goes on from there"
                )
    journal.finish()


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


def _steps_per_epoch(run: Run, fold: int) -> int:
    return max(1, len(run.indices(fold)["train"]) // run.settings.batch_size)
