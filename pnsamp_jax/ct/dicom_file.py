"""One DICOM file, whatever it lacks of what the standard asks for around the dataset, and the numbers in it."""

import gzip
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from pnsamp_jax.errors import UserError

ENHANCED = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)  # one file holds many slices
UNDEFINED_LENGTH = 0xFFFFFFFF  # of compressed pixels
# A dataset without preamble and file meta begins with an element of one of these groups, little endian.
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
SYNTAXES: dict[tuple[bool | None, bool | None], UID] = {  # by (implicit VR, little endian)
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
# What pydicom raises for a damaged file: in `dcmread`, or later, since it converts a value when it is first used.
DAMAGED = (InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, LookupError,
            AttributeError, RuntimeError, ArithmeticError, struct.error, zlib.error)  # fmt: skip


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Suppress pydicom's warnings about harmless violations of the standard: they are many and quote patient data."""
    loggers = {logging.getLogger(name): logging.getLogger(name).propagate for name in ("pydicom", "openjpeg")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.propagate = False  # `disabled` would not silence child loggers
            yield
        finally:
            for logger, propagate in loggers.items():
                logger.propagate = propagate


def read_dataset(path: str | PathLike[str], **options: Any) -> pydicom.FileDataset:
    """Read a DICOM file, also one that is gzipped or has no preamble, no file meta or no TransferSyntaxUID.

    A missing TransferSyntaxUID is set to that of the encoding in which the dataset was read. Where the pixels are
    compressed that would be wrong, and it stays missing.

    Args:
      path: the file.
      **options: of `pydicom.dcmread`.

    Raises:
      InvalidDicomError: it is not a DICOM file.
    """
    with open(path, "rb") as file:
        start = file.read(132)
    source: Any = path
    if start.startswith(b"\x1f\x8b"):
        source, start = _unpacked(path)
    bare = start[128:] != b"DICM" and start[:2] in FIRST_GROUPS
    try:
        ds = pydicom.dcmread(source, force=bare, **options)
    except DAMAGED as error:
        if bare:  # another file that happens to begin like a dataset
            raise InvalidDicomError(f"{path}: not a DICOM file") from error
        raise
    if bare and not len(ds):
        raise InvalidDicomError(f"{path}: holds no element")
    if "TransferSyntaxUID" not in ds.file_meta:
        pixels = ds.get_item("PixelData")
        if pixels is None or getattr(pixels, "length", 0) != UNDEFINED_LENGTH:
            ds.file_meta.TransferSyntaxUID = SYNTAXES[ds.original_encoding]
    return ds


def _unpacked(path: str | PathLike[str]) -> tuple[io.BytesIO, bytes]:
    """Return the content of a gzipped DICOM file and its first bytes. The rest of any other file is not unpacked."""
    try:
        with gzip.open(path) as file:
            start = file.read(132)
            if start[128:] == b"DICM" or start[:2] in FIRST_GROUPS:
                return io.BytesIO(start + file.read()), start
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDicomError(f"{path}: cannot be unpacked") from error
    raise InvalidDicomError(f"{path}: not a DICOM file")


def numbers(where: str, ds: pydicom.Dataset, keyword: str, count: int, default: float | None = None) -> np.ndarray:
    """Return the (count,) finite numbers of a DICOM element, or (1,) the default if it is absent or empty.

    Args:
      where: the file, named in the error message.
      ds: the dataset with the element.
      keyword: of the element.
      count: of its values.
      default: taken if the element is absent or empty; None if it must be there.

    Raises:
      UserError: the element is not that many finite numbers, or is absent and has no default.
    """
    try:
        value = ds.get(keyword)
        if default is not None and (value is None or value == ""):
            return np.array([default], np.float64)
        result = np.atleast_1d(np.array(value, np.float64))
    except DAMAGED as error:
        raise UserError(f"{where}: {keyword} is not a number; correct it or leave the file out") from error
    if result.shape != (count,) or not np.isfinite(result).all():
        raise UserError(f"{where}: has no valid {keyword}, which a CT slice needs; export the series again")
    return result
