"""Cross-validation: trains each fold, tests it on the nodules it never saw, and evaluates them all together."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from pnsamp_jax import calibration, evaluate, input_pipeline, losses, models, predictions, settings, steps, transforms
from pnsamp_jax.checkpoint import Checkpoints
from pnsamp_jax.data import cohort, keys
from pnsamp_jax.data.folds import make_folds
from pnsamp_jax.data.prepare import atomic_path, prepare, read_records
from pnsamp_jax.errors import UserError
from pnsamp_jax.metrics_log import MetricsLog
from pnsamp_jax.state import TrainState, create_state, learning_rates

Records = dict[str, np.ndarray]
PARTS = ("train", "validation", "test")


def load_records(config: ml_collections.ConfigDict) -> Records:
    """Prepares the config's data source where that is still to be done, and reads its nodules into memory.

    These are the cohort's, and those of the wider `config.data.train_cohort` if there is one.
    """

    def member(votes: np.ndarray) -> np.ndarray:
        chosen = in_cohort(config, votes)
        if config.data.train_cohort:
            chosen |= cohort.members(votes, config.data.train_cohort, config.data.min_readers)
        return chosen

    source, geometry, cache = settings.source(config), settings.geometry(config), settings.cache_folder(config)
    if config.data.pipeline == "tfdata":
        from pnsamp_jax.datasets.lidc_nodules import read_dataset

        return read_dataset(source, geometry, cache, config.data.workers, member)
    return read_records(prepare(source, geometry, cache, config.data.workers), member)


def place_records(config: ml_collections.ConfigDict, records: Records) -> Records:
    """The records where the config's pipeline has them: on the device, or on the host."""
    return input_pipeline.to_device(records) if config.data.pipeline == "device" else records


def in_cohort(config: ml_collections.ConfigDict, votes: np.ndarray) -> np.ndarray:
    """Which nodules, of (n, 9, 6) votes, the folds are made of: (n,) bool."""
    return cohort.members(votes, config.data.cohort, config.data.min_readers)


def load_folds(config: ml_collections.ConfigDict, records: Records, path: Path) -> list[dict[str, list[str]]]:
    """Reads the split of the cohort from folds.json, or makes and writes it.

    Raises:
      UserError: the file was made for other nodules.
    """
    chosen = in_cohort(config, records[keys.VOTES])
    records = {name: records[name][chosen] for name in (keys.NODULE_ID, keys.PATIENT_ID, keys.VOTES)}
    patient_of = dict(zip(records[keys.NODULE_ID].tolist(), records[keys.PATIENT_ID].tolist(), strict=True))
    if path.exists():
        folds = [{part: fold[part]["nodules"] for part in PARTS} for fold in json.loads(path.read_text())["folds"]]
        if {nodule for fold in folds for nodule in fold["test"]} != patient_of.keys():
            raise UserError(f"{path}: was made for other nodules than the data now holds; take another --workdir")
        return folds
    folds = make_folds(
        records[keys.NODULE_ID],
        records[keys.PATIENT_ID],
        cohort.suspicion(records[keys.VOTES], config.data.cohort),
        num_folds=config.num_folds,
        validation_fraction=config.validation_fraction,
        split=config.split,
        seed=config.seed,
    )
    described = [
        {part: {"nodules": ids, "patients": sorted({patient_of[i] for i in ids})} for part, ids in fold.items()}
        for fold in folds
    ]
    header = {"cohort": config.data.cohort, "split": config.split, "seed": config.seed}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**header, "folds": described}, indent=1))
    return folds


def places_of(records: Records, nodule_ids: list[str]) -> np.ndarray:
    """Where the given nodules stand in the records, ascending."""
    return np.flatnonzero(np.isin(records[keys.NODULE_ID], nodule_ids))


def part_places(
    config: ml_collections.ConfigDict, records: Records, split: dict[str, list[str]]
) -> dict[str, np.ndarray]:
    """Where the nodules of a fold's parts stand in the records.

    Nodules beyond the cohort, of `config.data.train_cohort`, join the training part, except where their patient is
    among those of the other parts.
    """
    places = {part: places_of(records, split[part]) for part in PARTS}
    held_out = records[keys.PATIENT_ID][np.concatenate([places["validation"], places["test"]])]
    further = ~in_cohort(config, np.asarray(records[keys.VOTES])) & ~np.isin(records[keys.PATIENT_ID], held_out)
    places["train"] = np.union1d(places["train"], np.flatnonzero(further))
    return places


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
    step: Callable, state: TrainState, records: Records, nodules: np.ndarray, batch_size: int
) -> dict[str, np.ndarray]:
    """Results of a compiled evaluation step for the nodules at the given places, in their order."""
    results = []
    for batch, count in input_pipeline.eval_batches(records, nodules, batch_size):
        outputs = jax.device_get(step(state.params, state.batch_stats, batch))
        results.append({name: values[:count] for name, values in outputs.items()})
    return {name: np.concatenate([part[name] for part in results]) for name in results[0]}


def train_fold(
    config: ml_collections.ConfigDict, fold: int, records: Records, split: dict[str, list[str]], folder: Path
) -> None:
    """Trains one fold to the end, from its last checkpoint if there is one.

    Args:
      config: checked.
      fold: its number.
      records: the cohort's, on the device or the host as `config.data.pipeline` has it.
      split: the fold's nodule ids by part.
      folder: of the fold.

    Raises:
      UserError: the loss is not finite; the last good checkpoint stays.
    """
    task, seed = make_task(config), fold_seed(config.seed, fold)
    places = part_places(config, records, split)
    train, validation = places["train"], places["validation"]
    steps_per_epoch = max(1, len(train) // config.batch_size)
    last_step = config.num_epochs * steps_per_epoch
    rates = learning_rates(config.schedule, config.learning_rate, last_step)
    state = create_state(task.model, task.patch_size, len(task.windows), seed)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.last_step is not None:
            state = checkpoints.restore(state)
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


def _require_finite(loss: float, fold: int, step: int, last_good: int | None) -> None:
    if not np.isfinite(loss):
        kept = "no checkpoint was saved yet" if last_good is None else f"the checkpoint of step {last_good} is kept"
        raise UserError(f"fold {fold}, step {step}: the loss is {loss}; {kept}; lower config.learning_rate")


def test_fold(
    config: ml_collections.ConfigDict, fold: int, records: Records, split: dict[str, list[str]], folder: Path
) -> None:
    """Writes what a trained fold says of its test nodules, and how sure it may be; see `train_fold`'s arguments."""
    task = make_task(config)._replace(flips=config.test_flips)
    state = restore_state(config, task, folder)
    validation, test = places_of(records, split["validation"]), places_of(records, split["test"])
    single = steps.compile_eval_step(task._replace(flips=False))  # temperatures are those of single answers
    results = run_model(single, state, records, validation, config.batch_size)
    if "probabilities" in results:
        truth = cohort.rounded_rating(np.asarray(records[keys.VOTES])[validation])
        said = results["probabilities"], truth, results.get("features")
        calibration.write(folder / "calibration.json", *said, config.checkpoint, int(state.step))
    results = run_model(steps.compile_eval_step(task), state, records, test, config.batch_size)
    labels = {name: np.asarray(records[name])[test] for name in (keys.NODULE_ID, keys.PATIENT_ID, keys.VOTES)}
    dice = results.get("dice", np.full(len(test), np.nan))
    predictions.write_predictions(folder / "predictions.csv", fold, labels, dice, results.get("probabilities"))


def restore_state(config: ml_collections.ConfigDict, task: steps.Task, folder: Path) -> TrainState:
    """The state of a trained fold, from the checkpoint that the config names."""
    state = create_state(task.model, task.patch_size, len(task.windows), seed=0)  # for its shapes alone
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return steps.replicate(checkpoints.restore(state, config.checkpoint))


def predict_nodules(
    config: ml_collections.ConfigDict, records: Records, nodules: np.ndarray, folder: Path
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


def open_run(config: ml_collections.ConfigDict, workdir: Path) -> tuple[Records, list[dict[str, list[str]]]]:
    """Claims a workdir for a config, and gives its nodules and their split into folds.

    Raises:
      UserError: the settings, the data or the workdir do not fit; nothing that was there is changed.
    """
    settings.check(config)
    settings.check_workdir(config, workdir)
    records = load_records(config)
    folds = load_folds(config, records, workdir / "folds.json")
    settings.claim_workdir(config, workdir)
    write_readers(config, workdir, records)
    return records, folds


def write_readers(config: ml_collections.ConfigDict, workdir: Path, records: Records) -> None:
    """Writes what the readers say of the cohort's nodules to readers.csv."""
    chosen = in_cohort(config, records[keys.VOTES])
    table = {name: values[chosen] for name, values in records.items() if name not in (keys.IMAGE, keys.MASK)}
    predictions.write_readers(workdir / "readers.csv", table)


def chosen_folds(config: ml_collections.ConfigDict) -> list[int]:
    """The folds that a run is about."""
    return list(range(config.num_folds)) if config.fold == -1 else [config.fold]


def cross_validate(config: ml_collections.ConfigDict, workdir: Path, train: bool) -> dict:
    """Trains (where `train`), tests and evaluates the folds that the config names.

    Returns:
      The results, as in results.json.
    """
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_folder(config) / "xla"))
    records, folds = open_run(config, workdir)
    records = place_records(config, records)  # and off the host, which need not hold them twice
    for fold in chosen_folds(config):
        folder = workdir / f"fold_{fold}"
        if train:
            train_fold(config, fold, records, folds[fold], folder)
        test_fold(config, fold, records, folds[fold], folder)
    predictions.gather_predictions(workdir)
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
    settings.check_workdir(config, workdir)
    records = load_records(config)
    write_readers(config, workdir, records)
    widest = config.data.train_cohort or config.data.cohort
    print(f"Prepared {len(records[keys.NODULE_ID])} nodules of the cohort {widest}")
