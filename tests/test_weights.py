"""The shipped weights are complete and small, and they work on a real scan that they were not trained on."""

import json
import shutil

import jax
import numpy as np
import pytest
from ct_files import REAL

import pnsamp_jax
from pnsamp_jax import metrics, outlines
from pnsamp_jax.data import schema
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry, make_record
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.ensemble import SHIPPED
from pnsamp_jax.workdir import layout


@pytest.fixture(scope="module")
def shipped():
    return ensemble.load(SHIPPED)


def test_weights_are_five_networks_in_a_few_megabytes(shipped):
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 15e6
    assert list(shipped.members) == [f"fold_{k}" for k in range(5)]
    assert (shipped.patch_size, shipped.spacing_mm) == (32, 1.2)
    assert shipped.windows == ((1600.0, -600.0), (700.0, -600.0))
    variables = [network.variables for network in shipped.members.values()]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_weights_come_with_all_that_tells_how_sure_an_answer_is(shipped):
    for network in shipped.members.values():
        assert all(part is not None for part in network), "the report would leave a field blank"
        assert np.isfinite(network.class_limits[:, schema.MALIGNANCY, :5]).all()
        assert np.isfinite(network.likeness).all()
        assert (network.extent_limits[:, 0] < 0).all() and (network.extent_limits[:, 1] > 0).all()
    assert shipped.fitted_threshold


def test_weights_say_which_patients_each_network_never_saw():
    fold_of = layout.fold_of_patients(SHIPPED / "folds.json")
    assert len(fold_of) == 785 and set(fold_of.values()) == {0, 1, 2, 3, 4}
    assert "LIDC-IDRI-0001" not in fold_of  # the scan of the test below


def test_weights_hold_no_path_of_a_machine():
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["data"]["root"] == config["data"]["cache"] == ""
    contents = [path.read_bytes() for path in SHIPPED.rglob("*") if path.is_file()]
    assert not any(folder in content for content in contents for folder in (b"/home/", b"/root/", b"/tmp/"))


def test_a_damaged_file_is_noticed(tmp_path):
    copy = shutil.copytree(SHIPPED, tmp_path / "weights")
    path = max((copy / "fold_1" / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"fold_1/weights: damaged, since it does not match weights\.sha256"):
        ensemble.load(copy)


@pytest.mark.data
def test_weights_outline_the_nodule_of_a_real_scan_and_find_it_suspicious_as_its_readers_did(shipped):
    source = LidcSource(str(REAL))
    (marked,) = source.load(source.series()[0])
    record = make_record(marked, Geometry(32, 0, 1.2))
    predicted = ensemble.predict(shipped, record[schema.IMAGE][None], flips=False)
    dice = outlines.dice(predicted.mask > 0.5, record[schema.MASK][None] >= schema.MASK_UNIT / 2)
    assert dice > 0.7  # 0.87 in the scan's own grid; readers agree to about 0.8
    assert metrics.expected(predicted.mean_probabilities[:, schema.MALIGNANCY])[0] > 3.5  # the readers: 5, 5, 5 and 4


@pytest.mark.slow  # a network of full size is compiled
def test_openvino_predicts_the_example_as_jax_does():
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'pnsamp-jax[openvino]'")
    predictors = [pnsamp_jax.load(flips=False, runtime=runtime) for runtime in ensemble.RUNTIMES]
    ours, theirs = (predictor(pnsamp_jax.EXAMPLE_CT, (56.4, 86.3, -116.0)) for predictor in predictors)
    assert ours.status == theirs.status == "ok"
    # In float32, summed in another order. A voxel may lie on the threshold. The heads measure the mask, so differences
    # of 1e-5 in its logits become differences of up to 2e-4 in their probabilities, depending on the processor.
    assert (ours.mask != theirs.mask).sum() <= 2 and theirs.volume_mm3 == pytest.approx(ours.volume_mm3, rel=0.005)
    np.testing.assert_allclose(theirs.finding.probability, ours.finding.probability, atol=1e-4)
    np.testing.assert_allclose(theirs.finding.probabilities, ours.finding.probabilities, atol=1e-3)
    assert theirs.contributions == pytest.approx(ours.contributions, abs=1e-3)
