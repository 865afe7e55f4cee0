import numpy as np
import pytest

from pnsamp_jax.inference import extent


def ball(radius, softness, size=24):
    """Return a probability that falls from 1 to 0 over `softness` voxels around a radius."""
    distance = np.linalg.norm(np.indices((size,) * 3) - (size - 1) / 2, axis=0)
    return np.clip(0.5 + (radius - distance) / softness, 0, 1)


def test_the_doubt_is_how_far_the_volume_depends_on_the_threshold():
    # at 0.2 the ball reaches 0.3 x 5 voxels further than its radius, at 0.8 as much less
    assert extent.doubt(ball(8, 5)) == pytest.approx(0.5 + 3 * np.log(9.5 / 6.5), abs=0.05)  # voxels are coarse
    assert extent.doubt(ball(8, 1e-6)) == pytest.approx(0.5)


def test_a_mask_that_vanishes_at_the_tight_threshold_counts_as_one_voxel():
    probability = np.where(ball(3, 1e-6) > 0.5, 0.6, 0.0)
    assert extent.doubt(probability) == pytest.approx(0.5 + np.log((probability > 0).sum()))


def simulated(random, count):
    doubts = random.uniform(0.5, 3, count)
    true = random.uniform(20, 5000, count)
    measured = true * np.exp(-doubts * random.normal(0.1, 0.4, count))
    return measured, true, doubts, np.arange(count) // 2


def test_ninety_per_cent_of_new_nodules_lie_in_their_interval():
    random = np.random.default_rng(0)
    limits = extent.fit_limits(*simulated(random, 2000))
    measured, true, doubts, _ = simulated(random, 4000)
    low, high = np.array([extent.interval(m, d, limits) for m, d in zip(measured, doubts, strict=True)]).T
    inside = (low <= true) & (true <= high)
    assert inside.mean() == pytest.approx(0.9, abs=0.02)  # three standard errors of 2000 and 4000
    for half in (doubts < 1.75, doubts >= 1.75):
        assert inside[half].mean() == pytest.approx(0.9, abs=0.03)
    # the normal's quantiles at 5 and 95 %
    np.testing.assert_allclose(limits, [0.1 - 1.645 * 0.4, 0.1 + 1.645 * 0.4], atol=0.06)


def test_nodules_without_a_mask_or_a_consensus_do_not_count():
    random = np.random.default_rng(1)
    measured, true, doubts, patients = simulated(random, 200)
    expected = extent.fit_limits(measured, true, doubts, patients)
    more = [np.concatenate([values, other]) for values, other in ((measured, [0, 9.0]), (true, [9.0, 0]))]
    found = extent.fit_limits(*more, np.append(doubts, [1.0, 1.0]), np.append(patients, [900, 901]))
    np.testing.assert_array_equal(found, expected)


def test_few_patients_give_no_limits():
    assert extent.fit_limits(np.ones(10), np.ones(10), np.ones(10), np.arange(10)).tolist() == [-np.inf, np.inf]
    assert extent.interval(5.0, 1.0, np.array([-np.inf, np.inf])) == (0.0, np.inf)


def test_an_interval_holds_its_measurement():
    assert extent.interval(5.0, 2.0, np.array([0.1, 0.4]))[0] == 5.0


@pytest.mark.parametrize("axes_mm", [(8.0, 8.0, 8.0), (7.0, 6.0, 5.0), (16.0, 12.0, 9.0), (22.0, 14.0, 10.0)])
def test_the_axis_of_whole_voxels_is_measured_as_of_a_smooth_outline(axes_mm):
    random, spacing_mm = np.random.default_rng(1), 1.2
    errors = []
    for _ in range(12):
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        matrix = turn @ np.diag(4 / np.square(axes_mm)) @ turn.T  # of the ellipsoid x' M x <= 1
        at = (np.indices((24,) * 3).T - 11.5 - random.uniform(-0.5, 0.5, 3)) * spacing_mm  # (W, H, D, 3)
        mask = (np.einsum("...i,ij,...j", at, matrix, at) <= 1).T
        section = np.linalg.eigvalsh(matrix[1:, 1:])  # of the axial plane through the centre
        volume_mm3, axis_mm = extent.measure_marked(mask, spacing_mm)
        assert volume_mm3 == pytest.approx(mask.sum() * 1.2**3)
        _, of_voxels_mm = extent.measure(mask.astype(np.float32), mask, spacing_mm)
        errors.append(np.array([axis_mm, of_voxels_mm]) - 2 / np.sqrt(section[0]))
    smooth, of_voxels = np.sqrt(np.square(errors).mean(axis=0))
    assert smooth < 0.4  # mm, a third of a voxel
    assert smooth < 0.7 * of_voxels  # which is what smoothing is for


@pytest.mark.parametrize(("marked", "volume_mm3"), [(0, 0.0), (1, 8.0), (27, 216.0)])
def test_masks_of_no_voxel_of_one_and_of_all_are_measured(marked, volume_mm3):
    mask = np.zeros((3, 3, 3), bool)
    mask.flat[[13, *range(13), *range(14, 27)][:marked]] = True
    found_mm3, axis_mm = extent.measure_marked(mask, 2.0)
    assert found_mm3 == volume_mm3
    assert (axis_mm > 0) == (marked > 0)


def test_nothing_has_no_size_whatever_the_limits():
    assert extent.interval(0.0, 1.0, np.array([-np.inf, np.inf])) == (0.0, 0.0)
