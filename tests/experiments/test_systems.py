"""Every system of the tables, from the protocol to a scored run: tiny networks, simulated voxels."""

import json
from pathlib import Path

import pytest
from tiny_run import tiny_config

from experiments import table2
from experiments.comparison import systems
from experiments.comparison.runs import is_complete, read_run, require_same
from experiments.comparison.tables import make_table
from pnsamp_jax.data import schema
from pnsamp_jax.workdir.tables import rated

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Fields that make a system's network small.
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
# System -> the ratings that it gives, whether it gives a mask.
GIVES = {
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
    """One fold of one epoch."""
    return tiny_config(fold=0, num_epochs=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The folder of all the systems; each test adds the runs that it needs."""
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Every system with a small network."""
    config_of = systems.config_of

    def small(key, config):
        config = config_of(key, config)
        for field, value in SMALL.get(config.model.name, {}).items():
            config.model[field] = value
        return config

    monkeypatch.setattr(systems, "config_of", small)
    monkeypatch.setattr("experiments.baselines.second_stage.TREES", 5)


def test_every_system_is_tested_here():
    assert GIVES.keys() == systems.SYSTEMS.keys()


@pytest.mark.parametrize("key", GIVES)
def test_a_system_trains_and_is_scored(key, root):
    systems.run_system(key, protocol(), root)
    assert is_complete(root / key, [0])
    table = read_run(root / key)
    ratings, mask = GIVES[key]
    assert {name for name, gives in zip(schema.RATING_NAMES, rated(table), strict=True) if gives} == ratings
    assert (table["dice"] >= 0).all() == mask
    results = json.loads((root / key / "results.json").read_text())["contexts"]["simulated"]
    assert results["n"] == len(json.loads((root / key / "folds.json").read_text())["folds"][0]["test"]["nodules"])
    assert ("malignancy" in results) == ("malignancy" in ratings)
    assert (results["dice"]["value"] is not None) == mask


def test_all_systems_test_the_same_nodules(root):
    for key in ("mcnn", "cnn_mtl", "pn_samp_c", "radiomics"):
        systems.run_system(key, protocol(), root)  # nothing, where the tests above have run them
    require_same({root / key: read_run(root / key) for key in systems.SYSTEMS if (root / key).is_dir()})


def test_table_2_of_what_was_run(root, capsys):
    make_table("table2", table2.SHOWN, table2.build, protocol(), root, ["diameter", "pn_samp_c"])
    text = (root / "table2_simulated.md").read_text()
    assert text in capsys.readouterr().out + "\n"
    assert "| PN-SAMP C " in text and "Diameter alone" in text and "SIMULATED VOXELS" in text
