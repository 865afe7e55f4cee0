"""Read NIfTI files (with nibabel), and NRRD and MetaImage files (with ITK); write masks as NIfTI.

Both libraries fill in header fields that are missing or garbled, and voxels that a truncated file lacks. A wrong scale
or position would give a prediction for another part of the body, so such a file is refused, before memory for its
voxels is allocated.
"""

import logging
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from pnsamp_jax.ct.volume import AIR, Volume
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable

MAX_VOXELS = 2**30  # 1024 x 1024 x 1024; no CT is larger
CHUNK = 1 << 14  # bytes to decompress at once; they expand at most a thousandfold
MAX_TEXT_HEADER = 1 << 20  # bytes
SAME_MM = 0.1  # largest distance between a voxel's positions by sform and by qform
# Fields for which ITK assumes 1 mm or 0 if a text header lacks or garbles them, each with its synonyms.
META_FIELDS = (("DimSize",), ("ElementSpacing", "ElementSize"), ("Offset", "Position", "Origin"))
NRRD_FIELDS = (("sizes",), ("space directions",), ("space origin",))
# Patterns of the accepted values of fields whose other values ITK ignores or this module cannot check.
ACCEPTED_VALUES = {
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
    """Read an image file in the format that its suffix names.

    Args:
      path: the file, or its header if the voxels are in a separate file.

    Returns:
      (d, h, w) int16, with NaN and values below `AIR` set to `AIR`; and the (4, 4) affine that maps the index
      (d, h, w, 1) to LPS mm.

    Raises:
      UserError: the file is damaged or not a 3D scalar image, or its header is incomplete or contradictory.
    """
    try:
        return _read_nifti(path) if path.lower().endswith((".nii", ".nii.gz")) else _read_itk(path)
    except (RuntimeError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if re.search(r"[a-z]{3}", line)]  # not of a matrix
        lines = [line for line in lines if not line.startswith("Reason:")]
        reason = re.sub(r"^.*ERROR: |\w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else type(error).__name__)
        advice = "check that it is complete and that the data file of an .mhd or .nhdr is in the same folder"
        raise UserError(f"{path}: cannot be read ({reason}); {advice}") from error


def _to_int16(stored: np.ndarray, slope: float = 1, intercept: float = 0) -> np.ndarray:
    """Scale stored values (d, h, w) to int16, with NaN and values below `AIR` set to `AIR`.

    Each plane is converted on its own, to save memory.
    """
    array = np.empty(stored.shape, np.int16)
    for plane, values in zip(array, stored, strict=True):
        if values.dtype.kind != "i" or values.dtype.itemsize > 2 or (slope, intercept) != (1, 0):
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.nan_to_num(values * np.float64(slope) + intercept, nan=AIR)
            values = np.rint(np.clip(values, AIR, np.iinfo(np.int16).max))
        np.maximum(values, np.int16(AIR), out=plane, casting="unsafe")
    return array


def _check_size(path: str, shape: tuple[int, ...], voxel_bytes: int, available: float) -> None:
    """Raise UserError unless `shape` (w, h, d, ...) is 3D, of a plausible size and within the `available` bytes."""
    text = " x ".join(map(str, shape))
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise UserError(f"{path}: has {text} voxels; give one 3D image")
    if not 0 < math.prod(shape) <= MAX_VOXELS:
        raise UserError(f"{path}: the header claims {text} voxels; correct it")
    if math.prod(shape) * voxel_bytes > available:
        raise UserError(f"{path}: truncated, has fewer voxels than the {text} of its header; copy the file again")


def _read_nifti(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI as `read_file` does. A damaged file may also raise other errors than UserError."""
    import nibabel  # slow to import; used because ITK reads NaN, and voxels missing from the file, as 0

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # errors that matter are raised
    try:
        with nibabel.imageglobals.ErrorLevel(30), np.errstate(all="ignore"):  # 30: raise for a size of 0, not use 1
            image = nibabel.load(path, mmap=False)
            if not isinstance(image, nibabel.Nifti1Image):
                raise UserError(f"{path}: is of type {type(image).__name__}; give one 3D NIfTI of HU")
            sform, qform = image.header.get_sform(coded=True), image.header.get_qform(coded=True)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ValueError(str(error)) from error
    voxels, dtype = image.dataobj, image.get_data_dtype()
    assert isinstance(voxels, nibabel.arrayproxy.ArrayProxy)  # as in every image that was loaded from a file
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: has voxels of type {dtype}; give one 3D NIfTI of HU")
    if voxels.offset < image.header.single_vox_offset:
        raise UserError(f"{path}: vox_offset points into the header; correct it")
    available = _voxel_bytes(path, 0, path.lower().endswith(".gz")) - voxels.offset
    _check_size(path, image.shape, dtype.itemsize, available)
    if int(image.header["xyzt_units"]) & 7 not in (0, 2):  # unknown, mm
        raise UserError(f"{path}: xyzt_units are not mm; save the image in mm")
    forms = [form for form, code in (sform, qform) if code > 0]
    if not forms:
        raise UserError(f"{path}: has neither sform nor qform, so its position is unknown; export it again")
    with np.errstate(invalid="ignore"):  # `check_geometry` refuses infinite values
        distance = np.abs((forms[0] - forms[-1]) * [*image.shape[:3], 1]).max()
        to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ forms[0][:, [2, 1, 0, 3]]
    if distance > SAME_MM:
        raise UserError(f"{path}: sform and qform differ; keep the right one and set the code of the other to 0")
    stored = voxels.get_unscaled().reshape(image.shape[:3], order="F").T
    return _to_int16(stored, voxels.slope, voxels.inter), to_lps


def _read_itk(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an NRRD or MetaImage as `read_file` does. A damaged file may also raise other errors than UserError."""
    import SimpleITK as sitk  # slow to import, and not needed for DICOM

    if path != readable(path):
        raise UserError(f"{path}: the name is not UTF-8, which ITK requires; rename the file")
    available = _check_text_header(path)  # before ITK, which some headers crash
    with _silent_itk(sitk):
        reader = sitk.ImageFileReader()
        reader.SetFileName(path)
        reader.ReadImageInformation()  # allocates no memory for the voxels yet
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        if reader.GetNumberOfComponents() != 1 or "complex" in kind:
            raise UserError(f"{path}: has voxels of {kind}; give one 3D image of HU")
        voxel_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        _check_size(path, reader.GetSize(), voxel_bytes, available)
        image = reader.Execute()
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    if np.abs(np.linalg.norm(direction, axis=0) - 1).max() > 1e-3:
        raise UserError(f"{path}: the directions are not unit vectors; correct the header")
    affine = np.eye(4)
    affine[:3, :3] = (direction * image.GetSpacing()[:3])[:, ::-1]  # from ITK's order w, h, d
    affine[:3, 3] = image.GetOrigin()[:3]
    return _to_int16(sitk.GetArrayViewFromImage(image).reshape(image.GetSize()[2::-1])), affine


def _check_text_header(path: str) -> int:
    """Return the bytes of voxels in an NRRD or MetaImage.

    Raises:
      UserError: the header contains something that ITK ignores, replaces or crashes on.
    """
    meta = path.lower().endswith((".mha", ".mhd"))
    with open(path, "rb") as file:
        text = file.read(MAX_TEXT_HEADER).decode("latin-1")
    end = re.search(r"^ElementDataFile\s*=.*\n?" if meta else r"^\r?\n|\Z", text, re.MULTILINE)
    start = end.end() if end else 0
    lines = re.findall(r"^([A-Za-z][\w ]*?)[ \t]*[:=][ \t]*(.*?)\s*$", text[:start], re.MULTILINE)
    fields = dict(lines)
    dimension = fields.get("NDims" if meta else "dimension")
    if dimension not in ("3", "4") or len(fields) < len(lines):
        raise UserError(f"{path}: the header is not that of one 3D image; export it again")
    for names in META_FIELDS if meta else NRRD_FIELDS:
        name = next((name for name in names if name in fields), None)
        if name is None:
            raise UserError(f"{path}: the header lacks {names[0]}; export the image again")
        values = _parse_numbers(fields[name])
        if not np.isfinite(values).all() or (meta and len(values) != int(dimension)):
            raise UserError(f"{path}: {name} is '{fields[name][:40]}'; correct it")
    for name, allowed in ACCEPTED_VALUES.items():
        if not re.fullmatch(allowed, fields.get(name, "")) and name in fields:
            raise UserError(f"{path}: {name} is '{fields[name][:40]}'; save it as one binary file in mm and HU")
    data_file = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    data = path if data_file.upper() == "LOCAL" else os.path.join(os.path.dirname(path), data_file)
    start = start if data == path else 0
    compressed = fields.get("CompressedData", "").lower() == "true"
    if compressed and fields.get("CompressedDataSize") != str(os.path.getsize(data) - start):
        raise UserError(f"{path}: CompressedDataSize is not the size of the voxel data; copy the file again")
    return _voxel_bytes(data, start, compressed or fields.get("encoding", "raw") != "raw")


def _parse_numbers(text: str) -> np.ndarray:
    """Return the numbers of a field such as "none (1,0,0) (0,1,0)"; NaN if it contains a word other than "none"."""
    try:
        return np.array([part for part in re.split(r"[\s(),]+", text) if part not in ("", "none")], np.float64)
    except ValueError:
        return np.array([np.nan])


def _voxel_bytes(path: str, start: int, compressed: bool) -> int:
    """Return the number of bytes in a file from `start` on, after decompression of zlib or gzip.

    Decompression verifies the checksums, which ITK does not do.
    """
    with open(path, "rb") as file:
        file.seek(start)
        if not compressed:
            return os.path.getsize(path) - start
        size, inflate = 0, zlib.decompressobj(47)  # 47: detect zlib or gzip
        while data := file.read(CHUNK):
            size += len(inflate.decompress(data))
            while inflate.unused_data:  # the next of several concatenated gzip files
                rest, inflate = inflate.unused_data, zlib.decompressobj(47)
                size += len(inflate.decompress(rest))
    if not inflate.eof:
        raise EOFError("the compressed voxels are cut off")
    return size


@contextmanager
def _silent_itk(sitk: ModuleType) -> Iterator[None]:
    """Silence ITK, whose readers print to file descriptor 2 even with warnings switched off."""
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


def write_mask(mask: Volume, path: str | os.PathLike[str]) -> None:
    """Write a mask as NIfTI in its own grid, which may be sheared.

    Args:
      mask: (d, h, w) of 0 and 1, written as uint8.
      path: file that ends in .nii or .nii.gz.
    """
    import nibabel  # ITK cannot store the sheared grid of a tilted gantry and would drop the shear

    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(mask.array.transpose(2, 1, 0).astype(np.uint8), to_ras)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
