"""The `folder` source: the user's own nodules as images, masks and two tables.

    root/nodules.csv   nodule_id, patient_id, image, mask, x_mm, y_mm, z_mm  [, context, mask_label]
    root/ratings.csv   nodule_id, reader, and the nine ratings; one row per nodule and reader
    root/images/       NIfTI, NRRD, MetaImage or folders of DICOM, in HU; `image` and `mask` are paths relative to root
    root/masks/        unsigned 8-bit: bit r is set where reader r marked the voxel (0/1 or 0/255 for one mask);
                       or a label map; or a DICOM Segmentation or RT Structure Set

The point is the nodule's centre in LPS mm, the coordinates of DICOM and ITK. Further columns are ignored. A rating may
be left blank; a nodule without rows in ratings.csv has no ratings. `context` states what surrounds the nodule: "ct"
(a whole scan or a crop with true context, the default), "cube", "slab" or "simulated" (see `schema.CONTEXT`).
`mask_label` is the label of the nodule where `mask` is a label map, as 3D Slicer and nnU-Net write it, and the number
of its segment or ROI where a DICOM object has several.

`folder_tables` reads the tables, `folder_masks` the masks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.ct.itk_files import data_file
from pnsamp_jax.ct.notes import note
from pnsamp_jax.ct.read import read_ct
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.contrast import require_contrast
from pnsamp_jax.data.folder_masks import read_readers, require_around
from pnsamp_jax.data.folder_tables import NoduleRow, read_rows
from pnsamp_jax.data.patches import Geometry, MarkedNodule, Unusable, patch_affine
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under, stamp

PATCH = Geometry()  # what the networks of most configs see, whatever the size of its voxels
MIN_KNOWN = 0.5  # share of it that an image with true context holds, unless a note says so


@dataclass(frozen=True)
class FolderSource:
    """Nodules of a folder in the layout above; a series is one image file."""

    root: str

    name = "folder"

    def series(self) -> list[str]:
        """Return the image files, relative to the root and sorted.

        Raises:
          UserError: see `read_rows`.
        """
        return sorted(read_rows(self.root))

    def load(self, series: str) -> list[MarkedNodule | Unusable]:
        """Return the nodules of one image file with their voxels.

        Unusable is one whose point lies outside the image, or whose mask is missing, damaged or not its own (see
        `folder_masks`).

        Raises:
          UserError: the image is missing or unreadable.
        """
        ct = read_ct(Path(self.root) / series)
        found: list[MarkedNodule | Unusable] = []
        for row in read_rows(self.root)[series]:
            try:
                found.append(_load_nodule(self.root, row, ct))
            except UserError as error:
                found.append(Unusable(row.nodule.nodule_id, str(error)))
        return found

    def description(self) -> dict[str, Any]:
        """Return the root, which determines the records together with the `inputs` of each series."""
        return {"source": self.name, "root": str(Path(self.root).resolve())}

    def inputs(self, series: str) -> dict[str, Any]:
        """Return the rows of one image file, and size and time of it and of its masks."""
        rows = read_rows(self.root)[series]
        return {
            "rows": [_as_json(row) for row in rows],
            "files": {
                name: [(str(path), stamp(path)) for path in _files_of(Path(self.root) / name)]
                for name in (series, *(row.mask for row in rows))
            },
        }


def _as_json(row: NoduleRow) -> list[Any]:
    centre_mm, ratings = row.centre_mm.tolist(), row.nodule.ratings.tolist()
    return [row.nodule.nodule_id, row.nodule.patient_id, ratings, row.mask, row.mask_label, row.context, centre_mm]


def _files_of(path: Path) -> list[Path]:
    """Return the files whose change changes an image: its own, that of its voxels, or those of a DICOM series."""
    if path.is_dir():
        return files_under(path, "")  # through links, as the series is read
    if path.suffix.lower() in (".mhd", ".nhdr", ".mha", ".nrrd"):
        try:
            return [path, Path(data_file(str(path)))]
        except OSError:  # which `load` reports
            return [path]
    return [path]


def _load_nodule(root: str, row: NoduleRow, ct: Volume) -> MarkedNodule:
    if not ct.holds(row.centre_mm):
        raise UserError(
            f"{root}/nodules.csv: the point of '{row.nodule.nodule_id}' lies outside {row.image}; "
            "x_mm, y_mm and z_mm are LPS mm (NIfTI viewers show RAS: negate x and y)"
        )
    path = Path(root) / row.mask
    readers = read_readers(path, ct, row.nodule, row.mask_label)
    require_around(path, readers, ct, row.nodule.nodule_id, row.centre_mm)
    if row.context != "simulated":  # whose nodules may be of anything
        require_contrast(f"{path}: the mask of '{row.nodule.nodule_id}'", readers, ct)
    _note_unknown(root, row, ct)
    return MarkedNodule(row.nodule, ct, readers, row.context, row.centre_mm)


def _note_unknown(root: str, row: NoduleRow, ct: Volume) -> None:
    """Note an image with true context that holds little of what surrounds a nodule: the rest of a patch is made up."""
    if row.context != "ct":
        return
    patch = patch_affine(row.centre_mm, PATCH.patch_size, PATCH.spacing_mm)
    index = np.moveaxis(np.indices((PATCH.patch_size,) * 3), 0, -1)
    at = ct.to_index(Volume(index, patch).to_lps(index))
    known = ((at >= -0.5) & (at <= np.array(ct.array.shape) - 0.5)).all(axis=-1).mean()
    if known < MIN_KNOWN:
        side_mm = PATCH.patch_size * PATCH.spacing_mm
        note(
            f"{Path(root) / row.image}: shows {known:.0%} of the {side_mm:.0f} mm around '{row.nodule.nodule_id}' "
            "that a network sees; the rest repeats its edge. Give more of the scan, or name its context in nodules.csv"
        )
