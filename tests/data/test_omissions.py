"""Which nodules a cohort leaves out, by reason."""

import numpy as np
import pytest

from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.omissions import count_omissions, describe_omissions


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
