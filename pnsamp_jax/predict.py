"""A user's own CT: where the nodules are -> ratings, masks, and the files that show them.

    DIR/predictions.csv     one row for each nodule, in the order in which they were given
    DIR/predictions.json    the same and more: spreads, contributions, the networks that were asked
    DIR/masks/              each nodule's mask as NIfTI, in the grid of its image
    DIR/dicom/              for DICOM images: a segmentation and a structured report for each series
    DIR/figures/            the nodules with their outlines and ratings, PNG and PDF
    DIR/report.html         the same to scroll through, in one file

An image that cannot be read, or a point outside of it, is told in the rows that it concerns; the others go on.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from scipy import ndimage
from tqdm import tqdm

import pnsamp_jax
from pnsamp_jax import networks, settings
from pnsamp_jax.data import keys
from pnsamp_jax.data.dicom import only_series, read_series
from pnsamp_jax.data.masks import central_component, longest_axial_diameter_mm, onto_grid
from pnsamp_jax.data.patches import patch_affine, sample
from pnsamp_jax.data.prepare import atomic_path
from pnsamp_jax.data.tables import number, read_table
from pnsamp_jax.data.volumes import Volume, read_image, write_mask
from pnsamp_jax.errors import UserError
from pnsamp_jax.report.finding import Finding

SHIPPED = Path(pnsamp_jax.__file__).with_name("weights")
POINT_COLUMNS = {"mm": ("x_mm", "y_mm", "z_mm"), "voxel": ("i", "j", "k")}
PARTS = (*keys.RATING_NAMES[: keys.MALIGNANCY], "image")  # what malignancy is built upon
NODULE_ID = re.compile(r"[\w-][\w.-]{0,63}", re.ASCII)
MASK_FILE = "masks/{}.nii.gz"  # by nodule id
DICOM_FILES = ("dicom/{}_seg.dcm", "dicom/{}_sr.dcm")  # by the id of a series' first nodule
FIGURES = ("figures/nodules.png", "figures/nodules.pdf")
SALIENCY_MM = 1.5  # standard deviation of its smoothing: single voxels of a gradient mean little


class Request(NamedTuple):
    """A nodule to look at.

    Attributes:
      nodule_id: unique; part of file names.
      image: as the user named it.
      path: of the image.
      point: (3,) in the units of the request.
    """

    nodule_id: str
    image: str
    path: Path
    point: np.ndarray


class Located(NamedTuple):
    """A request with the voxels round its point.

    Attributes:
      request: what was asked for.
      point_mm: (3,) LPS.
      hu: (S, S, S) int16.
      shape: of the image's grid.
      affine: (4, 4) from the image's index to LPS mm.
      files: of a DICOM series, else None.
    """

    request: Request
    point_mm: np.ndarray
    hu: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    files: list[str] | None = None


def columns() -> list[str]:
    """The columns of predictions.csv, in order."""
    names = ["nodule_id", "image", "x_mm", "y_mm", "z_mm", "status", "mask", "volume_mm3", "diameter_mm"]
    for rating in keys.RATINGS:
        names += [f"{rating.name}_{what}" for what in ("pred", "within_one", "expected")]
        names += [f"{rating.name}_p{k}" for k in range(1, rating.classes + 1)]
    return names


def read_requests(options: ml_collections.ConfigDict) -> list[Request]:
    """The nodules that `config.predict` asks for, in the order in which they were given.

    Raises:
      UserError: the points are missing or malformed, or ids repeat.
    """
    if options.units not in POINT_COLUMNS:
        raise UserError(f"config.predict.units: '{options.units}' is none of {', '.join(POINT_COLUMNS)}")
    if options.points.lower().endswith(".csv"):
        requests = _read_points_file(Path(options.points), options)
    else:
        requests = _read_points(options)
    seen = set()
    for request in requests:
        if not NODULE_ID.fullmatch(request.nodule_id):
            raise UserError(f"nodule_id '{request.nodule_id}': give at most 64 letters, digits, '.', '_' and '-'")
        if request.nodule_id in seen:
            raise UserError(f"nodule_id '{request.nodule_id}' appears twice; ids must be unique")
        seen.add(request.nodule_id)
    return requests


def _read_points_file(table: Path, options: ml_collections.ConfigDict) -> list[Request]:
    if options.image:
        raise UserError("config.predict.image: leave it out where config.predict.points is a CSV, which names images")
    names = POINT_COLUMNS[options.units]
    requests = []
    for where, row in read_table(table, ("nodule_id", "image", *names)):
        point = np.array([number(where, row, name) for name in names])
        requests.append(Request(row["nodule_id"], row["image"], table.parent / row["image"], point))
    if not requests:
        raise UserError(f"{table}: holds no nodule")
    return requests


def _read_points(options: ml_collections.ConfigDict) -> list[Request]:
    if not options.image:
        raise UserError("config.predict.image: is empty; give an image file or a folder that holds one DICOM series")
    requests = []
    for place, text in enumerate(filter(str.strip, options.points.split(";")), start=1):
        try:
            point = np.array([float(part) for part in text.split(",")])
        except ValueError:
            point = np.array([])
        if point.shape != (3,) or not np.isfinite(point).all():
            raise UserError(f"config.predict.points: '{text.strip()}' is no point; give 'x,y,z;x,y,z' or a CSV file")
        requests.append(Request(f"nodule_{place}", options.image, Path(options.image), point))
    if not requests:
        raise UserError("config.predict.points: is empty; give 'x,y,z;x,y,z' in mm (LPS) or a CSV file")
    return requests


def locate(
    requests: Iterable[Request], units: str, size: int, spacing_mm: float, failures: dict[str, str]
) -> Iterator[Located]:
    """Reads the images, one at a time, and cuts out the patches.

    Args:
      requests: those of an image one after the other.
      units: of the points, "mm" (LPS) or "voxel" (i, j, k along width, height and depth, from 0).
      size: voxels on a side of a patch.
      spacing_mm: size of a voxel.
      failures: takes the reason of each nodule, by its id, for which this is not possible.
    """
    for path, group in groupby(requests, key=lambda request: request.path):
        group = list(group)
        try:
            files = only_series(path) if path.is_dir() else None
            ct = read_series(files) if files else read_image(path)
        except (UserError, OSError) as error:
            failures |= {request.nodule_id: str(error) for request in group}
            continue
        for request in group:
            point_mm = request.point if units == "mm" else ct.to_lps(request.point[::-1])
            if ct.holds(point_mm):
                hu = np.rint(sample(ct, point_mm, size, spacing_mm)).astype(np.int16)
                yield Located(request, point_mm, hu, ct.array.shape, ct.affine, files)
            else:
                hint = {
                    "mm": "give LPS mm, as DICOM has it (NIfTI viewers show RAS: negate x and y)",
                    "voxel": "give i, j, k along width, height and depth, from 0",
                }[units]
                failures[request.nodule_id] = f"the point lies outside {request.image}; {hint}"


def find(
    located: Iterator[Located], asked: networks.Networks, batch_size: int, flips: bool, shown: int
) -> Iterator[tuple[Located, Finding]]:
    """Asks the networks about patches, batch by batch.

    Args:
      located: the patches.
      asked: the networks.
      batch_size: how many at once; a smaller last batch is filled up, so that one program serves all.
      flips: whether to average over flips.
      shown: for how many, from the first, the saliency is computed.
    """
    place = 0
    with ThreadPoolExecutor(1) as beside:
        while batch := list(islice(located, batch_size)):
            if place == 0 and shown > 0:  # its compilation takes as long as all else of a single nodule
                compiled = beside.submit(networks.compile_saliency, asked, batch_size)
            images = np.stack([batch[min(i, len(batch) - 1)].hu for i in range(batch_size)])
            answers = networks.predict(asked, images, flips)
            if place < shown:
                compiled.result()
                salient = networks.saliency(asked, images)
            for i, item in enumerate(batch):
                voxels = (
                    None if place >= shown else ndimage.gaussian_filter(salient[i], SALIENCY_MM / asked.spacing_mm)
                )
                named = {"nodule_id": item.request.nodule_id, "image": item.request.image, "point_mm": item.point_mm}
                yield item, make_finding(answers, i, asked.spacing_mm, hu=item.hu, saliency=voxels, **named)
                place += 1


def make_finding(answers: networks.Answers, i: int, spacing_mm: float, **given) -> Finding:
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


def write_image_files(found: list[tuple[Located, Finding]], workdir: Path) -> None:
    """Writes the masks of all nodules of one image, and for a DICOM series the DICOM objects.

    Raises:
      UserError: the series' headers do not allow of DICOM objects; the masks are written all the same.
    """
    masks, files = [], found[0][0].files
    for item, finding in found:
        patch = Volume(finding.mask, patch_affine(finding.point_mm, len(finding.mask), finding.spacing_mm))
        mask = onto_grid(patch, item.shape, item.affine)
        with atomic_path(workdir / MASK_FILE.format(finding.nodule_id)) as temporary:
            write_mask(mask, temporary)
        if files:
            masks.append(mask)
    if files:
        from pnsamp_jax.report.dicom_objects import write_objects  # which other images do not need

        # Named by the first nodule: a UID from a header is no safe file name, and two folders may hold one series.
        names = [workdir / name.format(found[0][1].nodule_id) for name in DICOM_FILES]
        write_objects([finding for _, finding in found], masks, files, *names)


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
    for place, rating in enumerate(keys.RATINGS):
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
    asked = networks.load(Path(options.checkpoint or SHIPPED))
    failures, complaints, rows, extra, findings = {}, [], {}, {}, []
    remove_earlier(workdir)
    first = {}  # where each image is first named: its nodules go one after the other, so that it is read once
    by_image = sorted(requests, key=lambda request: first.setdefault(request.path, len(first)))
    bar = tqdm(by_image, desc="Predicting", unit="nodule")
    located = locate(bar, options.units, asked.patch_size, asked.spacing_mm, failures)
    found = find(located, asked, min(config.batch_size, len(requests)), options.flips, options.shown)
    for _, group in groupby(found, key=lambda pair: pair[0].request.path):
        group = list(group)
        try:
            write_image_files(group, workdir)
        except UserError as error:
            complaints.append(str(error))
        for _, finding in group:
            rows[finding.nodule_id] = row_of(finding)
            extra[finding.nodule_id] = details(finding)
        findings += [finding for _, finding in group][: max(0, options.shown - len(findings))]
    for request in requests:
        if request.nodule_id in failures:
            rows[request.nodule_id] = failed_row(request, options.units, failures[request.nodule_id])
    header = {
        "checkpoint": options.checkpoint or "shipped with pnsamp_jax",
        "version": pnsamp_jax.__version__,
        "networks": len(asked.members),
        "flips": len(networks.FLIPS) if options.flips else 1,
    }
    write_tables([rows[request.nodule_id] for request in requests], extra, header, workdir)
    if findings:
        write_pictures(findings, workdir)
    if failures:
        nodule, reason = next(iter(failures.items()))
        raise UserError(
            f"{len(failures)} of {len(requests)} nodules could not be predicted (see {workdir / 'predictions.csv'}); "
            f"{nodule}: {reason}"
        )
    if complaints:
        raise UserError(f"all nodules are predicted, but DICOM objects lack: {complaints[0]}")
    return findings
