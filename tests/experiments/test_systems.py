"""Every system of the tables, from the protocol to a scored run, with tiny networks and simulated voxels."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import TRUTH, certain, make_run
from tiny_run import tiny_config

from experiments import table2
from experiments.comparison import systems
from experiments.comparison.runs import is_complete, read_run, require_same
from experiments.comparison.tables import make_table
from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import rated

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

# The fields of small networks, by model.
SMALL = {
    "unet3d": {"features": 2},
    "tumornet": {"features": (2, 2), "hidden": 4},
    "shc_dcnn": {"features": (2, 2), "hidden": 4},
    "mcnn": {"features": (2, 2), "hidden": 4},
    "cnn_mtl": {"features": (2, 2), "hidden": 2},
    "pn_samp": {"features": (2, 4), "mask_features": (2,)},
}
MALIGNANCY = {"malignancy"}
SEVEN = MALIGNANCY | {"calcification", "lobulation", "spiculation", "sphericity", "margin", "texture"}
NINE = set(schema.RATING_NAMES)
# By system: the ratings that it predicts, and whether it predicts a mask.
PREDICTS = {
    "depth": (NINE, False),
    "diameter": (NINE, False),
    "radiomics": (NINE, False),
    "radiomics_predicted": (NINE, False),
    "tumornet": (MALIGNANCY, False),
    "tumornet_readers": (MALIGNANCY, False),
    "tumornet_predicted": (MALIGNANCY, False),
    "shc_dcnn": (NINE, False),
    "shc_dcnn_predicted": (NINE, False),
    "mcnn": (MALIGNANCY, False),
    "cnn_mtl": (SEVEN, False),
    "unet3d": (set(), True),
    "pn_samp_seg": (set(), True),
    "pn_samp_c": (NINE, False),
    "pn_samp_s1": (NINE, True),
    "pn_samp_s2": (NINE, True),
    "pn_samp_m": (NINE, True),
    "pn_samp_mean": (NINE, False),
}


def protocol():
    """Return a protocol with one fold of one epoch."""
    return tiny_config(fold=0, num_epochs=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Return the folder of all systems, to which each test adds the runs that it needs."""
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Give every system a small network."""
    config_of = systems.config_of

    def small(key, config):
        config = config_of(key, config)
        for field, value in SMALL.get(config.model.name, {}).items():
            config.model[field] = value
        return config

    monkeypatch.setattr(systems, "config_of", small)
    monkeypatch.setattr("experiments.baselines.second_stage.TREES", 5)


def test_every_system_is_tested_here():
    assert PREDICTS.keys() == systems.SYSTEMS.keys()


def test_a_system_runs_once_after_the_systems_it_needs(tmp_path, monkeypatch):
    ran = []

    def run(config, workdir):
        ran.append(workdir.name)
        make_run(workdir, certain(TRUTH))

    fakes = {
        "masks": systems.System("Masks", run=run),
        "forest": systems.System("Forest", run=run, needs=("masks",)),
    }
    monkeypatch.setattr(systems, "SYSTEMS", fakes)
    two_folds = tiny_config(num_folds=2)
    systems.run_system("forest", two_folds, tmp_path)
    systems.run_system("forest", two_folds, tmp_path)
    assert ran == ["masks", "forest"]
    (tmp_path / "masks" / "results.json").unlink()  # as if the run had been stopped
    systems.run_system("forest", two_folds, tmp_path)
    assert ran == ["masks", "forest", "masks"]


def test_systems_that_are_needed_exist():
    assert all(needed in systems.SYSTEMS for system in systems.SYSTEMS.values() for needed in system.needs)


@pytest.mark.parametrize("key", PREDICTS)
def test_a_system_trains_and_is_scored(key, root):
    systems.run_system(key, protocol(), root)
    assert is_complete(root / key, [0])
    table = read_run(root / key)
    ratings, mask = PREDICTS[key]
    assert set(np.array(schema.RATING_NAMES)[rated(table)]) == ratings
    assert (table["dice"] >= 0).all() == mask
    results = json.loads((root / key / "results.json").read_text())["contexts"]["simulated"]
    assert results["n"] == len(json.loads((root / key / "folds.json").read_text())["folds"][0]["test"]["nodules"])
    assert ("malignancy" in results) == ("malignancy" in ratings)
    assert (results["dice"]["value"] is not None) == mask


def test_all_systems_test_the_same_nodules(root):
    for key in ("mcnn", "cnn_mtl", "pn_samp_c", "radiomics"):
        systems.run_system(key, protocol(), root)  # does nothing if the tests above have run it
    require_same({root / key: read_run(root / key) for key in systems.SYSTEMS if (root / key).is_dir()})


def test_table_2_of_what_was_run(root, capsys):
    make_table("table2", table2.SHOWN, table2.build, protocol(), root, ["diameter", "pn_samp_c"])
    text = (root / "table2_simulated.md").read_text()
    assert text in capsys.readouterr().out + "\n"
    assert "| PN-SAMP C " in text and "Diameter alone" in text and "SIMULATED VOXELS" in text
