"""How deep TumorNet's projection should be: what a projection is described by, and the table over the depths."""

import numpy as np
from tiny_run import tiny_config

from experiments import projection_depth


def test_rings_are_described_from_the_centre_to_the_nearest_edge():
    offsets = np.arange(32) - 15.5
    radius = np.hypot(*np.meshgrid(offsets, offsets))
    views = np.stack([np.where(radius < 8, 1.0, 0.0), np.full((32, 32), 0.3)], axis=-1)  # a disc; nothing
    views[0, 0, 1] = 9  # a corner, which lies in no ring
    described = projection_depth.describe(views[None]).reshape(8, 3, 2)  # ring, statistic, view
    np.testing.assert_allclose(described[:4, :, 0], [[1, 0, 1]] * 4)  # rings are 2 pixels wide
    np.testing.assert_allclose(described[4:, :, 0], 0)
    np.testing.assert_allclose(described[:, :, 1], [[0.3, 0, 0.3]] * 8, atol=1e-12)


def test_a_deeper_projection_does_not_show_what_fills_less_than_half_of_it():
    images = np.full((1, 16, 16, 16), -1000, np.int16)
    images[0, 6:10, 6:10, 6:10] = 0  # 4 of 16 voxels in each direction
    brightest = {
        depth: projection_depth.features(images, ((1600.0, -600.0),), depth).max() for depth in (1.0, 0.5, 0.25)
    }
    # The window shows -1400..200 as 0..1, lung as 0.25 and the cube as 0.875. At half of the depth, as many voxels
    # are lung as are the cube's, and their median lies between.
    np.testing.assert_allclose(list(brightest.values()), [0.25, (0.25 + 0.875) / 2, 0.875])


def test_each_context_gets_a_line_for_each_depth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(projection_depth, "RESAMPLES", 20)
    monkeypatch.setattr(projection_depth, "DEPTHS", (1.0, 0.0625))
    monkeypatch.setattr(projection_depth.second_stage, "TREES", 5)
    found = projection_depth.run(tiny_config(patch_size=32, spacing_mm=1.2), tmp_path)
    assert set(found) == {"simulated"} and len(found["simulated"]) == 2
    assert all(0 <= estimate.value <= 1 for estimate in found["simulated"])
    printed = capsys.readouterr().out
    assert "| 38.4 | " in printed and "| 2.4 | " in printed  # mm: all of the 32 voxels of 1.2 mm, and a sixteenth
