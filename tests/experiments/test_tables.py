"""The three tables, on made-up runs whose results and differences are known; nothing is trained."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import MALIGNANCY, RESAMPLES, TRUTH, blank, certain, made_up_records, make_run

from experiments import table1, table2, table3
from experiments.comparison import paired, runs, systems, tables
from pnsamp_jax import metrics
from pnsamp_jax.configs import base
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.layout import write_config
from pnsamp_jax.workdir.tables import gather_predictions


def build(root: Path, module, shown: list[str] | None = None, context: str = "slab") -> dict[str, list[dict]]:
    """Return the rows of one context by block, each row a dict of cells."""
    table_runs = tables.read_runs(root, shown or [tables.PN_SAMP, *module.SHOWN], [0, 1])
    of_context = {key: runs.select(table, table["context"] == context) for key, table in table_runs.items()}
    return module.build(of_context, RESAMPLES).blocks


def row_of(rows: list[dict], name: str) -> dict:
    """Return the only row whose first cell is `name`."""
    (row,) = (row for row in rows if next(iter(row.values())) == name)
    return row


# The numbers


def test_table_1(root):
    (rows,) = build(root, table1).values()
    m, s1, reader = (row_of(rows, name) for name in ("PN-SAMP M", "PN-SAMP S1", "One reader"))
    assert str(m["Dice"]) == "70.0 [70.0, 70.0]"
    assert m["n"] == s1["n"] == 32 and reader["n"] == 16  # the slabs, and those with a reader's Dice
    assert str(reader[table1.THREE]) == "80.0 [80.0, 80.0]" and str(m[table1.THREE]) == "70.0 [70.0, 70.0]"
    assert str(m["HD95, mm"]) == "7.0 [7.0, 7.0]" and str(m["NSD"]) == "35.0 [35.0, 35.0]"  # mm, and per cent
    assert reader["HD95, mm"] == reader["NSD"] == "-"
    assert m["over folds, mean (SEM)"] == "70.00 (0.00)" and m["paper"] == "73.89"
    assert m["against PN-SAMP M"] == "-"
    assert str(s1["against PN-SAMP M"]) == "-10.0 [-10.0, -10.0]"
    assert str(reader["against PN-SAMP M"]) == "+10.0 [+10.0, +10.0]"


def test_table_2(root):
    (rows,) = build(root, table2).values()
    m, s1, mcnn = (row_of(rows, name) for name in ("PN-SAMP M", "PN-SAMP S1", "MCNN"))
    # S1 is wrong on 12 of the 32 slabs: on all nodules of six patients.
    assert {row["n"] for row in (m, s1, mcnn)} == {32}
    assert s1[table2.WITHIN_ONE].value == s1[table2.ARG_MAX].value == pytest.approx(20 / 32)
    assert s1[table2.WITHIN_ONE_DIFFERENCE].value == pytest.approx(-12 / 32)
    low, high = s1[table2.WITHIN_ONE_DIFFERENCE].interval
    assert low < -12 / 32 < high < 0
    assert m["AUC"].value == 1 and s1["AUC"].value == pytest.approx(20 / 32)
    assert s1[table2.AUC_DIFFERENCE].value == pytest.approx(-12 / 32)
    read = tables.read_runs(root, table2.SHOWN, [0, 1])
    slabs = [runs.select(read[key], read[key]["context"] == "slab") for key in ("pn_samp_s1", "pn_samp_m")]
    ours, theirs = (metrics.expected(table["probabilities"][:, MALIGNANCY]) for table in slabs)
    assert float(s1["DeLong p"]) == pytest.approx(paired.delong(ours, theirs, TRUTH[8:] > 3).p, rel=0.05)
    assert [m[name] for name in (table2.WITHIN_ONE_DIFFERENCE, table2.AUC_DIFFERENCE, "DeLong p")] == ["-"] * 3
    assert str(mcnn[table2.WITHIN_ONE_DIFFERENCE]) == "+0.0 [+0.0, +0.0]" and mcnn["paper"] == "86.84"


def test_the_baselines_of_table_2(root):
    (rows,) = build(root, table2).values()
    constant, reader = row_of(rows, "Best constant (1)"), row_of(rows, "One reader")
    assert constant[table2.WITHIN_ONE].value == 0.5
    assert constant[table2.WITHIN_ONE_DIFFERENCE].value == -0.5 and str(constant["AUC"]) == "50.0"
    assert reader[table2.WITHIN_ONE].value == 1.0 and reader["n"] == 32 and reader["AUC"] == "-"


def test_table_3(root):
    make_run(root / "cnn_mtl", certain(TRUTH, attributes=2))  # two off in every attribute, two of which
    for rating in ("subtlety", "internal_structure"):
        blank(root / "cnn_mtl", rating)
    best, arg_max = build(root, table3).values()
    assert row_of(best, "malignancy")["PN-SAMP S1"].value == pytest.approx(20 / 32)
    assert str(row_of(best, "subtlety")["CNN-MTL"]) == "-" and row_of(best, "margin")["CNN-MTL"].value == 0
    assert row_of(best, "margin")["n"] == 32
    names = (
        "mean of the seven ordinal",
        "mean of the six ordinal that CNN-MTL rates",
        "mean of nine, as in the paper",
    )
    seven, six, nine = (row_of(best, name) for name in names)
    assert nine["PN-SAMP S1"].value == pytest.approx((8 + 20 / 32) / 9)
    assert seven["PN-SAMP S1"].value == pytest.approx((6 + 20 / 32) / 7)
    assert str(nine["CNN-MTL"]) == str(seven["CNN-MTL"]) == "-" and six["CNN-MTL"].value == pytest.approx(1 / 6)
    assert row_of(best, "calcification (exact)")["CNN-MTL"].value == 0
    difference = row_of(best, "mean of nine, as in the paper, against PN-SAMP M")
    assert difference["PN-SAMP S1"].value == pytest.approx(-12 / 32 / 9) and difference["PN-SAMP M"] == "-"
    assert str(difference["one reader"]) == "+0.0 [+0.0, +0.0]"
    assert difference["best constant"].value == pytest.approx(-0.5 / 9)
    assert str(row_of(best, "malignancy")["best constant"]).endswith("] (1)")
    assert row_of(best, "mean of nine, paper's own")["PN-SAMP M"] == "89.33"
    assert row_of(arg_max, "malignancy")["PN-SAMP S1"].value == pytest.approx(20 / 32)


def test_nominal_ratings_are_exact_and_the_mean_of_nine_is_the_papers(root):
    """Calcification is rated 3, 6, 6: the modal class is 6, the rounded mean 5. One system predicts 6, the other 5."""
    calcification, folder = 2, root / "nominal"
    records = made_up_records()
    records[schema.RATING_COUNTS][:, calcification] = np.array([0, 0, 1, 0, 0, 2])
    for key, chosen in (("pn_samp_m", 6), ("pn_samp_s1", 5)):
        probabilities = certain(TRUTH)
        probabilities[:, calcification] = np.arange(1, 7) == chosen
        make_run(folder / key, probabilities, records=records)
    best, _ = build(folder, table3).values()
    row = row_of(best, "calcification (exact)")
    assert row["PN-SAMP M"].value == 1 and row["PN-SAMP S1"].value == 0
    assert row["best constant"].value == 1 and str(row["best constant"]).endswith("(6)")
    assert row["one reader"].value == pytest.approx(2 / 3)
    nine = row_of(best, "mean of nine, as in the paper")
    assert nine["PN-SAMP M"].value == nine["PN-SAMP S1"].value == 1  # both are within one of 5
    assert row_of(best, "mean of nine, as in the paper, against PN-SAMP M")["PN-SAMP S1"].value == 0


# Systems that were not run


def test_systems_that_were_not_run_or_use_the_readers_are_marked(root):
    (rows,) = build(root, table2).values()
    oracle = row_of(rows, f"TumorNet-attribute, readers' ratings (oracle) {tables.READERS_MARK}")
    assert oracle["n"] == "not run" and oracle["paper"] == "92.31" and oracle["AUC"] == "-"
    assert row_of(rows, "TumorNet-attribute, predicted ratings")["n"] == "not run"
    marked = [row["system"] for row in rows if row["system"].endswith(tables.READERS_MARK)]
    assert len(marked) == 4 and not any("predicted" in name for name in marked)
    best, _ = build(root, table3).values()
    assert row_of(best, "margin")["CNN-MTL"] == row_of(best, "mean of nine, as in the paper")["CNN-MTL"] == "not run"


def test_without_pn_samp_m_there_are_no_differences(root):
    (rows,) = build(root, table2, ["pn_samp_s1", "mcnn"]).values()
    assert row_of(rows, "PN-SAMP M")["n"] == "not run"
    assert {row[table2.WITHIN_ONE_DIFFERENCE] for row in rows} == {"-"}
    best, _ = build(root, table3, ["pn_samp_s1"]).values()
    assert not any("against" in row["rating"] for row in best)
    (rows,) = build(root, table1, ["pn_samp_s1"]).values()
    assert {row["against PN-SAMP M"] for row in rows} == {"-"}


def test_a_run_that_lacks_a_fold_counts_as_not_run(root, capsys):
    half = root / "pn_samp_c"
    make_run(half, certain(TRUTH))
    (half / "fold_1" / "predictions.csv").unlink()
    gather_predictions(half)
    assert list(tables.read_runs(root, ["pn_samp_m", "pn_samp_c"], [0, 1])) == ["pn_samp_m"]
    assert "pn_samp_c: is not finished" in capsys.readouterr().out
    assert list(tables.read_runs(root, ["pn_samp_m", "pn_samp_c"], [0])) == ["pn_samp_m", "pn_samp_c"]


def test_only_the_chosen_folds_count(root):
    assert set(tables.read_runs(root, ["pn_samp_m"], [1])["pn_samp_m"]["fold"]) == {1}


def test_a_table_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of the table's systems was run"):
        tables.read_runs(tmp_path, table1.SHOWN, [0])


# Files


def test_every_context_has_its_own_files_with_the_same_numbers(root, capsys):
    table_runs = tables.read_runs(root, table3.SHOWN, [0, 1])
    cube, slab = (
        {key: runs.select(table, table["context"] == context) for key, table in table_runs.items()}
        for context in ("cube", "slab")
    )
    tables.write_pages("table1", table1.build, table_runs, root, RESAMPLES)
    tables.write_pages("table2", table2.build, slab, root, RESAMPLES)
    tables.write_pages("table3", table3.build, cube, root, RESAMPLES)
    written = {path.name for path in root.iterdir() if path.is_file() and path.stat().st_size}
    names = ("table1_cube", "table1_slab", "table2_slab", "table3_cube")
    assert written == {name + end for name in names for end in (".md", ".csv", ".png")}
    printed = capsys.readouterr().out
    assert "8 nodules of 4 patients (real voxels, cubes" in printed and "32 nodules of 16 patients" in printed
    assert "| PN-SAMP S1 | 32 | 60.0 [60.0, 60.0] |" in " ".join((root / "table1_slab.md").read_text().split())
    with (root / "table2_slab.csv").open(newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    s1 = rows["PN-SAMP S1"]
    assert float(s1["AUC"]) == 62.5 and float(s1["AUC low"]) < 62.5 < float(s1["AUC high"])
    assert float(s1["best within one, against PN-SAMP M"]) == -37.5 and rows["CNN-MTL"]["n"] == "not run"
    with (root / "table3_cube.csv").open(newline="") as file:
        blocks = [row["block"] for row in csv.DictReader(file)]
    assert list(dict.fromkeys(blocks)) == list(table3.DECODINGS.values())


def test_a_table_of_finished_runs_needs_no_data(root, monkeypatch, capsys):
    monkeypatch.setattr(tables, "RESAMPLES", RESAMPLES)
    protocol = base.get_config()
    protocol.num_folds = 2
    protocol.data.source, protocol.data.root = "folder", "/nowhere"
    for key in table1.SHOWN:
        if (root / key).is_dir():
            write_config(root / key, json.loads(systems.config_of(key, protocol).to_json()))
    tables.make_table("table1", table1.SHOWN, table1.build, protocol, root, [])
    assert "PN-SAMP S1" in capsys.readouterr().out and (root / "table1_slab.png").is_file()
    protocol.num_epochs += 1
    with pytest.raises(UserError, match="config.num_epochs"):
        tables.make_table("table1", table1.SHOWN, table1.build, protocol, root, [])


def test_an_unknown_system_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="--systems: 'mcnn' is not in table1, which shows unet3d"):
        tables.make_table("table1", table1.SHOWN, table1.build, base.get_config(), tmp_path / "new", ["mcnn"])
    assert not (tmp_path / "new").exists()


def test_every_system_shown_exists_and_is_shown():
    assert {*table1.SHOWN, *table2.SHOWN, *table3.SHOWN} == systems.SYSTEMS.keys()
