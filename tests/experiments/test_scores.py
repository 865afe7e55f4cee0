"""The metrics of the comparison: means over ratings, blank predictions, and their format."""

import numpy as np
import pytest
from made_up_runs import N, make_run

from experiments.comparison import runs, scores
from pnsamp_jax import evaluate
from pnsamp_jax.data import schema


def test_the_mean_of_the_ratings_is_that_of_the_evaluation(root):
    make_run(root / "noisy", np.random.default_rng(0).dirichlet(np.ones(6), (N, 9)) * schema.CLASS_EXISTS)
    table = runs.read_run(root / "noisy")
    table["truth"][:7, 3] = 0
    ordinal = [index for index in range(9) if index not in (1, 2)]
    expected = evaluate.mean_of_ratings(table, ordinal)["within_one"]["off_by_one"]
    seven = np.stack([scores.hits(table, "within_one", index) for index in ordinal], axis=1)
    value, interval, *_ = scores.mean_of_ratings_estimate(seven, table["patient_id"], evaluate.RESAMPLES)
    assert value == pytest.approx(expected["value"]) and interval == pytest.approx(expected["interval"])


def test_a_blank_prediction_has_no_score_although_class_0_is_within_one_of_class_1(root):
    table = runs.read_run(root / "mcnn")
    table["truth"][:, 0] = 1
    assert np.isnan(scores.hits(table, "arg_max", 0)).all()


def test_estimates_are_printed_in_per_cent():
    assert str(scores.Estimate(0.9351, (0.9, 0.965))) == "93.5 [90.0, 96.5]"
    assert str(scores.Estimate(-0.0001, (-0.01, 0.02), signed=True, note="(n)")) == "+0.0 [-1.0, +2.0] (n)"
    assert str(scores.Estimate()) == "-" and str(scores.Estimate(0.5)) == "50.0"
