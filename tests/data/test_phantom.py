"""The `phantom` source: real contours and ratings, simulated voxels that show them."""

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from pnsamp_jax.data import cohort, lidc, phantom_voxels, schema
from pnsamp_jax.data.lidc_masks import reader_masks
from pnsamp_jax.data.patches import Geometry, consensus, consensus_centroid, make_record
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.errors import UserError

SOURCE = PhantomSource(nodules=16, seed=3, min_readers=3)


def digest(marked):
    return hashlib.sha256(marked.ct.array.tobytes() + marked.ct.affine.tobytes()).hexdigest()


def load_all(source):
    return [marked for series in source.series() for marked in source.load(series)]


@pytest.fixture(scope="module")
def loaded():
    return load_all(SOURCE)


@pytest.fixture(scope="module")
def outline():
    """The outline of a compact nodule of 10 to 16 mm on thin slices with four readers; tests give it other ratings."""
    for patient_id in sorted({scan.patient_id for scan in lidc.scans_by_series().values()}):
        for item in lidc.patient_nodules(patient_id):
            if len(item.annotations) == 4 and item.scan.slice_thickness_mm <= 1.5:
                masks, origin = reader_masks(item.annotations, item.scan.slice_z_mm)
                spacing = np.array([item.scan.slice_thickness_mm, *[item.scan.pixel_spacing_mm] * 2])
                depth_mm = ndimage.distance_transform_edt(np.pad(masks.all(axis=0), 1), sampling=spacing).max()
                if depth_mm > 4 and (masks.shape[1:] * spacing < 18).all():
                    return item, masks, origin
    raise AssertionError("no such nodule")


def simulate(outline, seed=0, **ratings):
    """Simulate the nodule with these ratings by all readers; by default it is sharp, solid and not calcified."""
    item, masks, origin = outline
    chosen = {"subtlety": 5, "internal_structure": 1, "calcification": 6, "margin": 5, "texture": 5} | ratings
    row = [chosen.get(name, 1) for name in schema.RATING_NAMES]
    nodule = dataclasses.replace(item.nodule, ratings=np.array([row] * len(masks)))
    changed = (dataclasses.replace(item, nodule=nodule), masks, origin)
    return phantom_voxels.simulate(changed, [changed], seed)


def on_grid(marked):
    """Return the masks (readers, d, h, w) on the grid of the CT."""
    ct, readers = marked.ct, marked.readers
    offset = ct.to_index(readers.to_lps([0, 0, 0]))
    np.testing.assert_allclose(offset, np.rint(offset), atol=1e-6)
    low = np.rint(offset).astype(int)
    start, stop = np.maximum(low, 0), np.minimum(low + readers.array.shape[1:], ct.array.shape)
    masks = np.zeros((len(readers.array), *ct.array.shape), bool)
    masks[(slice(None), *map(slice, start, stop))] = readers.array[(slice(None), *map(slice, start - low, stop - low))]
    return masks


def inner(marked):
    """Return the voxels that all readers marked, without the rim."""
    return ndimage.binary_erosion(on_grid(marked).all(axis=0), np.ones((1, 3, 3)), iterations=2)


def test_the_seed_determines_the_voxels_in_any_order_and_process(loaded):
    expected = {marked.nodule.nodule_id: digest(marked) for marked in loaded}
    series = SOURCE.series()
    again = {m.nodule.nodule_id: digest(m) for key in (series[-1], series[0]) for m in SOURCE.load(key)}
    assert again.items() <= expected.items()
    assert pickle.loads(pickle.dumps(SOURCE)) == SOURCE

    code = (
        "import hashlib, pickle, sys\n"
        "source = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "for m in source.load(sys.argv[2]):\n"
        "    print(m.nodule.nodule_id, hashlib.sha256(m.ct.array.tobytes() + m.ct.affine.tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, pickle.dumps(SOURCE).hex(), series[-1]]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    fresh = dict(line.split() for line in output.splitlines())
    assert fresh and fresh.items() <= expected.items()


def test_another_seed_gives_other_voxels(outline):
    first, other = (simulate(outline, seed) for seed in (0, 1))
    assert (first.ct.array != other.ct.array).mean() > 0.5
    assert PhantomSource(16, 4, min_readers=3).series() != SOURCE.series()


def test_voxels_do_not_depend_on_how_many_are_chosen(loaded):
    few = PhantomSource(nodules=3, seed=SOURCE.seed, min_readers=3)
    assert [digest(marked) for marked in load_all(few)] == [digest(marked) for marked in loaded[:3]]


def test_masks_come_from_the_database(loaded):
    patients = {marked.nodule.patient_id for marked in loaded}
    items = {item.nodule.nodule_id: item for patient in patients for item in lidc.patient_nodules(patient)}
    for marked in loaded:
        item = items[marked.nodule.nodule_id]
        masks, origin = reader_masks(item.annotations, item.scan.slice_z_mm)
        np.testing.assert_array_equal(marked.readers.array, masks)
        np.testing.assert_array_equal(marked.nodule.ratings, item.nodule.ratings)
        x, y, z = marked.readers.to_lps(np.array(masks.shape[1:]) // 2)
        slice_index, row, column = origin + np.array(masks.shape[1:]) // 2
        spacing = item.scan.pixel_spacing_mm
        np.testing.assert_allclose((x, y), (column * spacing, row * spacing), atol=1e-6)
        assert z == pytest.approx(item.scan.slice_z_mm[slice_index], abs=0.1)


def test_records_are_centred_and_within_the_crop(loaded):
    compact = 0
    for marked in loaded:
        assert marked.context == "simulated"
        assert marked.ct.array.dtype == np.int16
        assert -1024 <= marked.ct.array.min() and marked.ct.array.max() <= 3071
        # In-plane, the crop contains the patch of 64 + 2 * 8 voxels; at the scan's ends it may be cut off in depth.
        index = marked.ct.to_index(consensus_centroid(marked.readers))[1:]
        reach = 24 / marked.ct.spacing[1:]
        assert (index - reach >= 0).all() and (index + reach <= np.array(marked.ct.array.shape[1:]) - 1).all()
        record = make_record(marked, Geometry())
        if record[schema.DIAMETER] < 20:
            compact += 1
            middle = np.argwhere(record[schema.MASK] >= schema.MASK_UNIT // 2).mean(axis=0)
            np.testing.assert_allclose(middle, 39.5, atol=1)
    assert compact > 8


def test_nodules_are_chosen_by_cohort_and_patient(loaded):
    assert len(loaded) == SOURCE.nodules
    rating_counts = np.stack([marked.nodule.rating_counts for marked in loaded])
    assert cohort.members(rating_counts, "rounded_ne_3", 3).all()
    assert set(cohort.malignancy_sign(rating_counts, "rounded_ne_3")) == {-1, 1}
    patients = [marked.nodule.patient_id for marked in loaded]
    assert 1 < len(set(patients)) < len(patients)
    # The nodules of a patient follow each other.
    assert len(set(patients)) == 1 + sum(a != b for a, b in zip(patients, patients[1:], strict=False))
    assert max(Counter(patients).values()) > 1


def test_texture_determines_the_density(outline):
    levels = []
    for texture in (1, 3, 5):
        marked = simulate(outline, texture=texture)
        levels.append(np.median(marked.ct.array[inner(marked)]))
        background = np.median(marked.ct.array[marked.ct.array < -700])
        assert -950 < background < -780
        assert levels[-1] > background + 150
    assert levels[0] < -450 and levels[0] + 100 < levels[1] < levels[2] - 30 and -50 < levels[2] < 100


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_calcification_is_visible(outline, kind):
    plain, calcified = simulate(outline), simulate(outline, calcification=kind)
    marked = consensus(on_grid(plain))
    assert np.percentile(plain.ct.array[marked], 99) < 150
    assert np.percentile(calcified.ct.array[marked], 99) > 200


@pytest.mark.parametrize("kind, low, high", [(2, -40, 60), (3, -140, -20), (4, -1000, -500)])
def test_internal_structure_is_visible(outline, kind, low, high):
    marked = simulate(outline, internal_structure=kind)
    depth = ndimage.distance_transform_edt(consensus(on_grid(marked)), sampling=marked.ct.spacing)
    assert low < np.median(marked.ct.array[depth > 0.75 * depth.max()]) < high


def test_margin_determines_the_edge(outline):
    slopes = []
    for margin in (1, 3, 5):
        marked = simulate(outline, margin=margin)
        smooth = ndimage.gaussian_filter(marked.ct.array.astype(np.float32), (0, 0.5, 0.5))
        steepness = np.hypot(ndimage.sobel(smooth, 1), ndimage.sobel(smooth, 2))
        majority = consensus(on_grid(marked))
        slopes.append(np.median(steepness[majority & ~ndimage.binary_erosion(majority, np.ones((1, 3, 3)))]))
    assert slopes[0] < slopes[1] < slopes[2] and 1.3 * slopes[0] < slopes[2]


def test_spicules_reach_outside_the_mask(outline):
    counts = []
    for spiculation in (1, 3, 5):
        marked = simulate(outline, spiculation=spiculation)
        marked_by_any = on_grid(marked).any(axis=0)
        outside = ndimage.binary_dilation(marked_by_any, iterations=5) & ~ndimage.binary_dilation(
            marked_by_any, iterations=2
        )
        counts.append((marked.ct.array[outside] > -650).mean())
    assert counts[0] < counts[1] < counts[2]


def test_malignancy_is_not_painted(outline):
    first, other = (simulate(outline, malignancy=malignancy) for malignancy in (1, 5))
    np.testing.assert_array_equal(first.ct.array, other.ct.array)


def test_a_nodule_without_ratings_is_painted_too(outline):
    assert simulate(outline, **dict.fromkeys(schema.RATING_NAMES, 0)).ct.array.std() > 50


def test_the_wall_does_not_cover_the_nodule(outline):
    rng = np.random.default_rng(0)
    axes = np.ogrid[-20:21:1.0, -20:21:1.0, -20:21:1.0]
    nodule = np.argwhere(np.ones((7, 7, 7))) - 3.0
    cover, tissue = phantom_voxels._wall(
        rng, axes, np.ones(3), np.array([0, 0, 1.0]), nodule, 2.0, np.zeros((41, 41, 41))
    )
    assert cover[17:24, 17:24, 17:24].max() == 0
    assert cover[20, 20, -1] == 1 and cover[20, 20, 0] == 0
    assert -150 < tissue[cover > 0].min() and 200 < tissue[cover > 0].max() < 700


def test_noise_is_plausible(loaded):
    sds = []
    for marked in loaded:
        image = marked.ct.array.astype(np.float32)
        rough = image - ndimage.gaussian_filter(image, (0, 2, 2))
        lung = ~ndimage.binary_dilation(image > -650, iterations=2)
        sds.append(1.4826 * np.median(np.abs(rough[lung])))
    assert 12 < min(sds) and max(sds) < 50 and np.ptp(sds) > 5


def test_description_is_json_and_unique_to_the_source():
    variants = [SOURCE] + [
        dataclasses.replace(SOURCE, **change)
        for change in ({"nodules": 5}, {"seed": 9}, {"cohort": "all"}, {"min_readers": 1})
    ]
    texts = {json.dumps(source.description(), sort_keys=True) for source in variants}
    assert len(texts) == len(variants)
    assert json.loads(json.dumps(SOURCE.description())) == SOURCE.description()


def test_invalid_settings_are_reported():
    with pytest.raises(UserError, match=r"config\.data\.phantom_nodules: -1"):
        PhantomSource(nodules=-1)
    with pytest.raises(UserError, match=r"config\.seed"):
        PhantomSource(seed=-1)
    with pytest.raises(UserError, match=r"config\.data\.cohort"):
        PhantomSource(nodules=1, cohort="none").series()
