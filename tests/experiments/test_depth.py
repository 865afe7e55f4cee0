"""The baseline that reads no voxels: the depth of a file, and its row in table 2."""

import numpy as np
import pytest
from made_up_runs import RESAMPLES, TRUTH, N, certain, make_run
from test_tables import build, row_of
from tiny_run import tiny_config

from experiments import table2
from experiments.baselines import depth, second_stage
from experiments.comparison import systems, tables
from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.workdir.tables import read_tables

NAME = "Depth of the image file alone, no voxels"


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_depth_is_slices_times_distance_in_whatever_order_a_file_stores_them(axes, sign):
    # Nine slices 2.5 mm apart, the outer two beyond the nodule, of 90 x 80 voxels of 0.7 mm; the axis `axes[0]` of
    # the array runs along the body.
    shape, affine = np.zeros(3, int), np.zeros((4, 4))
    for along, (length, spacing), body in zip(axes, [(9, 2.5), (90, 0.7), (80, 0.7)], (2, 1, 0), strict=True):
        shape[along], affine[body, along] = length, sign * spacing
    affine[3, 3] = 1
    assert depth.depth_mm(Volume(np.zeros(shape, np.int16), affine)) == pytest.approx(17.5)


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_the_thinnest_file_holds_one_slice_of_the_nodule(slices):
    assert depth.depth_mm(Volume(np.zeros((slices, 9, 9), np.int16), np.eye(4)[[2, 1, 0, 3]])) == 1.0


def test_a_slightly_tilted_file_is_as_deep_as_its_slices():
    tilt = np.deg2rad(10)
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = 0.7 * about_x[:, ::-1]  # the array's axes run along z, y and x
    assert depth.depth_mm(Volume(np.zeros((10, 100, 100), np.int16), affine)) == pytest.approx(5.6)


def test_ratings_follow_from_the_depth_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(second_stage.evaluate, "evaluate", lambda workdir: {})
    config = tiny_config(**{"model.name": "depth"})
    seen = {}

    def depths_of(source):  # as if the files of suspicious nodules were twice as deep
        for series in source.series():
            for marked in source.load(series):
                suspicious = marked.nodule.ratings[:, 8].mean() > 3
                seen[marked.nodule.nodule_id] = 20.0 if suspicious else 10.0
        return seen

    monkeypatch.setattr(depth, "depths_mm", depths_of)
    depth.run(config, tmp_path)
    table = read_tables(tmp_path)
    deep = np.array([seen[nodule_id] == 20.0 for nodule_id in table["nodule_id"]])
    expected = table["probabilities"][:, 8] @ np.arange(1, 7)
    assert expected[deep].min() > expected[~deep].max()


def test_each_nodule_has_the_depth_of_its_own_image():
    source = read_settings(tiny_config()).source
    depths = depth.depths_mm(source)
    for series in source.series()[:3]:
        for marked in source.load(series):
            assert depths[marked.nodule.nodule_id] == depth.depth_mm(marked.ct)


def test_the_row_stands_on_slabs_alone_and_says_why(tmp_path):
    for key, probabilities in (("pn_samp_m", certain(TRUTH)), ("depth", certain(np.full(N, 2)))):
        make_run(tmp_path / key, probabilities)
    (rows,) = build(tmp_path, table2).values()
    row = row_of(rows, NAME)
    assert row["n"] == 32 and row["AUC"].value == 0.5 and row[table2.AUC_DIFFERENCE].value == -0.5
    (rows,) = build(tmp_path, table2, context="cube").values()
    assert not [row for row in rows if row["system"] == NAME]
    runs = tables.read_runs(tmp_path, table2.SHOWN, [0, 1])
    tables.write_pages("table2", table2.build, runs, tmp_path, RESAMPLES)
    slab, cube = ((tmp_path / f"table2_{context}.md").read_text() for context in ("slab", "cube"))
    assert "AUC and ratings on slabs are optimistic, as Dice is" in slab and "as Dice is" not in cube
    assert "slabs: Dice, AUC and ratings are optimistic" in slab


def test_it_does_not_run_where_there_are_no_slabs(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(tables, "run_system", lambda key, *_: ran.append(key))
    monkeypatch.setattr(tables, "write_pages", lambda *_: None)
    monkeypatch.setattr(tables, "read_runs", lambda *_: {})
    protocol = base.get_config()
    tables.make_table("table2", table2.SHOWN, table2.build, protocol, tmp_path / "phantom")
    assert "depth" not in ran and set(ran) == systems.SYSTEMS.keys() & set(table2.SHOWN) - {"depth"}
    protocol.data.source, protocol.data.root = "folder", str(tmp_path)
    tables.make_table("table2", table2.SHOWN, table2.build, protocol, tmp_path / "folder", ["depth"])
    assert ran[-1] == "depth"
