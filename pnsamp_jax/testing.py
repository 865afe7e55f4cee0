"""Testing a trained fold: calibrate its network on the validation nodules, and predict the test nodules."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax import appearance, input_pipeline, outlines, steps, transforms
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import attribution, calibration, conformal, ensemble, extent, likeness
from pnsamp_jax.inference.masks import THRESHOLD, central_component
from pnsamp_jax.inference.what_if import fit_class_terms
from pnsamp_jax.input_pipeline import Arrays
from pnsamp_jax.metrics import expected
from pnsamp_jax.run import Run
from pnsamp_jax.state import TrainState, state_shapes
from pnsamp_jax.workdir import layout, tables
from pnsamp_jax.workdir.checkpoint import Checkpoints
from pnsamp_jax.workdir.heads import copies_to_refit, with_heads


def test_fold(run: Run, fold: int) -> None:
    """Calibrate a trained fold on its validation nodules, and write predictions of its test nodules.

    The predictions that are written have the shift of the mask, but not yet the temperatures of the ratings.
    """
    folder, indices = run.fold_folder(fold), run.indices(fold)
    networks, step = load_fold(run, fold)
    networks, single = fit_shift(run, networks, indices["validation"])
    if "probabilities" in single:
        fitted = calibrate(run, networks, step, indices["validation"], single)
        if run.background is not None and "features" in single:
            head = fit_likeness(run, networks, fold)
            fitted, networks = fitted._replace(likeness=head), _changed(networks, likeness=head)
        calibration.write(folder / "calibration.json", fitted, len(indices["validation"]))
    write_predictions(run, fold, networks, indices["test"], folder / "predictions.csv")


def fit_shift(
    run: Run, networks: ensemble.Networks, nodules: np.ndarray
) -> tuple[ensemble.Networks, dict[str, np.ndarray]]:
    """Fit the shift and the adaptation of a network's mask, if the config asks for it.

    It is fitted to single answers: one answer has one temperature, and the shift belongs to one network.

    Args:
      run: holds the nodules.
      networks: one, uncalibrated.
      nodules: (n,) indices of the validation nodules.

    Returns:
      The network with its shift, and what `predict_nodules` found without it and without flips.
    """
    single = predict_nodules(run, networks, nodules, flips=False, masks=run.settings.fit_threshold)
    if run.settings.fit_threshold and "mask" in single:
        # Temperatures, which are fitted later, hardly move the expected texture.
        texture = expected(single["probabilities"][:, schema.TEXTURE]) if "probabilities" in single else None
        shift, adaptation = calibration.fit_mask_shift(
            single["mask_probability"], single["consensus"], texture, networks.spacing_mm
        )
        networks = _changed(networks, mask_shift=shift, mask_adaptation=adaptation)._replace(fitted_threshold=True)
    return networks, single


def calibrate(
    run: Run, networks: ensemble.Networks, step: int, nodules: np.ndarray, single: dict[str, np.ndarray]
) -> calibration.Calibration:
    """Fit what makes the answers of one network mean what they say.

    The temperatures are fitted to single answers, and the limits to answers as they are given: with temperatures, and
    averaged over flips if the config tests them so.

    Args:
      run: holds the nodules.
      networks: one, with the shift of its mask.
      step: at which its checkpoint was saved.
      nodules: (n,) indices of the validation nodules.
      single: what `predict_nodules` found for them without flips; the shift of the mask does not matter.
    """
    labels = {name: np.asarray(run.records[name])[nodules] for name in (schema.PATIENT_ID, schema.RATING_COUNTS)}
    patients, truth = labels[schema.PATIENT_ID], cohort.labels(labels[schema.RATING_COUNTS], run.settings.nominal)
    predicted = ~np.isnan(single["probabilities"]).all(axis=(0, 2))  # of the ratings, which a model may lack
    temperatures = calibration.fit_temperatures(single["probabilities"], truth * predicted)
    [network] = networks.members.values()
    terms = attribution.attribute_terms(networks, single.get("features"))
    fitted = calibration.Calibration(
        temperatures=temperatures,
        features=single["features"].mean(axis=0) if "features" in single else np.zeros(0),
        checkpoint=run.settings.checkpoint,
        step=step,
        mask_shift=network.mask_shift,
        mask_adaptation=network.mask_adaptation,
        fitted_threshold=run.settings.fit_threshold,
        class_terms=None
        if terms is None
        else fit_class_terms(terms, calibration.scale(single["probabilities"], temperatures)),
    )
    if not predicted.all():
        return fitted
    networks = _changed(networks, temperatures=temperatures.astype(np.float32))
    answers = predict_nodules(run, networks, nodules, flips=run.settings.test_flips, masks=True)
    fitted = fitted._replace(class_limits=conformal.fit_limits(answers["probabilities"], truth, patients))
    if "mask" not in answers:
        return fitted
    limits = extent.fit(answers["mask_probability"], answers["consensus"], patients, networks.spacing_mm)
    return fitted._replace(extent_limits=limits)


def fit_likeness(run: Run, networks: ensemble.Networks, fold: int) -> np.ndarray | None:
    """Fit the head that tells nodules from points beside them, see `likeness`; None if a subset has none of either.

    It is fitted to the training part of a fold, whose many patches are asked about without flips, and its bias raised
    on the validation nodules, as a test asks about them.

    Args:
      run: holds the nodules, and a background.
      networks: the fold's own, with the shift of its mask.
      fold: its number.
    """
    indices, points = run.indices(fold), run.beside(fold, "train")
    if not len(points):
        print(f"Fold {fold}: no point beside its training nodules, so nodule_like stays blank")
        return None
    known = _features(_asked(run, run.records, networks, indices["train"], flips=False))
    head = likeness.fit(known, _features(ask_background(run, networks, points, flips=False)))
    new = _asked(run, run.records, networks, indices["validation"], run.settings.test_flips)
    return likeness.raised(head, _features(new))


def ask_background(
    run: Run, networks: ensemble.Networks, points: np.ndarray, flips: bool
) -> Iterator[tuple[Arrays, ensemble.Predictions, int]]:
    """Yield the batches, the predictions and the number of points in them; nodules in the patches are cleared first.

    Args:
      run: holds the points.
      networks: to ask.
      points: (n,) indices in the background.
      flips: whether to average over the eight flips.
    """
    assert run.background is not None, "the run has no background"
    return _asked(run, run.background, networks, points, flips, clear=True)


def _features(asked: Iterator[tuple[Arrays, ensemble.Predictions, int]]) -> np.ndarray:
    """Return the features of what is asked about: (n, F), averaged over networks and flips."""
    found = []
    for _, predictions, count in asked:
        assert predictions.features is not None, "the model has no features"
        found.append(predictions.features.mean(axis=(0, 1))[:count])
    return np.concatenate(found)


def _asked(
    run: Run, records: Arrays, networks: ensemble.Networks, nodules: np.ndarray, flips: bool, clear: bool = False
) -> Iterator[tuple[Arrays, ensemble.Predictions, int]]:
    """Yield each batch of records, what the networks predict of it, and how many of its nodules count."""
    for batch, count in input_pipeline.eval_batches(records, nodules, run.settings.batch_size):
        if clear:
            batch = batch | {schema.IMAGE: _cleared(batch[schema.IMAGE], batch[schema.MASK])}
        yield batch, ensemble.predict(networks, np.asarray(batch[schema.IMAGE]), flips), count


@jax.jit
def _cleared(images: jax.Array, masks: jax.Array) -> jax.Array:
    """Fill in what readers marked in patches (B, S, S, S), with the same noise in each; see `appearance.cleared`."""
    return jax.vmap(partial(appearance.cleared, jax.random.key(0)))(images.astype(jnp.float32), masks > 0)


def _changed(networks: ensemble.Networks, **changes: Any) -> ensemble.Networks:
    """Return the only one of `networks` with some of its fields changed."""
    [(name, network)] = networks.members.items()
    return networks._replace(members={name: network._replace(**changes)})


def write_predictions(run: Run, fold: int, networks: ensemble.Networks, nodules: np.ndarray, path: Path) -> None:
    """Predict the nodules at the given indices as the run's config tests them, and write them as rows of a fold."""
    results = predict_nodules(run, networks, nodules, flips=run.settings.test_flips)
    names = (schema.NODULE_ID, schema.PATIENT_ID, schema.RATING_COUNTS)
    labels = {name: np.asarray(run.records[name])[nodules] for name in names}
    tables.write_predictions(path, fold, labels, run.settings.nominal, results, results.get("probabilities"))


def load_fold(run: Run, fold: int) -> tuple[ensemble.Networks, int]:
    """Read the network of a trained fold, uncalibrated, and the step that its checkpoint was saved at.

    Raises:
      UserError: see `load_trained`, or its heads are to be fitted again and were not.
    """
    networks, step = load_trained(run, fold)
    copies = copies_to_refit(run.settings.fields)
    if copies:
        [network] = networks.members.values()
        networks = _changed(networks, variables=with_heads(run.fold_folder(fold), step, copies, network.variables))
    return networks, step


def load_trained(run: Run, fold: int) -> tuple[ensemble.Networks, int]:
    """Read the network of a trained fold with the heads that were trained with it; see `load_fold`.

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
      masks: whether to keep the masks, with their probabilities and the readers' consensus, in 6 S^3 bytes a nodule.

    Returns:
      As far as the model has them: `probabilities` (n, 9, 6), `features` (n, F), `nodule_like` (n,), the scores of
      the mask against the readers' consensus by the names of `tables.OUTLINE_SCORES` (n,) and, if asked for, `mask`
      (n, S, S, S) bool, `mask_probability` float32 and `consensus` bool alike. The mask is the one that a prediction
      writes, the central component.
    """
    parts: list[dict[str, np.ndarray]] = []
    for batch, predictions, count in _asked(run, run.records, networks, nodules, flips):
        part: dict[str, np.ndarray] = {}
        if predictions.mask is not None:
            mask = np.stack([central_component(probability > THRESHOLD) for probability in predictions.mask])
            consensus = _consensus(batch[schema.MASK], mask.shape[-1])
            spacing = (networks.spacing_mm,) * 3
            scores = [outlines.scores(*pair, spacing) for pair in zip(mask, consensus, strict=True)]
            part |= {name: np.array([one[name] for one in scores], np.float32) for name in scores[0]}
            if masks:
                part |= {"mask": mask, "mask_probability": predictions.mask, "consensus": consensus}
        if predictions.probabilities is not None:
            part["probabilities"] = predictions.mean_probabilities
        if predictions.features is not None:
            part["features"] = predictions.features.mean(axis=(0, 1))
        nodule_like = networks.nodule_like(predictions)
        if nodule_like is not None:
            part[schema.NODULE_LIKE] = nodule_like
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
