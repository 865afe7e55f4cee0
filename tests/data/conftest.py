"""Fixtures for several files: LIDC-IDRI's annotations, the real sample data, and a folder of made-up nodules."""

import pytest
from made_folder import write_folder

from pnsamp_jax.data import lidc, lidc_database


@pytest.fixture(scope="session")
def scans():
    """All scans of the archive."""
    return lidc_database.read_scans()


@pytest.fixture(scope="session")
def found(scans):
    """All nodules of the archive."""
    return lidc.nodules(scans)


@pytest.fixture
def root(tmp_path):
    """A valid folder of three made-up nodules, two of them in one image."""
    write_folder(tmp_path)
    return tmp_path
