"""Apache Beam prepares the same files as this machine's processes, for any number of workers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ct_files import REAL
from tiny_run import tiny_config

from pnsamp_jax.data import beam
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import prepare
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import prepare_run

SMALL = Geometry(patch_size=16, margin=2, spacing_mm=2.0)
# Beam's own runner for one machine; DirectRunner would first try to download another one.
HERE = "runner=FnApiRunner"
WORKERS = "direct_running_mode=multi_processing,direct_num_workers="


@pytest.fixture
def installed():
    """Skip the test where there is no Apache Beam."""
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'pnsamp-jax[beam]'")


@pytest.fixture
def real():
    """The folder of one real scan."""
    return REAL


def contents(prepared):
    """Return the bytes of the series files by name."""
    return {path.name: path.read_bytes() for path in prepared.files}


def assert_no_traces(prepared):
    """What Beam's workers hand over is gone when the preparation ends."""
    assert not [path for path in prepared.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_phantom_is_the_same_for_any_number_of_workers(tmp_path, workers):
    source = PhantomSource(9, seed=1)
    local = prepare(source, SMALL, tmp_path / "local", workers=1)
    found = prepare(source, SMALL, tmp_path / "beam", 1, beam.read_options(f"{HERE},{WORKERS}{workers}"))
    assert contents(found) == contents(local) and len(local.files) > 2 and found.failures == {}
    assert_no_traces(found)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_real_scan_is_the_same_for_any_number_of_workers(real, tmp_path, workers):
    source = LidcSource(str(real), str(tmp_path / "index.json"))
    local = prepare(source, SMALL, tmp_path / "local", workers=1)
    found = prepare(source, SMALL, tmp_path / "beam", 1, beam.read_options(f"{HERE},{WORKERS}{workers}"))
    assert contents(found) == contents(local) and len(local.files) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_failed_series_are_listed_and_finished_ones_are_not_prepared_again(root, tmp_path, capsys):
    options, cache = beam.read_options(HERE), tmp_path / "cache"
    source, image = FolderSource(str(root)), sorted((root / "images").iterdir())[0]
    whole = image.read_bytes()
    image.write_bytes(b"not an image")
    first = prepare(source, SMALL, cache, 1, options)
    (failed,) = first.failures
    assert failed == f"images/{image.name}" and "Left out 1 of" in capsys.readouterr().out
    assert json.loads((first.folder / "failures.json").read_text()) == {"series": first.failures, "nodules": {}}

    image.write_bytes(whole)
    times = {path: path.stat().st_mtime_ns for path in first.files}
    second = prepare(source, SMALL, cache, 1, options)
    assert second.failures == {} and len(second.files) == len(first.files) + 1
    assert {path: path.stat().st_mtime_ns for path in first.files} == times
    assert contents(second) == contents(prepare(source, SMALL, tmp_path / "local", workers=1))


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_nodule_without_its_mask_is_left_out_alone_in_every_run(root, tmp_path):
    (root / "masks" / "a1.nrrd").unlink()
    source, options = FolderSource(str(root)), beam.read_options(HERE)
    for _ in range(2):  # the second time from the cache
        found = prepare(source, SMALL, tmp_path / "beam", 1, options)
        assert list(found.nodule_failures) == ["a_n01"] and found.failures == {} and len(found.files) == 2
    local = prepare(source, SMALL, tmp_path / "local", workers=1)
    assert local.nodule_failures == found.nodule_failures and contents(local) == contents(found)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_what_a_stopped_pipeline_has_finished_stays(root, tmp_path, monkeypatch):
    options, source = beam.read_options(HERE), FolderSource(str(root))
    load, loaded = FolderSource.load, []

    def stops(self, series):
        loaded.append(series)
        if len(loaded) == 2:
            raise RuntimeError("the machine is switched off")
        return load(self, series)

    monkeypatch.setattr(FolderSource, "load", stops)
    with pytest.raises(RuntimeError, match="switched off"):
        prepare(source, SMALL, tmp_path, 1, options)
    (kept,) = tmp_path.glob("folder-*/*.npz")
    time = kept.stat().st_mtime_ns
    found = prepare(source, SMALL, tmp_path, 1, options)
    assert kept in found.files and len(found.files) == 2 and kept.stat().st_mtime_ns == time
    assert_no_traces(found)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_config_prepares_with_beam(tmp_path):
    changes = {"data.phantom_nodules": 2, "data.cache": str(tmp_path / "cache"), "data.beam": HERE}
    prepare_run(tiny_config(**changes), tmp_path / "run")
    assert list(tmp_path.glob("cache/phantom-*/*.npz"))


def test_without_beam_there_is_one_line(monkeypatch):
    for module in ("apache_beam", "apache_beam.options.pipeline_options"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"^config.data.beam: needs Apache Beam; pip install 'pnsamp-jax\[beam\]'$"):
        beam.read_options(HERE)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runner=FnApiRunner,direct_num_workers=many", "argument --direct_num_workers: invalid int value: 'many'"),
        ("runner=NoRunner", "Unexpected pipeline runner: NoRunner"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=f"^config.data.beam: .*{message}") as caught:
        prepare(PhantomSource(1), SMALL, tmp_path, 1, beam.read_options(text))
    assert "\n" not in str(caught.value) and not list(Path(tmp_path).rglob("*.npz"))


def test_without_series_nothing_is_run():
    assert list(beam.run(np.add, {}, None)) == []
