"""What all tests share: a cache of their own, and the rule that tests of real data skip where there are none."""

import os
import sys
from pathlib import Path

import pytest

sys.modules.setdefault("openvino_telemetry", None)  # no test reports to a server; see export/openvino_model.py

SAMPLE_DATA = Path(__file__).parents[2] / "shared" / "data"  # of the developers; see ct_files.DATA
SAMPLE_FIXTURES = {"diagnosis_files", "lidc_subset", "real", "real_paths", "scan"}  # which read them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests whose fixtures read the sample data as `data`."""
    for item in items:
        if SAMPLE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("data")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `data` where there are no sample data."""
    if item.get_closest_marker("data") and not SAMPLE_DATA.is_dir():
        pytest.skip("needs sample data of LIDC-IDRI, which are not part of the repository")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Path:
    """Prepared data and compiled programs go to a folder of all tests, whichever process they run in."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def lidc_subset() -> Path:
    """A folder of real nodules in the layout of the `folder` source."""
    return SAMPLE_DATA / "lidc_subset"


@pytest.fixture(scope="module")
def quick_compilation():
    """For small programs that run once or twice: what counts is how fast they compile, in subprocesses too."""
    import jax  # most tests need none

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def diagnosis_files() -> tuple[Path, Path]:
    """TCIA's table of diagnoses: as published, and the same as CSV with plain names and words."""
    folder = SAMPLE_DATA / "diagnosis"
    return folder / "tcia-diagnosis-data-2012-04-20.xls", folder / "patients.csv"
