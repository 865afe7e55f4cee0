"""Predict the nodules of a user's own CT: from points to ratings, masks and the files that show them.

    DIR/predictions.csv     one row for each nodule, in the order in which they were given
    DIR/predictions.json    the same and more: spreads, contributions, the networks used
    DIR/masks/              each nodule's mask as NIfTI, in the grid of its image
    DIR/dicom/              for DICOM images: a segmentation and a structured report for each series
    DIR/figures/            the nodules with their outlines and ratings, PNG and PDF
    DIR/report.html         the same to scroll through, in one file

An image that cannot be read, or a point outside its image, is reported in the rows that it concerns; the other nodules
are predicted. A point at which nothing is segmented has no ratings, since the network rates what it outlines.
`predict` plans (which nodules, which networks), asks (`inference.asking`) and writes (`report.write`).
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from pnsamp_jax.config import PredictSettings, read_predict_settings, use_compilation_cache
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable
from pnsamp_jax.inference import asking, ensemble
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.point_files import read_requests
from pnsamp_jax.inference.requests import Failure, Located, Request, by_image, locate
from pnsamp_jax.report import summary, write


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
    requests = read_requests(settings.image, settings.points, settings.units, settings.series, settings.min_score)
    folder = ensemble.chosen_folder("config.predict.checkpoint", settings.checkpoint or "shipped")
    write.check_workdir(workdir, requests)  # before the weights are read, which takes longer
    networks = ensemble.load(folder, settings.runtime) if any(request.path.exists() for request in requests) else None
    batch_size = asking.batch_size_of(min(settings.batch_size, len(requests)))
    header = ensemble.described(networks, readable(settings.checkpoint) or "shipped", settings.flips)
    with write.writing(workdir):
        with write.replacing(workdir) as unfinished:
            outcomes = _answers(by_image(requests), networks, settings, batch_size)
            with tqdm(outcomes, desc="Predicting", total=len(requests), unit="nodule") as progress:
                results = write.write_masks(progress, settings.shown, unfinished)
            if networks:
                hints = asking.hints(requests, results.findings, networks, batch_size, settings.flips)
                results = results.with_hints(hints)
            _keep_earlier_if_all_failed(results, workdir)
            write.write_tables(requests, results, header, unfinished)
        with ThreadPoolExecutor(1) as background:  # the tables stand; now what takes longer
            salient = background.submit(asking.add_saliency, results.shown, networks, batch_size)
            simulated = networks is not None and networks.simulated
            complaints = write.write_dicom_objects(results.series, simulated, workdir)
            shown = salient.result()
        if settings.shown:
            write.write_report(shown, results.failures, header, workdir)
    summary.print_summary(requests, results, simulated, workdir)
    _raise_if_incomplete(results.failures, complaints, len(requests), workdir)
    return shown


def _answers(
    requests: list[Request],
    networks: ensemble.Networks | None,
    settings: PredictSettings,
    batch_size: int,
) -> Iterable[tuple[Located, Finding] | Failure]:
    """Answer requests, in their order. Without networks every request fails, with its reason."""
    if networks is None:
        return (outcome for outcome in locate(requests, 0, 1.0) if isinstance(outcome, Failure))
    located = locate(requests, networks.patch_size, networks.spacing_mm)
    return asking.ask(located, networks, batch_size, settings.flips)


def _keep_earlier_if_all_failed(results: write.Results, workdir: Path) -> None:
    """Raise UserError, before an earlier prediction is replaced, if no nodule could be predicted."""
    if not results.findings and (workdir / "predictions.json").exists():
        reason = results.failures[0].reason
        raise UserError(f"no nodule could be predicted, so {workdir} keeps its earlier prediction; {reason}")


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
