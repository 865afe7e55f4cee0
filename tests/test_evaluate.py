"""Tables in, results out: on predictions made up so that every figure is known."""

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
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tables.write_readers(tmp_path / "readers.csv", records)
    for fold in range(2):
        part = np.arange(N) % 2 == fold
        chosen = {name: values[part] for name, values in records.items()}
        path = tmp_path / f"fold_{fold}" / "predictions.csv"
        tables.write_predictions(path, fold, chosen, dice[part], certain(classes)[part])
    tables.gather_predictions(tmp_path)
    return tmp_path


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
    assert slab["mean_of_ratings"]["arg_max"]["off_by_one"]["value"] == pytest.approx((8 + 20 / 30) / 9)
    # 20 suspicious against 10 benign: expected ratings 5, 5 or 3 against 1, all in order.
    assert slab["malignancy"]["auc"]["value"] == 1.0 and slab["malignancy"]["auc"]["malignant"] == 20
    assert slab["dice"]["value"] == pytest.approx(0.6) and slab["dice"]["n"] == 30
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
    tables.write_predictions(path, 0, records, np.full(N, np.nan), probabilities)
    tables.gather_predictions(tmp_path)
    row = (tmp_path / "predictions.csv").read_text().splitlines()[1].split(",")
    row = dict(zip(tables.prediction_columns(), row, strict=True))
    assert row["margin_true"] == "4" and row["margin_pred"] == row["margin_within_one"] == row["margin_p4"] == ""
    assert row["malignancy_pred"] == "4" and row["malignancy_p4"] == "1"
    results = evaluate.evaluate(tmp_path)["contexts"]["slab"]
    assert "arg_max" not in results["ratings"]["margin"] and "arg_max" not in results["mean_of_ratings"]
    assert results["ratings"]["malignancy"]["arg_max"]["off_by_one"]["value"] == 0.5
    assert tables.rated(tables.read_tables(tmp_path)).tolist() == [False] * 8 + [True]


def test_missing_ratings_are_blank_and_leave_the_figures(tmp_path):
    records = made_up_records(np.full(N, "ct"))
    records[schema.RATING_COUNTS][:5, schema.MALIGNANCY] = 0
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tables.write_readers(tmp_path / "readers.csv", records)
    path = tmp_path / "fold_0" / "predictions.csv"
    tables.write_predictions(path, 0, records, np.full(N, 0.5), certain(np.full((N, 9), 4)))
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
        "arg_max": predicted,
        "within_one": predicted,
        "rating_counts": 2 * (truth[..., None] == np.arange(1, 7)).astype(int),
    }
    result = evaluate.mean_of_ratings(table)
    assert result["arg_max"]["off_by_one"]["value"] == pytest.approx(8 / 9)  # over all ratings given: 80 / 82
