"""pnsamp_jax.predict: a CT and its points become ratings, masks and files, whatever the file's format."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import ct_files
import numpy as np
import pytest
import SimpleITK as sitk
from findings import make_finding
from ml_collections import ConfigDict
from tiny_run import made_up_run

from pnsamp_jax import predict
from pnsamp_jax.configs import predict as predict_config
from pnsamp_jax.ct.read import Image, read_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import asking, attribution, ensemble, requests
from pnsamp_jax.report import write

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPACING = (2.5, 0.8, 0.7)  # mm along d, h, w
ORIGIN = (-80.0, 30.0, -200.0)
POINT = np.array([-61.0, 47.0, -170.0])
OTHER = np.array([-70.0, 52.5, -152.0])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, quick_compilation):
    """A run of two of its folds."""
    return made_up_run(tmp_path_factory.mktemp("run"), (0, 1), likeness=True)


@pytest.fixture(scope="module")
def ct():
    """A CT of air with a ball of tissue round either point."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * SPACING
    affine[:3, 3] = ORIGIN
    volume = Volume(np.zeros((28, 50, 60), np.int16), affine)
    at = volume.to_lps(np.moveaxis(np.indices(volume.array.shape), 0, -1))
    away = np.minimum(np.linalg.norm(at - POINT, axis=-1), np.linalg.norm(at - OTHER, axis=-1))
    texture = np.random.default_rng(0).normal(0, 40, volume.array.shape)
    volume.array[:] = np.where(away < 6, 0, -850) + texture
    return volume


@pytest.fixture(scope="module")
def image(ct, tmp_path_factory):
    return ct_files.write_itk(tmp_path_factory.mktemp("images") / "ct.nii.gz", ct.array, ct.affine)


def options(workdir, **fields) -> ConfigDict:
    """A config for predicting with the run's networks; the report is left out, which has tests of its own."""
    config = predict_config.get_config()
    config.predict.update({"checkpoint": str(workdir), "shown": 0, "flips": False} | fields)
    return config


def text(*points) -> str:
    return ";".join(",".join(map(str, point)) for point in points)


def rows_of(folder: Path) -> list[dict]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def predicted(workdir, image, tmp_path_factory):
    """The folder of a prediction of both points, with all files, and what was found."""
    folder = tmp_path_factory.mktemp("predicted")
    config = options(workdir, image=str(image), points=text(POINT, OTHER), shown=5, flips=True)
    return folder, predict.predict(config, folder)


# What comes out


def test_the_table_has_the_columns_of_the_contract(predicted):
    folder, _ = predicted
    names = list(rows_of(folder)[0])
    expected = "nodule_id image x_mm y_mm z_mm status mask volume_mm3 diameter_mm".split()
    for rating in schema.RATINGS:
        nominal = rating.name in ("internal_structure", "calcification")  # without an order, hence without a mean
        expected += [f"{rating.name}_{what}" for what in ("pred", "within_one", "expected")[: 1 if nominal else 3]]
        expected += [f"{rating.name}_p{k}" for k in range(1, rating.classes + 1)]
    expected += "short_diameter_mm mean_diameter_mm truncated note".split()
    expected += [f"{rating.name}_words" for rating in schema.RATINGS]
    expected += "malignancy_set unsure volume_low_mm3 volume_high_mm3 diameter_low_mm diameter_high_mm".split()
    expected += ["nodule_like"]
    assert names == expected


def test_a_row_says_how_far_its_answer_can_be_trusted(predicted):
    folder, findings = predicted
    nodules = json.loads((folder / "predictions.json").read_text())["nodules"]
    for row, nodule, finding in zip(rows_of(folder), nodules, findings, strict=True):
        classes = [int(k) for k in row["malignancy_set"].split(";")]
        assert classes == list(range(classes[0], classes[-1] + 1)), "neighbouring classes"
        assert classes == nodule["class_sets"]["0.8"]["malignancy"]
        assert set(classes) <= set(nodule["class_sets"]["0.9"]["malignancy"])
        assert int(row["malignancy_pred"]) in nodule["class_sets"]["0.9"]["malignancy"]
        assert row["unsure"] == str(classes[0] <= 2 and classes[-1] >= 4).lower()
        assert ("radiologists may rate the malignancy anything" in row["note"]) == (row["unsure"] == "true")
        low, volume, high = (float(row[f"volume_{name}mm3"]) for name in ("low_", "", "high_"))
        # The limits of both networks are -0.5 and 0.4 units of doubt, which is at least 0.5.
        assert low <= volume * np.exp(-0.25) and high >= volume * np.exp(0.2)
        assert np.log(high / volume) / np.log(volume / low) == pytest.approx(0.8, rel=1e-3)
        assert float(row["diameter_low_mm"]) < finding.diameters.long_mm < float(row["diameter_high_mm"])
        like = float(row["nodule_like"])
        assert 0 < like < 1 and like == pytest.approx(nodule["nodule_like"]) == pytest.approx(finding.nodule_like)
        assert ("does not look like the nodules" in row["note"]) == (like < 0.5)


def test_a_row_says_what_was_found(predicted):
    folder, findings = predicted
    rows = rows_of(folder)
    assert [row["nodule_id"] for row in rows] == ["nodule_1", "nodule_2"]
    for row, finding, point in zip(rows, findings, (POINT, OTHER), strict=True):
        assert row["status"] == "ok"
        np.testing.assert_allclose([float(row[name]) for name in ("x_mm", "y_mm", "z_mm")], point)
        assert float(row["volume_mm3"]) == pytest.approx(finding.volume_mm3, rel=1e-5)
        for place, rating in enumerate(schema.RATINGS):
            p = [float(row[f"{rating.name}_p{k}"]) for k in range(1, rating.classes + 1)]
            assert sum(p) == pytest.approx(1, abs=1e-5)
            assert int(row[f"{rating.name}_pred"]) == 1 + int(np.argmax(p))
            assert row[f"{rating.name}_words"] == rating.words[np.argmax(p)]
            if not rating.nominal:
                mean = np.dot(p, np.arange(1, rating.classes + 1))
                assert float(row[f"{rating.name}_expected"]) == pytest.approx(mean, abs=1e-4)  # of six digits each
                assert float(row[f"{rating.name}_expected"]) == pytest.approx(finding.expected[place], rel=1e-5)


def test_the_json_says_the_same_and_more(predicted):
    folder, findings = predicted
    content = json.loads((folder / "predictions.json").read_text())
    assert (content["networks"], content["flips"]) == (2, 8)
    for row, nodule, finding in zip(rows_of(folder), content["nodules"], findings, strict=True):
        for name, value in row.items():
            assert nodule[name] == {"": None, "true": True, "false": False}.get(value, nodule[name])
            assert value in ("", "true", "false") or str(nodule[name]) == value or float(value) == nodule[name]
        assert nodule["malignancy_words"] == schema.RATINGS[schema.MALIGNANCY].words[nodule["malignancy_pred"] - 1]
        assert nodule["malignancy_spread"] == {"ensemble": finding.ensemble_spread, "flips": finding.flip_spread}
        assert nodule["contributions"].keys() == {*schema.RATING_NAMES[:-1], "image"}
        np.testing.assert_allclose(nodule["patch_centre_mm"], finding.patch_centre_mm, rtol=1e-5)  # of six digits


def test_the_mask_lies_in_the_grid_of_its_image(image, ct, tmp_path):
    finding = make_finding(size=32, point_mm=POINT)
    request = requests.Request(finding.nodule_id, "ct", image, POINT)
    located = requests.Located(request, POINT, finding.hu, ct.array.shape, ct.affine)
    voxels = write.write_mask_file(located, finding, tmp_path)
    mask, there = sitk.ReadImage(str(tmp_path / "masks" / "nodule_1.nii.gz")), sitk.ReadImage(str(image))
    assert mask.GetSize() == there.GetSize()
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, name)(), getattr(there, name)(), atol=1e-4)  # headers are float32
    marked = np.argwhere(sitk.GetArrayFromImage(mask))
    np.testing.assert_array_equal(voxels, marked)
    voxel_mm3 = np.prod(SPACING)
    assert len(marked) * voxel_mm3 == pytest.approx(finding.volume_mm3, abs=voxel_mm3 / 2 + 1e-3)
    assert np.abs(ct.to_lps(marked.mean(axis=0)) - POINT).max() < 0.5  # a fifth of the slice thickness


def test_the_pictures_and_the_report_are_written(predicted):
    folder, _ = predicted
    assert {path.name for path in folder.iterdir()} == {
        "predictions.csv",
        "predictions.json",
        "masks",
        "figures",
        "report.html",
    }
    assert {path.name for path in (folder / "figures").iterdir()} == {"nodules.png", "nodules.pdf"}
    assert "nodule_2" in (folder / "report.html").read_text()


# The same whatever the way


def same_ratings(rows, others, tolerance):
    for row, other in zip(rows, others, strict=True):
        for name in (name for name in row if name.endswith("_expected")):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=tolerance)


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom", "turned"])
def test_the_format_does_not_matter(kind, workdir, ct, image, tmp_path):
    if kind == "dicom":
        folder = tmp_path / "dicom"
        series = {"step": (0, 0, SPACING[0]), "origin": ORIGIN, "spacing": SPACING[1:]}
        elements = {"FrameOfReferenceUID": "1.2.9", "StudyDate": "20200101", "StudyTime": "101010"}
        ct_files.write_series(folder, ct.array, **series, **elements)
        other = folder
    elif kind == "turned":  # stored the other way round, along other axes
        affine = ct.affine.copy()
        affine[:3, :3] = np.stack([ct.affine[:3, 1], -ct.affine[:3, 2], ct.affine[:3, 0]], axis=1)
        affine[:3, 3] = ct.to_lps((0, 0, ct.array.shape[2] - 1))
        other = ct_files.write_itk(tmp_path / "turned.nii", ct.array[:, :, ::-1].transpose(1, 2, 0), affine)
    else:
        other = ct_files.write_itk(tmp_path / f"ct.{kind}", ct.array, ct.affine)
    for name, path in (("here", image), ("there", other)):
        predict.predict(options(workdir, image=str(path), points=text(POINT, OTHER)), tmp_path / name)
    same_ratings(rows_of(tmp_path / "here"), rows_of(tmp_path / "there"), 1e-3)
    if kind == "dicom":
        names = sorted(path.name for path in (tmp_path / "there" / "dicom").iterdir())
        assert names == ["nodule_1_seg.dcm", "nodule_1_sr.dcm"]
        for path in tmp_path.joinpath("there").glob("predictions.*"):
            assert "Doe" not in path.read_text()


def test_neither_batches_nor_order_matter(workdir, image, tmp_path):
    points = [POINT, OTHER, POINT + 1.5]
    config = options(workdir, image=str(image), points=text(*points))
    predict.predict(config, tmp_path / "a")
    config.batch_size = 2
    config.predict.points = text(*points[::-1])
    predict.predict(config, tmp_path / "b")
    same_ratings(rows_of(tmp_path / "a"), rows_of(tmp_path / "b")[::-1], 1e-4)


def test_points_may_be_voxels(workdir, image, ct, tmp_path):
    index = ct.to_index(POINT)[::-1]
    predict.predict(options(workdir, image=str(image), points=text(POINT)), tmp_path / "mm")
    predict.predict(options(workdir, image=str(image), points=text(index), units="voxel"), tmp_path / "voxel")
    same_ratings(rows_of(tmp_path / "mm"), rows_of(tmp_path / "voxel"), 1e-3)  # a voxel's HU may round otherwise


@pytest.mark.data
def test_a_real_scan_as_dicom_and_as_nifti(workdir, tmp_path):
    ct = read_image(ct_files.REAL)
    nifti = ct_files.write_itk(tmp_path / "scan.nii", ct.array, ct.affine)
    for name, path in (("dicom", ct_files.REAL), ("nifti", nifti)):
        predict.predict(options(workdir, image=str(path), points="56.4,86.3,-116.0"), tmp_path / name)
    same_ratings(rows_of(tmp_path / "dicom"), rows_of(tmp_path / "nifti"), 1e-3)
    assert len(list((tmp_path / "dicom" / "dicom").iterdir())) == 2


# Many at once, and what goes wrong


def test_a_broken_image_or_a_stray_point_stops_nothing_else(workdir, image, tmp_path):
    shutil.copy(image, tmp_path / "ct.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(image.read_bytes()[:2000])
    lines = ["nodule_id,image,x_mm,y_mm,z_mm"]
    for name, path, point in (
        ("a", "ct.nii.gz", POINT),
        ("b", "broken.nii.gz", POINT),
        ("c", "ct.nii.gz", -POINT),
        ("d", "missing.nii.gz", POINT),
        ("e", "ct.nii.gz", OTHER),
    ):
        lines.append(f"{name},{path},{','.join(map(str, point))}")
    (tmp_path / "points.csv").write_text("\n".join(lines))
    config = options(workdir, points=str(tmp_path / "points.csv"))
    message = ct_files.refusal(predict.predict, config, tmp_path / "out")
    assert message.startswith("3 of 5 nodules could not be predicted") and "predictions.csv" in message
    rows = rows_of(tmp_path / "out")
    assert [row["nodule_id"] for row in rows] == list("abcde")
    status = {row["nodule_id"]: row["status"] for row in rows}
    assert status["a"] == status["e"] == "ok"
    assert "broken.nii.gz" in status["b"] and "missing.nii.gz: no such file" in status["d"]
    assert "the point lies outside ct.nii.gz" in status["c"] and "LPS" in status["c"]
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"a.nii.gz", "e.nii.gz"}
    assert rows[1]["malignancy_pred"] == "" and rows[1]["mask"] == ""


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"image": "", "points": "1,2,3"}, r"config\.predict\.image: is empty"),
        ({"image": "a.nii", "points": ""}, r"config\.predict\.points: is empty"),
        ({"image": "a.nii", "points": "1,2"}, r"config\.predict\.points: '1,2' is not a point"),
        ({"image": "a.nii", "points": "1,2,x"}, "is not a point"),
        ({"image": "a.nii", "points": "1,2,nan"}, "is not a point"),
        ({"image": "a.nii", "points": "p.csv"}, r"p\.csv: no such file"),
        ({"points": "no/such.csv"}, r"no/such\.csv: no such file"),
        (
            {"image": "a.nii", "points": "1,2,3", "units": "cm"},
            r"config\.predict\.units: 'cm' is none of mm, ras, voxel",
        ),
    ],
)
def test_settings_that_make_no_sense(fields, complaint, workdir, tmp_path):
    with pytest.raises(UserError, match=complaint):
        predict.predict(options(workdir, **fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["a,ct.nii,1,2,3", "a,ct.nii,4,5,6"], "nodule_id 'a' appears twice"),
        (["../a,ct.nii,1,2,3"], r"nodule_id '\.\./a': give at most 128 letters, digits"),
        (["a,ct.nii,1,2,three"], "line 2, column z_mm: 'three' is not a number"),
        (["a,,1,2,3"], "line 2, column image: is empty"),
        ([], "holds no nodule"),
    ],
)
def test_a_table_of_points_that_makes_no_sense(rows, complaint, workdir, tmp_path):
    (tmp_path / "points.csv").write_text("\n".join(["nodule_id,image,x_mm,y_mm,z_mm", *rows]))
    with pytest.raises(UserError, match=complaint):
        predict.predict(options(workdir, points=str(tmp_path / "points.csv")), tmp_path / "out")


def test_the_workdir_of_a_training_is_not_written_to(workdir, image, tmp_path):
    for name in ("folds.json", "predictions.csv"):
        (tmp_path / name).write_text("of a training")
    with pytest.raises(UserError, match="holds a training run"):
        predict.predict(options(workdir, image=str(image), points=text(POINT)), tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == "of a training"


def test_a_second_prediction_takes_the_place_of_the_first(workdir, image, tmp_path):
    predict.predict(options(workdir, image=str(image), points=text(POINT, OTHER)), tmp_path)
    (tmp_path / "masks" / "mine.nii.gz").write_text("not the prediction's")
    predict.predict(options(workdir, image=str(image), points=text(OTHER)), tmp_path)
    assert len(rows_of(tmp_path)) == 1
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"nodule_1.nii.gz", "mine.nii.gz"}
    (tmp_path / "predictions.json").write_text('{"nodules": 3}')
    with pytest.raises(UserError, match=r"predictions\.json: not written by a prediction"):
        predict.predict(options(workdir, image=str(image), points=text(OTHER)), tmp_path)
    assert len(rows_of(tmp_path)) == 1


def test_headers_that_allow_of_no_dicom_objects_cost_nothing_else(workdir, ct, tmp_path):
    series = {"step": (0, 0, SPACING[0]), "origin": ORIGIN, "spacing": SPACING[1:]}
    for path in ct_files.write_series(tmp_path / "series", ct.array, **series):
        ct_files.edit(path, SeriesInstanceUID="../../evil")
    config = options(workdir, image=str(tmp_path / "series"), points=text(POINT))
    message = ct_files.refusal(predict.predict, config, tmp_path / "out")
    assert message.startswith("all nodules are predicted, but") and "FrameOfReferenceUID" in message
    (row,) = rows_of(tmp_path / "out")
    assert row["status"] == "ok" and (tmp_path / "out" / row["mask"]).is_file()
    assert not list(tmp_path.rglob("*evil*"))


@pytest.fixture
def balls(monkeypatch):
    """Networks that find a ball, 12 mm wide, at every point: nothing is compiled."""
    mask = np.linalg.norm(np.indices((16,) * 3) - 7.5, axis=0) < 3

    def find_balls(networks, images, flips):
        n, count = len(images), len(networks.members)
        features = max(len(one.mean_features) for one in networks.members.values())
        p = np.tile(schema.CLASS_EXISTS / schema.CLASS_EXISTS.sum(axis=1, keepdims=True), (count, 1, n, 1, 1))
        return ensemble.Predictions(np.tile(mask * 1.0, (n, 1, 1, 1)), p, np.zeros((count, 1, n, features)))

    monkeypatch.setattr(ensemble, "predict", find_balls)
    monkeypatch.setattr(attribution, "mean_contributions", lambda _, found: np.zeros((found.features.shape[2], 9)))
    monkeypatch.setattr(attribution, "saliency", lambda networks, images: images.astype(np.float32))


@pytest.mark.parametrize("kind", ["dicom", "missing"])
def test_a_path_that_is_not_utf8_is_written_readably(kind, balls, workdir, ct, tmp_path):
    there = tmp_path / "ct\udcff"  # as Python has the byte 255
    try:
        there.mkdir()
    except OSError:
        pytest.skip("this file system takes only file names in UTF-8")
    if kind == "dicom":
        series = {"step": (0, 0, SPACING[0]), "origin": ORIGIN, "spacing": SPACING[1:]}
        ct_files.write_series(there, ct.array, FrameOfReferenceUID="1.2.9", **series)
    else:
        there /= "none.nii.gz"
    config = options(workdir, image=str(there), points=text(POINT, OTHER, -POINT), shown=1)
    message = ct_files.refusal(predict.predict, config, tmp_path / "out")
    rows, content = rows_of(tmp_path / "out"), json.loads((tmp_path / "out" / "predictions.json").read_text())
    name = str(there).replace("\udcff", "\\udcff")
    assert "ct\\udcff" in message and "ct\\udcff" in rows[2]["status"]
    for row, nodule in zip(rows, content["nodules"], strict=True):
        assert row["image"] == nodule["image"] == name and row["status"] == nodule["status"]
    if kind == "dicom":
        assert [row["status"] == "ok" for row in rows] == [True, True, False]
        assert "ct\\\\udcff" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")  # as JSON has it
    else:
        assert all(row["status"] == f"{name}: no such file or folder; correct the path" for row in rows)


# Elements that tell who was scanned, where and when, with values that stand nowhere else.
_NAMES = """
    PatientID IssuerOfPatientID OtherPatientIDs PatientComments PatientAddress PatientMotherBirthName EthnicGroup
    AdditionalPatientHistory Occupation AccessionNumber StudyID StudyDescription SeriesDescription ProtocolName
    InstitutionName InstitutionAddress StationName DeviceSerialNumber ReferringPhysicianName PerformingPhysicianName
    OperatorsName ImageComments
"""
IDENTITY = {name: f"ZQ{place:02}" for place, name in enumerate(_NAMES.split())}
DATES = {
    "PatientBirthDate": "19370203",
    "StudyDate": "20170506",
    "SeriesDate": "20170507",
    "AcquisitionDate": "20170508",
}


def test_only_dicom_objects_say_who_was_scanned_and_images_are_called_as_the_user_did(
    balls, workdir, ct, tmp_path, capfd
):
    series = {"step": (0, 0, SPACING[0]), "origin": ORIGIN, "spacing": SPACING[1:], "FrameOfReferenceUID": "1.2.9"}
    for name in ("ct", "damaged"):
        paths = ct_files.write_series(tmp_path / name, ct.array, **series, **IDENTITY, **DATES)
    ct_files.edit(paths[3], PixelSpacing=None)
    typed = {"a": "./ct", "b": "ct/../ct", "c": "damaged", "d": "ct"}
    places = dict.fromkeys(typed, POINT) | {"d": -POINT}
    lines = [f"{name},{typed[name]},{','.join(map(str, places[name]))}" for name in typed]
    (tmp_path / "points.csv").write_text("\n".join(["nodule_id,image,x_mm,y_mm,z_mm", *lines]))
    config, out = options(workdir, points=str(tmp_path / "points.csv"), shown=5), tmp_path / "out"
    message = ct_files.refusal(predict.predict, config, out)
    content = json.loads((out / "predictions.json").read_text())["nodules"]
    assert {row["nodule_id"]: row["image"] for row in rows_of(out)} == typed
    assert {nodule["nodule_id"]: nodule["image"] for nodule in content} == typed
    assert [nodule["status"] == "ok" for nodule in content] == [True, True, False, False]
    page = (out / "report.html").read_text()
    assert all(f'"nodule_id":"{name}","image":"{typed[name]}"' in page for name in "ab")
    secrets = [text.encode() for text in (*IDENTITY.values(), *DATES.values(), ct_files.NAMES)]
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    written |= {path: gzip.decompress(data) for path, data in written.items() if path.suffix == ".gz"}
    written |= {"message": message.encode(), "printed": "".join(capfd.readouterr()).encode()}
    told = {Path(place).suffix for place, data in written.items() if any(secret in data for secret in secrets)}
    assert told == {".dcm"}


def test_one_image_at_a_time_is_in_memory(ct, tmp_path, monkeypatch):
    alive, read = [], []

    def read_watched(path, series):
        alive.append(sum(volume() is not None for volume in read))
        volume = Volume(ct.array.copy(), ct.affine)
        read.append(weakref.ref(volume))
        return Image(volume, None)

    monkeypatch.setattr(requests, "open_ct", read_watched)
    wanted = [requests.Request(name, name, tmp_path / name, POINT) for name in "abc"]
    assert len(list(requests.locate(wanted, 16, 2.0))) == 3
    assert alive == [0, 0, 0]


def test_no_patch_is_kept_of_a_nodule_of_a_series_but_of_those_that_are_shown(
    balls, workdir, ct, tmp_path, monkeypatch
):
    series = {"step": (0, 0, SPACING[0]), "origin": ORIGIN, "spacing": SPACING[1:]}
    ct_files.write_series(tmp_path / "ct", ct.array, FrameOfReferenceUID="1.2.9", **series)
    patches, alive, make = [], [], asking.make_findings

    def make_watched(*arguments):
        findings = make(*arguments)
        patches.extend((weakref.ref(finding.hu), weakref.ref(finding.mask)) for finding in findings)
        return findings

    def look(all_series, *_):
        alive.append([any(patch() is not None for patch in pair) for pair in patches])
        masks = sorted((tmp_path / "out" / "masks").iterdir())
        (series,) = all_series
        for voxels, path in zip(series.marked, masks, strict=True):
            assert len(voxels) == sitk.GetArrayViewFromImage(sitk.ReadImage(str(path))).sum() > 0
        assert all(voxels.nbytes == 12 * len(voxels) for voxels in series.marked)
        return []

    monkeypatch.setattr(asking, "make_findings", make_watched)
    monkeypatch.setattr(write, "write_dicom_objects", look)
    monkeypatch.setattr(write, "write_report", lambda *_: None)
    places = [POINT + (step, 0, 0) for step in range(7)]
    config = options(workdir, image=str(tmp_path / "ct"), points=text(*places), shown=1)
    config.batch_size = 2
    predict.predict(config, tmp_path / "out")
    assert alive == [[True, False, False, False, False, False, False]]  # the one that is shown


def test_from_the_command_line(workdir, image, tmp_path):
    command = [sys.executable, "-m", "pnsamp_jax.main", "--config", "configs/predict.py", "--workdir", str(tmp_path)]
    command += [f"--config.predict.checkpoint={workdir}", "--config.predict.shown=0", "--config.predict.flips=False"]
    command += [f"--config.predict.image={image}", f"--config.predict.points={text(-POINT, POINT)}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pnsamp_jax: 1 of 2 nodules could not be predicted")
    assert [row["status"] == "ok" for row in rows_of(tmp_path)] == [False, True]
