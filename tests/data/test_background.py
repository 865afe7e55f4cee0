"""Points beside nodules: where they lie, and what their records hold."""

import json
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.background import APART_MM, CLEARANCE_MM, BackgroundSource, draw_points
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import Geometry, MarkedNodule, consensus_centroid, patch_affine
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import make_records, prepare

GEOMETRY = Geometry(16, 2, 2.0)  # 32 mm


@pytest.fixture(scope="module")
def source():
    return BackgroundSource(PhantomSource(nodules=2, seed=0), per_nodule=4, geometry=GEOMETRY)


@pytest.fixture(scope="module")
def beside(source):
    """The nodules and the points of each series."""
    return [(source.source.load(series), source.load(series)) for series in source.series()]


def marked_mm(nodule):
    return nodule.readers.to_lps(np.argwhere(nodule.readers.array.any(axis=0)))


def test_points_keep_their_distance_from_every_nodule(beside):
    assert sum(len(points) for _, points in beside) == 8
    for nodules, points in beside:
        for nodule in nodules:
            for point in points:
                assert np.linalg.norm(point.centre_mm - consensus_centroid(nodule.readers)) >= APART_MM
                assert np.linalg.norm(point.centre_mm - marked_mm(nodule), axis=1).min() >= CLEARANCE_MM


def test_their_patches_lie_within_the_image_in_the_axial_plane(beside):
    for _, points in beside:
        for point in points:
            corners = point.centre_mm + np.array([(x, y, 0) for x in (-16, 16) for y in (-16, 16)])
            assert all(point.ct.holds(corner) for corner in corners)


def test_a_record_marks_the_nodule_that_reaches_into_its_patch(beside):
    """A marked voxel of the nodule is marked in the record, at the voxel of the patch that holds it, and no other."""
    reached = 0
    for nodules, points in beside:
        for point in points:
            inside = [np.rint(point.readers.to_index(marked_mm(nodule))).astype(int) for nodule in nodules]
            index = np.concatenate(inside)
            index = index[((index >= 0) & (index < GEOMETRY.stored_size)).all(axis=1)]
            marked = point.readers.array[0]
            assert marked[tuple(index.T)].mean() > 0.9 if len(index) else not marked.any()
            reached += len(index) > 0
            assert marked.mean() < 0.2
    assert reached


def test_another_setting_is_another_source(source):
    others = [
        source,
        replace(source, per_nodule=3),
        replace(source, seed=1),
        replace(source, geometry=Geometry(8, 2, 2.0)),
    ]
    others.append(replace(source, source=PhantomSource(nodules=1)))
    assert len({json.dumps(one.description(), sort_keys=True) for one in others}) == len(others)
    assert pickle.loads(pickle.dumps(source)) == source


def image(shape=(20, 60, 60), hu=-850):
    """A CT of 1 mm whose middle is at 0."""
    affine = patch_affine((0, 0, 0), 1, 1.0)
    affine[:3, 3] = -(np.array(shape)[::-1] - 1) / 2
    return Volume(np.full(shape, hu, np.int16), affine)


def drawn(ct, count=6, side_mm=32.0, centres=((0.0, 0.0, 0.0),), marks=()):
    marks = np.array(marks, float).reshape(-1, 3)
    return draw_points(ct, np.array(centres), marks, count, side_mm, np.random.default_rng(0))


def test_a_thin_slab_has_room_but_a_small_image_has_none():
    points = drawn(image(shape=(3, 68, 68)))
    assert len(points) == 6 and np.abs(points[:, :2]).max() <= 18 and np.abs(points[:, 2]).max() <= 1.5
    assert drawn(image(shape=(3, 40, 40))).shape == (0, 3)


def test_no_point_lies_in_the_air_around_the_body():
    ct = image(shape=(40, 100, 100), hu=-1000)
    ct.array[:, :, :50] = 40  # right of the middle, x < 0
    points = drawn(ct, count=20, side_mm=10.0)
    assert len(points) == 20 and points[:, 0].max() < 5


def test_every_second_point_is_moved_to_the_brightest_voxel():
    ct = image(shape=(40, 60, 60))
    ct.array[::4, ::4, ::4] = 30  # so that one is within 5 mm of any point
    points = drawn(ct, side_mm=10.0)
    index = np.rint(ct.to_index(points)).astype(int)
    assert (ct.array[tuple(index[1::2].T)] == 30).all()
    assert (ct.array[tuple(index[::2].T)] == -850).any()


def test_points_keep_away_from_large_nodules_and_all_of_several():
    marks = np.argwhere(np.ones((12, 40, 40)))[:, ::-1] - (20, 20, 6)  # reaches beyond 15 mm
    centres = ((0.0, 0.0, 0.0), (0.0, 28.0, 0.0))
    points = drawn(image(shape=(20, 90, 90)), side_mm=10.0, count=12, centres=centres, marks=marks)
    assert len(points) == 12
    assert (np.linalg.norm(points[:, None] - np.array(centres), axis=-1) >= APART_MM).all()
    assert (np.linalg.norm(points[:, None] - marks, axis=-1).min(axis=1) >= CLEARANCE_MM).all()


@dataclass(frozen=True)
class OneNodule:
    """One nodule in the middle of an image that has room for points, or has not."""

    side: int
    name = "one"

    def series(self):
        return ["s"]

    def load(self, series):
        ct = image(shape=(20, self.side, self.side))
        readers = Volume(np.ones((1, 3, 3, 3), bool), patch_affine((0, 0, 0), 3, 1.0))
        return [MarkedNodule(Nodule("n", "p", np.full((1, 9), 3)), ct, readers, "cube")]

    def description(self):
        return {"side": self.side}

    def inputs(self, series):
        return None


def test_a_series_without_room_is_prepared_without_points(tmp_path):
    for side, count in ((80, 2), (40, 0)):
        source = BackgroundSource(OneNodule(side), 2, GEOMETRY)
        prepared = prepare(source, GEOMETRY, tmp_path, workers=1)
        assert not prepared.failures and prepared.folder.name.startswith("background-")
        with np.load(prepared.files[0]) as series:
            assert len(series[schema.RATING_COUNTS]) == count


def test_they_belong_to_their_nodules_patient_and_have_no_ratings():
    records, _ = make_records(BackgroundSource(OneNodule(80), 3, GEOMETRY), "s", GEOMETRY)
    assert records[schema.PATIENT_ID].tolist() == ["p"] * 3
    assert len(set(records[schema.NODULE_ID])) == 3 == len(records[schema.IMAGE])
    assert not records[schema.RATING_COUNTS].any()


def test_the_seed_decides_the_points():
    first, again, other = (
        [one.centre_mm for one in BackgroundSource(OneNodule(80), 3, GEOMETRY, seed).load("s")] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
