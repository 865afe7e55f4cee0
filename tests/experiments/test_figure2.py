"""Figure 2: the choice of nodules from a fold, and the readers' ratings next to the predictions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_config

from experiments import figure2
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import attribution, ensemble
from pnsamp_jax.workdir import layout

REPOSITORY = Path(__file__).resolve().parents[2]
N, SIZE, MARGIN = 9, 16, 2
DIAMETERS = np.array([9, 1, 8, 2, 7, 3, 6, 4, 5], np.float32)  # of n0, n1, ...


def test_importing_defines_no_flags():
    # In a process of its own: other tests import command lines.
    program = "from absl import flags; known = set(flags.FLAGS)\n"
    program += "from experiments import export_weights, figure2, jitter, reliability\n"
    program += "print(*{'workdir', 'config', 'out', 'context'} & set(flags.FLAGS) - known)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == []


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Return a run whose fold 1 tests n1 to n8; its networks mark the middle of each patch."""
    stored = SIZE + 2 * MARGIN
    images = np.random.default_rng(0).integers(-1000, 400, (N, stored, stored, stored)).astype(np.int16)
    shares = np.zeros(images.shape, np.uint8)
    shares[:, MARGIN : MARGIN + 3] = schema.MASK_UNIT // 2  # of half of the readers
    shares[:, MARGIN + 3] = schema.MASK_UNIT // 3
    rating_counts = np.zeros((N, 9, 6), np.uint8)
    classes = np.where(np.arange(N) % 2, 1, 5)  # in every rating: 1 for n1, n3, ...; 5 for the others
    rating_counts[np.arange(N), :, classes - 1] = 1
    records = {
        schema.NODULE_ID: np.array([f"n{i}" for i in range(N)]),
        schema.PATIENT_ID: np.array([f"p{i}" for i in range(N)]),
        schema.CONTEXT: np.where(DIAMETERS > 6, "cube", "slab"),
        schema.RATING_COUNTS: rating_counts,
        schema.DIAMETER: DIAMETERS,
        schema.IMAGE: images,
        schema.MASK: shares,
    }

    def predict(networks, images):
        assert list(networks.members) == ["fold_1"]
        n, mask = len(images), np.zeros((len(images), SIZE, SIZE, SIZE))
        mask[:, 6:10, 6:10, 6:10] = 0.9
        return ensemble.Predictions(mask, np.tile(np.eye(6)[1], (1, 1, n, 9, 1)), np.zeros((1, 1, n, 2)))

    network = ensemble.Network({}, np.ones(9, np.float32), None)
    networks = ensemble.Networks(None, SIZE, 2.0, (), {"fold_0": network, "fold_1": network})
    monkeypatch.setattr(ensemble, "load", lambda folder: networks)
    monkeypatch.setattr(ensemble, "predict", predict)
    monkeypatch.setattr(attribution, "mean_contributions", lambda networks, predictions: np.zeros((N, 9)))
    monkeypatch.setattr(figure2, "load_records", lambda settings: records)
    tested = (["n0"], [f"n{i}" for i in range(1, N)], [])
    split = [{name: {"nodules": ids if name == "test" else []} for name in layout.SUBSETS} for ids in tested]
    config = tiny_config(fold=1, num_folds=3)
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "folds.json").write_text(
        json.dumps({"cohort": config.data.cohort, "split": config.split, "seed": 0, "folds": split})
    )
    return config, tmp_path, images


def test_nodules_of_the_fold_are_spread_by_diameter(workdir):
    config, folder, images = workdir
    findings = figure2.test_findings(config, folder, 3)
    assert [finding.nodule_id for finding in findings] == ["n1", "n8", "n2"]  # 1, 5 and 8 mm of 1 to 8
    assert [finding.image for finding in findings] == ["slab, 1 mm", "slab, 5 mm", "cube, 8 mm"]
    middle = slice(MARGIN, MARGIN + SIZE)
    for finding, index, truth in zip(findings, (1, 8, 2), (1, 5, 5), strict=True):
        np.testing.assert_array_equal(finding.hu, images[index, middle, middle, middle])
        assert finding.truth.tolist() == [truth] * 9 and finding.arg_max.tolist() == [2] * 9
        assert finding.readers_mask[:3].all() and not finding.readers_mask[3:].any()
        assert (finding.mask.sum(), finding.volume_mm3, finding.spacing_mm) == (64, 512, 2)


def test_nodules_of_one_context_of_which_there_are_few(workdir):
    config, folder, _ = workdir
    findings = figure2.test_findings(config, folder, 6, "cube")
    assert [finding.nodule_id for finding in findings] == ["n4", "n2"]
    with pytest.raises(UserError, match="--context=ct: fold 1 tests no such nodule"):
        figure2.test_findings(config, folder, 6, "ct")


def test_a_folder_without_a_run_is_refused_and_left_as_it_is(workdir):
    config, folder, _ = workdir
    for name in ("runs", "weights"):  # a typing error; and exported weights, which have no split
        if name == "weights":
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(config.to_json())
        before = sorted(folder.rglob("*"))
        with pytest.raises(UserError, match=rf"{name}/folds\.json: no such file; give the workdir of a training"):
            figure2.test_findings(config, folder / name, 3)
        assert sorted(folder.rglob("*")) == before


def test_a_fold_that_is_not_tested_is_refused(workdir):
    config, folder, _ = workdir
    config.fold = 2
    with pytest.raises(UserError, match="fold_2: is not trained and tested"):
        figure2.test_findings(config, folder, 3)
