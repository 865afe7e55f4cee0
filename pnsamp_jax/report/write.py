"""Write the files of a prediction, listed in `predict`, in place of those of an earlier one."""

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from pnsamp_jax.ct.nifti import write_mask
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path, write_text
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.requests import NODULE_ID, Failure, Located, Request, image_of
from pnsamp_jax.report import SIMULATED
from pnsamp_jax.report.rows import MASK_FILE, columns, details, failed_row, row_of, typed

DICOM_FILES = ("dicom/{}_seg.dcm", "dicom/{}_sr.dcm")  # by the id of a series' first nodule
FIGURES = ("figures/nodules.png", "figures/nodules.pdf")
REPORT = "report.html"
TITLE = "Pulmonary nodules, rated by PN-SAMP"  # of the report
TABLES = ("predictions.csv", "predictions.json")
UNFINISHED = ".unfinished"  # folder of a prediction that is being made


@dataclass
class Series:
    """The findings of one DICOM series, as `report.dicom_objects.write_objects` takes them.

    Attributes:
      affine: (4, 4) of the series' grid.
      files: of the series.
      findings: without their patches, which would take much memory.
      marked: for each finding the (V, 3) index (d, h, w) of the V voxels that its mask marks.
    """

    affine: np.ndarray
    files: Sequence[str | Dataset]
    findings: list[Finding] = field(default_factory=list)
    marked: list[np.ndarray] = field(default_factory=list)


@dataclass
class Results:
    """What the tables and the report are made of; large arrays are kept for the shown findings only.

    Attributes:
      findings: by nodule id, without their patches.
      shown: the findings in the report and the figures.
      series: the DICOM series.
      failures: requests that could not be answered.
    """

    findings: dict[str, Finding] = field(default_factory=dict)
    shown: list[Finding] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def with_hints(self, hints: dict[str, str]) -> "Results":
        """Return the results with hints, by nodule id, for findings whose mask is empty."""
        findings = {name: replace(finding, hint=hints.get(name, "")) for name, finding in self.findings.items()}
        shown = [replace(finding, hint=hints.get(finding.nodule_id, "")) for finding in self.shown]
        return replace(self, findings=findings, shown=shown)


def write_masks(outcomes: Iterable[tuple[Located, Finding] | Failure], max_shown: int, workdir: Path) -> Results:
    """Write the masks as the findings come in, and collect what the other files need.

    Args:
      outcomes: those of one image one after the other.
      max_shown: most findings in the report.
      workdir: where the files go.
    """
    results = Results()
    for _, group in groupby(outcomes, key=_image):
        series = None
        for outcome in group:
            if isinstance(outcome, Failure):
                results.failures.append(outcome)
                continue
            located, finding = outcome
            results.findings[finding.nodule_id] = finding.without_patches()
            if len(results.shown) < max_shown:
                results.shown.append(finding)
            if not finding.segmented:
                continue
            voxels = write_mask_file(located, finding, workdir)
            if located.files:
                series = series or Series(located.affine, located.files)
                series.findings.append(finding.without_patches())
                series.marked.append(voxels)
        if series:
            results.series.append(series)
    return results


def _image(outcome: tuple[Located, Finding] | Failure) -> tuple[Path, str]:
    return image_of(outcome.request if isinstance(outcome, Failure) else outcome[0].request)


def write_mask_file(located: Located, finding: Finding, workdir: Path) -> np.ndarray:
    """Write a nodule's mask in the grid of its image.

    Returns:
      (V, 3) int32 index (d, h, w) of the V voxels that the mask marks.
    """
    mask = finding.mask_on(located.shape, located.affine)
    with atomic_path(workdir / MASK_FILE.format(finding.nodule_id)) as temporary:
        write_mask(mask, temporary)
    return np.argwhere(mask.array).astype(np.int32)


def write_dicom_objects(all_series: list[Series], simulated: bool, workdir: Path) -> list[str]:
    """Write a segmentation and a structured report for each series in which a nodule is segmented.

    Args:
      all_series: with their findings.
      simulated: whether the networks were trained on simulated voxels.
      workdir: where the files go.

    Returns:
      The reason for each series whose headers do not allow it.
    """
    complaints = []
    for series in all_series:
        from pnsamp_jax.report.dicom_objects import write_objects  # slow to import, and not needed for other images

        # Named by the first nodule: a UID from a header is no safe file name, and two folders may hold one series.
        seg_path, sr_path = (workdir / name.format(series.findings[0].nodule_id) for name in DICOM_FILES)
        try:
            write_objects(series.findings, series.marked, series.affine, series.files, seg_path, sr_path, simulated)
        except UserError as error:
            complaints.append(str(error))
    return complaints


def write_tables(requests: list[Request], results: Results, header: dict, workdir: Path) -> None:
    """Write predictions.csv and predictions.json, in which a field without a value is blank or null.

    Args:
      requests: all of them, in the order of the rows.
      results: of `write_masks`.
      header: first fields of predictions.json.
      workdir: where the files go.
    """
    by_id = {name: row_of(finding) for name, finding in results.findings.items()}
    by_id |= {failure.request.nodule_id: failed_row(failure) for failure in results.failures}
    rows = [by_id[request.nodule_id] for request in requests]
    with (
        atomic_path(workdir / "predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    nodules = [typed(row) | details(results.findings.get(row["nodule_id"])) for row in rows]
    write_text(workdir / "predictions.json", json.dumps({**header, "nodules": nodules}, indent=1))


def write_report(findings: list[Finding], failures: list[Failure], header: Mapping[str, Any], workdir: Path) -> None:
    """Write the figure of the nodules and the HTML report.

    Args:
      findings: to show.
      failures: requests that could not be answered, which are listed with their reasons.
      header: of `inference.ensemble.described`.
      workdir: where the files go.
    """
    from pnsamp_jax.report.html_page import write_page
    from pnsamp_jax.report.nodule_figure import draw_nodules

    warning = SIMULATED if header["trained_on_simulated_voxels"] else ""
    unanswered = [(failure.request.nodule_id, failure.request.image, failure.reason) for failure in failures]
    for name in FIGURES:
        draw_nodules(findings, workdir / name, unanswered, warning)
    write_page(findings, TITLE, workdir / REPORT, unanswered, warning, header)


def check_workdir(workdir: Path, requests: Iterable[Request]) -> None:
    """Raise UserError if the files of a prediction cannot be written to the workdir, or would mix with others.

    That is: something else stands where a folder or a file must go, or the user may not write there; or it holds a
    training run, or a file that no prediction wrote and that this one would replace.

    Args:
      workdir: where the files are to go.
      requests: whose masks are to be written.
    """
    if workdir.is_symlink() and not workdir.exists():
        raise UserError(f"{workdir}: is a link to a folder that does not exist; choose another folder")
    if (workdir / "folds.json").exists():
        raise UserError(f"{workdir}: holds a training run, whose tables would be lost; choose another folder")
    nodule_ids = [request.nodule_id for request in requests]
    files = [workdir / name for name in _file_names(nodule_ids)]
    for path in files:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, where a file must be written; choose another folder")
    for folder in sorted({workdir, *(path.parent for path in files)}):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise UserError(f"{existing}: is a file, where a folder is needed; choose another folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{existing}: cannot be written to; choose another folder, or change its permissions")
    own = {workdir / name for name in _earlier_files(workdir)}
    foreign = next((path for path in files if path.exists() and path not in own), None)
    if foreign:
        raise UserError(f"{foreign}: exists, and no prediction that is here wrote it; choose another folder")


def _file_names(nodule_ids: Iterable[str]) -> list[str]:
    """Return the names of all files that a prediction of these nodules may write."""
    of_nodules = [name.format(nodule_id) for nodule_id in nodule_ids for name in (MASK_FILE, *DICOM_FILES)]
    return [*of_nodules, *FIGURES, REPORT, *TABLES]


def _earlier_files(workdir: Path) -> list[str]:
    """Return the names of the files of an earlier prediction; raise UserError if predictions.json is not one's."""
    earlier = workdir / "predictions.json"
    if not earlier.exists():
        return []
    try:
        ids = [nodule["nodule_id"] for nodule in json.loads(earlier.read_text())["nodules"]]
        return _file_names(nodule_id for nodule_id in ids if NODULE_ID.fullmatch(nodule_id))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{earlier}: not written by a prediction, or damaged; choose another folder") from error


@contextmanager
def replacing(workdir: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files take the place of those of an earlier prediction if the block succeeds.

    So two predictions are never mixed, and one that fails or is stopped leaves the earlier one as it was. The folder
    lies in the workdir, and is locked: one of a process that was killed is emptied.

    Raises:
      UserError: another process predicts into the same workdir.
    """
    folder = workdir / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{workdir}: another prediction is writing there; choose another folder") from error
        _empty(folder)
        try:
            yield folder
            for name in _earlier_files(workdir):
                (workdir / name).unlink(missing_ok=True)
            made = [path for path in folder.rglob("*") if path.is_file()]
            for path in sorted(made, key=lambda path: path.name == "predictions.json"):  # which makes it complete
                target = workdir / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as a UserError that names the file or folder that is written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); check the path and the space") from error
