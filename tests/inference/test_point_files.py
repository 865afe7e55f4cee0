"""Points from the files in which they come, each exactly as its own tool writes it."""

import json

import ct_files
import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import refusal

from pnsamp_jax.inference import mask_points
from pnsamp_jax.inference.point_files import read_requests

SLICER_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100225287222365663678666836860"


def points_of(requests):
    """The requests' points in LPS mm."""
    return np.array([request.point_mm for request in requests])


def markups(system, *points, kind="Fiducial", **fields):
    """A file as 3D Slicer 5 writes it, as far as it concerns points."""
    control = [
        {
            "id": str(i),
            "label": f"F-{i}",
            "description": "",
            "associatedNodeID": "vtkMRMLScalarVolumeNode1",
            "position": [float(value) for value in point],
            "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined",
        }
        for i, point in enumerate(points, start=1)
    ]
    markup = {"type": kind, "coordinateSystem": system, "coordinateUnits": "mm", "locked": False}
    markup |= {"labelFormat": "%N-%d", "controlPoints": control, "measurements": [], "display": {}}
    return json.dumps({"@schema": SLICER_SCHEMA, "markups": [markup | fields]})


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_markups_of_slicer_name_their_own_system(system, tmp_path):
    file = tmp_path / "F.mrk.json"
    sign = (1, 1, 1) if system == "LPS" else (-1, -1, 1)
    file.write_text(markups(system, np.multiply((10, 20, 30), sign), np.multiply((1, -2, 3.5), sign)))
    requests = read_requests("ct.nrrd", str(file), "mm")
    np.testing.assert_array_equal(points_of(requests), [(10, 20, 30), (1, -2, 3.5)])
    assert [request.nodule_id for request in requests] == ["F-1", "F-2"]


def test_boxes_of_slicer_are_nodules_and_rulers_are_not(tmp_path):
    file = tmp_path / "R.mrk.json"
    file.write_text(markups("LPS", (1, 2, 3), kind="ROI", center=[1, 2, 3], size=[8, 8, 8]))
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(1, 2, 3)])
    file.write_text(markups("LPS", (1, 2, 3), (4, 5, 6), kind="Line"))
    assert "holds a Line; mark nodules by points" in refusal(read_requests, "ct.nrrd", str(file), "mm")


def test_the_point_of_a_box_is_its_centre_and_not_what_it_was_drawn_around(tmp_path):
    file = tmp_path / "R.mrk.json"
    fields = {"kind": "ROI", "roiType": "BoundingBox", "center": [-5, -6, 7], "size": [8, 8, 8]}
    file.write_text(markups("RAS", (-1, -2, 3), (-9, -10, 11), **fields))
    (request,) = read_requests("ct.nrrd", str(file), "mm")
    np.testing.assert_array_equal(request.point_mm, (5, 6, 7))
    assert request.nodule_id == "F-1"


def test_points_that_were_not_placed_are_left_out_of_tables_and_older_lists(tmp_path):
    file = tmp_path / "F.csv"
    file.write_text("label,l,p,s,defined,selected,visible,locked\nF-1,0,0,0,0,1,1,0\nF-2,10,20,30,1,1,1,0\n")
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(10, 20, 30)])
    file = tmp_path / "F.fcsv"
    head = FCSV.format(version="5.2", system="LPS", x=0, y=0).splitlines()[:3]
    # Behind the columns that it names, 3D Slicer 5 writes the status of a point, 2 where it was placed.
    rows = ["1,0,0,0,0,0,0,1,1,1,0,F-1,,,0,0", "2,10,20,30,0,0,0,1,1,1,0,F-2,,vtkMRMLScalarVolumeNode1,2,0"]
    file.write_text("\n".join([*head, *rows]))
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(10, 20, 30)])


def test_points_that_were_not_placed_are_left_out(tmp_path):
    content = json.loads(markups("LPS", (1, 2, 3), (0, 0, 0)))
    content["markups"][0]["controlPoints"][1]["positionStatus"] = "undefined"
    file = tmp_path / "F.mrk.json"
    file.write_text(json.dumps(content))
    assert len(read_requests("ct.nrrd", str(file), "mm")) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"coordinateSystem": None}, "its coordinate system is None; save the points as LPS or RAS"),
        ({"coordinateUnits": "um"}, "its coordinateUnits are um; save the points in mm"),
        ({"controlPoints": [{"position": [1, 2]}]}, "[1, 2] is not a point of three numbers"),
        ({"controlPoints": 5}, "not written by 3D Slicer's Markups module, or damaged"),
    ],
)
def test_markups_that_could_mean_another_place_are_refused(change, reason, tmp_path):
    file = tmp_path / "F.mrk.json"
    file.write_text(markups("LPS", (1, 2, 3), **change))
    assert reason in refusal(read_requests, "ct.nrrd", str(file), "mm")


FCSV = """# Markups fiducial file version = {version}
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,{x},{y},30.5,0.000,0.000,0.000,1.000,1,1,0,upper lobe,,vtkMRMLScalarVolumeNode1
vtkMRMLMarkupsFiducialNode_1,{x},{y},-7,0,0,0,1,1,1,0,"left, low",,
"""


@pytest.mark.parametrize(
    ("version", "system", "sign"), [("4.10", "0", -1), ("4.6", "RAS", -1), ("4.13", "LPS", 1), ("4.11", "1", 1)]
)
def test_point_lists_of_older_slicers(version, system, sign, tmp_path):
    file = tmp_path / "F.fcsv"
    file.write_text(FCSV.format(version=version, system=system, x=sign * 10, y=sign * 20))
    requests = read_requests("ct.nrrd", str(file), "voxel")
    np.testing.assert_array_equal(points_of(requests), [(10, 20, 30.5), (10, 20, -7)])
    assert [request.nodule_id for request in requests] == ["upper_lobe", "left_low"]


def test_a_point_list_without_a_system_is_refused(tmp_path):
    file = tmp_path / "F.fcsv"
    file.write_text(FCSV.format(version="4.13", system="2", x=1, y=2))
    assert "its coordinate system is 2" in refusal(read_requests, "ct.nrrd", str(file), "mm")
    file.write_text("F-1,1,2,3\n")
    assert "no line '# columns" in refusal(read_requests, "ct.nrrd", str(file), "mm")


def test_the_table_of_slicer_has_its_system_in_the_names_of_its_columns(tmp_path):
    file = tmp_path / "F.csv"
    file.write_text("label,l,p,s,defined,selected,visible,locked,description\nF-1,10,20,30,1,1,1,0,\n")
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(10, 20, 30)])
    file = tmp_path / "F.tsv"
    file.write_text("label\tr\ta\ts\tdefined\nF-1\t-10\t-20\t30\t1\n")
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(10, 20, 30)])


@pytest.fixture
def luna(tmp_path):
    """A folder in LUNA16's layout, with one scan."""
    (tmp_path / "subset0").mkdir()
    ct_files.write_itk(tmp_path / "subset0" / f"{UID}.mhd", np.zeros((4, 5, 6), np.int16), np.eye(4))
    return tmp_path


def test_annotations_of_luna16(luna):
    (luna / "annotations.csv").write_text(
        f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{UID},-128.69,-175.31,-298.38,5.65\n{UID},103.78,-211.92,-227.12,4.2"
    )
    first, second = read_requests(str(luna), str(luna / "annotations.csv"), "mm")
    assert first.path == second.path == luna / "subset0" / f"{UID}.mhd"
    np.testing.assert_array_equal(
        points_of([first, second]), [(-128.69, -175.31, -298.38), (103.78, -211.92, -227.12)]
    )
    assert (first.nodule_id, second.nodule_id) == (f"{UID}_1", f"{UID}_2")


def test_detections_are_chosen_by_their_score_and_keep_their_names(luna):
    rows = [f"{UID},1,2,3,0.2", f"{UID},4,5,6,0.9", "1.2.3,7,8,9,0.8"]
    (luna / "submission.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,probability", *rows]))
    first, second = read_requests(str(luna), str(luna / "submission.csv"), "mm", min_score=0.5)
    assert (first.nodule_id, second.nodule_id) == (f"{UID}_2", "1.2.3_1")
    assert (second.path, second.series) == (luna, "1.2.3")  # a DICOM series somewhere in the folder
    assert "with a score of at least 0.95" in refusal(
        read_requests, str(luna), str(luna / "submission.csv"), "mm", min_score=0.95
    )


def test_luna25_names_its_columns_otherwise(luna):
    (luna / "luna25.csv").write_text(
        "PatientID,SeriesInstanceUID,StudyDate,CoordX,CoordY,CoordZ,LesionID,label\n"
        f"100012,{UID},19990102,-106.56,-9.66,-285.49,1,0\n"
    )
    (request,) = read_requests(str(luna), str(luna / "luna25.csv"), "mm")
    np.testing.assert_array_equal(request.point_mm, (-106.56, -9.66, -285.49))


def test_a_challenge_needs_the_folder_of_its_images(luna):
    (luna / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},1,2,3\n")
    reason = refusal(read_requests, "", str(luna / "annotations.csv"), "mm")
    assert "config.predict.image: is empty; give the folder that holds the images" in reason


def test_boxes_of_monais_detector(tmp_path):
    """The centre and the lengths of the sides of each box, in the LPS mm of LUNA16."""
    cases = [
        {
            "label": [0, 0],
            "box": [[1, 2, 3, 8, 8, 9], [4, 5, 6, 7, 7, 7]],
            "label_scores": [0.9, 0.1],
            "image": "a.nii",
        },
        {"label": [0], "box": [[7, 8, 9, 5, 5, 5]], "label_scores": [0.7], "image": "sub/b.nii"},
    ]
    file = tmp_path / "result.json"
    file.write_text(json.dumps(cases))
    requests = read_requests("", str(file), "mm", min_score=0.5)
    np.testing.assert_array_equal(points_of(requests), [(1, 2, 3), (7, 8, 9)])
    assert [request.path for request in requests] == [tmp_path / "a.nii", tmp_path / "sub" / "b.nii"]
    assert [request.nodule_id for request in requests] == ["nodule_1", "nodule_2"]
    file.write_text(json.dumps({"validation": [cases[0]]}))
    assert len(read_requests("", str(file), "mm")) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ('{"nodules": [{"x": 1}]}', "holds neither 3D Slicer's markups nor detected boxes"),
        ("[]", "holds neither"),
        ('[{"box": [[1, 2]], "image": "a.nii"}]', "is not a point of three numbers"),
        ('[{"box": [1, 2, 3, 4, 5, 6], "image": "a.nii"}]', "is not a point of three numbers"),
        ('[{"box": null, "image": "a.nii"}]', "is not a point of three numbers"),
        ('[{"box": [[1, 2, 3, 4]], "image": "a.nii"}]', "give its centre and the lengths of its sides"),
        (
            '[{"box": [[50, 80, -120, 60, 90, -110]], "image": "a.nii"}]',
            "give its centre and the lengths of its sides",
        ),
        ('[{"box": [[1, 2, 3]], "label_scores": [], "image": "a.nii"}]', "not a number for each of the 1 boxes"),
        ('[{"box": [[1, 2, 3]], "label_scores": null, "image": "a.nii"}]', "not a number for each of the 1 boxes"),
        ('[{"box": [[1, 2, 3]], "label_scores": ["high"], "image": "a.nii"}]', "not a number for each of the 1"),
        ('[{"box": [[1, 2, 3]]}]', "does not name the image of every box; give the CT"),
        ('[{"box": [[1, 2, 3]], "image": null}]', "does not name the image of every box; give the CT"),
    ],
)
def test_other_json_is_refused(text, reason, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert reason in refusal(read_requests, "", str(tmp_path / "a.json"), "mm")


def test_the_boxes_of_several_images_are_not_asked_in_one(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps([{"box": [[1, 2, 3, 8, 8, 9]], "image": name} for name in ("a.nii", "b.nii")]))
    assert "holds the boxes of several images" in refusal(read_requests, "a.nii", str(file), "mm")
    file.write_text(json.dumps([{"box": [[1, 2, 3, 8, 8, 9]], "image": "a.nii"}] * 2))
    assert len(read_requests("elsewhere/a.nii", str(file), "mm")) == 2


# Masks


def two_balls(affine):
    """A label map with two balls of label 1, of 7 voxels and of one, and one of label 2; and their centres in mm."""
    labels = np.zeros((20, 20, 20), np.uint8)
    centres = [(5, 6, 7), (15, 12, 3), (10, 15, 15)]
    labels[
        tuple(np.array(centres[0])[:, None] + [[0, 1, -1, 0, 0, 0, 0], [0, 0, 0, 1, -1, 0, 0], [0, 0, 0, 0, 0, 1, -1]])
    ] = 1
    labels[centres[1]], labels[centres[2]] = 1, 2
    return labels, np.array(centres) @ affine[:3, :3].T + affine[:3, 3]


def test_every_region_of_a_label_map_is_a_nodule(tmp_path):
    affine = np.diag([2.0, 1.5, 1.0, 1.0])
    labels, centres = two_balls(affine)
    file = ct_files.write_itk(tmp_path / "lung_nodules.nii.gz", labels, affine)
    requests = read_requests("ct.nii.gz", str(file), "voxel")
    np.testing.assert_allclose(points_of(requests), centres, atol=1e-4)  # NIfTI stores its affine in float32
    assert [request.nodule_id for request in requests] == ["label_1_1", "label_1_2", "label_2"]
    file = ct_files.write_itk(tmp_path / "binary.nrrd", (labels == 1).astype(np.uint8), affine)
    requests = read_requests("ct.nii.gz", str(file), "mm")
    np.testing.assert_allclose(points_of(requests), centres[:2], atol=1e-4)
    assert [request.nodule_id for request in requests] == ["nodule_1", "nodule_2"]


def test_an_empty_mask_and_a_noisy_one_are_refused(tmp_path):
    empty = ct_files.write_itk(tmp_path / "empty.nii.gz", np.zeros((4, 4, 4), np.uint8), np.eye(4))
    assert "marks no voxel" in refusal(read_requests, "ct.nii.gz", str(empty), "mm")
    noise = np.zeros((30, 30, 30), np.uint8)
    noise[::2, ::2, ::2] = 1
    noisy = ct_files.write_itk(tmp_path / "noise.nii.gz", noise, np.eye(4))
    assert "has 3375 regions or more" in refusal(read_requests, "ct.nii.gz", str(noisy), "mm")


def test_a_ct_that_is_given_as_a_mask_is_refused_before_all_its_values_are_tried(tmp_path, monkeypatch):
    tried = []
    label = mask_points.ndimage.label
    monkeypatch.setattr(
        mask_points.ndimage, "label", lambda array, structure: tried.append(1) or label(array, structure)
    )
    hu = np.random.default_rng(0).integers(-1000, 300, (40, 40, 40)).astype(np.int16)  # 49 voxels of each value
    file = ct_files.write_itk(tmp_path / "ct.nii.gz", hu, np.eye(4))
    assert "give a mask of nodules" in refusal(read_requests, "ct.nii.gz", str(file), "mm")
    assert len(tried) < 40


def test_the_point_of_a_hollow_region_lies_in_it(tmp_path):
    shell = np.zeros((20, 20, 20), np.uint8)
    shell[4:16, 4:16, 4:16] = 1
    shell[6:14, 6:14, 6:14] = 0
    file = ct_files.write_itk(tmp_path / "shell.nii.gz", shell, np.eye(4))
    (request,) = read_requests("ct.nii.gz", str(file), "mm")
    there = sitk.ReadImage(str(file)).TransformPhysicalPointToIndex(request.point_mm.tolist())
    assert sitk.ReadImage(str(file))[there] == 1


# Units


def test_typed_points_may_be_ras():
    (request,) = read_requests("ct.nii.gz", "1,2,3", "ras")
    np.testing.assert_array_equal(request.point_mm, (-1, -2, 3))


def test_a_table_that_names_its_images_needs_no_other(tmp_path):
    (tmp_path / "points.csv").write_text("nodule_id,image,x_mm,y_mm,z_mm\na,a.nii,1,2,3\n")
    reason = refusal(read_requests, "b.nii", str(tmp_path / "points.csv"), "mm")
    assert reason.startswith("config.predict.image: leave it out")


def test_a_table_without_a_column_of_images_is_about_the_ct_that_is_given(tmp_path):
    (tmp_path / "points.csv").write_text("nodule_id,x_mm,y_mm,z_mm\na,1,2,\u22123\n")
    (request,) = read_requests("b.nii", str(tmp_path / "points.csv"), "mm")
    assert str(request.path) == request.image == "b.nii"
    np.testing.assert_array_equal(request.point_mm, (1, 2, -3))
    assert "no column image" in refusal(read_requests, "", str(tmp_path / "points.csv"), "mm")


def test_scores_in_a_table_of_ones_own_are_heeded(tmp_path):
    rows = "a,a.nii,1,2,3,0.2\nb,a.nii,1,2,3,0.9\n"
    (tmp_path / "points.csv").write_text(f"nodule_id,image,x_mm,y_mm,z_mm,score\n{rows}")
    (request,) = read_requests("", str(tmp_path / "points.csv"), "mm", min_score=0.5)
    assert request.nodule_id == "b"


def test_what_is_no_file_of_points_is_not_taken_for_typed_ones(tmp_path):
    (tmp_path / "points.xlsx").write_text("PK")
    (tmp_path / "folder.csv").mkdir()
    assert "is no file of points that is read" in refusal(read_requests, "a.nii", str(tmp_path / "points.xlsx"), "mm")
    assert "is no file of points that is read" in refusal(read_requests, "a.nii", str(tmp_path), "mm")
    assert "is a folder, not a table" in refusal(read_requests, "", str(tmp_path / "folder.csv"), "mm")


def test_a_table_may_be_ras(tmp_path):
    (tmp_path / "points.csv").write_text("nodule_id,image,x_mm,y_mm,z_mm\na,a.nii,1,2,3\n")
    (request,) = read_requests("", str(tmp_path / "points.csv"), "ras")
    np.testing.assert_array_equal(request.point_mm, (-1, -2, 3))
