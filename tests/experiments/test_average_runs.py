"""The average of runs: the mean of their probabilities, which is read like any other run."""

import numpy as np
import pytest
from made_up_runs import HALF, RESAMPLES, TRUTH, N, certain, make_run

from experiments.comparison import runs, tables
from experiments.comparison.average_runs import average
from pnsamp_jax import evaluate
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.tables import nominal_rule


def test_the_average_is_the_mean_and_is_read_like_a_run(root, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", RESAMPLES)
    rng = np.random.default_rng(0)
    predicted = [rng.dirichlet(np.ones(6), (N, 9)) * schema.CLASS_EXISTS for _ in range(3)]
    members = [root / f"member_{k}" for k in range(3)]
    for member, probabilities in zip(members, predicted, strict=True):
        make_run(member, probabilities)
    results = average(root / "pn_samp_mean", members)
    table = tables.read_runs(root, ["pn_samp_m", "pn_samp_mean"], [0, 1])["pn_samp_mean"]
    np.testing.assert_allclose(table["probabilities"], np.mean(predicted, axis=0), atol=1e-5)  # the CSV has six digits
    np.testing.assert_array_equal(table["arg_max"], np.argmax(table["probabilities"], axis=2) + 1)
    assert results["model"] == "ensemble" and results["paper"] == {} and np.isnan(table["dice"]).all()
    assert runs.is_complete(root / "pn_samp_mean", [0, 1])
    with pytest.raises(UserError, match="belongs to another run"):
        average(root / "pn_samp_mean", members[:2])


def test_the_average_treats_nominal_ratings_as_its_runs_do(root):
    for name in ("a", "b"):
        make_run(root / name, certain(TRUTH), nominal="mean")
    average(root / "mean", [root / "a", root / "b"])
    assert nominal_rule(runs.read_run(root / "mean")) == "mean"
    with pytest.raises(UserError, match="config.data.nominal is 'modal', in .*a 'mean'"):
        average(root / "mixed", [root / "a", root / "pn_samp_m"])


def test_the_average_of_runs_that_only_segment_has_no_ratings(root):
    for name in ("a", "b"):
        make_run(root / name, None, np.full(N, 0.5))
    average(root / "mean", [root / "a", root / "b"])
    assert not runs.rated(runs.read_run(root / "mean")).any()


def test_an_average_needs_two_runs_over_the_same_nodules(root):
    with pytest.raises(UserError, match="at least two"):
        average(root / "mean", [root / "pn_samp_m"])
    make_run(root / "short", certain(TRUTH), keep=HALF)
    with pytest.raises(UserError, match="short: did not test nodule 'n20'"):
        average(root / "mean", [root / "pn_samp_m", root / "short"])
    assert not (root / "mean").exists()
