"""The real scan of the sample data, for tests marked `data`."""

import pytest
from ct_files import REAL

from pnsamp_jax.ct.read import read_image


@pytest.fixture(scope="session")
def scan():
    """The CT of LIDC-IDRI-0001."""
    return read_image(REAL)
