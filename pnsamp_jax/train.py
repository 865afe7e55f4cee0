"""Cross-validation: trains each fold, tests it on the nodules it never saw, and evaluates them all together."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from pnsamp_jax import config as settings
from pnsamp_jax import evaluate, input_pipeline, losses, models, steps, transforms
from pnsamp_jax.allocator import give_back_freed_memory
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import Interrupted, UserError
from pnsamp_jax.files import readable
from pnsamp_jax.inference import temperature
from pnsamp_jax.state import TrainState, create_state, learning_rates, state_shapes
from pnsamp_jax.workdir import layout, tables
from pnsamp_jax.workdir.checkpoint import Checkpoints, set_aside_damaged
from pnsamp_jax.workdir.metrics_log import MetricsLog


def fold_seed(seed: int, fold: int) -> int:
    """A seed of its own for each fold, so that folds differ in their initial weights and batches too."""
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0])


def make_task(config: ml_collections.ConfigDict) -> steps.Task:
    """The static settings of the steps, the same for every fold."""
    fields = config.model.to_dict()
    windows = fields.pop("windows")
    return steps.Task(
        model=models.create(axis_name=steps.AXIS, **fields),
        patch_size=config.patch_size,
        windows=tuple(tuple(pair) for pair in windows),
        augmentation=transforms.Augmentation(**config.augment),
        labels=config.loss.labels,
        weights=losses.Weights(config.loss.segmentation, config.loss.attributes, config.loss.malignancy),
    )


def run_model(
    step: Callable, state: TrainState, records: layout.Records, nodules: np.ndarray, batch_size: int
) -> dict[str, np.ndarray]:
    """Results of a compiled evaluation step for the nodules at the given places, in their order."""
    results = []
    for batch, count in input_pipeline.eval_batches(records, nodules, batch_size):
        outputs = jax.device_get(step(state.params, state.batch_stats, batch))
        results.append({name: values[:count] for name, values in outputs.items()})
    return {name: np.concatenate([part[name] for part in results]) for name in results[0]}


def train_fold(
    config: ml_collections.ConfigDict, fold: int, records: layout.Records, split: dict[str, list[str]], folder: Path
) -> None:
    """Trains one fold to the end, from its last checkpoint if there is one.

    Args:
      config: checked.
      fold: its number.
      records: the cohort's, on the device or the host as `config.data.pipeline` has it.
      split: the fold's nodule ids by part.
      folder: of the fold.

    Raises:
      UserError: the loss is not finite, the last good checkpoint stays; or another process is at work on the fold.
      Interrupted: a SIGTERM came; the state is saved.
    """
    task, seed = make_task(config), fold_seed(config.seed, fold)
    places = layout.part_places(config, records, split)
    train, validation = places["train"], places["validation"]
    steps_per_epoch = max(1, len(train) // config.batch_size)
    last_step = config.num_epochs * steps_per_epoch
    rates = learning_rates(config.schedule, config.learning_rate, last_step)
    with layout.sole(folder), ExitStack() as stack:
        for line in set_aside_damaged(folder / "checkpoints"):
            print(readable(f"{line}; fold {fold} goes on from the last good checkpoint, or anew where there is none"))
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
        sigterm = stack.enter_context(noted_sigterm())
        if checkpoints.last_step is None:
            state = create_state(task.model, task.patch_size, len(task.windows), seed)
        else:
            state = restore(config, checkpoints, task, "last")
        first_step = int(state.step)
        if first_step >= last_step:
            return
        train_step, eval_step = steps.compile_train_step(task), steps.compile_eval_step(task)
        state = steps.replicate(state)
        batches = input_pipeline.train_batches(
            records,
            train,
            pipeline=config.data.pipeline,
            seed=seed,
            steps=range(first_step, last_step),
            batch_size=config.batch_size,
        )
        bar = tqdm(batches, desc=f"Fold {fold}", initial=first_step, total=last_step, unit="step", mininterval=1)
        with MetricsLog(folder, first_step) as log:
            for step, batch in enumerate(bar, start=first_step + 1):
                state, metrics = train_step(state, batch, seed, rates[step - 1])
                if step == first_step + 1:
                    give_back_freed_memory()  # what compiling took, before the step takes its own
                if step % config.log_every_steps == 0 or step == last_step:
                    metrics = {name: float(value) for name, value in metrics.items()}
                    _require_finite(metrics["loss"], fold, step, checkpoints.last_step)
                    log.write("train", step, metrics)
                    bar.set_postfix(loss=f"{metrics['loss']:.3f}")
                if step % (config.checkpoint_every_epochs * steps_per_epoch) == 0 or step == last_step:
                    scores = run_model(eval_step, state, records, validation, config.batch_size)
                    scores = {name: float(value.mean()) for name, value in scores.items() if value.ndim == 1}
                    _require_finite(scores["loss"], fold, step, checkpoints.last_step)
                    log.write("validation", step, scores)
                    checkpoints.save(state, json.loads(config.to_json()), scores["loss"])
                if sigterm.is_set() and step < last_step:
                    if checkpoints.last_step != step:  # infinite loss: not validated, so never the best
                        checkpoints.save(state, json.loads(config.to_json()), float("inf"))
                    raise Interrupted(
                        f"fold {fold}: told to stop (SIGTERM); the checkpoint of step {step} is saved; the same "
                        "command goes on from there"
                    )


@contextmanager
def noted_sigterm() -> Iterator[threading.Event]:
    """Notes a SIGTERM, with which a machine is taken back, in an event; the process lives on until it looks there.

    Outside the main thread, which alone can do so, the event is never set.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_finite(loss: float, fold: int, step: int, last_good: int | None) -> None:
    if not np.isfinite(loss):
        kept = "no checkpoint was saved yet" if last_good is None else f"the checkpoint of step {last_good} is kept"
        raise UserError(f"fold {fold}, step {step}: the loss is {loss}; {kept}; lower config.learning_rate")


def test_fold(
    config: ml_collections.ConfigDict, fold: int, records: layout.Records, split: dict[str, list[str]], folder: Path
) -> None:
    """Writes what a trained fold says of its test nodules, and how sure it may be; see `train_fold`'s arguments."""
    task = make_task(config)._replace(flips=config.test_flips)
    state = restore_state(config, task, folder)
    validation, test = layout.places_of(records, split["validation"]), layout.places_of(records, split["test"])
    single = steps.compile_eval_step(task._replace(flips=False))  # temperatures are those of single answers
    results = run_model(single, state, records, validation, config.batch_size)
    if "probabilities" in results:
        truth = cohort.rounded_rating(np.asarray(records[schema.RATING_COUNTS])[validation])
        said = results["probabilities"], truth, results.get("features")
        temperature.write(folder / "calibration.json", *said, config.checkpoint, int(state.step))
    results = run_model(steps.compile_eval_step(task), state, records, test, config.batch_size)
    labels = {
        name: np.asarray(records[name])[test] for name in (schema.NODULE_ID, schema.PATIENT_ID, schema.RATING_COUNTS)
    }
    dice = results.get("dice", np.full(len(test), np.nan))
    tables.write_predictions(folder / "predictions.csv", fold, labels, dice, results.get("probabilities"))


def restore_state(config: ml_collections.ConfigDict, task: steps.Task, folder: Path) -> TrainState:
    """The state of a trained fold, from the checkpoint that the config names."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return steps.replicate(restore(config, checkpoints, task, config.checkpoint))


def restore(config: ml_collections.ConfigDict, checkpoints: Checkpoints, task: steps.Task, which: str) -> TrainState:
    """A state from the checkpoints of the same config; see `Checkpoints.restore`.

    Raises:
      UserError: there is none, or it was saved by another config.
    """
    difference = settings.difference(config, checkpoints.config(which))
    if difference:
        raise UserError(f"{checkpoints.folder}: saved by another config: {difference}; take another --workdir")
    return checkpoints.restore(state_shapes(task.model, task.patch_size, len(task.windows)), which)


def predict_nodules(
    config: ml_collections.ConfigDict, records: layout.Records, nodules: np.ndarray, folder: Path
) -> dict[str, np.ndarray]:
    """What a trained fold's network says of any nodules, for a second stage.

    Args:
      config: of the run.
      records: the nodules'.
      nodules: (n,) their places in the records.
      folder: of the fold.

    Returns:
      Of `mask` (n, S, S, S) bool, `probabilities` (n, 9, 6) and `features` (n, F) those that the model has.
    """
    task = make_task(config)._replace(flips=config.test_flips)
    state = restore_state(config, task, folder)
    return run_model(steps.compile_predict_step(task), state, records, nodules, config.batch_size)


def cross_validate(config: ml_collections.ConfigDict, workdir: Path, train: bool) -> dict:
    """Trains (where `train`), tests and evaluates the folds that the config names.

    Returns:
      The results, as in results.json.
    """
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_folder(config) / "xla"))
    make_task(config)  # refuses an unknown model before anything is written
    records, folds = layout.open_run(config, workdir)
    records = layout.place_records(config, records)  # and off the host, which need not hold them twice
    give_back_freed_memory()
    folders = {fold: workdir / f"fold_{fold}" for fold in layout.chosen_folds(config)}
    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(layout.sole(folder))
        for fold, folder in folders.items():
            if train:
                train_fold(config, fold, records, folds[fold], folder)
            test_fold(config, fold, records, folds[fold], folder)
    tables.gather_predictions(workdir)
    return evaluate.evaluate(workdir)


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Runs the cross-validation that the config describes, from wherever it stopped, and evaluates it."""
    return cross_validate(config, workdir, train=True)


def test_and_evaluate(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Tests the folds that were trained in `workdir` again, and evaluates them."""
    return cross_validate(config, workdir, train=False)


def prepare_data(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prepares the data source, and writes what the readers say of the cohort's nodules to readers.csv."""
    settings.check(config)
    layout.check(config, workdir)
    records = layout.load_records(config)
    layout.write_readers(config, workdir, records)
    widest = config.data.train_cohort or config.data.cohort
    print(f"Prepared {len(records[schema.NODULE_ID])} nodules of the cohort {widest}")
