"""Tables in, results out: on predictions made up so that every figure is known."""

import csv
import json

import numpy as np
import pytest

from pnsamp_jax import evaluate
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir import tables

N = 40
CONFIG = {
    "data": {"source": "folder"},
    "model": {
        "name": "pn_samp",
        "segment": True,
        "rate": True,
        "windows": [[1600.0, -600.0], [700.0, -600.0]],
    },
}


def made_up_records(context: np.ndarray) -> dict[str, np.ndarray]:
    """40 nodules of 20 patients, two readers each who agree: malignancy 1 for the first half, 5 for the rest."""
    rating_counts = np.zeros((N, 9, 6), np.uint8)
    rating_counts[:, :, 3] = 2  # every rating is 4 ...
    rating_counts[:, schema.MALIGNANCY] = 0
    rating_counts[: N // 2, schema.MALIGNANCY, 0] = 2  # ... but the malignancy
    rating_counts[N // 2 :, schema.MALIGNANCY, 4] = 2
    return {
        schema.NODULE_ID: np.array([f"n{i:02d}" for i in range(N)]),
        schema.PATIENT_ID: np.array([f"p{i // 2:02d}" for i in range(N)]),
        schema.CONTEXT: context,
        schema.RATING_COUNTS: rating_counts,
        schema.READER_DICE: np.full(N, np.nan, np.float32),
        schema.DIAMETER: np.linspace(4, 20, N, dtype=np.float32),
    }


def certain(classes: np.ndarray) -> np.ndarray:
    """(N, 9) classes -> (N, 9, 6) probabilities of 1."""
    return (classes[..., None] == np.arange(1, 7)).astype(float)


@pytest.fixture
def workdir(tmp_path):
    """Predictions: all attributes 4 (right); malignancy right for 30, and 3, so off by two, for the last 10."""
    context = np.where(np.arange(N) < 10, "cube", "slab")
    records = made_up_records(context)
    classes = np.full((N, 9), 4)
    classes[:, schema.MALIGNANCY] = np.where(np.arange(N) < N // 2, 1, 5)
    classes[30:, schema.MALIGNANCY] = 3
    dice = np.where(np.arange(N) % 2 == 0, 0.5, 0.7)
    scores = {"dice": dice, "hd95_mm": np.full(N, 2.5), "nsd": dice / 2}
    write_run(tmp_path, records, certain(classes), scores)
    return tmp_path


def write_run(workdir, records, probabilities, scores, nominal="modal"):
    """Write the files of a run of two folds."""
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    tables.write_readers(workdir / "readers.csv", records)
    for fold in range(2):
        part = np.arange(N) % 2 == fold
        chosen = {name: values[part] for name, values in records.items()}
        of_fold = {name: values[part] for name, values in scores.items()}
        path = workdir / f"fold_{fold}" / "predictions.csv"
        tables.write_predictions(path, fold, chosen, nominal, of_fold, probabilities[part])
    tables.gather_predictions(workdir)


def test_figures_of_the_made_up_run(workdir):
    results = evaluate.evaluate(workdir)
    slab = results["contexts"]["slab"]
    malignancy = slab["ratings"]["malignancy"]
    assert slab["n"] == 30 and slab["patients"] == 15
    assert malignancy["arg_max"]["off_by_one"]["value"] == pytest.approx(20 / 30)
    assert malignancy["arg_max"]["exact"]["value"] == pytest.approx(20 / 30)
    assert malignancy["best_constant"] == {"class": 5, "value": pytest.approx(20 / 30)}
    assert malignancy["one_reader"]["value"] == 1.0 and malignancy["one_reader"]["n"] == 30
    assert malignancy["mean_absolute_error"]["value"] == pytest.approx(2 * 10 / 30)
    assert slab["ratings"]["texture"]["arg_max"]["off_by_one"] == {"value": 1.0, "interval": (1.0, 1.0), "n": 30}
    assert slab["mean_of_nine"]["arg_max"]["off_by_one"]["value"] == pytest.approx((8 + 20 / 30) / 9)
    assert slab["mean_of_ordinal"]["arg_max"]["off_by_one"]["value"] == pytest.approx((6 + 20 / 30) / 7)
    # 20 suspicious against 10 benign: expected ratings 5, 5 or 3 against 1, all in order.
    assert slab["malignancy"]["auc"]["value"] == 1.0 and slab["malignancy"]["auc"]["malignant"] == 20
    assert slab["dice"]["value"] == pytest.approx(0.6) and slab["dice"]["n"] == 30
    assert slab["hd95_mm"]["value"] == 2.5 and slab["nsd"]["value"] == pytest.approx(0.3)
    assert slab["over_folds"]["dice"]["mean"] == pytest.approx(0.6)
    assert slab["over_folds"]["dice"]["sem"] == pytest.approx(0.1)  # sd of (0.5, 0.7) over sqrt 2


def test_contexts_are_never_mixed(workdir, capsys):
    results = evaluate.evaluate(workdir)
    assert set(results["contexts"]) == {"cube", "slab"}
    assert results["contexts"]["cube"]["n"] == 10
    printed = capsys.readouterr().out
    assert "10 nodules of 5 patients" in printed and "30 nodules of 15 patients" in printed
    assert "slabs: Dice, AUC and ratings are optimistic" in printed
    assert {path.name for path in (workdir / "figures").iterdir()} == {"evaluation_cube.png", "evaluation_slab.png"}


def test_the_table_shows_baselines_interval_and_the_papers_figure(workdir, capsys):
    evaluate.evaluate(workdir)
    lines = capsys.readouterr().out.splitlines()
    row = [line for line in lines if line.startswith("malignancy")][-1]
    assert row.split()[1] == "66.7" and "[" in row and "66.7 (5)" in row and "100.0 [100.0, 100.0] (n = 30)" in row
    assert row.endswith("97.58")
    assert any(line.startswith("mean of nine") and line.endswith("89.33") for line in lines)
    means = [line.split("  ")[0] for line in lines if line.startswith("mean of")]
    assert means == ["mean of the seven ordinal", "mean of nine, as in the paper"] * 2  # the main one first
    assert any("95 % within 2.5 [2.5, 2.5] mm (HD95), 30.0" in line for line in lines)


def test_results_follow_from_the_tables_alone(workdir):
    first = evaluate.evaluate(workdir)
    for path in workdir.glob("fold_*/predictions.csv"):
        path.unlink()
    assert evaluate.evaluate(workdir) == first


def test_undefined_figures_are_null_not_nan(workdir):
    evaluate.evaluate(workdir)
    text = (workdir / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["contexts"]["slab"]["reader_dice"]["value"] is None


def test_tables_survive_a_round_trip(workdir):
    table = tables.read_tables(workdir)
    records = made_up_records(np.where(np.arange(N) < 10, "cube", "slab"))
    np.testing.assert_array_equal(table["rating_counts"], records[schema.RATING_COUNTS])
    np.testing.assert_array_equal(table["context"], records[schema.CONTEXT])
    np.testing.assert_allclose(table["diameter_mm"], records[schema.DIAMETER], rtol=1e-5)  # six digits are written
    np.testing.assert_array_equal(table["truth"][:, schema.MALIGNANCY], [1] * 20 + [5] * 20)
    assert (table["probabilities"].sum(axis=2) == 1).all()


def test_ratings_that_a_model_does_not_give_are_blank_and_have_no_figures(tmp_path, capsys):
    records = made_up_records(np.full(N, "slab"))
    probabilities = certain(np.full((N, 9), 4))
    probabilities[:, : schema.MALIGNANCY] = np.nan  # malignancy alone
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tables.write_readers(tmp_path / "readers.csv", records)
    path = tmp_path / "fold_0" / "predictions.csv"
    tables.write_predictions(path, 0, records, "modal", {}, probabilities)
    tables.gather_predictions(tmp_path)
    row = (tmp_path / "predictions.csv").read_text().splitlines()[1].split(",")
    row = dict(zip(tables.prediction_columns("modal"), row, strict=True))
    assert row["margin_true"] == "4" and row["margin_pred"] == row["margin_within_one"] == row["margin_p4"] == ""
    assert row["malignancy_pred"] == "4" and row["malignancy_p4"] == "1"
    results = evaluate.evaluate(tmp_path)["contexts"]["slab"]
    assert "arg_max" not in results["ratings"]["margin"] and "arg_max" not in results["mean_of_nine"]
    assert "arg_max" not in results["mean_of_ordinal"] and "arg_max" not in results["ratings"]["calcification"]
    assert results["ratings"]["malignancy"]["arg_max"]["off_by_one"]["value"] == 0.5
    assert tables.rated(tables.read_tables(tmp_path)).tolist() == [False] * 8 + [True]


def test_missing_ratings_are_blank_and_leave_the_figures(tmp_path):
    records = made_up_records(np.full(N, "ct"))
    records[schema.RATING_COUNTS][:5, schema.MALIGNANCY] = 0
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tables.write_readers(tmp_path / "readers.csv", records)
    path = tmp_path / "fold_0" / "predictions.csv"
    tables.write_predictions(path, 0, records, "modal", {"dice": np.full(N, 0.5)}, certain(np.full((N, 9), 4)))
    tables.gather_predictions(tmp_path)
    results = evaluate.evaluate(tmp_path)["contexts"]["ct"]
    assert results["ratings"]["malignancy"]["arg_max"]["off_by_one"]["n"] == N - 5
    assert results["ratings"]["margin"]["arg_max"]["off_by_one"]["n"] == N
    assert results["malignancy"]["auc"]["n"] == N - 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("malignancy_p5", "p5", 1), "no column malignancy_p5"),
        (lambda text: text.splitlines()[0] + "\n", "holds no nodule"),
        (lambda text: text.replace("\nn01,", "\nn99,", 1), "no row for nodule 'n99'"),
        (lambda text: text.replace(",0.5,", ",half,", 1), "not a number"),
        (lambda text: text[: len(text) // 2].rsplit(",", 1)[0], "fields, but line 1 names"),
    ],
    ids=["column", "empty", "unknown nodule", "text", "cut short"],
)
def test_damaged_tables_get_one_line(workdir, damage, message):
    path = workdir / "predictions.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        tables.read_tables(workdir)


def test_a_missing_table_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="run --mode train first"):
        tables.read_tables(tmp_path)


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, "M"),
        ({"windows": [[1600, -600]]}, "S1"),
        ({"windows": [[700, -600]]}, "S2"),
        ({"rate": False}, "Seg"),
        ({"segment": False}, "C"),
        ({"windows": [[400, 40]]}, None),
        ({"name": "unet3d"}, None),
    ],
)
def test_which_variant_of_the_paper_a_model_is(changes, form):
    assert evaluate.paper_variant({**CONFIG["model"], **changes}) == form


# Means over classes and over ratings, which are not means over nodules


def test_the_macro_accuracy_gives_every_class_the_same_weight(workdir):
    slab = evaluate.evaluate(workdir)["contexts"]["slab"]["ratings"]["malignancy"]["arg_max"]
    # Of the slabs 10 are rated 1, all right, and 20 are rated 5, of which 10 are right.
    assert slab["off_by_one"]["value"] == pytest.approx(20 / 30)
    assert slab["macro_within_one"]["value"] == pytest.approx((10 / 10 + 10 / 20) / 2)


def test_the_mean_of_the_ratings_gives_every_rating_the_same_weight():
    """Ten nodules; the margin is rated on two of them alone, and wrong on both, the other eight ratings are right."""
    truth = np.full((10, 9), 4)
    margin = schema.RATING_NAMES.index("margin")
    truth[2:, margin] = 0
    predicted = np.full((10, 9), 4)
    predicted[:, margin] = 1
    table = {
        "patient_id": np.array([f"p{i}" for i in range(10)]),
        "truth": truth,
        "nominal": np.zeros((10, 9), bool),
        "arg_max": predicted,
        "within_one": predicted,
        "rating_counts": 2 * (truth[..., None] == np.arange(1, 7)).astype(int),
    }
    result = evaluate.mean_of_ratings(table)
    assert result["arg_max"]["off_by_one"]["value"] == pytest.approx(8 / 9)  # over all ratings given: 80 / 82


# Nominal ratings

STRUCTURE, CALCIFICATION = 1, 2


@pytest.fixture
def calcified():
    """Records whose readers give calcification 3, 6, 6 on ten nodules, 3, 3, 6 on the next ten, then only 6."""
    records = made_up_records(np.full(N, "cube"))
    counts = records[schema.RATING_COUNTS]
    counts[:, CALCIFICATION] = 0
    counts[:10, CALCIFICATION, [2, 5]] = 1, 2  # the modal class is 6, the rounded mean 5
    counts[10:20, CALCIFICATION, [2, 5]] = 2, 1  # the modal class is 3, the rounded mean 4
    counts[20:, CALCIFICATION, 5] = 2
    classes = np.full((N, 9), 4)
    classes[:, schema.MALIGNANCY] = np.where(np.arange(N) < N // 2, 1, 5)
    classes[:, CALCIFICATION] = 5  # never right; within one of the rounded mean everywhere
    classes[20:30, CALCIFICATION] = 6  # right
    return records, certain(classes)


def test_nominal_ratings_are_scored_by_the_exact_modal_class(calcified, tmp_path, capsys):
    records, probabilities = calcified
    write_run(tmp_path, records, probabilities, {})
    results = evaluate.evaluate(tmp_path)["contexts"]["cube"]
    calcification = results["ratings"]["calcification"]
    assert calcification["accuracy"] == "exact" and calcification.keys() == {
        "accuracy", "best_constant", "one_reader", "arg_max",
    }  # fmt: skip
    assert calcification["arg_max"]["exact"]["value"] == 10 / N
    assert calcification["arg_max"]["balanced_accuracy"]["value"] == pytest.approx((0 + 10 / 30) / 2)
    assert calcification["best_constant"] == {"class": 6, "value": 30 / N}
    # 3 against 6, 6 misses; 6 against 3 and 6 hits, a tie that goes to 6: 20 of 30 readers. 3 against 3 and 6 misses
    # likewise, and so does 6 against 3, 3: none of 30. The 40 others agree.
    assert calcification["one_reader"]["value"] == pytest.approx((20 + 0 + 40) / 100)
    assert results["ratings"]["margin"]["accuracy"] == "off_by_one"
    # All others are right. The paper's mean takes the rounded means 5, 4 and 6, which are all within one.
    assert results["mean_of_ordinal"]["arg_max"]["off_by_one"]["value"] == 1.0
    assert results["mean_of_nine"]["arg_max"]["off_by_one"]["value"] == 1.0
    assert results["mean_of_nine"]["within_one"]["off_by_one"]["value"] == 1.0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("calcification")]
    assert row.split()[1] == "25.0" and "75.0 (6)" in row and "60.0" in row


def test_the_papers_rule_treats_all_nine_alike(calcified, tmp_path):
    records, probabilities = calcified
    write_run(tmp_path, records, probabilities, {}, nominal="mean")
    table = tables.read_tables(tmp_path)
    assert table["truth"][:, CALCIFICATION].tolist() == [5] * 10 + [4] * 10 + [6] * 20
    assert table["within_one"][:, CALCIFICATION].tolist() == [5] * 20 + [6] * 10 + [5] * 10
    assert not tables.nominal(table).any() and tables.nominal_rule(table) == "mean"
    results = evaluate.evaluate(tmp_path)["contexts"]["cube"]
    calcification = results["ratings"]["calcification"]
    assert (
        calcification["within_one"]["off_by_one"]["value"] == 1.0 and calcification["arg_max"]["exact"]["value"] == 0.5
    )
    assert calcification["best_constant"]["class"] == 5


def test_both_rules_have_the_same_mean_as_in_the_paper(tmp_path):
    rng = np.random.default_rng(0)
    records = made_up_records(np.full(N, "ct"))
    records[schema.RATING_COUNTS][:] = rng.multinomial(4, np.full(6, 1 / 6), (N, 9)) * schema.CLASS_EXISTS
    probabilities = rng.dirichlet(np.ones(6), (N, 9)) * schema.CLASS_EXISTS
    found = []
    for rule in ("modal", "mean"):
        folder = tmp_path / rule
        folder.mkdir()
        write_run(folder, records, probabilities, {}, rule)
        found.append(evaluate.evaluate(folder)["contexts"]["ct"])
    assert found[0]["mean_of_nine"] == found[1]["mean_of_nine"]
    assert found[0]["mean_of_ordinal"] == found[1]["mean_of_ordinal"]
    assert found[0]["ratings"]["calcification"] != found[1]["ratings"]["calcification"]


def test_anyone_can_compute_the_accuracies_from_predictions_csv(calcified, tmp_path):
    records, _ = calcified
    probabilities = np.random.default_rng(1).dirichlet(np.ones(6), (N, 9)) * schema.CLASS_EXISTS
    write_run(tmp_path, records, probabilities, {})
    results = evaluate.evaluate(tmp_path)["contexts"]["cube"]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    nominal = ("internal_structure", "calcification")
    assert not any(f"{name}_within_one" in rows[0] for name in nominal)

    def best(row, name):
        """Return the class k with the largest P(k-1) + P(k) + P(k+1)."""
        p = [0.0, *(float(row[c]) for c in row if c.startswith(f"{name}_p") and c[-1].isdigit()), 0.0]
        return max(range(1, len(p) - 1), key=lambda k: p[k - 1] + p[k] + p[k + 1])

    paper = []
    for name in schema.RATING_NAMES:
        truth = [int(row[f"{name}_rounded_mean" if name in nominal else f"{name}_true"]) for row in rows]
        chosen = [best(row, name) for row in rows]
        paper.append(np.mean([abs(k - t) <= 1 for k, t in zip(chosen, truth, strict=True)]))
        if name in nominal:
            right = np.mean([row[f"{name}_pred"] == row[f"{name}_true"] for row in rows])
            assert results["ratings"][name]["arg_max"]["exact"]["value"] == pytest.approx(right)
    assert results["mean_of_nine"]["within_one"]["off_by_one"]["value"] == pytest.approx(np.mean(paper))
    ordinal = [value for name, value in zip(schema.RATING_NAMES, paper, strict=True) if name not in nominal]
    assert results["mean_of_ordinal"]["within_one"]["off_by_one"]["value"] == pytest.approx(np.mean(ordinal))


# Outlines


def test_the_models_dice_is_also_given_on_the_readers_nodules(tmp_path, capsys):
    records = made_up_records(np.full(N, "cube"))
    records[schema.READER_DICE][:10] = 0.8
    dice = np.where(np.arange(N) < 10, 0.9, 0.5)
    write_run(tmp_path, records, certain(np.full((N, 9), 4)), {"dice": dice})
    results = evaluate.evaluate(tmp_path)["contexts"]["cube"]
    assert results["dice"]["value"] == pytest.approx(0.6) and results["dice"]["n"] == N
    assert results["dice_three_readers"]["value"] == pytest.approx(0.9)
    assert results["dice_three_readers"]["n"] == results["reader_dice"]["n"] == 10
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "at least three readers" in line]
    assert "90.0 [90.0, 90.0], n = 10" in line and "80.0 [80.0, 80.0], n = 10" in line


def test_a_table_of_diagnoses_adds_the_area_by_patient(workdir, capsys):
    """The first half of the patients is benign but for p00; the network rates p15 to p19 3, the readers 5."""
    evaluate.evaluate(workdir)
    assert "diagnosis" not in capsys.readouterr().out
    diagnoses = ["benign"] * 10 + ["primary"] * 10
    diagnoses[0], diagnoses[19] = "metastatic", "unknown"
    lines = [f"p{i:02d},{diagnosis},biopsy" for i, diagnosis in enumerate(diagnoses)]
    (workdir / "diagnoses.csv").write_text("\n".join(["patient_id,diagnosis,method", *lines]))
    data = CONFIG["data"] | {"diagnosis": str(workdir / "diagnoses.csv")}
    (workdir / "config.json").write_text(json.dumps(CONFIG | {"data": data}))
    found = evaluate.evaluate(workdir)["diagnosis"]
    assert found["patients"] == 19 and found["nodules"] == {"cube": 10, "slab": 28}
    areas = {name: (one["network"]["value"], one["readers"]["value"]) for name, one in found["against_benign"].items()}
    assert areas == {"malignant": (0.95, 0.95), "primary": (1, 1), "metastatic": (0.5, 0.5)}
    out = capsys.readouterr().out
    assert (
        "19 of 20 patients have a known diagnosis; each counts by the highest nodule (nodules: 10 cube, 28 slab)"
        in out
    )
    assert "AUC of metastatic against benign: network 50.0" in out and "n = 10 of which 1 metastatic" in out
    kept = json.loads((workdir / "results.json").read_text())["diagnosis"]
    assert kept["against_benign"]["malignant"]["n"] == 19
