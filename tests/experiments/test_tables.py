"""The three tables, on runs made up so that every figure and every difference is known; nothing is trained."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pnsamp_jax.configs import base

from experiments import table1, table2, table3
from experiments.comparison import ensemble, paired, runs, scores, systems, tables
from pnsamp_jax import evaluate, metrics
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.tables import gather_predictions, write_predictions, write_readers

N = 40
FEW = 60  # resamples
MALIGNANCY = schema.MALIGNANCY
TRUTH = np.where(np.arange(N) % 4 < 2, 1, 5)  # malignancy; the first and the second two nodules of every four
HALF = np.arange(N) < N // 2


def made_up_records() -> dict[str, np.ndarray]:
    """40 nodules of 20 patients; two readers agree on the truth of malignancy and on 4 in all other ratings."""
    rating_counts = np.zeros((N, 9, 6), np.uint8)
    rating_counts[:, :, 3] = 2
    rating_counts[:, MALIGNANCY, 3] = 0
    rating_counts[np.arange(N), MALIGNANCY, TRUTH - 1] = 2
    return {
        schema.NODULE_ID: np.array([f"n{i:02d}" for i in range(N)]),
        schema.PATIENT_ID: np.array([f"p{i // 2:02d}" for i in range(N)]),
        schema.CONTEXT: np.where(np.arange(N) < 8, "cube", "slab"),
        schema.RATING_COUNTS: rating_counts,
        schema.READER_DICE: np.where(np.arange(N) % 2, 0.8, np.nan).astype(np.float32),
        schema.DIAMETER: np.linspace(4, 20, N, dtype=np.float32),
    }


def certain(malignancy: np.ndarray, attributes: int = 4) -> np.ndarray:
    """(N, 9, 6) probabilities of 1 of the given malignancy (N,), and of one class of all attributes."""
    classes = np.full((N, 9), attributes)
    classes[:, MALIGNANCY] = malignancy
    return (classes[..., None] == np.arange(1, 7)).astype(float)


def make_run(workdir: Path, probabilities: np.ndarray | None, dice: np.ndarray | None = None, keep=None) -> None:
    """A finished run of two folds over the made-up nodules, or over those that are kept (N,) bool."""
    records, fold_of = made_up_records(), np.arange(N) // 2 % 2
    keep = np.full(N, True) if keep is None else keep
    dice = np.full(N, np.nan) if dice is None else dice
    split = []
    for fold in range(2):
        test = (fold_of == fold) & keep
        part = {name: values[test] for name, values in records.items()}
        path = workdir / f"fold_{fold}" / "predictions.csv"
        answers = None if probabilities is None else probabilities[test]
        write_predictions(path, fold, part, dice[test], answers)
        split.append({"test": {"nodules": records[schema.NODULE_ID][test].tolist()}})
    write_readers(workdir / "readers.csv", records)
    gather_predictions(workdir)
    config = {"data": {"source": "folder"}, "model": {"name": "pn_samp", "segment": True, "rate": True, "windows": []}}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "folds.json").write_text(json.dumps({"folds": split}))
    (workdir / "results.json").write_text("{}")


def edit(path: Path, change) -> None:
    """Rewrites a CSV, each row changed in place."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def blank(workdir: Path, rating: str, nodule: str | None = None) -> None:
    """Blanks what a run says of a rating, of all nodules or of one."""

    def change(row: dict) -> None:
        for column in row:
            if column.startswith(rating) and not column.endswith("_true") and nodule in (None, row["nodule_id"]):
                row[column] = ""

    edit(workdir / "predictions.csv", change)


def build(root: Path, module, shown: list[str] | None = None, context: str = "slab") -> dict[str, list[dict]]:
    """The rows of one context by block, each row a dict of cells."""
    table_runs = tables.read_runs(root, shown or [tables.PN_SAMP, *module.SHOWN], [0, 1])
    part = {key: runs.only(table, table["context"] == context) for key, table in table_runs.items()}
    return module.build(part, FEW).blocks


def row_of(rows: list[dict], name: str) -> dict:
    """The one row whose first cell is `name`."""
    (row,) = (row for row in rows if next(iter(row.values())) == name)
    return row


@pytest.fixture
def root(tmp_path):
    """M is right, Dice 0.7; S1 is wrong in the first half's malignancy, Dice 0.6; MCNN rates malignancy alone."""
    make_run(tmp_path / "pn_samp_m", certain(TRUTH), np.full(N, 0.7))
    make_run(tmp_path / "pn_samp_s1", certain(np.where(HALF, 6 - TRUTH, TRUTH)), np.full(N, 0.6))
    make_run(tmp_path / "mcnn", certain(np.where(TRUTH == 1, 2, 4)))
    for rating in schema.RATING_NAMES[:MALIGNANCY]:
        blank(tmp_path / "mcnn", rating)
    return tmp_path


# The figures


def test_table_1(root):
    (rows,) = build(root, table1).values()
    m, s1, reader = (row_of(rows, name) for name in ("PN-SAMP M", "PN-SAMP S1", "One reader"))
    assert str(m["Dice"]) == "70.0 [70.0, 70.0]"
    assert m["n"] == s1["n"] == 32 and reader["n"] == 16  # of the slabs, the odd ones have a reader's Dice
    assert m["over folds, mean (SEM)"] == "70.00 (0.00)" and m["paper"] == "73.89"
    assert m["against PN-SAMP M"] == "-"
    assert str(s1["against PN-SAMP M"]) == "-10.0 [-10.0, -10.0]"
    assert str(reader["against PN-SAMP M"]) == "+10.0 [+10.0, +10.0]"


def test_table_2(root):
    (rows,) = build(root, table2).values()
    m, s1, mcnn = (row_of(rows, name) for name in ("PN-SAMP M", "PN-SAMP S1", "MCNN"))
    # Of the 32 slabs S1 has 12 wrong, in whole patients: half of each class in the first half.
    assert {row["n"] for row in (m, s1, mcnn)} == {32}
    assert s1[table2.WITHIN_ONE].value == s1[table2.ARG_MAX].value == pytest.approx(20 / 32)
    assert s1[table2.WITHIN_ONE_DIFFERENCE].value == pytest.approx(-12 / 32)
    low, high = s1[table2.WITHIN_ONE_DIFFERENCE].interval
    assert low < -12 / 32 < high < 0
    assert m["AUC"].value == 1 and s1["AUC"].value == pytest.approx(20 / 32)
    assert s1[table2.AUC_DIFFERENCE].value == pytest.approx(-12 / 32)
    part = {
        key: runs.only(t, t["context"] == "slab") for key, t in tables.read_runs(root, table2.SHOWN, [0, 1]).items()
    }
    ours, theirs = (metrics.expected(part[key]["probabilities"][:, MALIGNANCY]) for key in ("pn_samp_s1", "pn_samp_m"))
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
    make_run(root / "cnn_mtl", certain(TRUTH, attributes=2))  # two off in every attribute but ...
    for rating in ("subtlety", "internal_structure"):
        blank(root / "cnn_mtl", rating)
    best, arg_max = build(root, table3).values()
    assert row_of(best, "malignancy")["PN-SAMP S1"].value == pytest.approx(20 / 32)
    assert str(row_of(best, "subtlety")["CNN-MTL"]) == "-" and row_of(best, "margin")["CNN-MTL"].value == 0
    assert row_of(best, "margin")["n"] == 32
    nine, seven = row_of(best, "mean of nine"), row_of(best, "mean of the seven that CNN-MTL rates")
    assert nine["PN-SAMP S1"].value == pytest.approx((8 + 20 / 32) / 9)
    assert str(nine["CNN-MTL"]) == "-" and seven["CNN-MTL"].value == pytest.approx(1 / 7)
    difference = row_of(best, "mean of nine, against PN-SAMP M")
    assert difference["PN-SAMP S1"].value == pytest.approx(-12 / 32 / 9) and difference["PN-SAMP M"] == "-"
    assert str(difference["one reader"]) == "+0.0 [+0.0, +0.0]"
    assert difference["best constant"].value == pytest.approx(-0.5 / 9)
    assert str(row_of(best, "malignancy")["best constant"]).endswith("] (1)")
    assert row_of(best, "mean of nine, paper")["PN-SAMP M"] == "89.33"
    assert row_of(arg_max, "malignancy")["PN-SAMP S1"].value == pytest.approx(20 / 32)


def test_the_mean_of_the_ratings_is_that_of_the_evaluation(root):
    make_run(root / "noisy", np.random.default_rng(0).dirichlet(np.ones(6), (N, 9)) * schema.CLASS_EXISTS)
    table = runs.read_run(root / "noisy")
    table["truth"][:7, 2] = 0
    expected = evaluate.mean_figures(table)["within_one"]["off_by_one"]
    nine = np.stack([scores.hits(table, "within_one", place) for place in range(9)], axis=1)
    figure = scores.mean_of_ratings_figure(nine, table["patient_id"], evaluate.RESAMPLES)
    assert figure.value == pytest.approx(expected["value"]) and figure.interval == pytest.approx(expected["interval"])


def test_a_blank_answer_is_no_answer_though_class_0_is_within_one_of_class_1(root):
    table = runs.read_run(root / "mcnn")
    table["truth"][:, 0] = 1
    assert np.isnan(scores.hits(table, "arg_max", 0)).all()


def test_figures_are_printed_in_per_cent():
    assert str(scores.Figure(0.9351, (0.9, 0.965))) == "93.5 [90.0, 96.5]"
    assert str(scores.Figure(-0.0001, (-0.01, 0.02), signed=True, note="(n)")) == "+0.0 [-1.0, +2.0] (n)"
    assert str(scores.Figure()) == "-" and str(scores.Figure(0.5)) == "50.0"


# Which runs are shown, and which are refused


def test_systems_that_were_not_run_say_so_and_told_ones_are_marked(root):
    (rows,) = build(root, table2).values()
    oracle = row_of(rows, f"TumorNet-attribute, readers' ratings (oracle) {tables.TOLD}")
    assert oracle["n"] == "not run" and oracle["paper"] == "92.31" and oracle["AUC"] == "-"
    assert row_of(rows, "TumorNet-attribute, predicted ratings")["n"] == "not run"
    marked = [row["system"] for row in rows if row["system"].endswith(tables.TOLD)]
    assert len(marked) == 4 and not any("predicted" in name for name in marked)
    best, _ = build(root, table3).values()
    assert row_of(best, "margin")["CNN-MTL"] == row_of(best, "mean of nine")["CNN-MTL"] == "not run"


def test_without_pn_samp_m_there_are_no_differences(root):
    (rows,) = build(root, table2, ["pn_samp_s1", "mcnn"]).values()
    assert row_of(rows, "PN-SAMP M")["n"] == "not run"
    assert {row[table2.WITHIN_ONE_DIFFERENCE] for row in rows} == {"-"}
    best, _ = build(root, table3, ["pn_samp_s1"]).values()
    assert not any("against" in row["rating"] for row in best)
    (rows,) = build(root, table1, ["pn_samp_s1"]).values()
    assert {row["against PN-SAMP M"] for row in rows} == {"-"}


def test_a_run_that_lacks_a_nodule_is_refused_by_name(root):
    make_run(root / "pn_samp_c", certain(TRUTH), keep=np.arange(N) != 11)
    with pytest.raises(
        UserError, match=r"pn_samp_c: did not test nodule 'n11' \(1 missing of 40\), which .*pn_samp_m"
    ):
        tables.read_runs(root, ["pn_samp_m", "pn_samp_c"], [0, 1])


@pytest.mark.parametrize(("column", "value"), [("fold", "1"), ("malignancy_true", "2"), ("patient_id", "px")])
def test_a_run_of_another_split_or_other_readings_is_refused_by_name(root, column, value):
    edit(
        root / "mcnn" / "predictions.csv", lambda row: row.update({column: value} if row["nodule_id"] == "n05" else {})
    )
    if column == "fold":
        edit(root / "mcnn" / "predictions.csv", lambda row: row.update(fold=str(1 - int(row["fold"]))))
    with pytest.raises(
        UserError, match=r"mcnn: the (fold|truth|patient_id) of nodule 'n\d\d' is another than in .*pn_"
    ):
        tables.read_runs(root, ["pn_samp_m", "mcnn"], [0, 1])


def test_a_rating_that_is_blank_for_one_nodule_alone_is_refused(root):
    blank(root / "pn_samp_s1", "malignancy", "n03")
    with pytest.raises(UserError, match="pn_samp_s1.predictions.csv: nodule 'n03' has no malignancy"):
        tables.read_runs(root, ["pn_samp_m", "pn_samp_s1"], [0, 1])


def test_a_run_that_lacks_a_fold_stands_as_not_run(root, capsys):
    half = root / "pn_samp_c"
    make_run(half, certain(TRUTH))
    (half / "fold_1" / "predictions.csv").unlink()
    gather_predictions(half)
    assert list(tables.read_runs(root, ["pn_samp_m", "pn_samp_c"], [0, 1])) == ["pn_samp_m"]
    assert "pn_samp_c: is not finished" in capsys.readouterr().out
    assert list(tables.read_runs(root, ["pn_samp_m", "pn_samp_c"], [0])) == ["pn_samp_m", "pn_samp_c"]


def test_only_the_chosen_folds_count(root):
    assert set(tables.read_runs(root, ["pn_samp_m"], [1])["pn_samp_m"]["fold"]) == {1}


def test_nothing_run_says_so(tmp_path):
    with pytest.raises(UserError, match="none of the table's systems was run"):
        tables.read_runs(tmp_path, table1.SHOWN, [0])


# What is written


def test_every_context_has_its_own_files_and_the_csv_holds_the_same_figures(root, capsys):
    table_runs = tables.read_runs(root, table3.SHOWN, [0, 1])
    cube, slab = (
        {key: runs.only(table, table["context"] == context) for key, table in table_runs.items()}
        for context in ("cube", "slab")
    )
    tables.write_pages("table1", table1.build, table_runs, root, FEW)
    tables.write_pages("table2", table2.build, slab, root, FEW)
    tables.write_pages("table3", table3.build, cube, root, FEW)
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
    monkeypatch.setattr(tables, "RESAMPLES", FEW)
    protocol = base.get_config()
    protocol.num_folds = 2
    tables.make_table("table1", table1.SHOWN, table1.build, protocol, root, [])
    assert "PN-SAMP S1" in capsys.readouterr().out and (root / "table1_slab.png").is_file()
    protocol.num_epochs += 1
    with pytest.raises(UserError, match="config.num_epochs"):
        tables.make_table("table1", table1.SHOWN, table1.build, protocol, root, [])


def test_an_unknown_system_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="--systems: 'mcnn' is not in table1, which shows unet3d"):
        tables.make_table("table1", table1.SHOWN, table1.build, base.get_config(), tmp_path / "new", ["mcnn"])
    assert not (tmp_path / "new").exists()


# Running the systems


def test_a_system_runs_after_those_it_needs_and_never_twice(tmp_path, monkeypatch):
    ran = []

    def run(config, workdir):
        ran.append(workdir.name)
        make_run(workdir, certain(TRUTH))

    fakes = {
        "masks": systems.System("Masks", run=run),
        "forest": systems.System("Forest", run=run, needs=("masks",)),
    }
    monkeypatch.setattr(systems, "SYSTEMS", fakes)
    protocol = base.get_config()
    protocol.num_folds = 2
    systems.run_system("forest", protocol, tmp_path)
    systems.run_system("forest", protocol, tmp_path)
    assert ran == ["masks", "forest"]
    (tmp_path / "masks" / "results.json").unlink()  # as a stopped run leaves it
    systems.run_system("forest", protocol, tmp_path)
    assert ran == ["masks", "forest", "masks"]


def test_a_run_is_complete_when_its_results_rest_on_every_chosen_fold(tmp_path):
    keep = np.arange(N) // 2 % 2 == 0
    make_run(tmp_path, certain(TRUTH), keep=keep)
    assert runs.is_complete(tmp_path, [0]) and not runs.is_complete(tmp_path / "none", [0])
    split = json.loads((tmp_path / "folds.json").read_text())
    split["folds"][1]["test"]["nodules"] = ["n02"]
    (tmp_path / "folds.json").write_text(json.dumps(split))
    assert runs.is_complete(tmp_path, [0]) and not runs.is_complete(tmp_path, [0, 1])


def test_every_system_shown_is_known_and_those_needed_too():
    shown = {*table1.SHOWN, *table2.SHOWN, *table3.SHOWN}
    assert shown == systems.SYSTEMS.keys()
    assert all(needed in systems.SYSTEMS for system in systems.SYSTEMS.values() for needed in system.needs)


# An ensemble


def test_an_ensemble_is_the_mean_of_its_runs_and_is_read_like_one(root, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", FEW)
    rng = np.random.default_rng(0)
    answers = [rng.dirichlet(np.ones(6), (N, 9)) * schema.CLASS_EXISTS for _ in range(3)]
    members = [root / f"member_{k}" for k in range(3)]
    for member, probabilities in zip(members, answers, strict=True):
        make_run(member, probabilities)
    results = ensemble.run(root / "pn_samp_mean", members)
    table = tables.read_runs(root, ["pn_samp_m", "pn_samp_mean"], [0, 1])["pn_samp_mean"]
    np.testing.assert_allclose(table["probabilities"], np.mean(answers, axis=0), atol=1e-5)  # six digits are written
    np.testing.assert_array_equal(table["arg_max"], np.argmax(table["probabilities"], axis=2) + 1)
    assert results["model"] == "ensemble" and results["paper"] == {} and np.isnan(table["dice"]).all()
    assert runs.is_complete(root / "pn_samp_mean", [0, 1])
    with pytest.raises(UserError, match="belongs to another run"):
        ensemble.run(root / "pn_samp_mean", members[:2])


def test_an_ensemble_of_runs_that_segment_alone_has_no_ratings(root):
    for name in ("a", "b"):
        make_run(root / name, None, np.full(N, 0.5))
    ensemble.run(root / "mean", [root / "a", root / "b"])
    assert not runs.rated(runs.read_run(root / "mean")).any()


def test_an_ensemble_needs_two_runs_over_the_same_nodules(root):
    with pytest.raises(UserError, match="at least"):
        ensemble.run(root / "mean", [root / "pn_samp_m"])
    make_run(root / "short", certain(TRUTH), keep=HALF)
    with pytest.raises(UserError, match="short: did not test nodule 'n20'"):
        ensemble.run(root / "mean", [root / "pn_samp_m", root / "short"])
    assert not (root / "mean").exists()
