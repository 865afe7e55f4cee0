"""The files of a prediction, see `predict`: written, and those of an earlier one removed."""

import csv
import json
from pathlib import Path

import numpy as np

from pnsamp_jax.ct.image_files import write_mask
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import patch_affine
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.masks import onto_grid
from pnsamp_jax.inference.requests import NODULE_ID, POINT_COLUMNS, Located, Request

MASK_FILE = "masks/{}.nii.gz"  # by nodule id
DICOM_FILES = ("dicom/{}_seg.dcm", "dicom/{}_sr.dcm")  # by the id of a series' first nodule
FIGURES = ("figures/nodules.png", "figures/nodules.pdf")


def columns() -> list[str]:
    """The columns of predictions.csv, in order."""
    names = ["nodule_id", "image", "x_mm", "y_mm", "z_mm", "status", "mask", "volume_mm3", "diameter_mm"]
    for rating in schema.RATINGS:
        names += [f"{rating.name}_{what}" for what in ("pred", "within_one", "expected")]
        names += [f"{rating.name}_p{k}" for k in range(1, rating.classes + 1)]
    return names


def write_mask_file(located: Located, finding: Finding, workdir: Path) -> np.ndarray:
    """Writes a nodule's mask in the grid of its image; gives the (V, 3) index (d, h, w) of the V voxels it marks."""
    patch = Volume(finding.mask, patch_affine(finding.point_mm, len(finding.mask), finding.spacing_mm))
    mask = onto_grid(patch, located.shape, located.affine)
    with atomic_path(workdir / MASK_FILE.format(finding.nodule_id)) as temporary:
        write_mask(mask, temporary)
    return np.argwhere(mask.array).astype(np.int32)


def write_dicom_files(
    findings: list[Finding], marked: list[np.ndarray], affine: np.ndarray, files: list[str], workdir: Path
) -> None:
    """Writes the DICOM objects of one series; the arguments are those of `report.dicom_objects.write_objects`.

    Raises:
      UserError: the series' headers do not allow of them.
    """
    from pnsamp_jax.report.dicom_objects import write_objects  # which other images do not need

    # Named by the first nodule: a UID from a header is no safe file name, and two folders may hold one series.
    paths = [workdir / name.format(findings[0].nodule_id) for name in DICOM_FILES]
    write_objects(findings, marked, affine, files, *paths)


def row_of(finding: Finding) -> dict:
    """The row of predictions.csv of a nodule that was found."""
    row = {
        "nodule_id": finding.nodule_id,
        "image": finding.image,
        "status": "ok",
        "mask": MASK_FILE.format(finding.nodule_id),
    }
    row |= {name: f"{value:.6g}" for name, value in zip(POINT_COLUMNS["mm"], finding.point_mm, strict=True)}
    row |= {"volume_mm3": f"{finding.volume_mm3:.6g}", "diameter_mm": f"{finding.diameter_mm:.6g}"}
    for place, rating in enumerate(schema.RATINGS):
        row[f"{rating.name}_pred"] = int(finding.arg_max[place])
        row[f"{rating.name}_within_one"] = int(finding.within_one[place])
        row[f"{rating.name}_expected"] = f"{finding.expected[place]:.6g}"
        p = finding.probabilities[place, : rating.classes]
        row |= {f"{rating.name}_p{k}": f"{value:.6g}" for k, value in enumerate(p, start=1)}
    return row


def failed_row(request: Request, units: str, reason: str) -> dict:
    """The row of a nodule that could not be predicted; without coordinates in mm if none were given."""
    row = {"nodule_id": request.nodule_id, "image": request.image, "status": reason}
    if units == "mm":
        row |= {name: f"{value:.6g}" for name, value in zip(POINT_COLUMNS["mm"], request.point, strict=True)}
    return row


def details(finding: Finding) -> dict:
    """What predictions.json says beyond the row."""
    spreads = {"ensemble": finding.ensemble_spread, "flips": finding.flip_spread}
    return {
        "malignancy_spread": {name: None if np.isnan(value) else value for name, value in spreads.items()},
        "suspicion": finding.suspicion,
        "contributions": finding.contributions,
    }


def write_tables(rows: list[dict], extra: dict[str, dict], header: dict, workdir: Path) -> None:
    """Writes predictions.csv and predictions.json; `extra` holds further fields of the latter by nodule id."""
    with (
        atomic_path(workdir / "predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    texts = {"nodule_id", "image", "status", "mask"}
    nodules = []
    for row in rows:
        numbers = {name: json.loads(str(value)) for name, value in row.items() if name not in texts}
        nodules.append({name: row[name] for name in row if name in texts} | numbers | extra.get(row["nodule_id"], {}))
    with atomic_path(workdir / "predictions.json") as temporary:
        temporary.write_text(json.dumps({**header, "nodules": nodules}, indent=1))


def write_pictures(findings: list[Finding], workdir: Path) -> None:
    """Writes the figure and the report."""
    from pnsamp_jax.report.nodules import draw_nodules
    from pnsamp_jax.report.page import write_page

    for name in FIGURES:
        draw_nodules(findings, workdir / name)
    write_page(findings, "Pulmonary nodules, rated by PN-SAMP", workdir / "report.html")


def remove_earlier(workdir: Path) -> None:
    """Removes the files of an earlier prediction, and no others, so that two are never mixed.

    Raises:
      UserError: the workdir holds a training run, or a predictions.json that no prediction wrote.
    """
    if (workdir / "folds.json").exists():
        raise UserError(f"{workdir}: holds a training run, whose tables would be lost; take another --workdir")
    earlier = workdir / "predictions.json"
    if not earlier.exists():
        return
    try:
        ids = [nodule["nodule_id"] for nodule in json.loads(earlier.read_text())["nodules"]]
        ids = [nodule_id for nodule_id in ids if NODULE_ID.fullmatch(nodule_id)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{earlier}: not of a prediction, or damaged; take another --workdir") from error
    names = [name.format(nodule_id) for nodule_id in ids for name in (MASK_FILE, *DICOM_FILES)]
    for name in (*names, *FIGURES, "report.html", "predictions.csv", "predictions.json"):
        (workdir / name).unlink(missing_ok=True)
