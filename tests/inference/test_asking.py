"""Patches are moved to nodules that lie off their middle."""

from pathlib import Path

import numpy as np
import pytest

from pnsamp_jax.ct.read import Image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.inference import asking, ensemble
from pnsamp_jax.inference.requests import Request, locate_in

SIZE, SPACING_MM = 16, 1.5
NETWORKS = ensemble.Networks(None, SIZE, SPACING_MM, (), {"fold_1": None, "fold_3": None})
NODULE_MM = np.array([3.0, -6.0, 12.0])  # centre of a ball of 8 mm


def ct_with_a_nodule():
    """Return a CT with voxels of 0.75 mm, stored from the patient's left to right."""
    affine = np.array([[0, 0, -0.75, 40.0], [0, 0.75, 0, -40], [0.75, 0, 0, -40], [0, 0, 0, 1]])
    ct = Volume(np.full((108, 107, 107), -850, np.int16), affine)
    places = ct.to_lps(np.moveaxis(np.indices(ct.array.shape), 0, -1))
    ct.array[np.linalg.norm(places - NODULE_MM, axis=-1) < 4] = 40
    return Image(ct, None)


@pytest.fixture
def asked(monkeypatch):
    """Replace the networks by one that marks what is dense. Return the list of who was asked, and with which flips."""
    calls = []

    def predict(networks, images, flips=True):
        calls.append((list(networks.members), flips))
        return ensemble.Predictions((images > -400).astype(np.float32), None, None)

    monkeypatch.setattr(ensemble, "predict", predict)
    return calls


def located(offset_mm):
    point = NODULE_MM + np.array(offset_mm)
    found = locate_in(ct_with_a_nodule(), Request("a", "ct", Path("ct"), point), SIZE, SPACING_MM)
    np.testing.assert_allclose(found.point_mm, point)
    return found


@pytest.mark.parametrize("offset_mm", [(4.5, 0, 0), (0, -4.5, 0), (0, 0, 4.5), (-3, 3, 1.5)])
def test_the_patch_is_moved_to_the_nodule(asked, offset_mm):
    (found,) = asking.centred([located(offset_mm)], NETWORKS, batch_size=2)
    assert asked == [(["fold_1", "fold_3"], False)]  # all networks, once
    # To the nearest voxel, and the centroid of the marked voxels may lie a fifth of one off.
    np.testing.assert_allclose(found.centre_mm(SPACING_MM), NODULE_MM, atol=0.7 * SPACING_MM)
    marked = np.argwhere(found.hu > -400)
    assert np.abs(marked.mean(axis=0) - (SIZE - 1) / 2).max() < 0.7
    np.testing.assert_allclose(found.point_mm, NODULE_MM + offset_mm)  # the user's own


def test_a_moved_patch_is_the_one_at_its_centre(asked):
    (found,) = asking.centred([located((4.5, -1.5, 3.0))], NETWORKS, batch_size=1)
    request = Request("b", "ct", Path("ct"), found.centre_mm(SPACING_MM))
    np.testing.assert_array_equal(found.hu, locate_in(ct_with_a_nodule(), request, SIZE, SPACING_MM).hu)


@pytest.mark.parametrize("offset_mm", [(0, 0, 0), (1.5, 1.5, 0), (-2.2, 0, 0), (11.9, 0, 0)])
def test_the_patch_stays_where_the_nodule_is_in_its_middle_or_not_in_it(asked, offset_mm):
    before = located(offset_mm)
    if offset_mm[0] > 11:
        before = before._replace(hu=np.full_like(before.hu, -850))
    (found,) = asking.centred([before], NETWORKS, batch_size=1)
    assert found.move == (0, 0, 0)
    np.testing.assert_array_equal(found.hu, before.hu)


def test_the_patch_moves_no_further_than_the_voxels_that_are_known(asked):
    (found,) = asking.centred([located((9.0, 0, 0))], NETWORKS, batch_size=1)
    assert found.move == (0, 0, -4)  # 4 voxels of 1.5 mm are the least that reach 4.8 mm
    (fixed,) = asking.centred([located((4.5, 0, 0))._replace(around=None)], NETWORKS, batch_size=1)
    assert fixed.move == (0, 0, 0)
