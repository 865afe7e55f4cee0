"""What counts as an answer: nothing segmented, lower bounds, simulated training, and what is said on the terminal."""

import csv
import json

import ct_files
import nibabel
import numpy as np
import pydicom
import pytest
from ml_collections import ConfigDict
from tiny_run import made_up_run

from pnsamp_jax import predict
from pnsamp_jax.configs import predict as predict_config
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import attribution, ensemble, likeness

POINT = (20.0, 12.0, 5.0)  # of a ball of 6 mm, in a CT whose middle is the origin
RADIUS_MM, SPACING_MM = 6.0, 1.25


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return made_up_run(tmp_path_factory.mktemp("run"), (0,))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A DICOM series of lung in a body, with a ball of tissue at `POINT`, 80 x 80 x 60 mm."""
    shape = (48, 64, 64)
    origin = -SPACING_MM * (np.array(shape[::-1]) - 1) / 2
    z, y, x = (origin[2 - axis] + SPACING_MM * np.arange(n) for axis, n in enumerate(shape))
    z, y = z[:, None, None], y[:, None]
    away = np.sqrt((x - POINT[0]) ** 2 + (y - POINT[1]) ** 2 + (z - POINT[2]) ** 2)
    body = (np.abs(x) > 36) | (np.abs(y) > 36)
    texture = np.random.default_rng(0).normal(0, 20, shape)
    hu = np.where(away < RADIUS_MM, 30, np.where(body, 40, -850)) + texture
    folder = tmp_path_factory.mktemp("series") / "ct"
    ct_files.write_series(
        folder,
        hu.astype(np.int16),
        step=(0, 0, SPACING_MM),
        origin=tuple(origin),
        spacing=(SPACING_MM, SPACING_MM),
        FrameOfReferenceUID="1.2.9",
        StudyDate="20200101",
        StudyTime="101010",
    )
    return folder


@pytest.fixture(autouse=True)
def dense_tissue(monkeypatch):
    """Networks that segment what is dense, if the point itself is: nothing is compiled."""
    asked = []

    def segment(networks, images, flips):
        asked.append(len(images))
        n, middle = len(images), images.shape[-1] // 2
        dense = images[:, middle, middle, middle] > -400
        share = np.clip((images + 410.0) / 880 + 0.5, 0, 1)  # half way between lung and tissue is the outline
        count, features = len(networks.members), max(len(one.mean_features) for one in networks.members.values())
        p = np.tile(schema.CLASS_EXISTS / schema.CLASS_EXISTS.sum(axis=1, keepdims=True), (count, 1, n, 1, 1))
        p[..., schema.MALIGNANCY, :] = (0.01, 0.01, 0.96, 0.01, 0.01, 0)  # sure that it is indeterminate
        return ensemble.Predictions(share * dense[:, None, None, None], p, np.zeros((count, 1, n, features)))

    monkeypatch.setattr(ensemble, "predict", segment)
    monkeypatch.setattr(attribution, "mean_contributions", lambda _, found: np.zeros((found.features.shape[2], 9)))
    monkeypatch.setattr(attribution, "saliency", lambda networks, images: images.astype(np.float32))
    return asked


def options(workdir, image, *points, **fields) -> ConfigDict:
    config = predict_config.get_config()
    text = ";".join(",".join(map(str, point)) for point in points)
    config.predict.update({"checkpoint": str(workdir), "flips": False, "image": str(image), "points": text} | fields)
    return config


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ras(point):
    return (-point[0], -point[1], point[2])


def test_an_empty_mask_is_no_answer_in_any_file(workdir, series, tmp_path, capsys):
    predict.predict(options(workdir, series, POINT, (-20.0, 12.0, 5.0)), tmp_path / "out")
    full, empty = rows_of(tmp_path / "out")
    assert (full["status"], empty["status"]) == ("ok", "nothing segmented")
    kept = {"nodule_id", "image", "x_mm", "y_mm", "z_mm", "status", "note"}
    assert {name for name, value in empty.items() if value} == kept
    assert empty["note"] == "nothing is segmented at this point"
    _, nodule = json.loads((tmp_path / "out" / "predictions.json").read_text())["nodules"]
    assert {name for name, value in nodule.items() if value is not None} == kept
    assert not (tmp_path / "out" / "masks" / "nodule_2.nii.gz").exists()
    report = pydicom.dcmread(tmp_path / "out" / "dicom" / "nodule_1_sr.dcm")
    assert "nodule_1" in report.to_json() and "nodule_2" not in report.to_json()
    (described,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nodule_2 ")]
    assert described.split(maxsplit=1)[1] == "nothing segmented"  # neither a size nor a suspicion


def test_an_earlier_prediction_stays_where_nothing_can_be_predicted(workdir, series, tmp_path):
    predict.predict(options(workdir, series, POINT), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"no nodule could be predicted, so .* keeps its earlier prediction; .*mistyped"
    ):
        predict.predict(options(workdir, tmp_path / "mistyped.nii", POINT), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_series_without_a_nodule_has_no_dicom_objects(workdir, series, tmp_path):
    predict.predict(options(workdir, series, (-20.0, 12.0, 5.0)), tmp_path / "out")
    assert not (tmp_path / "out" / "dicom").exists()
    assert "nothing segmented" in (tmp_path / "out" / "report.html").read_text()


def test_ras_coordinates_are_recognised_where_the_mirror_image_is_a_nodule(workdir, series, tmp_path, capsys):
    predict.predict(options(workdir, series, ras(POINT), (-20.0, 12.0, 5.0)), tmp_path / "out")
    first, second = rows_of(tmp_path / "out")
    hint = "(20, 12, 5) would find a nodule of 12 mm: are these RAS coordinates?"
    assert first["status"] == "nothing segmented" and first["malignancy_pred"] == first["malignancy_words"] == ""
    assert first["note"] == f"nothing is segmented at this point; {hint}"
    assert "RAS" not in second["note"]  # there is nothing at its mirror image either
    assert hint in capsys.readouterr().out and hint in (tmp_path / "out" / "report.html").read_text()


def test_voxels_are_never_taken_for_ras(workdir, series, tmp_path, dense_tissue):
    config = options(workdir, series, (16, 20, 28), units="voxel")
    predict.predict(config, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["status"] == "nothing segmented" and "RAS" not in row["note"]
    assert len(dense_tissue) == 2  # where the nodule is and what it is, and nothing at a mirrored point


def test_diameters_of_a_ball_in_a_ct(workdir, series, tmp_path, capsys):
    predict.predict(options(workdir, series, POINT), tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nodule_1 ")]
    assert line.endswith(f" %  {row['malignancy_words'].ljust(len('likeliest class'))}  ok")
    # The voxels of this test's network have 2 mm and average smaller ones, which moves the outline of so small a ball.
    for name in ("diameter_mm", "short_diameter_mm", "mean_diameter_mm"):
        assert float(row[name]) == pytest.approx(2 * RADIUS_MM, abs=0.7)
    assert float(row["diameter_mm"]) >= float(row["mean_diameter_mm"]) >= float(row["short_diameter_mm"])
    assert (row["truncated"], row["note"]) == ("false", "")


def test_what_does_not_look_like_a_nodule_says_so_everywhere(workdir, series, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(likeness, "mean_scores", lambda heads, features: np.full(features.shape[2], 0.25))
    predict.predict(options(workdir, series, POINT, (-20.0, 12.0, 5.0)), tmp_path / "out")
    row, empty = rows_of(tmp_path / "out")
    told = "does not look like the nodules that the network learnt from"
    assert (row["status"], row["nodule_like"]) == ("ok", "0.25") and told in row["note"]
    assert empty["nodule_like"] == "" and told not in empty["note"]  # no answer is no answer
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("nodule_1 ")]
    assert line.endswith("ok, but unlike a nodule") and told in out
    (nodule, _) = json.loads((tmp_path / "out" / "predictions.json").read_text())["nodules"]
    assert nodule["nodule_like"] == 0.25
    assert told in (tmp_path / "out" / "report.html").read_text()
    assert told[1:] in pydicom.dcmread(tmp_path / "out" / "dicom" / "nodule_1_sr.dcm").to_json()


def test_a_mask_at_the_border_of_the_image_has_lower_bounds(workdir, series, tmp_path, capsys):
    predict.predict(options(workdir, series, (38.5, 0.0, 0.0)), tmp_path / "out")  # in the wall, which the image cuts
    (row,) = rows_of(tmp_path / "out")
    assert row["truncated"] == "true" and "lower bounds" in row["note"]
    (nodule,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["nodules"]
    assert nodule["truncated"] is True
    out = capsys.readouterr().out
    assert ">= " in out and "lower bounds" in out
    report = pydicom.dcmread(tmp_path / "out" / "dicom" / "nodule_1_sr.dcm")
    assert "lower bounds" in report.to_json()
    mask = nibabel.load(tmp_path / "out" / row["mask"])
    marked_mm3 = np.count_nonzero(mask.dataobj) * SPACING_MM**3
    assert float(row["volume_mm3"]) == pytest.approx(marked_mm3, rel=1e-3)


def test_nothing_beyond_the_image_is_measured(workdir, tmp_path):
    """All of a small image is tissue but its first columns: no outline can be longer or larger than it."""
    hu = np.full((12, 12, 12), 40, np.int16)
    hu[..., :2] = -850
    image = ct_files.write_itk(tmp_path / "ct.nii.gz", hu, np.eye(4)[[2, 1, 0, 3]])
    predict.predict(options(workdir, image, "5,5,6", units="voxel"), tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["truncated"] == "true"
    assert float(row["volume_mm3"]) <= 12 * 12 * 10
    assert float(row["diameter_mm"]) <= 12 * np.sqrt(2)


def test_weights_of_simulated_voxels_say_so_everywhere(workdir, series, tmp_path, capsys):
    predict.predict(options(workdir, series, POINT), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["trained_on_simulated_voxels"] is True
    assert "simulated voxels" in capsys.readouterr().out
    assert "simulated voxels" in (tmp_path / "out" / "report.html").read_text()
    for name in ("seg", "sr"):
        assert "simulated voxels" in pydicom.dcmread(tmp_path / "out" / "dicom" / f"nodule_1_{name}.dcm").to_json()


def test_weights_of_real_voxels_do_not(series, tmp_path, capsys):
    predict.predict(options("", series, POINT), tmp_path / "out")  # those that come with the package
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["trained_on_simulated_voxels"] is False
    assert "simulated" not in capsys.readouterr().out
    assert '"warning":""' in (tmp_path / "out" / "report.html").read_text()


def test_failures_stand_in_the_report_even_alone(workdir, series, tmp_path, capsys):
    with pytest.raises(UserError, match="1 of 2 nodules could not be predicted"):
        predict.predict(options(workdir, series, POINT, (500.0, 0.0, 0.0)), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"failures":[["nodule_2",' in page and "the point lies outside" in page
    table = capsys.readouterr().out
    assert "the point lies outside" in table and str(tmp_path / "out" / "report.html") in table
    with pytest.raises(UserError, match="no such file"):
        predict.predict(options(workdir, tmp_path / "none.nii", POINT), tmp_path / "lost")
    assert "no such file" in (tmp_path / "lost" / "report.html").read_text()
    assert (tmp_path / "lost" / "figures" / "nodules.pdf").exists()


def test_the_table_ends_after_twenty_nodules(workdir, series, tmp_path, capsys):
    predict.predict(options(workdir, series, *[POINT] * 23, shown=0), tmp_path / "out")
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].split()[0] == "nodule" and sum(line.startswith("nodule_") for line in lines) == 20
    assert "... and 3 more" in lines and not any(line.startswith("Report") for line in lines)


# What is refused before the weights are read


@pytest.fixture
def no_weights(monkeypatch):
    """Reading weights fails the test."""
    monkeypatch.setattr(ensemble, "load", lambda folder: pytest.fail("the weights were read"))


def test_an_image_that_does_not_exist_is_refused_before_the_weights_are_read(no_weights, tmp_path):
    config = options("", tmp_path / "none.nii", POINT, POINT)
    with pytest.raises(UserError, match=r"2 of 2 nodules could not .*none\.nii: no such file"):
        predict.predict(config, tmp_path / "out")
    assert all("no such file" in row["status"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("taken", "complaint"),
    [
        ("out", r"out: is a file, where a folder is needed"),
        ("out/masks", r"masks: is a file, where a folder is needed"),
        ("out/figures", r"figures: is a file"),
        ("out/predictions.csv/", r"predictions\.csv: is a folder, where a file must be written"),
        ("out/report.html/", r"report\.html: is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_weights_are_read(
    taken, complaint, no_weights, series, tmp_path
):
    path = tmp_path / taken
    path.parent.mkdir(exist_ok=True)
    path.mkdir(parents=True) if taken.endswith("/") else path.write_text("mine")
    with pytest.raises(UserError, match=f"{complaint}.*; choose another folder"):  # whichever option named it
        predict.predict(options("", series, POINT), tmp_path / "out")
    assert path.is_dir() or path.read_text() == "mine"


def test_an_earlier_prediction_is_kept_if_the_weights_cannot_be_read(workdir, series, tmp_path):
    predict.predict(options(workdir, series, POINT, shown=0), tmp_path / "out")
    with pytest.raises(UserError, match="config.json"):
        predict.predict(options(tmp_path, series, POINT), tmp_path / "out")
    assert rows_of(tmp_path / "out")[0]["status"] == "ok"
