"""Read NRRD and MetaImage files with ITK, after checking their text headers.

ITK fills in fields that are missing or garbled, ignores others and crashes on some. A wrong scale or position would
give a prediction for another part of the body, so such a file is refused, before memory for its voxels is allocated.
"""

import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from pnsamp_jax.ct.stored_voxels import check_size, stored_bytes, to_int16
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable

MAX_TEXT_HEADER = 1 << 20  # bytes
FIELD = r"^([A-Za-z][\w ]*?)[ \t]*[:=][ \t]*(.*?)\s*$"  # of a text header, or a key of an NRRD with its value
OWN_FIELD = FIELD.replace("[:=]", "(?::(?!=)|=)", 1)  # without keys and values (key:=value), which may be any words
REPEATABLE = {"Comment"}  # fields that say nothing about the image
DATA_FILE = rb"(?m)^((?:ElementDataFile|data ?file)[ \t]*[:=][ \t]*)([^\r\n]*)"
# Fields for which ITK assumes 1 mm or 0 if a text header lacks or garbles them, each with its synonyms.
META_FIELDS = (("DimSize",), ("ElementSpacing", "ElementSize"), ("Offset", "Position", "Origin"))
NRRD_FIELDS = (("sizes",), ("space directions",), ("space origin",))
# Patterns of the accepted values of fields whose other values ITK ignores or this module cannot check.
SPACES = r"(?i:(left|right)-(anterior|posterior)-superior|[LR][AP]S)"  # of an NRRD; ITK takes others for LPS
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


def read_itk(path: str, layer: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read an NRRD or MetaImage as `read_file` does. A damaged file may also raise other errors than UserError."""
    import SimpleITK as sitk  # slow to import, and not needed for DICOM

    if path != readable(path):
        raise UserError(f"{path}: the name is not UTF-8, which ITK requires; rename the file")
    available, exact, data = _check_text_header(path)  # before ITK, which some headers crash
    with _with_data_file(path, data) as file, _silent_itk(sitk):
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()  # allocates no memory for the voxels yet
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        layers = reader.GetNumberOfComponents()
        if layers != 1 and layer is None and "Segment0_ID" in header_fields(path):
            raise UserError(
                f"{path}: holds overlapping segments in {layers} layers, as 3D Slicer saves them; export them as a "
                "labelmap"
            )
        if (layers != 1 and layer is None) or "complex" in kind:
            raise UserError(f"{path}: has voxels of {kind}; give one 3D image of HU")
        voxel_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent() * layers
        check_size(path, reader.GetSize(), voxel_bytes, available, exact)
        image = reader.Execute()
    affine = itk_affine(path, image)
    stored = sitk.GetArrayViewFromImage(image).reshape(*image.GetSize()[2::-1], layers)
    return to_int16(stored[..., layer or 0]), affine


def itk_beyond_int16(path: str) -> Iterator[np.ndarray]:
    """Yield the planes (h, w) of an NRRD or MetaImage as `values_beyond_int16` does."""
    import SimpleITK as sitk  # slow to import

    *_, data = _check_text_header(path)
    with _with_data_file(path, data) as file, _silent_itk(sitk):
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        if reader.GetPixelID() in (sitk.sitkInt8, sitk.sitkUInt8, sitk.sitkInt16):
            return
        image = reader.Execute()
    yield from sitk.GetArrayViewFromImage(image).reshape(image.GetSize()[2::-1])


def itk_affine(name: str, image: Any) -> np.ndarray:
    """Return the (4, 4) affine from the array index (d, h, w, 1) of a SimpleITK image to LPS mm.

    Args:
      name: of the image, for the error message.
      image: of at least three dimensions, of which the first three are used.

    Raises:
      UserError: the directions are not unit vectors.
    """
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    if np.abs(np.linalg.norm(direction, axis=0) - 1).max() > 1e-3:
        raise UserError(f"{name}: the directions are not unit vectors; correct the header")
    affine = np.eye(4)
    affine[:3, :3] = (direction * image.GetSpacing()[:3])[:, ::-1]  # from ITK's order w, h, d
    affine[:3, 3] = image.GetOrigin()[:3]
    return affine


def _check_text_header(path: str) -> tuple[int, bool, str]:
    """Check the header of an NRRD or MetaImage.

    Returns:
      The bytes of its voxels, whether these are all of them voxels, and the path of its data file.

    Raises:
      UserError: the header contains something that ITK ignores, replaces or crashes on.
    """
    meta = path.lower().endswith((".mha", ".mhd"))
    with open(path, "rb") as file:
        text = file.read(MAX_TEXT_HEADER).decode("latin-1")
    end = re.search(r"^ElementDataFile\s*=.*\n?" if meta else r"^\r?\n|\Z", text, re.MULTILINE)
    start = end.end() if end else 0
    lines = re.findall(OWN_FIELD, text[:start], re.MULTILINE)
    fields = dict(lines)
    dimension = fields.get("NDims" if meta else "dimension")
    if dimension not in ("3", "4"):
        raise UserError(f"{path}: the header is not that of one 3D image; export it again")
    for name, count in Counter(name for name, _ in lines).items():
        if count > 1 and name not in REPEATABLE:
            raise UserError(f"{path}: the header has {name} {count} times; leave the right one")
    for names in META_FIELDS if meta else NRRD_FIELDS:
        name = next((name for name in names if name in fields), None)
        if name is None:
            raise UserError(f"{path}: the header lacks {names[0]}; export the image again")
        values = _parse_numbers(fields[name])
        if not np.isfinite(values).all() or (meta and len(values) != int(dimension)):
            raise UserError(f"{path}: {name} is '{fields[name][:40]}'; correct it")
    unnamed = "space" not in fields and dimension == "4"  # as ITK writes LPS of four dimensions
    if not meta and not unnamed and not re.fullmatch(SPACES, fields.get("space", "")):
        stated = f"is '{fields['space'][:40]}'" if "space" in fields else "is missing"
        raise UserError(
            f"{path}: the space {stated}, so the position is unknown; save the image in left-posterior-superior"
        )
    for name, allowed in ACCEPTED_VALUES.items():
        if not re.fullmatch(allowed, fields.get(name, "")) and name in fields:
            raise UserError(f"{path}: {name} is '{fields[name][:40]}'; save it as one binary file in mm and HU")
    data = _data_path(path, fields)
    _require_own_data(path, data, "ElementDataFile" if meta else "data file")
    start = start if data == path else 0
    compressed = fields.get("CompressedData", "").lower() == "true"
    if compressed and "CompressedDataSize" not in fields:
        raise UserError(f"{path}: the header lacks CompressedDataSize; export the image again")
    if compressed and fields.get("CompressedDataSize") != str(os.path.getsize(data) - start):
        raise UserError(f"{path}: CompressedDataSize is not the size of the voxel data; copy the file again")
    available = stored_bytes(data, start, compressed or fields.get("encoding", "raw") != "raw")
    skip = int(fields.get("HeaderSize") or fields.get("byte skip") or 0)
    exact = skip >= 0 and not int(fields.get("line skip") or 0)  # else the voxels are at the end, or after a text
    return available - max(skip, 0), exact, data


def data_file(header: str) -> str:
    """Return the path of the file that holds the voxels of a MetaImage or NRRD, or the header's own."""
    return _data_path(header, header_fields(header))


def header_fields(header: str) -> dict[str, str]:
    """Return the fields of the text header of a MetaImage or NRRD, with its bytes as characters of Latin-1."""
    text = ""
    with open(header, "rb") as file:
        for line in iter(lambda: file.readline(MAX_TEXT_HEADER).decode("latin-1"), ""):
            text += line
            if not line.strip() or line.startswith("ElementDataFile") or len(text) > MAX_TEXT_HEADER:
                break  # where voxels may follow
    return dict(re.findall(FIELD, text, re.MULTILINE))


def _data_path(header: str, fields: dict[str, str]) -> str:
    """Return the path of the data file that a header names, or the header's own.

    The file may have lost its folder when it was copied, as from Windows, or been renamed to capitals or to the other
    form of an umlaut.
    """
    named = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    if named.upper() == "LOCAL":
        return header
    named = _decoded(named.encode("latin-1"))
    folder = os.path.dirname(header)
    path = os.path.join(folder, named)
    candidates = path, os.path.join(folder, re.split(r"[\\/]", named)[-1])
    existing = (candidate for candidate in candidates if os.path.isfile(candidate))
    return next(existing, "") or next(filter(None, map(_of_the_same_name, candidates)), path)


def _require_own_data(header: str, data: str, field: str) -> None:
    """Raise UserError if a header names a data file of another stem, but one of its own stem lies beside it.

    So does a header that was copied or renamed with its data, which would give the voxels of another image.
    """
    name = os.path.basename(data)
    stem, suffix = os.path.splitext(name)
    if suffix.lower() == ".gz":
        suffix = os.path.splitext(stem)[1] + suffix
    own = _of_the_same_name(os.path.splitext(header)[0] + suffix)
    if data != header and own and _plain(os.path.basename(own)) != _plain(name):
        raise UserError(f"{header}: names {name}, but {os.path.basename(own)} is beside it; correct {field} in it")


def _of_the_same_name(path: str) -> str:
    """Return the only file whose name is a path's but for case and the form of its characters; "" if there is none."""
    folder, name = os.path.split(path)
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    found = [os.path.join(folder, other) for other in names if _plain(other) == _plain(name)]
    return found[0] if len(found) == 1 and os.path.isfile(found[0]) else ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", _decoded(os.fsencode(name))).casefold()


def _decoded(name: bytes) -> str:
    """Return a name in UTF-8, or in Latin-1 if it is no UTF-8."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")


@contextmanager
def _with_data_file(header: str, data: str) -> Iterator[str]:
    """Yield a header by which ITK finds the format and the data file: the header itself, a link to it, or a copy.

    ITK takes suffixes in lower case alone. The copy names the real data file.
    """
    with open(header, "rb") as source:
        content = source.read(MAX_TEXT_HEADER)
    named = re.search(DATA_FILE, content)
    there = named and os.path.join(os.fsencode(os.path.dirname(header)), named[2].strip()) == os.fsencode(data)
    stem, suffix = os.path.splitext(os.path.basename(header))
    if (data == header or there) and suffix.islower():
        yield header
        return
    with tempfile.TemporaryDirectory() as folder:
        named_well = os.path.join(folder, stem + suffix.lower())
        if data == header:
            os.symlink(os.path.abspath(header), named_well)
        else:
            with open(named_well, "wb") as target:
                target.write(re.sub(DATA_FILE, rb"\1voxels", content))
            os.symlink(os.path.abspath(data), os.path.join(folder, "voxels"))
        yield named_well


def _parse_numbers(text: str) -> np.ndarray:
    """Return the numbers of a field such as "none (1,0,0) (0,1,0)"; NaN if it contains a word other than "none"."""
    try:
        return np.array([part for part in re.split(r"[\s(),]+", text) if part not in ("", "none")], np.float64)
    except ValueError:
        return np.array([np.nan])


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
