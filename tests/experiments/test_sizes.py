"""How well sizes are known: intervals that hold the true size, and how far readers are apart."""

import numpy as np
import pytest

from experiments import sizes
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.cohort import Nodule
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def made_up():
    """Return four nodules: two volumes are held, one is not, and of the last nothing was outlined."""
    volume = [(100, 50, 200, 150), (100, 80, 160, 100), (10, 5, 20, 100), (0, 0, 0, 70)]
    axis = [(6, 5, 7, 6.5), (6, 5, 7, 8), (3, 2, 4, 6), (0, 0, 0, 5)]
    counts = np.zeros((4, 9, 6), int)
    counts[:, schema.RATING_NAMES.index("texture")] = np.eye(6, dtype=int)[[4, 4, 0, 4]]
    return {
        "sizes": np.stack([np.array(volume, float), np.array(axis, float)], axis=1),
        "readers": np.array([1.5, 2.5, np.nan, np.nan]),
        "patient_id": np.array(["a", "b", "c", "d"]),
        "rating_counts": counts,
        "diameter_mm": np.array([6.0, 6.0, 6.0, 5.0]),
    }


def test_shares_widths_and_ratios_are_those_of_the_nodules_with_a_mask():
    rows = {cells(line)[0]: cells(line) for line in sizes.size_lines(made_up())}
    name, n, held, width, readers, ratio, axis_held, axis_width = rows["all"]
    assert (n, width, readers, ratio) == ("3", "4.00", "2.00 (n = 2)", "0.67")
    assert held.startswith("66.7 [") and axis_held.startswith("33.3 [") and axis_width == "1.40"
    assert rows["texture up to 2.5 (ground glass)"][1:3] == ["1", "0.0"]
    assert "8 mm or more" not in rows


def test_the_readers_ratio_is_that_of_their_volumes():
    masks = np.zeros((3, 4, 4, 4), bool)
    masks[0, :2, :2, :2] = masks[1, 0, 0, :2] = True  # 8 and 2 voxels; the third reader marked nothing
    ct = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4))

    class Source:
        def series(self):
            return ["ct"]

        def load(self, series):
            marked = [(name, Volume(masks[:count], np.eye(4))) for name, count in (("two", 3), ("one", 1), ("no", 3))]
            counts = np.zeros((1, 9), int)
            return [MarkedNodule(Nodule(name, "p", counts), ct, readers, "cube") for name, readers in marked]

    assert sizes.readers_ratio(Source(), {"one", "two"}) == {"two": 4.0}


def test_every_tested_nodule_is_measured(tested_run, tmp_path):
    config, workdir = tested_run
    text = sizes.run(config, workdir, tmp_path / "sizes.md")
    assert (tmp_path / "sizes.md").read_text() == text
    title, *_ = text.splitlines()
    assert title.startswith("## ") and "SIMULATED VOXELS" in title
    with pytest.raises(UserError, match="exists already"):
        sizes.run(config, workdir, tmp_path / "sizes.md")


def test_the_interval_holds_what_was_measured(tested_run):
    probability = np.zeros((1, 8, 8, 8), np.float32)
    probability[0, 2:6, 2:6, 2:6] = 0.9
    mask = probability > 0.5
    networks = sizes.ensemble.load(tested_run[1])
    limits = np.array([[-0.2, 0.4], [-0.1, 0.1]])
    member = next(iter(networks.members.values()))._replace(extent_limits=limits)
    [volume, axis] = sizes.measure(networks._replace(members={"fold_0": member}), probability, mask, mask)[0]
    edge = networks.spacing_mm
    # A cube of four voxels, whose mask is the same at every threshold: the doubt is 0.5, so that half of each limit
    # is the logarithm of the ratio.
    assert volume == pytest.approx(64 * edge**3 * np.array([1, np.exp(-0.1), np.exp(0.2), 1]), rel=1e-6)
    assert axis[1:3] / axis[0] == pytest.approx(np.exp([-0.05, 0.05]), rel=1e-6)
    without = networks._replace(members={"fold_0": member._replace(extent_limits=None)})
    with pytest.raises(UserError, match="have no intervals"):
        sizes.measure(without, probability, mask, mask)
