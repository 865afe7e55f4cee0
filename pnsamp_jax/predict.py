"""A user's own CT: where the nodules are -> ratings, masks, and the files that show them.

    DIR/predictions.csv     one row for each nodule, in the order in which they were given
    DIR/predictions.json    the same and more: spreads, contributions, the networks that were asked
    DIR/masks/              each nodule's mask as NIfTI, in the grid of its image
    DIR/dicom/              for DICOM images: a segmentation and a structured report for each series
    DIR/figures/            the nodules with their outlines and ratings, PNG and PDF
    DIR/report.html         the same to scroll through, in one file

An image that cannot be read, or a point outside of it, is told in the rows that it concerns; the others go on.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import jax
import ml_collections
import numpy as np
from scipy import ndimage
from tqdm import tqdm

import pnsamp_jax
from pnsamp_jax import config as settings
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.masks import central_component, longest_axial_diameter_mm
from pnsamp_jax.inference.requests import Located, locate, read_requests
from pnsamp_jax.report import write

SHIPPED = Path(pnsamp_jax.__file__).with_name("weights")
PARTS = (*schema.RATING_NAMES[: schema.MALIGNANCY], "image")  # what malignancy is built upon
SALIENCY_MM = 1.5  # standard deviation of its smoothing: single voxels of a gradient mean little


def find(
    located: Iterator[Located], asked: ensemble.Networks, batch_size: int, flips: bool
) -> Iterator[tuple[Located, Finding]]:
    """Asks the networks about patches, batch by batch; `flips` says whether to average over them too."""
    while batch := list(islice(located, batch_size)):
        answers = ensemble.predict(asked, _fill([item.hu for item in batch], batch_size), flips)
        for i, item in enumerate(batch):
            named = {"nodule_id": item.request.nodule_id, "image": item.request.image, "point_mm": item.point_mm}
            yield item, make_finding(answers, i, asked.spacing_mm, hu=item.hu, saliency=None, **named)


def add_saliency(findings: list[Finding], asked: ensemble.Networks, batch_size: int) -> list[Finding]:
    """The same findings with their saliency, smoothed."""
    salient = []
    for start in range(0, len(findings), batch_size):
        batch = [finding.hu for finding in findings[start : start + batch_size]]
        salient += list(ensemble.saliency(asked, _fill(batch, batch_size))[: len(batch)])
    sigma = SALIENCY_MM / asked.spacing_mm
    pairs = zip(findings, salient, strict=True)
    return [replace(finding, saliency=ndimage.gaussian_filter(values, sigma)) for finding, values in pairs]


def _fill(patches: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Patches as one batch, filled up with the last one, so that a program serves batches of all sizes."""
    return np.stack([patches[min(i, len(patches) - 1)] for i in range(batch_size)])


def make_finding(answers: ensemble.Answers, i: int, spacing_mm: float, **given) -> Finding:
    """What the networks say of the i-th nodule; `given` are the fields of `Finding` that they do not tell."""
    mask = central_component(answers.mask[i] > 0.5)
    return Finding(
        spacing_mm=spacing_mm,
        mask=mask,
        probabilities=answers.probabilities[i],
        ensemble_spread=float(answers.ensemble_spread[i]),
        flip_spread=float(answers.flip_spread[i]),
        contributions=dict(zip(PARTS, answers.contributions[i].tolist(), strict=True)),
        volume_mm3=float(mask.sum() * spacing_mm**3),
        diameter_mm=longest_axial_diameter_mm(mask, spacing_mm),
        **given,
    )


def predict(config: ml_collections.ConfigDict, workdir: Path) -> list[Finding]:
    """Predicts what `config.predict` asks for and writes all files; see the module.

    Returns:
      What is shown in the report: at most `config.predict.shown` nodules, those of an image one after the other.

    Raises:
      UserError: the settings or the points make no sense; or, after all files are written, some nodules could not be
        predicted.
    """
    options = config.predict
    if config.batch_size < 1:
        raise UserError(f"config.batch_size: {config.batch_size} must be positive")
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_folder(config) / "xla"))
    requests = read_requests(options)
    if not options.checkpoint and not SHIPPED.is_dir():
        raise UserError("config.predict.checkpoint: is empty, and no weights come with this version; train some first")
    asked = ensemble.load(Path(options.checkpoint or SHIPPED))
    failures, complaints, rows, extra, findings, series = {}, [], {}, {}, [], []
    write.remove_earlier(workdir)
    first = {}  # where each image is first named: its nodules go one after the other, so that it is read once
    by_image = sorted(requests, key=lambda request: first.setdefault(request.path, len(first)))
    bar = tqdm(by_image, desc="Predicting", unit="nodule")
    located = locate(bar, options.units, asked.patch_size, asked.spacing_mm, failures)
    batch_size = min(config.batch_size, len(requests))
    found = find(located, asked, batch_size, options.flips)
    for _, group in groupby(found, key=lambda pair: pair[0].request.path):
        of_series, marked = [], []  # what the DICOM objects need: without patches, of which there may be many
        for item, finding in group:
            voxels = write.write_mask_file(item, finding, workdir)
            rows[finding.nodule_id] = write.row_of(finding)
            extra[finding.nodule_id] = write.details(finding)
            if len(findings) < options.shown:
                findings.append(finding)
            if item.files:
                of_series.append(finding.without_patches())
                marked.append(voxels)
        if of_series:
            series.append((of_series, marked, item.affine, item.files))
    for request in requests:
        if request.nodule_id in failures:
            reason = failures[request.nodule_id]
            rows[request.nodule_id] = write.failed_row(request, options.units, reason)
    header = {
        "checkpoint": readable(options.checkpoint) or "shipped with pnsamp_jax",
        "version": pnsamp_jax.__version__,
        "networks": len(asked.members),
        "flips": len(ensemble.FLIPS) if options.flips else 1,
    }
    # First the answers, then what takes longer.
    write.write_tables([rows[request.nodule_id] for request in requests], extra, header, workdir)
    with ThreadPoolExecutor(1) as beside:
        salient = beside.submit(add_saliency, findings, asked, batch_size)
        for of_series in series:
            try:
                write.write_dicom_files(*of_series, workdir)
            except UserError as error:
                complaints.append(str(error))
        findings = salient.result()
    if findings:
        write.write_pictures(findings, workdir)
    lack = f"DICOM objects lack: {complaints[0]}" if complaints else ""
    if failures:
        nodule, reason = next(iter(failures.items()))
        raise UserError(
            f"{len(failures)} of {len(requests)} nodules could not be predicted (see {workdir / 'predictions.csv'}); "
            f"{nodule}: {reason}" + (f"; {lack}" if lack else "")
        )
    if lack:
        raise UserError(f"all nodules are predicted, but {lack}")
    return findings
