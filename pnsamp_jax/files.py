"""Text that any terminal or file can hold, and files that are written completely or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def readable(text: str) -> str:
    """Return text that can be encoded as UTF-8.

    Python keeps the bytes of a path that are not UTF-8 as lone surrogates, which cannot be encoded; they are replaced
    by escapes such as \\udcff.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return a path as the user means it, with ~ as the home folder. Shells leave it alone after an equals sign."""
    return Path(os.path.expanduser(text))


def default_cache_folder() -> Path:
    """Return the folder of prepared patches, compiled programs and downloads, where no config names another."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnsamp_jax"


def files_under(folder: str | Path, *endings: str) -> list[Path]:
    """Return the sorted paths of the files under a folder whose names end in one of `endings`, in lower case.

    Links are followed, because large archives are often linked.
    """
    return sorted(Path(path) for path in walk(folder) if path.lower().endswith(endings))


def walk(folder: str | os.PathLike[str], onerror: Callable[[OSError], object] | None = None) -> Iterator[str]:
    """Yield the paths of all files under a folder, through links. Each folder is entered once, so that no loop forms.

    Args:
      folder: where to begin.
      onerror: called for a folder that cannot be listed, which is passed over otherwise.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=onerror):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(parent, name) for name in names)


def stamp(path: str | Path) -> list[int] | None:
    """Return the size of a file and the time of its last change in ns, or None if it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block succeeds, and is deleted if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f"-{path.name}")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 would hide the file from the user's group
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    """Return which permissions new files of this process lack; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a file of text as UTF-8, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
