"""Neighbours: the nearest by their features, and how alike their ratings are."""

import json

import numpy as np
import pytest
from test_explanations import small_run  # noqa: F401

from experiments import neighbours
from experiments.baselines.subsets import Subset
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError


def test_features_count_in_units_of_their_spread():
    pool = np.array([[0, 0.0, 7], [0, 1, 7], [1000, 0, 7], [1000, 1, 7]])
    test = np.array([[600.0, 0.1, 9]])  # nearer to 1000 than to 0, and to 0 than to 1; the third does not vary
    assert neighbours.nearest(test, pool, 3).tolist() == [[2, 0, 3]]


def subset(classes):
    """Return nodules of as many patients, with the given class in every rating, 0 for none."""
    counts = np.zeros((len(classes), 9, 6), np.uint8)
    for i, k in enumerate(classes):
        if k:
            counts[i, :, k - 1] = 2
    patients = np.array([f"p{i}" for i in range(len(classes))])
    return Subset({schema.RATING_COUNTS: counts, schema.PATIENT_ID: patients}, None, np.zeros(0))


@pytest.fixture
def fold():
    """Return two test nodules of class 2 and 4, whose neighbours by radiomics are right and by the others are not."""
    right, wrong = np.array([[0, 1], [3, 4]]), np.array([[3, 4], [3, 3]])
    nearest = {"measured": wrong, "attributes": right, "random": np.array([[2, 2], [2, 0]])}
    nearest |= {neighbours.RADIOMICS: right, neighbours.ORACLE: right}
    return neighbours.Fold(subset([2, 4]), subset([1, 3, 0, 4, 4]), nearest, np.full((2, 9), 3.0))


def test_the_mean_of_the_neighbours_is_compared_with_the_readers(fold):
    found = neighbours.errors([fold])
    np.testing.assert_array_equal(found["attributes"], 0)
    np.testing.assert_array_equal(found["measured"], np.repeat([[2], [0]], 9, axis=1))
    np.testing.assert_array_equal(found["the network itself"], 1)
    # A neighbour without a rating does not count, and without any there is no error.
    np.testing.assert_array_equal(found["random"], np.repeat([[np.nan], [3]], 9, axis=1))


def test_results_are_paired_with_radiomics(fold):
    results = neighbours.compare([fold])
    assert results["nodules"] == 2
    assert results["measured"]["malignancy"]["error"]["value"] == 1
    assert results["measured"]["ordinal"]["minus_radiomics"]["value"] == 1
    assert results["measured"]["malignancy"]["within_one"]["value"] == 0.5
    text = neighbours.markdown({"folds": [0], "neighbours": 2, **results})
    assert "| radiomics, predicted masks | 0.00 [0.00, 0.00] | 100.0 |" in text


def test_diagnoses_are_read_by_patient(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("patient_id,diagnosis,method\nA,benign,x\nB,primary,\n")
    assert neighbours.read_diagnoses(path) == {"A": "benign", "B": "primary"}
    assert neighbours.read_diagnoses(None) == {}
    path.write_text("patient_id\nA\n")
    with pytest.raises(UserError, match="no column diagnosis"):
        neighbours.read_diagnoses(path)


@pytest.mark.slow
def test_neighbours_are_found_in_a_run_with_a_missing_fold(small_run, tmp_path):  # noqa: F811
    config, workdir = small_run
    results = neighbours.run(config, workdir, 2, neighbours=3, shown=2, diagnoses=None, seed=0)
    assert json.loads((workdir / "neighbours.json").read_text()) == json.loads(json.dumps(results))
    assert (results["folds"], results["nodules"]) == ([0, 2], 4)
    assert results["random"]["malignancy"]["error"]["value"] > 0
    assert (workdir / "neighbours.md").is_file() and (workdir / "neighbours.png").stat().st_size > 10_000
