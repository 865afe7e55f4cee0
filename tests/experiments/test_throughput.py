"""The throughput: what is measured of a few series, and what it makes of an archive."""

import json

import pytest
from tiny_run import tiny_config

from experiments import throughput
from experiments.trials import data_memory

pytestmark = pytest.mark.slow


def test_a_small_source_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_memory, "READ", {"device": data_memory.READ["device"]})  # the other needs TensorFlow
    config = tiny_config(**{"data.phantom_nodules": 2})
    throughput.run(config, tmp_path / "run", series=2, nodules=5, scans=[1018])
    found = json.loads((tmp_path / "run" / "throughput.json").read_text())
    assert found["preparation"]["nodules"] >= 1 and found["preparation"]["stored_bytes"] > 3 * 20**3
    assert found["preparation"]["seconds"] > 0 and found["preparation"]["peak_bytes"] > 1e7
    assert found["patches_per_second"]["device"] > 0
    assert "1,018 scans: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["throughput.json"]


def test_an_archive_takes_its_series_times_as_long():
    one = {"seconds": 3.6, "nodules": 2.5, "stored_bytes": 4e6, "peak_bytes": 5e8}
    lines = throughput.describe({"preparation": one, "patches_per_second": {"device": 1234.5}}, [100_000])
    assert lines == [
        "preparing a series: 3.60 s, 2.5 nodules, 4.0 MB stored, at most 500 MB of memory in a process",
        "100,000 scans: 100.0 hours divided by the number of processes, 400 GB",
        "reading batches, data.pipeline=device: 1,234 patches per second",
    ]
