"""The Python interface: whatever holds a CT, the same nodule gets the same answer."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import ct_files
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import refusal
from tiny_run import made_up_run

import pnsamp_jax
from pnsamp_jax.ct.in_memory import ct_in_memory
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema

pytestmark = pytest.mark.usefixtures("quick_compilation")

POINT = (-61.0, 47.0, -170.0)
OTHER = (-70.0, 52.5, -152.0)


@pytest.fixture(scope="module")
def ct():
    """A CT of air with a ball of tissue round either point."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * (2.5, 0.8, 0.7)
    affine[:3, 3] = (-80.0, 30.0, -200.0)
    volume = Volume(np.zeros((28, 50, 60), np.int16), affine)
    at = volume.to_lps(np.moveaxis(np.indices(volume.array.shape), 0, -1))
    away = np.minimum(np.linalg.norm(at - POINT, axis=-1), np.linalg.norm(at - OTHER, axis=-1))
    volume.array[:] = np.where(away < 6, 0, -850) + np.random.default_rng(0).normal(0, 40, volume.array.shape)
    return volume


@pytest.fixture(scope="module")
def image(ct, tmp_path_factory):
    return ct_files.write_itk(tmp_path_factory.mktemp("images") / "ct.nii.gz", ct.array, ct.affine)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, quick_compilation):
    return pnsamp_jax.load(made_up_run(tmp_path_factory.mktemp("run"), (0, 1), likeness=True), flips=False)


@pytest.fixture(scope="module")
def answer(predictor, image):
    return predictor(image, POINT)


def same(answer, expected):
    """Whether two answers have the same numbers; the position in a NIfTI is rounded to float32."""
    here, there = (json.dumps(one.to_dict()["malignancy_p3"]) for one in (answer, expected))
    return float(here) == pytest.approx(float(there), rel=1e-3) and answer.mask.sum() == expected.mask.sum()


def test_a_point_gives_one_answer_and_several_give_a_list(predictor, image, answer):
    both = predictor(image, [POINT, OTHER], nodule_ids=["upper", "lower"])
    assert [one.nodule_id for one in both] == ["upper", "lower"]
    assert same(both[0], answer) and both[1].point_mm == OTHER
    assert predictor(image, np.zeros((0, 3))) == []


def test_the_mask_lies_on_the_grid_of_the_ct(answer, ct):
    assert answer.mask.shape == ct.array.shape and answer.mask.dtype == bool
    np.testing.assert_allclose(answer.affine, ct.affine, atol=1e-5)
    assert answer.mask.sum() * 2.5 * 0.8 * 0.7 == pytest.approx(answer.volume_mm3, abs=0.7)  # half a voxel


def test_a_ct_in_memory_is_answered_as_its_file(predictor, image, answer, ct):
    loaded, itk = nibabel.load(image), sitk.ReadImage(str(image))
    by_nibabel = predictor(loaded, POINT)
    assert same(by_nibabel, answer)
    np.testing.assert_array_equal(by_nibabel.mask, answer.mask.T)  # nibabel's order is i, j, k
    by_itk = predictor(itk, POINT)
    assert same(by_itk, answer) and by_itk.mask.shape == sitk.GetArrayFromImage(itk).shape
    assert same(predictor(ct.array, POINT, affine=ct.affine), answer)
    assert same(predictor(ct.array.astype(np.float64), POINT, affine=ct.affine), answer)


def test_voxels_are_counted_as_each_kind_of_image_counts_them(predictor, image, ct):
    d, h, w = 12, 21, 27
    expected = predictor(image, ct.to_lps((d, h, w)))
    itk = sitk.ReadImage(str(image))
    for which, index, fields in (
        (image, (w, h, d), {}),
        (itk, (w, h, d), {}),
        (nibabel.load(image), (w, h, d), {}),
        (ct.array, (d, h, w), {"affine": ct.affine}),
    ):
        np.testing.assert_allclose(predictor(which, index, units="voxel", **fields).point_mm, expected.point_mm, 1e-5)


def test_ras_has_the_other_sign(predictor, image, answer):
    assert same(predictor(image, (-POINT[0], -POINT[1], POINT[2]), units="ras"), answer)


def test_ratings_are_plain_values(answer):
    assert len(answer.ratings) == 9
    for name, rating in answer.ratings.items():
        assert sum(rating.probabilities) == pytest.approx(1, abs=1e-5)
        assert rating.probabilities[rating.likeliest - 1] == max(rating.probabilities)
        assert (rating.within_one is None) == (name in ("internal_structure", "calcification"))
        assert type(rating.likeliest) is int and type(rating.words) is str
    assert 0 <= answer.suspicion <= 1 and answer.contributions.keys() >= {"spiculation", "image"}
    assert repr(answer).startswith("<Answer nodule_1 at (-61.0, 47.0, -170.0): ")
    json.dumps(answer.to_dict())


def test_an_answer_says_how_far_it_can_be_trusted(answer):
    fields = answer.to_dict()
    assert ";".join(map(str, answer.malignancy_set)) == fields["malignancy_set"]
    assert answer.unsure is fields["unsure"] is (min(answer.malignancy_set) <= 2 and max(answer.malignancy_set) >= 4)
    assert answer.volume_range_mm3[0] < answer.volume_mm3 < answer.volume_range_mm3[1]
    assert answer.diameter_range_mm[0] < answer.diameter_mm < answer.diameter_range_mm[1]
    assert 0 < answer.nodule_like < 1 and answer.nodule_like == pytest.approx(fields["nodule_like"], rel=1e-5)


def test_the_words_of_a_class():
    words = {"subtlety": 5, "internal_structure": 4, "calcification": 6, "malignancy": 5}

    assert {rating.name: len(rating.words) for rating in schema.RATINGS if rating.name in words} == words
    assert schema.RATINGS[2].words[6 - 1] == "absent"
    assert schema.RATINGS[8].words[5 - 1] == "highly suspicious"


def test_a_file_of_points_gives_answers_and_reasons(predictor, image, answer, tmp_path):
    """The third point is that of the first nodule in RAS, which the CT does not hold; the fourth CT does not exist."""
    rows = [f"second,{image},{OTHER[0]},{OTHER[1]},{OTHER[2]}", f"first,{image},{POINT[0]},{POINT[1]},{POINT[2]}"]
    rows += [f"ras,{image},{-POINT[0]},{-POINT[1]},{POINT[2]}", "lost,none.nii.gz,0,0,0"]
    (tmp_path / "points.csv").write_text("\n".join(["nodule_id,image,x_mm,y_mm,z_mm", *rows]))
    answers, failures = predictor.from_file(tmp_path / "points.csv")
    assert [one.nodule_id for one in answers] == ["second", "first"] and same(answers[1], answer)
    assert failures.keys() == {"ras", "lost"}
    assert "set units to ras" in failures["ras"] and "no such file" in failures["lost"]
    pnsamp_jax.save(answers, tmp_path / "out")
    assert "no such file" in refusal(predictor.from_file, tmp_path / "none.json", image)
    reason = refusal(predictor.from_file, tmp_path / "points.csv", image)
    assert reason.startswith("image: leave it out where points is a CSV")
    assert "image: is a ndarray; give a path" in refusal(predictor.from_file, tmp_path / "points.csv", np.zeros(3))
    assert "units: 'cm' is none of" in refusal(predictor.from_file, tmp_path / "points.csv", units="cm")


def test_nothing_is_written_unless_asked_for(predictor, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor(image, POINT)._repr_png_()
    assert not list(tmp_path.iterdir())


def test_what_is_saved_is_what_the_command_line_writes(predictor, image, answer, tmp_path):
    both = predictor(image, [POINT, OTHER])
    pnsamp_jax.save(both, tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        *("predictions.csv", "predictions.json", "report.html", "figures/nodules.png", "figures/nodules.pdf"),
        *("masks/nodule_1.nii.gz", "masks/nodule_2.nii.gz"),
    }
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["volume_mm3"]) == pytest.approx(answer.volume_mm3, rel=1e-5)
    saved = nibabel.load(tmp_path / "out" / rows[0]["mask"])
    np.testing.assert_array_equal(np.asarray(saved.dataobj).T > 0, both[0].mask)
    assert "holds a prediction already" in refusal(answer.save, tmp_path / "out")
    assert "folder: is empty" in refusal(answer.save, "")


def test_a_report_of_several(predictor, image, tmp_path):
    both = predictor(image, [POINT, OTHER], nodule_ids=["one", "two"])
    page = pnsamp_jax.save_report(both, tmp_path / "new" / "r.html").read_text()
    assert '"nodule_id":"one"' in page and '"nodule_id":"two"' in page
    assert "trained on simulated voxels" in page  # as these networks are
    assert f'"networks":2,"flips":1,"date":"{both[0].header["date"]}"' in page and '"locator":{"shape":' in page
    assert "appears twice" in refusal(pnsamp_jax.save_report, [both[0], both[0]], tmp_path / "r.html")


def test_a_report_of_answers_of_different_networks_names_all(answer, tmp_path):
    other = replace(
        answer,
        finding=replace(answer.finding, nodule_id="other"),
        located=answer.located._replace(request=answer.located.request._replace(nodule_id="other")),
        header=answer.header | {"checkpoint": "runs/m", "networks": 5, "trained_on_simulated_voxels": False},
    )
    page = pnsamp_jax.save_report([answer, other], tmp_path / "r.html").read_text()
    assert f'"checkpoint":"{answer.header["checkpoint"]}, runs/m"' in page and '"networks":"2, 5","flips":1' in page
    assert "trained on simulated voxels" in page


def test_a_series_of_dicom_gets_its_objects(predictor, ct, answer, tmp_path):
    series = {"step": (0, 0, 2.5), "origin": (-80.0, 30.0, -200.0), "spacing": (0.8, 0.7)}
    ct_files.write_series(tmp_path / "ct", ct.array, FrameOfReferenceUID="1.2.9", **series)
    found = predictor(tmp_path / "ct", POINT)
    assert same(found, answer)
    found.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "dicom").iterdir()) == [
        "nodule_1_seg.dcm",
        "nodule_1_sr.dcm",
    ]


@pytest.mark.parametrize(
    ("arguments", "fields", "reason"),
    [
        ((POINT[:2],), {}, "points: have the shape (2,)"),
        (((900, 0, 0),), {}, "nodule_1: the point lies outside"),
        ((POINT,), {"units": "cm"}, "units: 'cm' is none of mm, ras, voxel"),
        ((POINT,), {"affine": np.eye(4)}, "affine: leave it out"),
        (([POINT, OTHER],), {"nodule_ids": ["a"]}, "1 names for 2 points"),
        (([POINT, OTHER],), {"nodule_ids": ["a", "a"]}, "appears twice"),
        ((POINT,), {"nodule_ids": ["../a"]}, "give at most 128 letters"),
        (([POINT, OTHER],), {"nodule_ids": "ab"}, "1 names for 2 points"),
        (([POINT, OTHER],), {"nodule_ids": ["a", None]}, "nodule_ids: one is missing"),
        (([POINT, OTHER],), {"nodule_ids": ["a", float("nan")]}, "nodule_ids: one is missing"),
        ((POINT,), {"nodule_ids": [None, 7]}, "2 names for 1 points"),
        (("-61,47,-170",), {}, "points: cannot be read as an array of numbers"),
        (([POINT, POINT[:2]],), {}, "points: cannot be read as an array of numbers"),
        (({"x": 1},), {}, "points: cannot be read as an array of numbers"),
        (((np.nan, 47, -170),), {}, "points: [nan, 47.0, -170.0] are not all numbers"),
        ((np.ma.masked_array(POINT, [True, False, False]),), {}, "points: [nan, 47.0, -170.0] are not all numbers"),
    ],
)
def test_mistakes_are_named(predictor, image, arguments, fields, reason):
    assert reason in refusal(predictor, image, *arguments, **fields)


def test_one_volume_may_be_stored_as_a_series_of_volumes(predictor, ct, image, answer):
    loaded = nibabel.load(image)
    series = nibabel.Nifti1Image(np.asarray(loaded.dataobj)[..., None], loaded.affine)
    assert same(predictor(series, POINT), answer)
    assert same(predictor(sitk.JoinSeries([sitk.ReadImage(image)]), POINT), answer)


def test_a_number_may_name_a_nodule(predictor, image):
    assert predictor(image, POINT, nodule_ids=7).nodule_id == "7"
    assert [one.nodule_id for one in predictor(image, [POINT, OTHER], nodule_ids=np.array([3, 4]))] == ["3", "4"]
    assert "nodule_ids: has 1 names for 2 points" in refusal(predictor, image, [POINT, OTHER], nodule_ids=7)


def test_a_ct_without_a_geometry_of_its_own_is_noted(predictor, ct):
    lost = sitk.GetImageFromArray(ct.array)
    assert "all sizes are wrong: its header has no geometry" in predictor(lost, (27, 21, 12)).finding.note
    lost.SetOrigin((0, 0, 5))
    assert "geometry" not in predictor(lost, (27, 21, 17)).finding.note


def test_an_image_in_memory_must_be_a_chest_ct_with_a_place(predictor, ct):
    assert "affine: is missing" in refusal(predictor, ct.array, POINT)
    assert "not a (4, 4) matrix" in refusal(predictor, ct.array, POINT, affine=np.eye(3))
    assert "give one 3D image" in refusal(predictor, ct.array[None], POINT, affine=ct.affine)
    assert "are not the HU of a chest" in refusal(predictor, ct.array + 1024, POINT, affine=ct.affine)
    assert "implausible spacing" in refusal(predictor, ct.array, POINT, affine=np.diag([0.001, 1, 1, 1]))
    nowhere = nibabel.Nifti1Image(ct.array, None)
    assert "neither sform nor qform" in refusal(predictor, nowhere, POINT)
    two_places = nibabel.Nifti1Image(ct.array, np.diag([-1, -1, 1, 1]) @ ct.affine)
    elsewhere = two_places.affine.copy()
    elsewhere[:3, 3] += 8
    two_places.set_qform(elsewhere, code=1)
    assert "sform and qform differ" in refusal(predictor, two_places, POINT)
    analyze = nibabel.AnalyzeImage(ct.array, None)
    for nowhere in (analyze, nibabel.AnalyzeImage(ct.array, analyze.header.get_base_affine())):
        assert "has no position, as in Analyze's format" in refusal(predictor, nowhere, POINT)
    for affine in ("eye", [[1, 2], [3]]):
        assert "affine: cannot be read" in refusal(predictor, ct.array, POINT, affine=affine)
    for thing in (None, 5, b"ct.nii"):
        assert "is no image; give a path" in refusal(predictor, thing, POINT, affine=ct.affine)
        assert "is no image; give a path" in refusal(predictor, thing, POINT)
    labels = sitk.BinaryImageToLabelMap(sitk.GetImageFromArray(np.ones((4, 4, 4), np.uint8)))
    assert "is a label map" in refusal(predictor, labels, POINT)
    assert "not one of SimpleITK" in refusal(predictor, SimpleNamespace(GetOrigin=None), POINT)
    metres = nibabel.Nifti1Image(ct.array, np.eye(4))
    metres.header.set_xyzt_units("meter")
    assert "has units of meter" in refusal(predictor, metres, POINT)


def test_an_array_that_numpy_cannot_read_is_refused_with_its_own_reason(predictor, ct):
    class OnGpu:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    reason = refusal(predictor, OnGpu(), POINT, affine=ct.affine)
    assert reason == "the OnGpu cannot be read as a NumPy array (can't convert cuda:0 device type tensor to numpy)"


def test_a_nibabel_image_whose_file_is_damaged_is_refused(predictor, image, tmp_path):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(image.read_bytes()[:-2000])
    loaded = nibabel.load(path)
    assert "cannot be read from its file" in refusal(predictor, loaded, POINT)
    path.unlink()
    assert "cannot be read from its file" in refusal(predictor, loaded, POINT)


def test_masked_voxels_are_air(ct):
    masked = np.zeros(ct.array.shape, bool)
    masked[:, :5] = True
    volume = ct_in_memory(np.ma.masked_array(ct.array, masked), ct.affine)
    assert (volume.array[masked] == -1024).all()
    np.testing.assert_array_equal(volume.array[~masked], np.maximum(ct.array, -1024)[~masked])


def test_one_point_may_have_one_name(predictor, image):
    assert predictor(image, POINT, nodule_ids="mine").nodule_id == "mine"


def test_what_cannot_be_saved_is_refused_before_a_file_is_written(answer, tmp_path):
    for save in (pnsamp_jax.save, pnsamp_jax.save_report):
        assert "answers: hold a list" in refusal(save, ([answer], {}), tmp_path / "out")
        assert "there are no answers" in refusal(save, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert f"{tmp_path}: cannot be written (Is a directory)" in refusal(pnsamp_jax.save_report, answer, tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(pnsamp_jax.save_report, answer, tmp_path / "file" / "r.html")


def test_one_answer_or_an_iterator_is_saved(answer, tmp_path):
    for folder, answers in (("one", answer), ("iterator", iter([answer]))):
        with (pnsamp_jax.save(answers, tmp_path / folder) / "predictions.csv").open(newline="") as file:
            assert [row["nodule_id"] for row in csv.DictReader(file)] == ["nodule_1"]


def test_the_package_offers_what_its_stub_names():
    for name in ("load", "Predictor", "Answer", "save", "save_report", "UserError", "EXAMPLE_CT"):
        assert getattr(pnsamp_jax, name) is not None and name in dir(pnsamp_jax)
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        pnsamp_jax.laod  # noqa: B018


def test_answers_are_saved_in_the_order_of_the_user(predictor, image, tmp_path):
    later = image.with_name("z_" + image.name)
    later.write_bytes(image.read_bytes())
    last, first = predictor(later, POINT, nodule_ids="last"), predictor(image, POINT, nodule_ids="first")
    pnsamp_jax.save([last, first], tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert [row["nodule_id"] for row in csv.DictReader(file)] == ["last", "first"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index('"nodule_id":"last"') < page.index('"nodule_id":"first"')


def test_an_answer_keeps_the_patch_that_was_asked_about(predictor, image):
    (found,), _ = predictor.from_file(f"{','.join(map(str, POINT))}", image)
    for own in (predictor(image, POINT), found):
        assert own.located.around is None  # the larger cube that it was cut from
        np.testing.assert_array_equal(own.located.hu, own.finding.hu)
        np.testing.assert_allclose(own.located.centre_mm(own.finding.spacing_mm), own.finding.centre_mm)


def test_arguments_of_a_wrong_type_are_named(predictor, answer, image, tmp_path):
    assert (
        refusal(predictor, "", POINT) == "image: is empty; give an image file or a folder that holds one DICOM series"
    )
    assert "min_score: is a str" in refusal(predictor.from_file, tmp_path / "points.csv", min_score="0.5")
    assert "folder: is empty" in refusal(pnsamp_jax.save, answer, None)
    assert "networks: is a NoneType" in refusal(pnsamp_jax.load, None)
