"""The voxels and the geometry of NIfTI (by nibabel), NRRD and MetaImage files (by ITK).

Both libraries fill in what a header lacks or garbles, and read what its file does not hold. A wrong scale or place is
an answer about another piece of the body, so such a file is refused, before memory is taken for its voxels.
"""

import logging
import math
import os
import re
import zlib
from contextlib import contextmanager

import numpy as np

from pnsamp_jax.ct.volume import AIR, Volume
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable

MAX_VOXELS = 2**30  # 1024 x 1024 x 1024, beyond any CT

_CHUNK = 1 << 14  # bytes to unpack at once, into at most a thousand times as many
_MAX_TEXT_HEADER = 1 << 20  # bytes
_SAME_PLACE_MM = 0.1  # how far apart a NIfTI's two forms may put a voxel
# What ITK makes up, as 1 mm or 0, where a text header lacks or garbles it; each with its other names.
_META_FIELDS = (("DimSize",), ("ElementSpacing", "ElementSize"), ("Offset", "Position", "Origin"))
_NRRD_FIELDS = (("sizes",), ("space directions",), ("space origin",))
# What ITK passes over, and the only values that may be passed over.
_PASSED_OVER = {
    "DistanceUnits": r"mm",
    "space units": r'("mm"\s*)*("")?',
    "ElementToIntensityFunctionSlope": r"1(\.0*)?",
    "ElementToIntensityFunctionOffset": r"-?0(\.0*)?",
    "BinaryData": r"(?i:true)",
    "encoding": r"raw|gz|gzip",
    "data file": r"(?!LIST)[^%]*",
    "datafile": r"(?!LIST)[^%]*",
    "ElementDataFile": r"(?!LIST)[^%]*",
}


def read_file(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image file, told by its suffix.

    Args:
      path: of the file; of the header where the voxels lie in another.

    Returns:
      (d, h, w) int16, NaN and all below `AIR` set to `AIR`; the (4, 4) affine from the index (d, h, w, 1) to LPS mm.

    Raises:
      UserError: the file is damaged, not one 3D scalar image, or its header lacks or contradicts something.
    """
    try:
        return _read_nifti(path) if path.lower().endswith((".nii", ".nii.gz")) else _read_itk(path)
    except (RuntimeError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if re.search(r"[a-z]{3}", line)]  # not a matrix's
        lines = [line for line in lines if not line.startswith("Reason:")]
        reason = re.sub(r"^.*ERROR: |\w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else type(error).__name__)
        advice = "check that it is complete and, for .mhd and .nhdr, that its data file lies beside it"
        raise UserError(f"{path}: cannot be read ({reason}); {advice}") from error


def _to_int16(stored: np.ndarray, slope: float = 1, intercept: float = 0) -> np.ndarray:
    """(d, h, w) stored values -> int16, NaN and all below `AIR` set to `AIR`; plane by plane, to save memory."""
    array = np.empty(stored.shape, np.int16)
    for plane, values in zip(array, stored, strict=True):
        if values.dtype.kind != "i" or values.dtype.itemsize > 2 or (slope, intercept) != (1, 0):
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.nan_to_num(values * np.float64(slope) + intercept, nan=AIR)
            values = np.rint(np.clip(values, AIR, np.iinfo(np.int16).max))
        np.maximum(values, np.int16(AIR), out=plane, casting="unsafe")
    return array


def _check_size(path: str, shape: tuple[int, ...], width: int, held: float) -> None:
    """UserError unless `shape` (w, h, d, ...) is 3D, no larger than a CT, and fits into `held` bytes."""
    text = " x ".join(map(str, shape))
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise UserError(f"{path}: has {text} voxels; give one 3D image")
    if not 0 < math.prod(shape) <= MAX_VOXELS:
        raise UserError(f"{path}: its header claims {text} voxels; correct it")
    if math.prod(shape) * width > held:
        raise UserError(f"{path}: truncated, has fewer voxels than the {text} of its header; copy it again")


def _read_nifti(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(d, h, w) int16 and the (4, 4) affine of a NIfTI; UserError, or what else is raised on a damaged file."""
    import nibabel  # slow to import; ITK would take NaN for 0, and read what the file lacks as 0

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what counts is told by an exception
    try:
        with nibabel.imageglobals.ErrorLevel(30), np.errstate(all="ignore"):  # 30: sizes of 0 are not mended to 1
            image = nibabel.load(path, mmap=False)
            sform, qform = image.header.get_sform(coded=True), image.header.get_qform(coded=True)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ValueError(str(error)) from error
    kind = image.get_data_dtype()
    if not isinstance(image, nibabel.Nifti1Image) or kind.kind not in "iuf":
        raise UserError(f"{path}: has voxels of type {kind}; give one 3D NIfTI of HU")
    if image.dataobj.offset < image.header.single_vox_offset:
        raise UserError(f"{path}: its vox_offset lies within its header; correct it")
    held = _held_bytes(path, 0, path.lower().endswith(".gz"))
    _check_size(path, image.shape, kind.itemsize, held - image.dataobj.offset)
    if int(image.header["xyzt_units"]) & 7 not in (0, 2):  # unknown, mm
        raise UserError(f"{path}: its xyzt_units are not mm; save it in mm")
    forms = [form for form, code in (sform, qform) if code > 0]
    if not forms:
        raise UserError(f"{path}: has neither sform nor qform, which say where it lies; export it again")
    with np.errstate(invalid="ignore"):  # infinite ones are refused with all the others, see `check_geometry`
        apart = np.abs((forms[0] - forms[-1]) * [*image.shape[:3], 1]).max()
        to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ forms[0][:, [2, 1, 0, 3]]
    if apart > _SAME_PLACE_MM:
        raise UserError(f"{path}: its sform and qform lie apart; keep the right one and set the other's code to 0")
    stored = image.dataobj.get_unscaled().reshape(image.shape[:3], order="F").T
    return _to_int16(stored, image.dataobj.slope, image.dataobj.inter), to_lps


def _read_itk(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(d, h, w) int16 and the (4, 4) affine of a NRRD or MetaImage; UserError, or what else ITK raises."""
    import SimpleITK as sitk  # slow to import, and not needed for DICOM

    if path != readable(path):
        raise UserError(f"{path}: its name is not UTF-8, as ITK needs; rename it")
    held = _check_text_header(path)  # before ITK, which some headers bring down
    with _silent_itk(sitk):
        reader = sitk.ImageFileReader()
        reader.SetFileName(path)
        reader.ReadImageInformation()  # takes no memory for the voxels yet
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        if reader.GetNumberOfComponents() != 1 or "complex" in kind:
            raise UserError(f"{path}: has voxels of {kind}; give one 3D image of HU")
        _check_size(path, reader.GetSize(), sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent(), held)
        image = reader.Execute()
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    if np.abs(np.linalg.norm(direction, axis=0) - 1).max() > 1e-3:
        raise UserError(f"{path}: its directions are no unit vectors; correct its header")
    affine = np.eye(4)
    affine[:3, :3] = (direction * image.GetSpacing()[:3])[:, ::-1]  # ITK counts w, h, d
    affine[:3, 3] = image.GetOrigin()[:3]
    return _to_int16(sitk.GetArrayViewFromImage(image).reshape(image.GetSize()[2::-1])), affine


def _check_text_header(path: str) -> int:
    """The bytes of voxels that an NRRD or MetaImage holds; UserError for what ITK does not see, or dies of."""
    meta = path.lower().endswith((".mha", ".mhd"))
    with open(path, "rb") as file:
        text = file.read(_MAX_TEXT_HEADER).decode("latin-1")
    end = re.search(r"^ElementDataFile\s*=.*\n?" if meta else r"^\r?\n|\Z", text, re.MULTILINE)
    start = end.end() if end else 0
    lines = re.findall(r"^([A-Za-z][\w ]*?)[ \t]*[:=][ \t]*(.*?)\s*$", text[:start], re.MULTILINE)
    fields = dict(lines)
    count = fields.get("NDims" if meta else "dimension")
    if count not in ("3", "4") or len(fields) < len(lines):
        raise UserError(f"{path}: its header is not that of one 3D image; export it again")
    for names in _META_FIELDS if meta else _NRRD_FIELDS:
        name = next((name for name in names if name in fields), None)
        if name is None:
            raise UserError(f"{path}: its header lacks {names[0]}; export it again")
        values = _numbers(fields[name])
        if not np.isfinite(values).all() or (meta and len(values) != int(count)):
            raise UserError(f"{path}: its {name} is '{fields[name][:40]}'; correct it")
    for name, allowed in _PASSED_OVER.items():
        if not re.fullmatch(allowed, fields.get(name, "")) and name in fields:
            raise UserError(f"{path}: its {name} is '{fields[name][:40]}'; save it as one binary file in mm and HU")
    where = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    data = path if where.upper() == "LOCAL" else os.path.join(os.path.dirname(path), where)
    start = start if data == path else 0
    packed = fields.get("CompressedData", "").lower() == "true"
    if packed and fields.get("CompressedDataSize") != str(os.path.getsize(data) - start):
        raise UserError(f"{path}: its CompressedDataSize is not that of its voxels; copy it again")
    return _held_bytes(data, start, packed or fields.get("encoding", "raw") != "raw")


def _numbers(text: str) -> np.ndarray:
    """The numbers of a field, vectors in brackets taken apart; NaN where there is another word than "none"."""
    try:
        return np.array([part for part in re.split(r"[\s(),]+", text) if part not in ("", "none")], np.float64)
    except ValueError:
        return np.array([np.nan])


def _held_bytes(path: str, start: int, packed: bool) -> int:
    """Bytes of a file from `start` on; after unpacking zlib or gzip, which checks their checksums, as ITK does not."""
    with open(path, "rb") as file:
        file.seek(start)
        if not packed:
            return os.path.getsize(path) - start
        size, inflate = 0, zlib.decompressobj(47)  # 47: either format
        while data := file.read(_CHUNK):
            size += len(inflate.decompress(data))
            while inflate.unused_data:  # gzip files may follow one another
                rest, inflate = inflate.unused_data, zlib.decompressobj(47)
                size += len(inflate.decompress(rest))
    if not inflate.eof:
        raise EOFError("its compressed voxels are cut off")
    return size


@contextmanager
def _silent_itk(sitk):
    """Keeps ITK from printing: its readers write to file descriptor 2 itself, whatever its settings are."""
    shown, saved = sitk.ProcessObject.GetGlobalWarningDisplay(), os.dup(2)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def write_mask(mask: Volume, path) -> None:
    """Writes a mask (d, h, w) as NIfTI (.nii or .nii.gz) of 0 and 1, with its geometry, a sheared one too."""
    import nibabel  # ITK would write a tilted gantry's sheared grid as another one, without shear

    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(mask.array.transpose(2, 1, 0).astype(np.uint8), to_ras)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
