"""Odd CTs, made from a part of a real scan: each is read as its kind states, and anything else counts as a failure."""

import time
from pathlib import Path

import numpy as np
import pytest
from ct_files import REAL

from experiments.trials import odd_cts
from experiments.trials.odd_kinds import SAME, Case, Kind
from pnsamp_jax.errors import UserError

NODULE = np.array([56.4, 86.3, -116.0])  # LPS mm
SECONDS = 60  # a reading takes a fraction of a second, but the machine may be busy
SIZE = 32


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return odd_cts.stage(REAL, NODULE, tmp_path_factory.mktemp("clean"), half=(10, 40, 40))


def test_there_are_many_kinds_with_unique_names():
    reported = (Path(__file__).parents[2] / "experiments" / "RELIABILITY.md").read_text()
    assert f"**{len(odd_cts.KINDS)} kinds**" in reported
    assert len({kind.name for kind in odd_cts.KINDS}) == len(odd_cts.KINDS)


@pytest.mark.slow
def test_every_kind_is_read_as_it_states(scan, tmp_path):
    outcomes = list(odd_cts.try_kinds(odd_cts.KINDS, scan, tmp_path, SIZE, SECONDS))
    assert [outcome for outcome in outcomes if outcome.verdict == "FAILED"] == []
    assert sum(outcome.verdict in ("right", "refused") for outcome in outcomes) >= 300  # some need a decoder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "expected", "verdict"),
    [
        (odd_cts.Answer(patch=np.zeros((SIZE,) * 3)), SAME, "FAILED"),
        (odd_cts.Answer(patch=np.zeros((SIZE,) * 3)), "spacing", "FAILED"),
        (odd_cts.Answer(refusal="{}: the spacing is 0; correct it"), "spacing", "refused"),
        (odd_cts.Answer(refusal="{}: the spacing is 0; correct it"), "origin", "FAILED"),
        (odd_cts.Answer(refusal="{}: the spacing is 0; correct it"), SAME, "FAILED"),
        (odd_cts.Answer(refusal="the spacing is 0; correct it"), "spacing", "FAILED"),
        (odd_cts.Answer(refusal="{}: the\nspacing is 0; correct it"), "spacing", "FAILED"),
        (odd_cts.Answer(refusal="{}: the spacing is 0; correct it", peak_mb=101), "spacing", "FAILED"),
        (odd_cts.Answer(failure="ValueError"), "spacing", "FAILED"),
    ],
)
def test_any_other_result_is_a_failure(scan, tmp_path, answer, expected, verdict):
    case = Case(tmp_path / "ct.nii", scan.volume, scan.point)
    answer = answer._replace(refusal=answer.refusal.format(case.path))
    assert odd_cts.judge(Kind("odd", None, expected), case, answer, budget_mb=100).verdict == verdict


def test_a_clean_scan_that_cannot_be_read_is_refused(scan, tmp_path):
    with pytest.raises(UserError, match="lies outside"):
        odd_cts.stage(REAL, np.zeros(3) + 1e4, tmp_path)
    broken = scan._replace(files=[tmp_path / "nowhere" / "0.dcm"])
    with pytest.raises(UserError, match="clean scan cannot be read"):
        next(odd_cts.try_kinds(odd_cts.KINDS, broken, tmp_path, SIZE, SECONDS))


class Sleep:
    """An object that sleeps for an hour when it is unpickled, in the reader's process."""

    def __reduce__(self):
        return time.sleep, (3600,)


def test_a_reader_that_hangs_is_killed():
    answer = odd_cts.ask(Sleep(), NODULE, SIZE, seconds=0.5)
    assert "hangs" in answer.failure
