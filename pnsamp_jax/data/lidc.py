"""LIDC-IDRI's nodules: the readers' annotations grouped by nodule, and the size of each cohort.

    python -m pnsamp_jax.data.lidc  # prints the counts

`lidc_database` reads the annotations, `lidc_masks` turns their contours into masks, and `lidc_ct` adds the CT.
Eight patients have two scans; the nodules of the second are numbered on from those of the first.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pnsamp_jax.data import cohort, lidc_masks, patches, schema
from pnsamp_jax.data.lidc_database import Annotation, Scan, read_scans
from pnsamp_jax.errors import UserError

UNITS = ("index", "mm")
READERS = 4  # per scan
SHRINK, MIN_TOLERANCE = 0.9, 0.1  # pylidc's values, see `cluster`


@dataclass(frozen=True)
class LidcNodule:
    """A nodule with its scan and annotations.

    Attributes:
      nodule: ids and ratings; row r holds the ratings of `annotations[r]`.
      scan: the scan that shows the nodule.
      annotations: one per reader, in the order of their ids in the database.
    """

    nodule: cohort.Nodule
    scan: Scan
    annotations: tuple[Annotation, ...]

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what each reader outlined, and where it lies in the scan; see `lidc_masks.reader_masks`.

        Examples:
            >>> from pnsamp_jax.data import lidc
            >>> item = lidc.patient_nodules("LIDC-IDRI-0001")[0]
            >>> masks, origin = item.masks()
            >>> masks.shape, origin.tolist()
            ((4, 9, 52, 44), [86, 340, 297])
        """
        return lidc_masks.reader_masks(self.annotations, self.scan.slice_z_mm)

    def row(self) -> dict[str, Any]:
        """Return the nodule as a row of `frame`."""
        masks, origin = self.masks()
        consensus = patches.consensus(masks)
        # Some annotations enclose no voxel, or readers agree on none; the middle of what was drawn then has to do.
        marked = next((mask for mask in (consensus, masks.any(axis=0)) if mask.any()), np.ones_like(consensus))
        index = np.argwhere(marked).mean(axis=0) + origin
        slice_mm = float(np.median(np.diff(self.scan.slice_z_mm)))
        volume = float(consensus.sum() * self.scan.pixel_spacing_mm**2 * slice_mm)
        counts = self.nodule.rating_counts
        classes = cohort.labels(counts, "modal").tolist()
        row: dict[str, Any] = {"nodule_id": self.nodule.nodule_id, "patient_id": self.nodule.patient_id}
        row |= {"series_uid": self.scan.series_uid, "readers": len(self.annotations)}
        row |= dict(zip(("slice", "row", "column"), index.tolist(), strict=True))
        row |= {"volume_mm3": volume, "diameter_mm": (6 * volume / np.pi) ** (1 / 3)}
        for rating, mean, one in zip(schema.RATINGS, cohort.mean_rating(counts).tolist(), classes, strict=True):
            row |= {f"{rating.name}_mean": mean, rating.name: one}
        return row


def cluster(scan: Scan, unit: str = "index") -> list[tuple[Annotation, ...]]:
    """Group the annotations that outline the same nodule, by pylidc's rule but faster.

    Two annotations are connected if the smallest distance between their contours' points is at most a tolerance. It
    starts at the slice thickness and shrinks until no connected group has more members than there were readers, but
    not below 0.1, so 14 groups of the archive keep five to eight members.

    Args:
      scan: any scan.
      unit: unit of the distance. "index" is pylidc's: rows, columns and slice numbers, compared with a thickness in
        mm. This mixes units, but nodules in the literature are identified this way. "mm" is the correct distance.

    Returns:
      The groups from the lowest slice to the highest (by the mean of their annotations' centroids), each in the order
      of the annotations' ids.

    Raises:
      UserError: the unit is unknown.
    """
    if unit not in UNITS:
        raise UserError(f"unit '{unit}' for LIDC's clustering: choose from {', '.join(UNITS)}")
    if not scan.annotations:
        return []
    points = [annotation.points(scan.slice_z_mm) for annotation in scan.annotations]
    heights = [indices[:, 2].mean() for indices in points]
    if unit == "mm":
        points = [annotation.points_mm(scan.pixel_spacing_mm) for annotation in scan.annotations]
    tolerance = scan.slice_thickness_mm
    distances = _distances(points, tolerance)
    groups, labels = connected_components(distances <= tolerance, directed=False)
    while np.bincount(labels).max() > READERS and (tolerance := tolerance * SHRINK) >= MIN_TOLERANCE:
        groups, labels = connected_components(distances <= tolerance, directed=False)
    members = [np.flatnonzero(labels == group) for group in range(groups)]
    members.sort(key=lambda group: np.mean([heights[i] for i in group]))
    return [tuple(scan.annotations[i] for i in group) for group in members]


def nodules(scans: Iterable[Scan] | None = None, unit: str = "index") -> list[LidcNodule]:
    """Return all nodules of the archive, or of the given scans.

    Args:
      scans: must include every scan of each patient, since a patient's nodules are numbered across scans; by default
        all scans.
      unit: see `cluster`.

    Returns:
      The nodules in the order of the scans.

    Examples:
        >>> from pnsamp_jax.data import lidc
        >>> found = lidc.nodules()
        >>> len(found), found[0].nodule.nodule_id, len(found[0].annotations)
        (2651, 'LIDC-IDRI-0078_n00', 4)
    """
    found = []
    numbers: dict[str, itertools.count] = {}
    for scan in scans_by_series().values() if scans is None else scans:
        number = numbers.setdefault(scan.patient_id, itertools.count())
        for annotations in cluster(scan, unit):
            ratings = np.stack([annotation.ratings for annotation in annotations])
            nodule = cohort.Nodule(f"{scan.patient_id}_n{next(number):02d}", scan.patient_id, ratings)
            found.append(LidcNodule(nodule, scan, annotations))
    return found


def frame(found: Iterable[LidcNodule] | None = None) -> Any:
    """Return nodules as a pandas frame, a row for each: ids, place, size and ratings.

    `slice`, `row` and `column` are the centroid of the consensus (at least half of the readers) as indices in the
    scan, whose slices are sorted by z; `volume_mm3` is its volume, with the median distance between slices, and
    `diameter_mm` that of a ball of this volume. For each rating there are the readers' mean, `<rating>_mean`, and
    the class by the label policy, `<rating>`; see `cohort.labels`.

    Args:
      found: by default all 2,651 nodules, which takes a minute.

    Raises:
      UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("pandas is not installed: run `pip install pandas`") from error
    return pandas.DataFrame([item.row() for item in (nodules() if found is None else found)])


@functools.cache
def scans_by_series() -> dict[str, Scan]:
    """Return the archive's scans by SeriesInstanceUID, ordered by id and read once per process."""
    return {scan.series_uid: scan for scan in read_scans()}


def marked_series() -> set[str]:
    """Return the SeriesInstanceUIDs of the archive's scans that have nodules."""
    return {uid for uid, scan in scans_by_series().items() if scan.annotations}


@functools.cache
def patient_nodules(patient_id: str) -> list[LidcNodule]:
    """Return the nodules of one patient. Clusters only that patient's scans; the whole archive takes seconds."""
    return nodules(scan for scan in scans_by_series().values() if scan.patient_id == patient_id)


def series_nodules(series_uid: str) -> list[LidcNodule]:
    """Return the nodules of one scan, numbered across all scans of its patient."""
    found = patient_nodules(scans_by_series()[series_uid].patient_id)
    return [item for item in found if item.scan.series_uid == series_uid]


def summary(path: str | Path | None = None) -> dict[str, Any]:
    """Count the scans, annotations and nodules, and the cohorts for each least number of readers.

    Args:
      path: the database, see `lidc_database.read_scans`.
    """
    scans = read_scans(path)
    found = [item.nodule for item in nodules(scans)]
    by_readers = {
        str(least): {name: cohort.counts(found, name, least) for name in cohort.COHORTS}
        for least in range(1, READERS + 1)
    }
    return {
        "scans": len(scans),
        "annotations": sum(len(scan.annotations) for scan in scans),
        "nodules": len(found),
        "cohorts": by_readers["1"],
        "cohorts_by_min_readers": by_readers,
    }


def _distances(points: Sequence[np.ndarray], limit: float) -> np.ndarray:
    """Compute the smallest distance between each two of n point sets (_, 3): (n, n) float, inf above the limit."""
    # The search excludes its bound, and rounding must not exclude a distance that equals the limit.
    bound = limit * (1 + 1e-6)
    low = np.stack([rows.min(axis=0) for rows in points])
    high = np.stack([rows.max(axis=0) for rows in points])
    gap = np.maximum(low[:, None] - high, low - high[:, None]).clip(0)  # between bounding boxes, along each axis
    distances = np.full((len(points), len(points)), np.inf)
    np.fill_diagonal(distances, 0)
    trees = [cKDTree(rows) for rows in points]
    for i, j in np.argwhere(np.triu(np.linalg.norm(gap, axis=-1) <= bound, 1)):
        nearest, _ = trees[i].query(points[j], distance_upper_bound=bound)
        distances[i, j] = distances[j, i] = nearest.min()
    return distances


def main() -> None:
    """Print the number of scans, annotations, nodules and members of each cohort as one JSON object."""
    argparse.ArgumentParser(prog="python -m pnsamp_jax.data.lidc", description=main.__doc__).parse_args()
    try:
        print(json.dumps(summary()))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
