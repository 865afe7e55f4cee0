"""The `luna16` source: the scans of the LUNA16 challenge (MetaImage files), with the readings of LIDC-IDRI.

LUNA16 publishes 888 scans of LIDC-IDRI as <SeriesInstanceUID>.mhd and .raw in the folders subset0 to subset9, and in
annotations.csv the places of 1,186 nodules that at least three readers marked, without outlines and ratings. Those
come from LIDC-IDRI's own readings, joined by the UID: the pixels are the same, in the same order. Use
`--config.data.min_readers=3` for LUNA16's choice of nodules.

Another challenge with scans of its own follows the same way: `series` names what there is, `load` returns each nodule
with its CT and its readers' masks.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.archives import to_unpack
from pnsamp_jax.ct.itk_files import data_file
from pnsamp_jax.ct.read import read_ct
from pnsamp_jax.data import lidc
from pnsamp_jax.data.csv_tables import number, read_table
from pnsamp_jax.data.lidc_ct import marked_nodules, require_slices, slice_heights
from pnsamp_jax.data.lidc_file import database_digest
from pnsamp_jax.data.named_scans import NamedScans, named_scans, note_passed_over, only_scan
from pnsamp_jax.data.patches import MarkedNodule, Unusable, consensus_centroid
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under, stamp

TABLE = "annotations.csv"
POINT = ("coordx", "coordy", "coordz")  # LPS mm
MAX_OFFSET_MM = 10.0  # between LUNA16's mean of the readers' places and the centroid of their consensus


@dataclass(frozen=True)
class Luna16Source:
    """Nodules of LUNA16's scans; a series is one scan, named by its SeriesInstanceUID.

    Attributes:
      root: folder that contains the subsets and, if its places are to be checked, annotations.csv.
    """

    root: str

    name = "luna16"

    def series(self) -> list[str]:
        """Return the UIDs of the scans under the folder that have nodules.

        Raises:
          UserError: no such scan was found, or two files have the name of one.
        """
        _scans.cache_clear()  # files may have come or gone
        scans = _scans(self.root)
        note_passed_over(Path(self.root), scans)
        found = sorted(scans.by_uid.keys() & lidc.marked_series())
        for series in found:
            only_scan(scans.by_uid[series])
        if not found:
            advice = to_unpack(self.root, "give the folder that contains LUNA16's subset0 to subset9")
            raise UserError(
                f"config.data.root: none of the {len(scans.by_uid)} .mhd files under {self.root} is a scan of "
                f"LIDC-IDRI with nodules; {advice}"
            )
        return found

    def load(self, series: str) -> list[MarkedNodule | Unusable]:
        """Return the nodules of one scan with their voxels.

        Raises:
          UserError: the file is damaged or is not the scan that the readers saw, or a place of annotations.csv is none
            of its nodules.
        """
        path, scan = only_scan(_scans(self.root).by_uid[series]), lidc.scans_by_series()[series]
        ct = read_ct(path)
        require_slices(scan, slice_heights(ct), str(path))
        found = marked_nodules(scan, ct)
        _require_places(path, _places(self.root).get(series, []), found)
        return found

    def description(self) -> dict[str, Any]:
        """Return the folder and the readings, which determine the records together with each scan's `inputs`."""
        return {"source": self.name, "root": str(Path(self.root).resolve()), "database": database_digest()}

    def inputs(self, series: str) -> list[list[int] | None]:
        """Return the size and time of the two files of one scan."""
        path = only_scan(_scans(self.root).by_uid[series])
        return [stamp(path), stamp(data_file(str(path)))]


def _require_places(path: Path, places: list[np.ndarray], found: list[MarkedNodule | Unusable]) -> None:
    """Raise UserError if a place of annotations.csv is none of a scan's nodules.

    An unusable nodule, or one whose outlines enclose no voxel, has no centroid, so as many places may be far from the
    others.
    """
    marked = [one.readers for one in found if isinstance(one, MarkedNodule) and one.readers.array.any()]
    centroids = [consensus_centroid(readers) for readers in marked]
    distances_mm = [min((float(np.linalg.norm(c - point)) for c in centroids), default=np.inf) for point in places]
    far = [i for i, distance_mm in enumerate(distances_mm) if distance_mm > MAX_OFFSET_MM]
    if len(far) > len(found) - len(centroids):
        shown = ", ".join(f"{value:.1f}" for value in places[far[0]])
        raise UserError(
            f"{path}: {TABLE} has a nodule at ({shown}) mm, {distances_mm[far[0]]:.0f} mm from the nearest one of "
            "LIDC-IDRI's readers; give LUNA16's own files"
        )


@cache  # once per process, not once per series
def _scans(root: str) -> NamedScans:
    if not Path(root).is_dir():
        raise UserError(f"config.data.root: {root} is no folder; give that of LUNA16's subset0 to subset9")
    return named_scans(Path(root), ".mhd")


@cache
def _places(root: str) -> dict[str, list[np.ndarray]]:
    """Return the points of annotations.csv by series; none if there is no such table."""
    table = next(iter(files_under(root, TABLE)), None)
    places: dict[str, list[np.ndarray]] = {}
    for where, row in read_table(table, ("seriesuid", *POINT)) if table else ():
        places.setdefault(row["seriesuid"], []).append(np.array([number(where, row, name) for name in POINT]))
    return places
