"""Finished runs: when a run is complete, and which runs cannot be compared."""

import json

import numpy as np
import pytest
from made_up_runs import TRUTH, N, blank, certain, edit, make_run

from experiments.comparison import runs
from pnsamp_jax.errors import UserError


def read(root, *names):
    """Read runs, and check that they can be compared."""
    runs.require_same({root / name: runs.read_run(root / name, [0, 1]) for name in names})


def test_a_run_is_complete_if_its_results_rest_on_every_chosen_fold(tmp_path):
    keep = np.arange(N) // 2 % 2 == 0
    make_run(tmp_path, certain(TRUTH), keep=keep)
    assert runs.is_complete(tmp_path, [0]) and not runs.is_complete(tmp_path / "none", [0])
    split = json.loads((tmp_path / "folds.json").read_text())
    split["folds"][1]["test"]["nodules"] = ["n02"]
    (tmp_path / "folds.json").write_text(json.dumps(split))
    assert runs.is_complete(tmp_path, [0]) and not runs.is_complete(tmp_path, [0, 1])


def test_a_run_that_lacks_a_nodule_is_refused_by_name(root):
    make_run(root / "pn_samp_c", certain(TRUTH), keep=np.arange(N) != 11)
    with pytest.raises(
        UserError, match=r"pn_samp_c: did not test nodule 'n11' \(1 missing of 40\), which .*pn_samp_m"
    ):
        read(root, "pn_samp_m", "pn_samp_c")


@pytest.mark.parametrize(("column", "value"), [("fold", "1"), ("malignancy_true", "2"), ("patient_id", "px")])
def test_a_run_with_another_split_or_other_ratings_is_refused_by_name(root, column, value):
    edit(
        root / "mcnn" / "predictions.csv", lambda row: row.update({column: value} if row["nodule_id"] == "n05" else {})
    )
    if column == "fold":
        edit(root / "mcnn" / "predictions.csv", lambda row: row.update(fold=str(1 - int(row["fold"]))))
    with pytest.raises(
        UserError, match=r"mcnn: the (fold|truth|patient_id) of nodule 'n\d\d' differs from that in .*pn_"
    ):
        read(root, "pn_samp_m", "mcnn")


def test_a_rating_that_is_blank_for_a_single_nodule_is_refused(root):
    blank(root / "pn_samp_s1", "malignancy", "n03")
    with pytest.raises(UserError, match="pn_samp_s1.predictions.csv: nodule 'n03' has no malignancy"):
        read(root, "pn_samp_m", "pn_samp_s1")
