"""Cross-validation: train each fold, test it on the nodules that it never saw, and evaluate all folds together."""

import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from pnsamp_jax import evaluate, input_pipeline, outlines, steps, transforms
from pnsamp_jax.allocator import give_back_freed_memory
from pnsamp_jax.config import read_settings, use_compilation_cache
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import Interrupted, UserError, noted_sigterm
from pnsamp_jax.files import readable
from pnsamp_jax.inference import calibration, ensemble
from pnsamp_jax.inference.diameters import THRESHOLD
from pnsamp_jax.inference.masks import central_component
from pnsamp_jax.run import Run, open_run
from pnsamp_jax.state import TrainState, create_state, learning_rates, state_shapes
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
            log = stack.enter_context(MetricsLog(folder, int(state.step)))
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
            _require_finite(scores["loss"], fold, step, checkpoints.last_step)
            log.write("train", step, scores)
            bar.set_postfix(loss=f"{scores['loss']:.3f}")
        if step % (settings.checkpoint_every_epochs * steps_per_epoch) == 0 or step == last_step:
            scores = validate(run, state, indices["validation"])
            _require_finite(scores["loss"], fold, step, checkpoints.last_step)
            log.write("validation", step, scores)
            checkpoints.save(state, settings.fields, scores["loss"])
        if sigterm.is_set() and step < last_step:
            if checkpoints.last_step != step:  # an infinite loss: not validated, so never the best
                checkpoints.save(state, settings.fields, float("inf"))
            raise Interrupted(
                f"fold {fold}: told to stop (SIGTERM); the checkpoint of step {step} is saved; the same command goes "
                "on from there"
            )


def validate(run: Run, state: TrainState, nodules: np.ndarray) -> dict[str, float]:
    """Compute the mean loss, its terms and Dice over the nodules at the given indices."""
    eval_step, batch_size, parts = steps.compile_eval_step(run.settings.task), run.settings.batch_size, []
    for batch, count in input_pipeline.eval_batches(run.records, nodules, batch_size):
        scores = jax.device_get(eval_step(state.variables, batch))
        parts.append({name: values[:count] for name, values in scores.items()})
    return {name: float(np.concatenate([part[name] for part in parts]).mean()) for name in parts[0]}


def test_fold(run: Run, fold: int) -> None:
    """Calibrate a trained fold on its validation nodules, and write predictions of its test nodules.

    The predictions that are written have the shift of the mask, but not yet the temperatures of the ratings.
    """
    settings, folder, indices = run.settings, run.fold_folder(fold), run.indices(fold)
    networks, step = load_fold(run, fold)
    mask_shift = _fit_mask_shift(run, networks, indices["validation"]) if settings.fit_threshold else 0.0
    if mask_shift:
        [(name, network)] = networks.members.items()
        networks = networks._replace(members={name: network._replace(mask_shift=mask_shift)})
    single = predict_nodules(run, networks, indices["validation"], flips=False)  # one answer has one temperature
    if "probabilities" in single:
        rating_counts = np.asarray(run.records[schema.RATING_COUNTS])[indices["validation"]]
        truth = cohort.labels(rating_counts, settings.nominal)
        calibration.write(
            folder / "calibration.json",
            single["probabilities"],
            truth,
            single.get("features"),
            settings.checkpoint,
            step,
            mask_shift,
        )
    write_predictions(run, fold, networks, indices["test"], folder / "predictions.csv")


def _fit_mask_shift(run: Run, networks: ensemble.Networks, nodules: np.ndarray) -> float:
    """Return the mask shift that suits the nodules at the given indices best; 0 for a model without a mask."""
    masks, consensus = [], []
    for batch, count in input_pipeline.eval_batches(run.records, nodules, run.settings.batch_size):
        predictions = ensemble.predict(networks, np.asarray(batch[schema.IMAGE]), flips=False)
        if predictions.mask is None:
            return 0.0
        masks.append(predictions.mask[:count])
        consensus.append(_consensus(batch[schema.MASK], networks.patch_size)[:count])
    return calibration.fit_mask_shift(np.concatenate(masks), np.concatenate(consensus))


def write_predictions(run: Run, fold: int, networks: ensemble.Networks, nodules: np.ndarray, path: Path) -> None:
    """Predict the nodules at the given indices as the run's config tests them, and write them as rows of a fold."""
    results = predict_nodules(run, networks, nodules, flips=run.settings.test_flips)
    names = (schema.NODULE_ID, schema.PATIENT_ID, schema.RATING_COUNTS)
    labels = {name: np.asarray(run.records[name])[nodules] for name in names}
    tables.write_predictions(path, fold, labels, run.settings.nominal, results, results.get("probabilities"))


def load_fold(run: Run, fold: int) -> tuple[ensemble.Networks, int]:
    """Read the network of a trained fold, uncalibrated, and the step that its checkpoint was saved at.

    Raises:
      UserError: the fold has no checkpoint, or one of another config or a shorter training.
    """
    with Checkpoints(run.fold_folder(fold) / "checkpoints") as checkpoints:
        state = restore(run, checkpoints, run.settings.checkpoint)
    task, replicated = run.settings.task, steps.replicate(state)
    network = ensemble.Network(replicated.variables, np.ones(len(schema.RATINGS), np.float32), None)
    spacing_mm = run.settings.geometry.spacing_mm
    networks = ensemble.Networks(task.model, task.patch_size, spacing_mm, task.windows, {f"fold_{fold}": network})
    return networks, int(state.step)


def predict_nodules(
    run: Run, networks: ensemble.Networks, nodules: np.ndarray, flips: bool, masks: bool = False
) -> dict[str, np.ndarray]:
    """Predict nodules of a run.

    Args:
      run: holds the nodules.
      networks: to ask, see `load_fold`.
      nodules: (n,) indices in the records.
      flips: whether to average over the eight flips of a patch.
      masks: whether to keep the masks, which take S^3 bytes each.

    Returns:
      As far as the model has them: `probabilities` (n, 9, 6), `features` (n, F), the scores of the mask against the
      readers' consensus by the names of `tables.OUTLINE_SCORES` (n,) and, if asked for, `mask` (n, S, S, S) bool. The
      mask is the one that a prediction writes, the central component.
    """
    parts: list[dict[str, np.ndarray]] = []
    for batch, count in input_pipeline.eval_batches(run.records, nodules, run.settings.batch_size):
        predictions = ensemble.predict(networks, np.asarray(batch[schema.IMAGE]), flips)
        part: dict[str, np.ndarray] = {}
        if predictions.mask is not None:
            mask = np.stack([central_component(probability > THRESHOLD) for probability in predictions.mask])
            consensus = _consensus(batch[schema.MASK], mask.shape[-1])
            spacing = (networks.spacing_mm,) * 3
            scores = [outlines.scores(*pair, spacing) for pair in zip(mask, consensus, strict=True)]
            part |= {name: np.array([one[name] for one in scores], np.float32) for name in scores[0]}
            if masks:
                part["mask"] = mask
        if predictions.probabilities is not None:
            part["probabilities"] = predictions.mean_probabilities
        if predictions.features is not None:
            part["features"] = predictions.features.mean(axis=(0, 1))
        parts.append({name: values[:count] for name, values in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _consensus(masks: np.ndarray | jax.Array, size: int) -> np.ndarray:
    """Return the voxels in the centre of stored masks (B, S, S, S) that at least half of the readers marked."""
    central = jax.vmap(partial(transforms.crop, size=size))(jnp.asarray(masks))
    return np.asarray(transforms.segmentation_target(central)) > 0


def restore(run: Run, checkpoints: Checkpoints, which: str, longer: bool = False) -> TrainState:
    """Read a state from checkpoints of the run's own config; see `Checkpoints.restore`.

    Args:
      run: whose config it must be.
      checkpoints: of a fold.
      which: "last" or "best". The best may be of a shorter training that went on, but the last must not.
      longer: whether the last may, because the run is about to train on.

    Raises:
      UserError: there is no checkpoint, or it was saved by another config.
    """
    for saved, shorter in (("last", longer), (which, longer or which != "last")):
        stored = checkpoints.config(saved)
        difference = layout.difference(run.settings.fields, stored, longer=shorter)
        if difference:
            more = layout.difference(run.settings.fields, stored, longer=True) is None
            advice = "train on with --mode train" if more else "choose another --workdir"
            raise UserError(f"{checkpoints.folder}: saved by another config: {difference}; {advice}")
    task = run.settings.task
    return checkpoints.restore(state_shapes(*task.shape), which)


def fold_seed(seed: int, fold: int) -> int:
    """Return a seed for each fold, so that folds differ in their initial weights and batches too."""
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0])


def _first_state(run: Run, fold: int, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the last checkpoint, or the initial one."""
    if checkpoints.last_step is not None:
        return restore(run, checkpoints, "last", longer=True)
    task = run.settings.task
    model, patch_size, channels, average = task.shape
    return create_state(model, patch_size, channels, fold_seed(run.settings.seed, fold), average)


def _steps_per_epoch(run: Run, fold: int) -> int:
    return max(1, len(run.indices(fold)["train"]) // run.settings.batch_size)


def _require_finite(loss: float, fold: int, step: int, last_good: int | None) -> None:
    if not np.isfinite(loss):
        kept = "no checkpoint was saved yet" if last_good is None else f"the checkpoint of step {last_good} is kept"
        raise UserError(f"fold {fold}, step {step}: the loss is {loss}; {kept}; lower config.learning_rate")
