"""Reliability: a run whose probabilities are overconfident by a known amount."""

import json

import numpy as np
import pytest

from experiments import reliability
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir import tables

N, FOLDS = 40, 2
CONFIDENCE = 0.9  # probability of the predicted class, which is the readers' class in three of four nodules
TEMPERATURES = (2.0, 4.0)  # of malignancy, by fold; 1 for the other ratings


def softened(p, temperature):
    """Return the larger of two probabilities after scaling."""
    powers = np.array([p, 1 - p]) ** (1 / temperature)
    return powers[0] / powers.sum()


@pytest.fixture
def workdir(tmp_path):
    truth = np.where(np.arange(N) % 2, 5, 1)
    predicted = np.where(np.arange(N) % 4 == 3, 1, truth)  # wrong for half of the malignant nodules
    rating_counts = np.zeros((N, 9, 6), np.uint8)
    rating_counts[np.arange(N)[:, None], np.arange(9), np.full((N, 9), 3)] = 1
    rating_counts[:, schema.MALIGNANCY] = np.eye(6)[truth - 1]
    records = {
        schema.NODULE_ID: np.array([f"n{i:02d}" for i in range(N)]),
        schema.PATIENT_ID: np.array([f"p{i:02d}" for i in range(N)]),
        schema.CONTEXT: np.where(np.arange(N) < 8, "cube", "slab"),
        schema.RATING_COUNTS: rating_counts,
        schema.READER_DICE: np.full(N, np.nan),
        schema.DIAMETER: np.full(N, 8.0),
    }
    p = np.tile(np.eye(6)[3], (N, 9, 1))
    p[:, schema.MALIGNANCY] = CONFIDENCE * np.eye(6)[predicted - 1] + (1 - CONFIDENCE) * np.eye(6)[5 - predicted]
    tables.write_readers(tmp_path / "readers.csv", records)
    for fold in range(FOLDS):
        tested = np.arange(N) // 4 % 2 == fold
        test_records = {name: values[tested] for name, values in records.items()}
        folder = tmp_path / f"fold_{fold}"
        tables.write_predictions(folder / "predictions.csv", fold, test_records, "modal", {}, p[tested])
        temperatures = dict.fromkeys(schema.RATING_NAMES, 1.0) | {"malignancy": TEMPERATURES[fold]}
        calibration = {"checkpoint": "best", "step": 1, "temperatures": temperatures, "features": []}
        (folder / "calibration.json").write_text(json.dumps(calibration))
    tables.gather_predictions(tmp_path)
    return tmp_path


def test_every_fold_is_scaled_by_its_own_temperatures(workdir):
    table = tables.read_tables(workdir)
    after = reliability.scaled(table, workdir)
    for fold, temperature in enumerate(TEMPERATURES):
        largest = after["probabilities"][table["fold"] == fold, schema.MALIGNANCY].max(axis=1)
        np.testing.assert_allclose(largest, softened(CONFIDENCE, temperature))
    others = [index for index in range(9) if index != schema.MALIGNANCY]
    np.testing.assert_allclose(after["probabilities"][:, others], table["probabilities"][:, others])


def test_the_results_are_those_of_the_known_probabilities(workdir):
    results = reliability.run(workdir)
    assert results.keys() == {"cube", "slab"} and results["cube"]["nodules"] == 8
    assert (workdir / "reliability.json").read_text() == json.dumps(results, indent=1)
    after = [softened(CONFIDENCE, temperature) for temperature in TEMPERATURES]
    for context, found in results.items():
        likelihood = found["malignancy"]["negative_log_likelihood"]
        before = -0.75 * np.log(CONFIDENCE) - 0.25 * np.log(1 - CONFIDENCE)
        scaled = np.mean([-0.75 * np.log(p) - 0.25 * np.log(1 - p) for p in after])
        assert likelihood["before"] == pytest.approx(before)
        assert likelihood["after"] == pytest.approx(scaled)
        assert likelihood["change"]["value"] == pytest.approx(scaled - before)
        low, high = likelihood["change"]["interval"]
        assert low < scaled - before < high
        mean = found["mean_of_nine"]["negative_log_likelihood"]  # 0 in the other eight
        assert mean["before"] == pytest.approx(before / 9) and mean["after"] == pytest.approx(scaled / 9)
        # Of the nodules predicted 0.9 all are malignant; of those predicted 0.1, three of four nodules, a third are.
        assert found["calibration_error"]["before"] == pytest.approx(0.75 * (1 / 3 - 0.1) + 0.25 * 0.1)
        assert (workdir / "figures" / f"reliability_{context}.png").stat().st_size > 5000


def test_a_fold_without_temperatures_is_refused(workdir):
    (workdir / "fold_1" / "calibration.json").unlink()
    with pytest.raises(UserError, match=r"fold_1/calibration\.json: no such file; run --mode evaluate"):
        reliability.run(workdir)
    assert not (workdir / "reliability.json").exists()
