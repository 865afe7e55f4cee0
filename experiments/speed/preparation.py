"""The preparation of one series, measured in the process that does it. Workers of Beam import this module."""

import json
import time
from pathlib import Path

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.prepare import Source, make_records


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def prepare_measured(source: Source, geometry: Geometry, key: str, path: Path) -> tuple[None, list[str]]:
    """Prepare the series of a key, "<number>:<series>", as a `beam.Job` whose one note holds the measurements as JSON.

    These are `seconds`, `nodules`, `stored_bytes` of the file, and `peak_bytes` of the process until now.
    """
    start = time.perf_counter()
    records, _ = make_records(source, key.partition(":")[2], geometry)
    np.savez(path, **records)  # type: ignore[arg-type]  # no feature is called allow_pickle
    measured = {
        "seconds": time.perf_counter() - start,
        "nodules": len(records[schema.NODULE_ID]),
        "stored_bytes": path.stat().st_size,
        "peak_bytes": peak_bytes(),
    }
    return None, [json.dumps(measured)]
