"""Points from the files in which they come, each exactly as its own tool writes it."""

import json
import zipfile

import ct_files
import numpy as np
import pytest
from ct_files import refusal

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


def test_rulers_and_planes_beside_points_are_passed_over(tmp_path, caplog):
    file = tmp_path / "scene.mrk.json"
    content = json.loads(markups("LPS", (1, 2, 3)))
    for kind in ("Line", "Plane"):
        content["markups"] += json.loads(markups("LPS", (4, 5, 6), (7, 8, 9), kind=kind))["markups"]
    file.write_text(json.dumps(content))
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(1, 2, 3)])
    assert "passed over what is neither a point nor a box: Line, Plane" in caplog.text


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
        ({"coordinateSystem": "IJK"}, "its coordinate system is IJK; save the points as LPS or RAS"),
        ({"coordinateUnits": "um"}, "its coordinateUnits are um; save the points in mm"),
        ({"coordinateUnits": ["um", "UCUM", "micrometer"]}, "its coordinateUnits are ['um', 'UCUM', 'micrometer']"),
        ({"coordinateUnits": ["mm", "mm", "mm"]}, "its coordinateUnits are ['mm', 'mm', 'mm']; save"),
        ({"controlPoints": [{"position": [1, 2]}]}, "[1, 2] is not a point of three numbers"),
        ({"controlPoints": 5}, "not written by 3D Slicer's Markups module, or damaged"),
    ],
)
def test_markups_that_could_mean_another_place_are_refused(change, reason, tmp_path):
    file = tmp_path / "F.mrk.json"
    file.write_text(markups("LPS", (1, 2, 3), **change))
    assert reason in refusal(read_requests, "ct.nrrd", str(file), "mm")


def test_what_the_schema_of_markups_has_by_default_or_as_a_code_is_read(tmp_path):
    file = tmp_path / "F.mrk.json"
    content = json.loads(markups("LPS", (1, 2, 3), coordinateUnits=["mm", "UCUM", "millimeter"]))
    del content["markups"][0]["coordinateSystem"]
    file.write_text(json.dumps(content))
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(1, 2, 3)])


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
    file.write_text(FCSV.format(version="4.13", system="LPS", x=1, y=2).replace("# CoordinateSystem = LPS\n", ""))
    reason = refusal(read_requests, "ct.nrrd", str(file), "mm")
    assert reason == f"{file}: has no line '# CoordinateSystem = LPS' or RAS; save the points from 3D Slicer again"
    file.write_text("F-1,1,2,3\n")
    assert "no line '# columns" in refusal(read_requests, "ct.nrrd", str(file), "mm")


def test_the_table_of_slicer_has_its_system_in_the_names_of_its_columns(tmp_path):
    file = tmp_path / "F.csv"
    file.write_text("label,l,p,s,defined,selected,visible,locked,description\nF-1,10,20,30,1,1,1,0,\n")
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(10, 20, 30)])
    file = tmp_path / "F.tsv"
    file.write_text("label\tr\ta\ts\tdefined\nF-1\t-10\t-20\t30\t1\n")
    np.testing.assert_array_equal(points_of(read_requests("ct.nrrd", str(file), "mm")), [(10, 20, 30)])


def test_scores_in_the_table_of_slicer_are_heeded(tmp_path):
    file = tmp_path / "F.csv"
    file.write_text("label,l,p,s,score\nF-1,10,20,30,0.2\nF-2,1,2,3,0.9\n")
    (request,) = read_requests("ct.nrrd", str(file), "mm", min_score=0.5)
    assert request.nodule_id == "F-2"


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


@pytest.mark.parametrize("folder", ["seg-lungs-LUNA16", "masks", "Lung_Masks", "labelsTr/subset0", "lungs"])
def test_masks_that_are_named_after_their_scans_are_not_taken_for_them(folder, luna):
    (luna / folder).mkdir(parents=True)
    for name in (UID, "1.2.3"):  # the second is a DICOM series somewhere in the folder
        ct_files.write_itk(luna / folder / f"{name}.mha", np.zeros((4, 5, 6), np.uint8), np.eye(4))
    (luna / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},1,2,3\n1.2.3,1,2,3\n")
    first, second = read_requests(str(luna), str(luna / "annotations.csv"), "mm")
    assert first.path == luna / "subset0" / f"{UID}.mhd"
    assert (second.path, second.series) == (luna, "1.2.3")


def test_two_files_that_may_be_the_same_scan_are_both_named(luna):
    table = luna / "annotations.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},1,2,3\n")
    (luna / "again").symlink_to(luna / "subset0")  # the same file
    assert len(read_requests(str(luna), str(table), "mm")) == 1
    (luna / "clean").mkdir()
    ct_files.write_itk(luna / "clean" / f"{UID}.nii.gz", np.zeros((4, 5, 6), np.int16), np.eye(4))
    reason = refusal(read_requests, str(luna), str(table), "mm")
    assert f"again/{UID}.mhd" in reason and f"clean/{UID}.nii.gz has the same name" in reason
    table.write_text("seriesuid,coordX,coordY,coordZ\n1.2.3,1,2,3\n")
    assert len(read_requests(str(luna), str(table), "mm")) == 1  # is not concerned


OTHER_UID = UID[:-1] + "1"
TWO_SERIES = f"seriesuid,coordX,coordY,coordZ\n{OTHER_UID},7,8,9\n{UID},1,2,3\n{OTHER_UID},4,5,6\n"


def test_one_image_file_has_the_points_of_its_own_series_alone(luna, caplog):
    table, image = luna / "annotations.csv", luna / "subset0" / f"{UID}.mhd"
    table.write_text(TWO_SERIES)
    (request,) = read_requests(str(image), str(table), "mm")
    assert (request.nodule_id, request.path) == (f"{UID}_1", image)
    assert f"the rows of 1 other series than {UID} are left out" in caplog.text


def test_an_image_file_of_any_name_needs_a_table_of_one_series(tmp_path):
    table, image = tmp_path / "annotations.csv", ct_files.write_itk(tmp_path / "ct.nrrd", np.zeros((4, 5, 6)))
    table.write_text(TWO_SERIES)
    reason = refusal(read_requests, str(image), str(table), "mm")
    assert "names several series" in reason and "give the folder that holds their images" in reason
    requests = read_requests(str(image), str(table), "mm", series=OTHER_UID)
    np.testing.assert_array_equal(points_of(requests), [(7, 8, 9), (4, 5, 6)])
    table.write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},1,2,3\n{UID},4,5,6\n")
    assert {request.path for request in read_requests(str(image), str(table), "mm")} == {image}


def test_a_dicom_file_has_the_points_of_the_series_in_its_header(tmp_path):
    table, image = tmp_path / "annotations.csv", tmp_path / "enhanced.dcm"
    table.write_text(TWO_SERIES)
    ct_files.write_slice(image, ct_files.HU[0], (0, 0, 0), SeriesInstanceUID=UID)
    (request,) = read_requests(str(image), str(table), "mm")
    assert request.nodule_id == f"{UID}_1"


def test_an_archive_of_one_image_file_is_no_folder_of_series(tmp_path):
    table = tmp_path / "annotations.csv"
    table.write_text(TWO_SERIES)
    image = ct_files.write_itk(tmp_path / "ct.nrrd", np.zeros((4, 5, 6)))
    ct_files.write_series(tmp_path / "ct")
    for name, files in (("image.zip", [image]), ("dicom.zip", sorted((tmp_path / "ct").iterdir()))):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in files:
                archive.write(file, file.name)
    assert "names several series" in refusal(read_requests, str(tmp_path / "image.zip"), str(table), "mm")
    requests = read_requests(str(tmp_path / "dicom.zip"), str(table), "mm")
    assert [request.series for request in requests] == [OTHER_UID, UID, OTHER_UID]


def test_a_table_of_ones_own_with_several_series_is_not_asked_in_one_file(tmp_path):
    image = ct_files.write_itk(tmp_path / "ct.nrrd", np.zeros((4, 5, 6)))
    table = tmp_path / "points.csv"
    table.write_text("nodule_id,x_mm,y_mm,z_mm,series\na,1,2,3,1.2.8\nb,4,5,6,1.2.9\nc,7,8,9,\nd,7,8,9,nan\n")
    assert "names several series" in refusal(read_requests, str(image), str(table), "mm")
    assert [one.nodule_id for one in read_requests(str(image), str(table), "mm", series="1.2.9")] == ["b", "c", "d"]


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
    assert [request.nodule_id for request in requests] == ["nodule_1", "nodule_3"]  # whatever the lowest score is
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


@pytest.mark.parametrize(
    "boxes",
    [
        [[51, 81, 111, 61, 91, 121]],  # x1, y1, z1, x2, y2, z2
        [[51, 61, 81, 91, 111, 121]],  # x1, x2, y1, y2, z1, z2
        [[310, 320, 40, 330, 340, 46], [100, 120, 50, 110, 130, 54]],  # voxels
        [[30, 40, 10, 40, 50, 16], [20, 60, 8, 26, 66, 12]],  # short enough for sides
        [[-61, 40, -120, 9, 9, 130]],  # no nodule's size
    ],
)
def test_boxes_that_are_two_corners_are_refused(boxes, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps([{"box": boxes, "label_scores": [0.9] * len(boxes), "image": "a.nii"}]))
    reason = refusal(read_requests, "", str(file), "mm")
    assert "as if it was two corners; give the centre of each box in LPS mm" in reason


def test_boxes_that_may_be_centres_and_sides_are_read(tmp_path):
    file = tmp_path / "result.json"
    boxes = [[30, 40, 10, 40, 50, 16], [60, 80, -120, 40, 35, 60], [0.5, 2, 3, 8, 8, 9]]
    for kept in (boxes, boxes[1:2], boxes[2:]):
        file.write_text(json.dumps([{"box": kept, "image": "a.nii"}]))
        np.testing.assert_array_equal(points_of(read_requests("", str(file), "mm")), [box[:3] for box in kept])
    low = [[0, 0, 0, 200, 200, 200], *boxes]  # is left out for its score
    file.write_text(json.dumps([{"box": low, "label_scores": [0.02, 0.9, 0.9, 0.9], "image": "a.nii"}]))
    assert len(read_requests("", str(file), "mm", min_score=0.5)) == 3


def test_points_of_grand_challenge(tmp_path):
    file = tmp_path / "nodule-locations.json"
    points = [
        {"name": "a nodule", "point": [-61.5, 40.2, -120.0], "probability": 0.9},
        {"name": "", "point": [1, 2, 3], "probability": 0.2},
        {"point": [4, 5, 6], "probability": None},
    ]
    content = {"type": "Multiple points", "points": points, "version": {"major": 1, "minor": 0}}
    file.write_text(json.dumps(content))
    requests = read_requests("ct.mha", str(file), "mm")
    np.testing.assert_array_equal(points_of(requests), [point["point"] for point in points])
    assert len(read_requests("ct.mha", str(file), "mm", min_score=0.5)) == 2
    file.write_text(json.dumps({"type": "Point", **points[0]}))
    (request,) = read_requests("ct.mha", str(file), "mm")
    assert request.nodule_id == "a_nodule"
    assert "config.predict.image: is empty" in refusal(read_requests, "", str(file), "mm")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"points": 5}, "its points are not a list"),
        ({"points": [[1, 2, 3]]}, "its points are not a list"),
        ({"points": [{"point": [1, 2]}]}, "point 1: [1, 2] is not a point of three numbers"),
        ({"points": [{"name": "a"}]}, "point 1: None is not a point"),
        ({"point": [1, 2, 3], "probability": "high"}, "its score 'high' is not a number"),
        ({"points": []}, "holds no nodule"),
    ],
)
def test_damaged_points_of_grand_challenge_are_refused(content, reason, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert reason in refusal(read_requests, "ct.mha", str(tmp_path / "a.json"), "mm")


def test_the_boxes_of_several_images_are_not_asked_in_one(tmp_path):
    file = tmp_path / "result.json"
    file.write_text(json.dumps([{"box": [[1, 2, 3, 8, 8, 9]], "image": name} for name in ("a.nii", "b.nii")]))
    assert "holds the boxes of several images" in refusal(read_requests, "a.nii", str(file), "mm")
    file.write_text(json.dumps([{"box": [[1, 2, 3, 8, 8, 9]], "image": "a.nii"}] * 2))
    assert len(read_requests("elsewhere/a.nii", str(file), "mm")) == 2


# Scores

POINT = "seriesuid,coordX,coordY,coordZ"


@pytest.mark.parametrize(
    ("name", "text", "held"),
    [
        (
            "candidates.csv",
            f"{POINT},class\n{UID},1,2,3,1\n{UID},4,5,6,0\n",
            "class, coordx, coordy, coordz, seriesuid",
        ),
        ("own.csv", "nodule_id,x_mm,y_mm,z_mm,Size\na,1,2,3,0.9\n", "nodule_id, size, x_mm, y_mm, z_mm"),
        ("blank.csv", "nodule_id,x_mm,y_mm,z_mm,score\na,1,2,3,\n", "nodule_id, score, x_mm, y_mm, z_mm"),
        ("slicer.csv", "label,l,p,s\nF-1,1,2,3\n", "l, label, p, s"),
        ("boxes.json", '[{"box": [[1, 2, 3]], "label": [0], "certainty": [0.9]}]', "box, certainty, label"),
        ("points.json", '{"points": [{"name": "a", "point": [1, 2, 3], "probability": null}]}', "name, point"),
        ("F.mrk.json", markups("LPS", (1, 2, 3)), ""),
        ("F.fcsv", FCSV.format(version="4.11", system="LPS", x=1, y=2), ""),
    ],
)
def test_a_lowest_score_is_refused_where_no_point_has_a_score(name, text, held, luna):
    (luna / name).write_text(text)
    assert read_requests(str(luna), str(luna / name), "mm")
    reason = refusal(read_requests, str(luna), str(luna / name), "mm", min_score=0.5)
    assert reason.startswith(f"{luna / name}: no point has a score, but config.predict.min_score is 0.5; set it to 0")
    known = "or call the scores one of probability, score, label_scores, pred_scores, pred_score, confidence, "
    assert reason.endswith(f"{known}scores, prob, conf (the file has {held})" if held else "0")


def test_a_lowest_score_is_refused_with_masks_and_typed_points(tmp_path):
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4] = 1
    mask = ct_files.write_itk(tmp_path / "mask.nrrd", labels, np.eye(4))
    for points in (str(mask), "1,2,3"):
        assert "no point has a score" in refusal(read_requests, "ct.nii", points, "mm", min_score=0.5)


@pytest.mark.parametrize("column", ["probability", "Score", "Label Scores", "confidence", "pred_scores", "Conf"])
def test_scores_are_known_by_the_names_of_several_tools(column, tmp_path):
    table = tmp_path / "points.csv"
    table.write_text(f"nodule_id,x_mm,y_mm,z_mm,{column}\na,1,2,3,0.9\nb,4,5,6,0.1\n")
    (request,) = read_requests("a.nii", str(table), "mm", min_score=0.5)
    assert (request.nodule_id, request.score) == ("a", 0.9)
    (tmp_path / "a.json").write_text(json.dumps({"box": [[1, 2, 3], [4, 5, 6]], column: [0.1, 0.9]}))
    (request,) = read_requests("a.nii", str(tmp_path / "a.json"), "mm", min_score=0.5)
    assert (request.nodule_id, request.score) == ("nodule_2", 0.9)


def test_points_without_a_score_among_others_are_kept_and_counted(tmp_path, caplog):
    table = tmp_path / "points.csv"
    table.write_text("nodule_id,x_mm,y_mm,z_mm,score\na,1,2,3,0.9\nb,4,5,6,\nc,4,5,6,n/a\nd,4,5,6,0.1\n")
    requests = read_requests("a.nii", str(table), "mm", min_score=0.5)
    assert [request.nodule_id for request in requests] == ["a", "b", "c"]
    assert f"{table}: 2 of 4 points have no score, and are kept" in caplog.text


@pytest.mark.parametrize(("scores", "kept"), [((90, 10), None), ((1.0000001, 0.1), 1), ((0.9, -3), 1)])
def test_scores_of_another_scale_are_refused(scores, kept, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"box": [[1, 2, 3], [4, 5, 6]], "label_scores": scores}))
    asked = ("a.nii", str(tmp_path / "a.json"), "mm")
    if kept is None:
        reason = refusal(read_requests, *asked, min_score=0.5)
        assert "has a score of 90, as if in per cent, but config.predict.min_score is 0.5; give both on the" in reason
        assert len(read_requests(*asked, min_score=50)) == 1
    else:
        assert len(read_requests(*asked, min_score=0.5)) == kept


@pytest.mark.parametrize(
    ("header", "reason"),
    [("score,Score", "two columns score"), ("confidence,probability", "confidence and probability may both be the")],
)
def test_one_of_two_columns_of_scores_is_not_guessed(header, reason, tmp_path):
    (tmp_path / "points.csv").write_text(f"nodule_id,x_mm,y_mm,z_mm,{header}\na,1,2,3,0.9,0.1\n")
    assert reason in refusal(read_requests, "a.nii", str(tmp_path / "points.csv"), "mm", min_score=0.5)
    assert len(read_requests("a.nii", str(tmp_path / "points.csv"), "mm")) == 1


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    for scores in ("[NaN]", '["0.9%"]'):
        (tmp_path / "a.json").write_text(f'{{"box": [[1, 2, 3]], "label_scores": {scores}}}')
        assert "not a number for each" in refusal(read_requests, "a.nii", str(tmp_path / "a.json"), "mm")
    (tmp_path / "a.json").write_text('{"point": [1, 2, 3], "score": NaN}')
    assert "its score 'nan' is not a number" in refusal(read_requests, "a.nii", str(tmp_path / "a.json"), "mm")


# Units


@pytest.mark.parametrize("units", ["ras", "voxel"])
@pytest.mark.parametrize(
    ("name", "text", "whose"),
    [
        ("annotations.csv", f"{POINT}\n{UID},1,2,3\n", "LUNA16"),
        ("luna25.csv", f"SeriesInstanceUID,CoordX,CoordY,CoordZ\n{UID},1,2,3\n", "LUNA25"),
        ("a.json", '[{"box": [[1, 2, 3]]}]', "MONAI's detector"),
        ("a.json", '{"point": [1, 2, 3]}', "grand-challenge.org"),
    ],
)
def test_units_are_refused_where_only_the_kind_of_file_tells_them(name, text, whose, units, luna):
    (luna / name).write_text(text)
    reason = refusal(read_requests, str(luna), str(luna / name), units)
    assert f"those of {whose}, which has LPS mm, but config.predict.units is {units}; leave it out, or give" in reason
    assert reason.endswith("nodule_id, i, j, k" if units == "voxel" else "nodule_id, x_mm, y_mm, z_mm")


def test_units_that_a_file_itself_contradicts_are_noted(tmp_path, caplog):
    for name, text in (("F.mrk.json", markups("RAS", (-1, -2, 3))), ("F.csv", "label,r,a,s\nF-1,-1,-2,3\n")):
        (tmp_path / name).write_text(text)
        for units in ("mm", "ras", "voxel"):
            caplog.clear()
            requests = read_requests("ct.nrrd", str(tmp_path / name), units)
            np.testing.assert_array_equal(points_of(requests), [(1, 2, 3)])
            told = f"{name}: says itself where its points lie, so that units=voxel is not used"
            assert (told in caplog.text) == (units == "voxel") and bool(caplog.text) == (units == "voxel")


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


def test_a_column_of_scores_may_hold_something_else_if_none_is_asked(tmp_path):
    rows = "a,a.nii,1,2,3,4A\nb,a.nii,1,2,3,95 %\nc,a.nii,1,2,3,n/a\n"
    (tmp_path / "points.csv").write_text(f"nodule_id,image,x_mm,y_mm,z_mm,score\n{rows}")
    assert len(read_requests("", str(tmp_path / "points.csv"), "mm")) == 3
    reason = refusal(read_requests, "", str(tmp_path / "points.csv"), "mm", min_score=0.5)
    assert "line 2, column score: '4A' is not a number" in reason


@pytest.mark.parametrize("further", ["seriesuid", "SeriesInstanceUID", "label,r,a,s", "label,l,p,s"])
def test_a_table_with_our_columns_is_our_own_whatever_else_it_has(further, tmp_path):
    header, cells = f"nodule_id,image,x_mm,y_mm,z_mm,{further}", ",7" * len(further.split(","))
    (tmp_path / "points.csv").write_text(f"{header}\na,a.nii,1,2,3{cells}\n")
    (request,) = read_requests("", str(tmp_path / "points.csv"), "mm")
    assert request.path == tmp_path / "a.nii" and request.nodule_id == "a"
    np.testing.assert_array_equal(request.point_mm, (1, 2, 3))


def test_paths_in_tables_may_be_those_of_windows(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("images/a.nii", "b\\c.nii"):  # a file may have a backslash in its name
        (tmp_path / name).touch()
    (tmp_path / "points.csv").write_text(
        "nodule_id,image,x_mm,y_mm,z_mm\na,images\\a.nii,1,2,3\nb,b\\c.nii,1,2,3\nc,none\\d.nii,1,2,3\n"
    )
    requests = read_requests("", str(tmp_path / "points.csv"), "mm")
    assert [one.path for one in requests] == [
        tmp_path / "images/a.nii",
        tmp_path / "b\\c.nii",
        tmp_path / "none\\d.nii",
    ]
    assert requests[0].image == "images\\a.nii"  # as the user has it
    (tmp_path / "a.json").write_text(json.dumps({"box": [[1, 2, 3]], "image": "images\\a.nii"}))
    assert read_requests("", str(tmp_path / "a.json"), "mm")[0].path == tmp_path / "images/a.nii"


def test_the_nodules_of_one_image_need_no_ids(tmp_path):
    table = tmp_path / "points.csv"
    table.write_text("x_mm,y_mm,z_mm,score\n1,2,3,0.1\n4,5,6,0.9\n")
    assert [one.nodule_id for one in read_requests("a.nii", str(table), "mm")] == ["nodule_1", "nodule_2"]
    assert [one.nodule_id for one in read_requests("a.nii", str(table), "mm", min_score=0.5)] == ["nodule_2"]
    table.write_text("image,i,j,k\na.nii,1,2,3\na.nii,4,5,6\n")
    assert [one.nodule_id for one in read_requests("", str(table), "voxel")] == ["nodule_1", "nodule_2"]
    table.write_text("image,x_mm,y_mm,z_mm\na.nii,1,2,3\nb.nii,4,5,6\n")
    assert "no column nodule_id" in refusal(read_requests, "", str(table), "mm")
    table.write_text("nodule_id,x_mm,y_mm,z_mm\n,1,2,3\n")
    assert "column nodule_id: is empty" in refusal(read_requests, "a.nii", str(table), "mm")


@pytest.mark.parametrize(
    ("header", "units", "missing"),
    [
        ("x,y,z", "mm", "no column x_mm; expected x_mm, y_mm, z_mm"),
        ("coordX,coordY,coordZ", "mm", "no column x_mm; expected x_mm, y_mm, z_mm"),
        ("nodule_id,x_mm,y_mm,z_mm", "voxel", "x_mm, y_mm, z_mm, but config.predict.units is voxel; set it to mm"),
        ("nodule_id,x_mm,y_mm", "mm", "no column z_mm; expected x_mm, y_mm, z_mm, nodule_id"),
    ],
)
def test_a_table_is_asked_for_its_coordinates_and_not_for_ids(header, units, missing, tmp_path):
    (tmp_path / "points.csv").write_text(f"{header}\n1,2,3,4\n")
    assert refusal(read_requests, "a.nii", str(tmp_path / "points.csv"), units).endswith(missing)


def test_columns_are_found_however_their_names_are_written(tmp_path):
    (tmp_path / "points.csv").write_text("Nodule ID,Image,X mm,Y mm,Z mm,Series\nb7,a.nii,1,2,3,1.2.8\n")
    (request,) = read_requests("", str(tmp_path / "points.csv"), "mm")
    assert (request.nodule_id, request.path, request.series) == ("b7", tmp_path / "a.nii", "1.2.8")


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


@pytest.mark.parametrize("lowest", [-1.0, float("nan"), float("inf")])
def test_a_lowest_score_that_is_none_is_refused(lowest):
    reason = refusal(read_requests, "a.nii", "1,2,3", "mm", min_score=lowest)
    assert reason.startswith("config.predict.min_score: ") and reason.endswith(
        "give the lowest score to keep, 0 or more"
    )


def test_columns_of_other_units_name_the_units(tmp_path):
    (tmp_path / "points.csv").write_text("nodule_id,image,i,j,k\na,ct.nii,1,2,3\n")
    reason = refusal(read_requests, "", str(tmp_path / "points.csv"), "mm")
    assert reason.endswith("has the columns i, j, k, but config.predict.units is mm; set it to voxel")
    (tmp_path / "points.csv").write_text("nodule_id,image,x_mm,y_mm,z_mm\na,ct.nii,1,2,3\n")
    reason = refusal(read_requests, "", str(tmp_path / "points.csv"), "voxel")
    assert reason.endswith("has the columns x_mm, y_mm, z_mm, but config.predict.units is voxel; set it to mm")
