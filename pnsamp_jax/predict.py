"""Predict the nodules of a user's own CT: from points to ratings, masks and the files that show them.

    DIR/predictions.csv     one row for each nodule, in the order in which they were given
    DIR/predictions.json    the same and more: spreads, contributions, the networks used
    DIR/masks/              each nodule's mask as NIfTI, in the grid of its image
    DIR/dicom/              for DICOM images: a segmentation and a structured report for each series
    DIR/figures/            the nodules with their outlines and ratings, PNG and PDF
    DIR/report.html         the same to scroll through, in one file

An image that cannot be read, or a point outside its image, is reported in the rows that it concerns; the other nodules
are predicted. A point at which nothing is segmented has no ratings, since the network rates what it outlines.
`predict` plans (which nodules, which networks), asks (`ask`) and writes (`report.write`).
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage
from tqdm import tqdm

import pnsamp_jax
from pnsamp_jax.config import PredictSettings, read_predict_settings, use_compilation_cache
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import patch_affine
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable
from pnsamp_jax.inference import attribution, ensemble
from pnsamp_jax.inference.diameters import THRESHOLD, axial_diameters
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.masks import central_component, distance_mm, is_truncated
from pnsamp_jax.inference.requests import Failure, Located, Request, by_image, locate, read_requests
from pnsamp_jax.report import summary, write

CONTRIBUTORS = (*schema.RATING_NAMES[: schema.MALIGNANCY], "image")  # what the malignancy head receives
SALIENCY_MM = 1.5  # standard deviation of its smoothing; single voxels of a gradient mean little


def predict(config: ConfigDict, workdir: Path) -> list[Finding]:
    """Predict the nodules that `config.predict` names, write the files of the module's docstring, and print a table.

    Returns:
      The findings shown in the report: at most `config.predict.shown`, grouped by image.

    Raises:
      UserError: the settings or the points are not valid, or the workdir cannot be written to; or, after all files are
        written, some nodules could not be predicted or a DICOM object could not be written.
    """
    settings = read_predict_settings(config)
    use_compilation_cache(settings.cache)
    requests = read_requests(settings.image, settings.points, settings.units, settings.series)
    folder = ensemble.chosen_folder("config.predict.checkpoint", settings.checkpoint or "shipped")
    write.check_workdir(workdir)  # before the weights are read, which takes longer
    networks = ensemble.load(folder) if any(request.path.exists() for request in requests) else None
    write.remove_earlier(workdir)

    batch_size = _batch_size(min(settings.batch_size, len(requests)))
    outcomes = _answers(by_image(requests), networks, settings, batch_size)
    progress = tqdm(outcomes, desc="Predicting", total=len(requests), unit="nodule")
    results = write.write_masks(progress, settings.max_shown, workdir)
    if networks and settings.units == "mm":
        results = results.with_hints(_hints(requests, results.findings, networks, settings, batch_size))

    write.write_tables(requests, results, settings.units, _header(settings, networks), workdir)
    with ThreadPoolExecutor(1) as background:  # the tables stand; now what takes longer
        salient = background.submit(add_saliency, results.shown, networks, batch_size)
        simulated = networks is not None and networks.simulated
        complaints = write.write_dicom_objects(results.series, simulated, workdir)
        shown = salient.result()
    if settings.max_shown:
        write.write_report(shown, results.failures, simulated, workdir)
    summary.print_summary(requests, results, simulated, workdir)
    _raise_if_incomplete(results.failures, complaints, len(requests), workdir)
    return shown


def _answers(
    requests: list[Request],
    networks: ensemble.Networks | None,
    settings: PredictSettings,
    batch_size: int,
    quiet: bool = False,
) -> Iterable[tuple[Located, Finding] | Failure]:
    """Answer requests, in their order. Without networks every request fails, with its reason."""
    if networks is None:
        return (outcome for outcome in locate(requests, settings.units, 0, 1.0) if isinstance(outcome, Failure))
    located = locate(requests, settings.units, networks.patch_size, networks.spacing_mm, quiet)
    return ask(located, networks, batch_size, settings.flips)


def _hints(
    requests: list[Request],
    findings: dict[str, Finding],
    networks: ensemble.Networks,
    settings: PredictSettings,
    batch_size: int,
) -> dict[str, str]:
    """Return hints, by nodule id, for points at which nothing is segmented but at their mirror image a nodule is.

    NIfTI viewers show RAS, in which x and y have the other sign. The images are read again, as this is rare.
    """
    empty = [
        request for request in requests if request.nodule_id in findings and not findings[request.nodule_id].segmented
    ]
    mirrored = [request._replace(point=request.point * (-1, -1, 1)) for request in by_image(empty)]
    hints = {}
    for outcome in _answers(mirrored, networks, settings, batch_size, quiet=True):
        if isinstance(outcome, Failure) or outcome[1].uncertain:
            continue
        _, finding = outcome
        point = ", ".join(f"{value:.6g}" for value in finding.point_mm)
        hints[finding.nodule_id] = (
            f"({point}) would find a nodule of {finding.diameters.fleischner_mm} mm: are these RAS coordinates?"
        )
    return hints


def _header(settings: PredictSettings, networks: ensemble.Networks | None) -> dict:
    """Return the first fields of predictions.json: which networks predicted, and how."""
    return {
        "checkpoint": readable(settings.checkpoint) or "shipped with pnsamp_jax",
        "version": pnsamp_jax.__version__,
        "networks": len(networks.members) if networks else 0,
        "flips": len(ensemble.FLIPS) if settings.flips else 1,
        "trained_on_simulated_voxels": networks.simulated if networks else None,
    }


def ask(
    outcomes: Iterable[Located | Failure], networks: ensemble.Networks, batch_size: int, flips: bool
) -> Iterator[tuple[Located, Finding] | Failure]:
    """Predict located nodules in batches. Failures pass through; the order is kept.

    Args:
      outcomes: of `requests.locate`.
      networks: to ask.
      batch_size: patches in a batch, a multiple of the number of local devices.
      flips: whether to average over the eight flips of a patch.
    """
    waiting: list[Located | Failure] = []
    for outcome in outcomes:
        waiting.append(outcome)
        if sum(isinstance(one, Located) for one in waiting) == batch_size:
            yield from _ask_batch(waiting, networks, batch_size, flips)
            waiting = []
    yield from _ask_batch(waiting, networks, batch_size, flips)


def _ask_batch(
    outcomes: list[Located | Failure], networks: ensemble.Networks, batch_size: int, flips: bool
) -> Iterator[tuple[Located, Finding] | Failure]:
    located = [outcome for outcome in outcomes if isinstance(outcome, Located)]
    findings: Iterator[Finding] = iter(())
    if located:
        predictions = ensemble.predict(networks, _batch([nodule.hu for nodule in located], batch_size), flips)
        findings = iter(make_findings(located, predictions, networks))
    for outcome in outcomes:
        yield (outcome, next(findings)) if isinstance(outcome, Located) else outcome


def make_findings(
    located: list[Located], predictions: ensemble.Predictions, networks: ensemble.Networks
) -> list[Finding]:
    """Turn predictions of a batch into findings, without saliency.

    Args:
      located: the nodules, in the order of the batch, which may be longer.
      predictions: of the batch, by networks that predict mask and ratings.
      networks: that made them.
    """
    assert predictions.mask is not None and predictions.features is not None
    probabilities, contributions = (
        predictions.mean_probabilities,
        attribution.mean_contributions(networks, predictions),
    )
    ensemble_spread, flip_spread = predictions.ensemble_spread, predictions.flip_spread
    findings = []
    for i, nodule in enumerate(located):
        mask = central_component(predictions.mask[i] > THRESHOLD)
        patch = Volume(mask, patch_affine(nodule.point_mm, len(mask), networks.spacing_mm))
        findings.append(
            Finding(
                nodule_id=nodule.request.nodule_id,
                image=nodule.request.image,
                point_mm=nodule.point_mm,
                spacing_mm=networks.spacing_mm,
                hu=nodule.hu,
                mask=mask,
                probabilities=probabilities[i],
                ensemble_spread=float(ensemble_spread[i]),
                flip_spread=float(flip_spread[i]),
                contributions=dict(zip(CONTRIBUTORS, contributions[i].tolist(), strict=True)),
                saliency=None,
                volume_mm3=float(mask.sum() * networks.spacing_mm**3),
                diameters=axial_diameters(predictions.mask[i], mask, (networks.spacing_mm, networks.spacing_mm)),
                truncated=is_truncated(patch, nodule.shape, nodule.affine),
                probability=predictions.mask[i],
                distance_mm=distance_mm(mask, networks.spacing_mm),
            )
        )
    return findings


def add_saliency(findings: list[Finding], networks: ensemble.Networks | None, batch_size: int) -> list[Finding]:
    """Return the findings, those that are segmented with their smoothed saliency."""
    segmented = [finding for finding in findings if finding.segmented]
    if networks is None or not segmented:
        return findings
    sigma = SALIENCY_MM / networks.spacing_mm
    maps: dict[str, np.ndarray] = {}
    for start in range(0, len(segmented), batch_size):
        batch = segmented[start : start + batch_size]
        found = attribution.saliency(networks, _batch([finding.hu for finding in batch], batch_size))
        maps |= {finding.nodule_id: saliency for finding, saliency in zip(batch, found, strict=False)}
    smoothed = {nodule_id: ndimage.gaussian_filter(saliency, sigma) for nodule_id, saliency in maps.items()}
    return [replace(finding, saliency=smoothed.get(finding.nodule_id)) for finding in findings]


def _batch(patches: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Stack patches, repeating the last one, so that one compiled program serves batches of all sizes."""
    return np.stack([patches[min(i, len(patches) - 1)] for i in range(batch_size)])


def _batch_size(wanted: int) -> int:
    """Return the batch size raised to a multiple of the number of local devices."""
    devices = jax.local_device_count()
    return -(-wanted // devices) * devices


def _raise_if_incomplete(failures: list[Failure], complaints: list[str], total: int, workdir: Path) -> None:
    """Raise UserError if nodules were not predicted, or DICOM objects not written."""
    missing = f"DICOM objects are missing: {complaints[0]}" if complaints else ""
    if failures:
        request, reason = failures[0]
        raise UserError(
            f"{len(failures)} of {total} nodules could not be predicted (see {workdir / 'predictions.csv'}); "
            f"{request.nodule_id}: {reason}" + (f"; {missing}" if missing else "")
        )
    if missing:
        raise UserError(f"all nodules are predicted, but {missing}")
