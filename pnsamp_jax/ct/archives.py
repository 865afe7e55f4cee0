"""Images in a .zip or .tar file, unpacked into a temporary folder."""

import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pnsamp_jax.ct.file_kinds import TAR, ZIP, kind_of, what_it_is
from pnsamp_jax.ct.notes import collected, note
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 4 << 30  # unpacked; a CT of 2,000 slices takes 1 GiB
MAX_FILES = 50_000
CHUNK = 1 << 20  # bytes
PREFIX = "pnsamp_jax_"  # of the temporary folders


@contextmanager
def unpacked(path: str) -> Iterator[str]:
    """Yield a temporary folder with the files of an archive, which is removed afterwards.

    Its content tells which kind of archive it is; its name does only if the content is damaged.

    Errors and notes inside the block name the archive in place of the temporary folder.

    Args:
      path: file that ends in one of `ARCHIVE_SUFFIXES`.

    Raises:
      UserError: the file is none, or is damaged, encrypted, too large, or has entries that point outside it.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        try:
            kind = kind_of(path)
            if kind not in (ZIP, TAR, ""):
                raise UserError(f"{path}: {what_it_is(kind, 'give the archive itself')}")
            zipped = kind == ZIP or (not kind and path.lower().endswith(".zip"))
            _write(path, _zip_members(path) if zipped else _tar_members(path), folder)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            raise UserError(f"{path}: the archive is damaged; copy it again") from error
        except NotImplementedError as error:
            raise UserError(f"{path}: is compressed in an unusual way; unpack it and give the folder") from error
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is None:  # raised by gzip, not by the system
                raise UserError(f"{path}: the archive is damaged; copy it again") from error
            raise UserError(f"{path}: cannot be unpacked ({error}); unpack it and give the folder") from error
        try:
            with collected() as notes:
                yield folder
        except UserError as error:
            raise type(error)(str(error).replace(folder, path)) from error
    for text in notes:
        note(text.replace(folder, path))


def to_unpack(folder: str, otherwise: str) -> str:
    """Return the way out for a folder in which scans were not found: to unpack its archives, if it holds any.

    Args:
      folder: the folder, with all below it.
      otherwise: the way out if there are none.
    """
    found = files_under(folder, *ARCHIVE_SUFFIXES)
    if not found:
        return otherwise
    several = f"the {len(found)} archives there, such as" if len(found) > 1 else "the archive"
    return f"unpack {several} {found[0].relative_to(folder)}, and give the folder with their content"


def is_unpacked(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is one that `unpacked` yields, with paths that mean nothing to the user."""
    parent, name = os.path.split(os.fspath(folder))
    return parent == tempfile.gettempdir() and name.startswith(PREFIX)


def _zip_members(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of the files in a .zip."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise UserError(f"{path}: is encrypted; unpack it and give the folder")
            with archive.open(info) as content:
                yield info.filename, content


def _tar_members(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of the regular files in a .tar, compressed or not."""
    with tarfile.open(path) as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isreg() else None
            if content is not None:
                yield info.name, content
        # `tarfile` stops without a word at a header that is damaged or cut off, as at the end of the archive, which
        # is a block of zeros; and it does not read on to the checksum of a compressed one.
        stream = archive.fileobj
        assert stream is not None
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("ends too early")
        while stream.read(CHUNK):
            pass


def _write(path: str, members: Iterator[tuple[str, IO[bytes]]], folder: str) -> None:
    """Write the members of an archive into a folder, as long as there are not too many.

    The sizes that an archive states are not believed; what is written is counted.
    """
    left = min(MAX_BYTES, shutil.disk_usage(folder).free // 2)
    for number, (name, content) in enumerate(members, start=1):
        parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".")]
        if ".." in parts or name[:1] in ("/", "\\") or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise UserError(f"{path}: has an entry that points outside it ('{name[:80]}'); pack the series again")
        if "__MACOSX" in parts or not parts:  # what macOS adds
            continue
        if number > MAX_FILES:
            raise UserError(f"{path}: holds more than {MAX_FILES} files; unpack it and give the folder of one series")
        target = os.path.join(folder, *parts)
        if os.path.lexists(target):
            raise UserError(f"{path}: holds two files of the name '{name[:80]}'; pack the series again")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            while data := content.read(CHUNK):
                left -= len(data)
                if left < 0:
                    raise UserError(
                        f"{path}: unpacks to more than {MAX_BYTES >> 30} GiB, or than there is room for; unpack it "
                        "and give the folder of one series"
                    )
                file.write(data)
