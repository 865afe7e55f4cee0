"""Which nodules a cohort leaves out, by reason."""

import numpy as np
import pytest
from tiny_run import tiny_config

from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.omissions import count_omissions, describe_omissions
from pnsamp_jax.errors import UserError
from pnsamp_jax.run import prepare_run


def rated(*malignancies):
    """Return (nodules, 9, 6) rating counts, given each nodule's ratings of malignancy, one per reader."""
    ratings = np.ones((len(malignancies), 4, 9), int)
    ratings[:, :, schema.MALIGNANCY] = 0
    for nodule, row in enumerate(malignancies):
        ratings[nodule, : len(row), schema.MALIGNANCY] = row
    return np.stack([cohort.count_ratings(rows) for rows in ratings])


RATED = rated([1], [5, 5], [3, 3], [2, 3], [3], [], [2, 4], [4, 5, 5])


@pytest.mark.parametrize(
    ("name", "min_readers", "expected"),
    [
        ("rounded_ne_3", 1, {"without a rating": 1, "malignancy rounds to 3": 4}),  # 3; 2.5; 3; 3
        ("mean_ne_3", 1, {"without a rating": 1, "mean malignancy is 3": 3}),
        ("median_ne_3", 1, {"without a rating": 1, "median malignancy is 3": 3}),
        ("all", 1, {"without a rating": 1}),
        ("all", 2, {"without a rating": 1, "fewer than 2 readers rated": 2}),
        ("rounded_ne_3", 2, {"without a rating": 1, "fewer than 2 readers rated": 2, "malignancy rounds to 3": 3}),
        ("all", 0, {}),
    ],
)
def test_reasons_are_counted_and_sum_to_those_left_out(name, min_readers, expected):
    counts = count_omissions(RATED, name, min_readers)
    assert len(counts) == len(expected)
    for part, count in expected.items():
        (found,) = [value for reason, value in counts.items() if part in reason]
        assert found == count
    assert sum(counts.values()) == (~cohort.members(RATED, name, min_readers)).sum()


def test_the_line_names_the_counts_and_the_way_to_keep_them():
    assert describe_omissions(RATED, "rounded_ne_3", 1) == (
        "8 nodules read, 5 left out of the cohort rounded_ne_3: 1 without a rating of malignancy, "
        "4 whose malignancy rounds to 3 (--config.data.cohort=all keeps them)"
    )
    line = describe_omissions(RATED, "rounded_ne_3", 1, "all")
    assert line.endswith("; 4 of them join the training (config.data.train_cohort=all)")
    assert describe_omissions(RATED[:2], "rounded_ne_3", 1) == ""


def test_preparing_tells_what_is_left_out_also_where_that_is_everything(root, tmp_path, capsys):
    def prepare(**changes):
        folder = {"data.source": "folder", "data.root": str(root), "data.cache": str(tmp_path / "cache")}
        prepare_run(tiny_config(**folder, **changes), tmp_path / "run")

    prepare()  # the mean malignancies are 4.5, 1 and 3
    out = "3 nodules read, 1 left out of the cohort rounded_ne_3: 1 whose malignancy rounds to 3"
    assert out in capsys.readouterr().out
    prepare(**{"data.cohort": "all"})
    printed = capsys.readouterr().out
    assert "Prepared 3 nodules of the cohort all" in printed and "left out" not in printed
    with pytest.raises(UserError, match="no nodule belongs to the cohort"):
        prepare(**{"data.min_readers": 3})
    assert "3 nodules read, 3 left out of the cohort rounded_ne_3: 3 whose malignancy fewer than 3 readers rated" in (
        capsys.readouterr().out
    )
