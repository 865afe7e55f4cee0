"""What the tests of the experiments share."""

import numpy as np
import pytest
from made_up_runs import HALF, MALIGNANCY, TRUTH, N, blank, certain, make_run
from tiny_run import tiny_config

from pnsamp_jax import train
from pnsamp_jax.data import schema


@pytest.fixture(scope="module")
def tested_run(tmp_path_factory, quick_compilation):
    """Return the config and the workdir of a trained and tested run, which no test may change."""
    config, workdir = tiny_config(num_epochs=1), tmp_path_factory.mktemp("tested") / "run"
    train.train_and_evaluate(config, workdir)
    return config, workdir


@pytest.fixture
def root(tmp_path):
    """Return a folder of three runs.

    M is right with Dice 0.7; S1 is wrong in the malignancy of the first half, with Dice 0.6; MCNN predicts malignancy
    alone.
    """
    make_run(tmp_path / "pn_samp_m", certain(TRUTH), np.full(N, 0.7))
    make_run(tmp_path / "pn_samp_s1", certain(np.where(HALF, 6 - TRUTH, TRUTH)), np.full(N, 0.6))
    make_run(tmp_path / "mcnn", certain(np.where(TRUTH == 1, 2, 4)))
    for rating in schema.RATING_NAMES[:MALIGNANCY]:
        blank(tmp_path / "mcnn", rating)
    return tmp_path
