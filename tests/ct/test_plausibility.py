"""Which voxels can be the HU of a chest: no false alarm on real crops, and a true cause for the usual faults."""

import re

import nibabel
import numpy as np
import pytest

from pnsamp_jax.ct.plausibility import histogram, why_displaced, why_not_hounsfield
from pnsamp_jax.ct.read import check_chest
from pnsamp_jax.ct.volume import AIR, Volume
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.errors import UserError


def stored(values):
    """Values as the readers return them: int16, at least `AIR`."""
    return np.clip(np.rint(np.nan_to_num(values, nan=AIR)), AIR, 32767).astype(np.int16)


def chest(lung=0.6, seed=0):
    """HU of a chest: lung with a share of `lung`, and soft tissue with some fat and bone."""
    rng = np.random.default_rng(seed)
    tissue = np.choose(rng.choice(3, (20, 40, 40), p=[0.7, 0.25, 0.05]), [40, -100, 500])
    hu = np.where(np.arange(40) < 40 * lung, -850, tissue) + rng.normal(0, 30, (20, 40, 40))
    return hu


def why_refused(array):
    counts = histogram(array)
    return why_not_hounsfield(array, counts) or why_displaced(counts)


FAULTS = {
    "1024 too high": (lambda hu: hu + 1024, "1024 too high for want of the RescaleIntercept"),
    "1024 too high but for padding": (lambda hu: np.where(np.arange(40) < 3, -2000, hu + 1024), "1024 too high"),
    "1000 too high": (lambda hu: hu + 1000, "1024 too high"),
    "intercept applied twice": (lambda hu: hu - 1024, "1024 too low"),
    "a window as 0..1": (lambda hu: np.clip((hu + 1000) / 1400, 0, 1), r"scaled to 0\.\.1"),
    "a window as 0..255": (lambda hu: 255 * np.clip((hu + 1000) / 1400, 0, 1), r"scaled to 0\.\.255"),
    "unit variance": (lambda hu: (hu - hu.mean()) / hu.std(), "clipped to a window or scaled"),
    "stored with 12 bits": (lambda hu: 4095 * np.clip((hu + 1000) / 1400, 0, 1), "as in another modality, a rescaled"),
    "scaled to 16 bits": (lambda hu: 65535 * np.clip((hu + 1000) / 1400, 0, 1), "as in another modality, a rescaled"),
    "scaled to 0..1000": (lambda hu: np.clip(hu + 1000, 0, 2000) / 2, "as in another modality, a rescaled"),
    "without negative values": (lambda hu: np.maximum(hu, 0), r"negative values were lost|scaled to 0\.\.255"),
    "unsigned": (
        lambda hu: np.rint(hu) % (1 << 16),
        r"\d% are above 32766, as if negative values were read as",
    ),
    "unsigned, 12 bits": (
        lambda hu: np.rint(hu) % (1 << 12),
        "as if negative values of 12 bits were read as unsigned",
    ),
    "clipped to a soft tissue window": (lambda hu: np.clip(hu, -160, 240), "clipped to a window"),
    "clipped within the lung": (lambda hu: np.clip(hu, -790, 400), "none is below -790, .* clipped"),
    "clipped to lung": (lambda hu: np.clip(hu, -1000, 0), "none is above 0, .* clipped"),
    "labels": (lambda hu: np.digitize(hu, [-500, 0, 200]), "the labels of a mask"),
    "inverted": (lambda hu: -hu, "inverted|none is that of lung"),
    "constant": (lambda hu: hu * 0 + 40, "differ by less"),
    "nothing": (lambda hu: hu * np.nan, "all voxels are padding"),
    "slope of 0.5 applied twice": (lambda hu: (hu + 1024) * 0.5 - 1024, "as if the RescaleSlope was lost"),
    "slope of 0.5 lost": (lambda hu: (hu + 1024) * 2 - 1024, "RescaleSlope|as dense as bone"),
    "300 too low": (
        lambda hu: hu - 300,
        "are empty|of lung or empty|thin as ground|few are soft|between lung and soft",
    ),
    "300 too high": (lambda hu: hu + 300, "few are soft tissue|as thin as ground glass"),
    "400 too high": (lambda hu: hu + 400, "few are soft tissue|as thin as ground glass"),
    "slope of 1.5": (lambda hu: (hu + 1024) * 1.5 - 1024, "denser than muscle|few are soft tissue|as dense as bone"),
}
BETWEEN = {
    "soft tissue 300 too low": (lambda hu: np.where(hu > -400, hu - 300, hu), "-260"),
    "soft tissue 350 too low": (lambda hu: np.where(hu > -400, hu - 350, hu), "-310"),
    "slope of 0.7": (lambda hu: (hu + 1024) * 0.7 - 1024, "-2[78]0"),
    "lung 500 too high": (lambda hu: np.where(hu < -400, hu + 500, hu), "-350"),
}
CUT_OUT = {
    "lung filled with water": (
        lambda hu: np.where(hu < -400, 0, hu),
        "exactly 0, as if a part of the CT was cut out",
    ),
    "filled beyond the lung": (lambda hu: np.where(hu < -400, hu, 170), "exactly 170, as if a part"),
    "filled with gray beyond the lung": (lambda hu: np.where(hu < -400, hu, -500), "exactly -500, as if a part"),
}


@pytest.mark.parametrize("lung", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_called_by_its_name(fault, lung):
    change, cause = FAULTS[fault]
    with pytest.raises(UserError, match=f"ct.nii: the values, .* are not the HU of a chest: .*{cause}"):
        check_chest("ct.nii", Volume(stored(change(chest(lung))), np.eye(4)[[2, 1, 0, 3]]))  # slices along z


@pytest.mark.parametrize("lung", [0.0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu,
        lambda hu: np.where(np.arange(40) < 10, -2000, hu),  # outside of the scanner's field of view
        lambda hu: np.where(np.arange(40) < 10, -3024, hu),
        lambda hu: np.clip(hu, -1000, 400),
        lambda hu: np.where(np.arange(40) == 20, 3000, hu),  # metal
        lambda hu: np.where((hu > 0) & (np.arange(40) % 3 > 0), hu + 380, hu),  # a heart full of contrast agent
        lambda hu: hu + 60,  # a scanner that is not calibrated well, or contrast agent
    ],
)
def test_hu_of_a_chest_are_accepted(change, lung):
    assert why_refused(stored(change(chest(lung)))) is None


@pytest.mark.parametrize("fault", BETWEEN)
def test_a_peak_between_lung_and_soft_tissue_is_found(fault):
    change, value = BETWEEN[fault]
    expected = f"many lie around {value}, between lung and soft tissue"
    assert re.match(expected, why_refused(stored(change(chest(0.5)))))


def test_a_liver_full_of_contrast_agent_is_accepted():
    hu = chest(0.6)
    liver = np.random.default_rng(1).normal(125, 15, hu.shape)
    assert why_refused(stored(np.where(hu < -400, hu, liver))) is None


def test_ground_glass_throughout_the_lung_is_accepted():
    hu = chest(0.6)
    rng = np.random.default_rng(1)
    for density in (-650, -560, -480):
        assert why_refused(stored(np.where(hu < -400, rng.normal(density, 80, hu.shape), hu))) is None


@pytest.mark.parametrize("lung", [0.2, 0.6, 0.8])
@pytest.mark.parametrize("fault", CUT_OUT)
def test_a_part_that_was_cut_out_and_filled_is_found(fault, lung):
    change, cause = CUT_OUT[fault]
    assert re.search(cause, why_refused(stored(change(chest(lung)))))


@pytest.mark.parametrize(
    ("lung", "value"), [(0.2, -3024), (0.65, -3024), (0.2, -1024), (0.65, -1024), (0.2, -1000), (0.35, -1000)]
)
def test_a_lung_without_its_surroundings_is_called_so(lung, value):
    hu = np.where(np.arange(40) < 40 * lung, chest(lung), value)
    assert "as if what lies around the lung was cut away" in why_refused(stored(hu))


@pytest.mark.parametrize("lung", [0.2, 0.6, 0.8])
@pytest.mark.parametrize("floor", [-950, -900, -850])
def test_values_cut_off_from_below_are_not_called_filled(floor, lung):
    hu = np.rint(chest(lung) - 60)  # of which many are as low
    share = (hu <= floor).mean()
    found = why_refused(stored(np.maximum(hu, floor)))
    if share > 0.1:
        assert found == f"none is below {floor}, where {share:.0%} are, as if they were clipped to a window"
    else:
        assert found is None or "clipped to a window" in found


@pytest.mark.data
def test_a_tenfold_scale_is_not_called_a_rescale_intercept(scan):
    hu = scan.array[40:65, 150:370:2, 100:320:2].astype(np.float32)
    assert why_refused(stored(10 * hu)).endswith("as if the image was rescaled")
    assert why_refused(stored(hu - 1024)).endswith("as if the RescaleIntercept was applied twice")


@pytest.mark.parametrize("value", [-1000, -950, -1024])
def test_a_lung_that_was_cut_out_with_the_air_around_the_body_is_refused(value):
    hu = chest(0.5)
    hu[:, :10] = np.random.default_rng(1).normal(-995, 10, hu[:, :10].shape)
    assert why_refused(stored(hu)) is None
    assert why_refused(stored(np.where(hu < -400, hu, value))) is not None


def test_a_lung_around_a_small_nodule_is_accepted():
    hu = chest(1.0) + np.random.default_rng(1).normal(0, 90, (20, 40, 40))
    expected = "none is that of soft tissue, as if what lies around the lung was cut away"
    assert why_refused(stored(hu)) == expected
    hu[9:11, 18:22, 18:22] = 20  # 32 of 32,000 voxels
    assert why_refused(stored(hu)) is None


def test_corners_outside_of_the_field_of_view_may_have_any_value():
    h, w = np.indices((40, 40)) - 19.5
    outside = np.hypot(h, w) > 21  # a seventh of the voxels
    assert why_refused(stored(np.where(outside, 0, chest()))) is None
    cavity = np.hypot(h, w) < 10  # where the corners do not have the value
    assert "exactly 0" in why_refused(stored(np.where(cavity, 0, chest())))


def test_the_phantoms_voxels_are_accepted():
    source = PhantomSource(nodules=6)
    for series in source.series():
        for marked in source.load(series):
            assert why_refused(marked.ct.array) is None


@pytest.mark.data
def test_no_real_crop_is_refused_and_nearly_every_fault_is_found(lidc_subset):
    found = dict.fromkeys(FAULTS, 0)
    paths = sorted((lidc_subset / "images").glob("*.nii.gz"))[::40]
    for path in paths:
        hu = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
        assert why_refused(stored(hu)) is None, path.name
        for name, (change, _) in FAULTS.items():
            if "padding" not in name:
                found[name] += why_refused(stored(change(hu))) is not None
    # An emphysema that is cut off at -1024 looks like soft tissue that is 1024 too low.
    assert found.pop("intercept applied twice") >= 0.9 * len(paths)
    # A crop of little but lung is as thin as one that was scaled.
    assert found.pop("slope of 0.5 applied twice") >= 0.9 * len(paths)
    # A few crops hold hardly a voxel beyond a window, so that clipping to it takes nothing.
    for name in ("inverted", "clipped to lung", "clipped within the lung", "slope of 0.5 lost"):
        assert found.pop(name) >= 0.98 * len(paths), name
    # The other crops hold too little soft tissue.
    assert found.pop("300 too low") >= 0.75 * len(paths)
    assert found.pop("300 too high") >= 0.95 * len(paths)
    assert found.pop("slope of 1.5") >= 0.9 * len(paths)
    del found["1024 too high but for padding"]
    assert set(found.values()) == {len(paths)}
