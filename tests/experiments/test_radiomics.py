"""The radiomics baseline: features of shapes with known values, and the forest in the common evaluation."""

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments.baselines import radiomics, second_stage


def ball(radius_mm: float, spacing_mm: float, size: int = 41) -> np.ndarray:
    offsets = (np.indices((size, size, size)) - (size - 1) / 2) * spacing_mm
    return (offsets**2).sum(axis=0) <= radius_mm**2


def test_shape_of_a_ball():
    volume, diameter, longest, *axes, elongation, flatness, surface, sphericity, solidity, _ = (
        radiomics.shape_features(ball(8.0, 0.5), 0.5)
    )
    assert volume == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.01)  # 17,000 voxels
    assert diameter == pytest.approx(16, rel=0.01) and longest == pytest.approx(16.5, abs=0.5)  # within a voxel
    assert elongation == pytest.approx(1, abs=0.01) and flatness == pytest.approx(1, abs=0.01)
    assert surface == pytest.approx(4 * np.pi * 8**2, rel=0.03) and sphericity == pytest.approx(1, rel=0.03)
    assert solidity == pytest.approx(1, abs=0.1)  # the hull runs through the voxels' centres


def test_intensity_of_a_uniform_nodule():
    mask = ball(5.0, 0.6)
    hu = np.where(mask, 40.0, -850.0)
    values = radiomics.intensity_features(hu, mask, 0.6)
    assert values[:3] == [40, 0, 40] and values[3:8] == [40] * 5
    assert values[10:12] == [0, 0] and values[12:14] == [40, -850]
    assert values[15] > 100  # HU/mm: a step of 890 HU over a voxel or two


@pytest.mark.parametrize("voxels", [0, 1, 2])
def test_the_smallest_nodules_have_finite_features(voxels):
    mask = np.zeros((16, 16, 16), bool)
    mask[8, 8, 8 : 8 + voxels] = True
    assert np.isfinite(radiomics.features(np.full(mask.shape, -800, np.int16), mask, 1.2)).all()
    assert mask.sum() == voxels  # the caller's mask is left as it is


def test_the_forest_is_evaluated_like_any_other_system(tmp_path, monkeypatch):
    monkeypatch.setattr(second_stage, "TREES", 5)
    config = tiny_config(**{"model.name": "radiomics_forest"})
    results = radiomics.run(config, tmp_path)["contexts"]["simulated"]
    assert results["n"] == 24 and results["over_folds"]["folds"] == 3
    assert 0 <= results["malignancy"]["auc"]["value"] <= 1
