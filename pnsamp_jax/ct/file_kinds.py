"""What a file is by its first bytes, whatever its name says."""

import tarfile
import zlib
from os import PathLike

START = 1024  # bytes that are looked at
DICOM, NIFTI, NRRD, METAIMAGE = "a DICOM file", "a NIfTI image", "an NRRD image", "a MetaImage"
ZIP, TAR = "a .zip archive", "a .tar archive"
POINTER, PAGE = "a pointer of Git LFS in place of the file", "a web page in place of the file"
EMPTY = "empty and cannot be read"
WAYS_OUT = {
    DICOM: "give the folder that contains the whole series",
    NIFTI: "rename it so that it ends in .nii or, compressed, in .nii.gz",
    NRRD: "rename it so that it ends in .nrrd",
    METAIMAGE: "rename it so that it ends in .mha or, with a data file, in .mhd",
    ZIP: "rename it so that it ends in .zip",
    TAR: "rename it so that it ends in .tar or, compressed, in .tar.gz",
    POINTER: "get the file by git lfs pull",
    PAGE: "download the file again",
    EMPTY: "copy the file again",
}
STARTS = {  # in lower case, after blanks
    b"version https://git-lfs": POINTER,
    b"<!doctype html": PAGE,
    b"<html": PAGE,
    b"nrrd000": NRRD,
    b"objecttype = image": METAIMAGE,
    b"pk\x03\x04": ZIP,
    b"pk\x05\x06": ZIP,  # without any entry
    b"\x89png": "a .png picture",
    b"\xff\xd8\xff": "a .jpg picture",
    b"%pdf-": "a .pdf document",
    b"rar!": "a .rar archive",
    b"7z\xbc\xaf": "a .7z archive",
    b"\x89hdf": "an HDF5 file",
    b"\x93numpy": "an array of NumPy",
}
NIFTI_MAGIC = {(344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0"), (4, b"ni2\0")}  # with their offsets


def kind_of(path: str | PathLike[str]) -> str:
    """Return what a file is, in words such as `DICOM`; "" if its first bytes do not tell.

    Of a gzipped file, the content counts if it is what often comes gzipped: a .tar, a NIfTI or a DICOM file.

    Args:
      path: a file that can be read.
    """
    with open(path, "rb") as file:
        start = file.read(START)
    kind = kind_of_start(start)
    if kind or not start.startswith(b"\x1f\x8b"):
        return kind
    try:
        kind = kind_of_start(zlib.decompressobj(31).decompress(start, START))
    except zlib.error:
        return ""
    return kind if kind in (TAR, NIFTI, DICOM) else ""


def kind_of_start(start: bytes) -> str:
    """Return what a file is that begins with some bytes, at most `START`; "" if they do not tell."""
    if not start:
        return EMPTY
    if start[128:132] == b"DICM":  # after a preamble that may be of another kind
        return DICOM
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in STARTS.items():
        if text.startswith(beginning):
            return kind
    if any(start[offset : offset + len(magic)] == magic for offset, magic in NIFTI_MAGIC):
        return NIFTI
    return TAR if _is_tar(start) else ""


def what_it_is(kind: str, otherwise: str) -> str:
    """Return how an error message goes on after the name of a file that is of another kind than its name says.

    Args:
      kind: of `kind_of`.
      otherwise: the way out for a kind that is not in `WAYS_OUT`.
    """
    return f"is {kind}; {WAYS_OUT.get(kind, otherwise)}"


def _is_tar(start: bytes) -> bool:
    """Return whether a file begins with the header of an entry, which has a checksum."""
    try:
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
