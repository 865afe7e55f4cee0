"""Points from masks: one for each nodule, at the place where the mask lies in the CT."""

import ct_files
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_files import refusal
from scipy import ndimage

from pnsamp_jax.inference import mask_points
from pnsamp_jax.inference.point_files import read_requests


def points_of(requests):
    """The requests' points in LPS mm."""
    return np.array([request.point_mm for request in requests])


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


# Where a mask lies

SHAPE = (20, 24, 28)
AFFINE = np.array([[0, 0, 0.7, -30.0], [0, 0.7, 0, 50], [1.25, 0, 0, -200], [0, 0, 0, 1]])
BALL = (np.square((np.indices(SHAPE).T - (8, 10, 12)).T).sum(axis=0) < 9).astype(np.uint8)


@pytest.fixture
def ct(tmp_path):
    """An image file with the geometry of a CT."""
    return str(ct_files.write_itk(tmp_path / "ct.nii.gz", np.full(SHAPE, -900, np.int16), AFFINE))


def moved(*factors, mm=0.0):
    """The geometry with other signs or sizes along x, y and z, as if it was lost or mistaken."""
    affine = np.diag([*factors, 1.0]) @ AFFINE
    affine[0, 3] += mm
    return affine


@pytest.mark.parametrize("affine", [moved(-1, -1, 1), np.eye(4)[:, [2, 1, 0, 3]], moved(1, 1, 1, mm=5)])
def test_a_mask_of_the_size_of_the_ct_must_lie_where_it_lies(affine, ct, tmp_path):
    file = ct_files.write_itk(tmp_path / "mask.nii.gz", BALL, affine)
    reason = refusal(read_requests, ct, str(file), "mm")
    assert reason.startswith(str(file)) and "has as many voxels as its image, but lies up to" in reason


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_mask_may_have_flipped_and_transposed_axes_or_lie_half_a_voxel_off(order, ct, tmp_path):
    true = AFFINE[:3, :3] @ (8, 10, 12) + AFFINE[:3, 3]
    affine = AFFINE.copy()
    affine[:3, 1] *= -1
    affine[:3, 3] -= affine[:3, 1] * (SHAPE[1] - 1)
    flipped = BALL[:, ::-1].transpose(order)
    file = ct_files.write_itk(tmp_path / "mask.nrrd", flipped, affine[:, [*order, 3]])
    np.testing.assert_allclose(points_of(read_requests(ct, str(file), "mm")), [true], atol=1e-3)  # float32 of NIfTI
    file = ct_files.write_itk(tmp_path / "mask.nrrd", BALL, moved(1, 1, 1, mm=0.35))
    np.testing.assert_allclose(points_of(read_requests(ct, str(file), "mm")), [true + (0.35, 0, 0)], atol=1e-3)


def test_a_mask_of_another_size_must_mark_something_in_the_ct(ct, tmp_path):
    inside = AFFINE.copy()
    inside[:3, 3] = AFFINE[:3, :3] @ (2, 2, 2) + AFFINE[:3, 3]
    file = ct_files.write_itk(tmp_path / "crop.nrrd", BALL[2:-2, 2:-2, 2:-2], inside)
    assert len(read_requests(ct, str(file), "mm")) == 1
    file = ct_files.write_itk(tmp_path / "crop.nrrd", BALL[2:-2, 2:-2, 2:-2], np.eye(4)[:, [2, 1, 0, 3]])
    assert "marks nothing within" in refusal(read_requests, ct, str(file), "mm")


# Labels that are no nodules


def ball(centre, radius, shape=(40, 40, 40)):
    """A ball in voxels: (d, h, w) bool."""
    return np.square((np.indices(shape).T - np.array(centre)).T).sum(axis=0) <= radius**2


def asked(labels, tmp_path, spacing=1.0):
    """The requests for the points of a label map with voxels of that size in mm."""
    affine = np.diag([*[spacing] * 3, 1.0])[:, [2, 1, 0, 3]]
    file = ct_files.write_itk(tmp_path / "labels.nrrd", labels.astype(np.uint8), affine)
    return read_requests("none.nii", str(file), "mm")


def bits_of_readers():
    """One nodule as four readers marked it, with one bit each."""
    centres = [(20, 20, 20), (20, 21, 20), (19, 20, 21), (20, 19, 19)]
    return sum(ball(centre, 6 + 0.5 * bit) << bit for bit, centre in enumerate(centres))


def votes():
    """How many of four readers marked each voxel."""
    bits = bits_of_readers()
    return sum(bits >> bit & 1 for bit in range(4))


def part_solid():
    """A nodule of ground glass with a solid part."""
    return ball((20, 20, 20), 8).astype(int) + ball((20, 20, 22), 3)


def bits_of_seven():
    """One nodule with more combinations of readers than four of them can have."""
    shift = np.random.default_rng(0).integers(-1, 2, (7, 3))
    bits = sum(ball((20, 20, 20) + one, 6) << bit for bit, one in enumerate(shift))
    assert len(np.unique(bits[bits > 0])) > 15
    return bits


@pytest.mark.parametrize("labels", [bits_of_readers, bits_of_seven, votes, part_solid])
def test_labels_within_each_other_are_one_nodule(labels, tmp_path, caplog):
    (request,) = asked(labels(), tmp_path)
    assert request.nodule_id == "nodule_1"
    np.testing.assert_allclose(request.point_mm, (20, 20, 20), atol=1)  # mm, of four readers' mean
    assert "labels that touch are taken as one nodule: " in caplog.text


@pytest.mark.parametrize("distance", [9, 12, 14])
@pytest.mark.parametrize("radius", [4, 7])
def test_nodules_that_touch_stay_two(distance, radius, tmp_path, caplog):
    """Whether they were cut apart where they meet, or the surface of the larger one is whole."""
    first, second = ball((20, 20, 12), 7), ball((20, 20, 12 + distance), radius)
    nearer = np.indices(first.shape)[2] < 12 + distance * 7 / (7 + radius)
    for labels in (np.where(first & (nearer | ~second), 1, 2 * second), np.where(first, 1, 2 * second)):
        requests = asked(labels, tmp_path)
        assert [request.nodule_id for request in requests] == ["label_1", "label_2"]
        touch = ndimage.label(labels > 0, np.ones((3, 3, 3)))[1] == 1
        assert touch == ("labels that touch are taken as a nodule each: 1, 2" in caplog.text)
        caplog.clear()


def test_a_nodule_with_labels_within_it_is_one_of_several(tmp_path):
    labels = np.zeros((40, 40, 80), int)
    labels[:, :, :40] = part_solid()
    labels[ball((20, 20, 60), 4, labels.shape)] = 2
    requests = asked(labels, tmp_path)
    assert [request.nodule_id for request in requests] == ["label_1", "label_2"]
    np.testing.assert_array_equal(points_of(requests), [(20, 20, 20), (60, 20, 20)])


@pytest.mark.parametrize("scale", [255, 100])
def test_probabilities_are_no_labels(scale, tmp_path):
    chance = ndimage.gaussian_filter(ball((20, 20, 20), 6).astype(float), 1.5)
    reason = refusal(asked, np.rint(chance * scale), tmp_path)
    assert "different values in one region, as of probabilities or a CT; give a mask of nodules" in reason


def test_a_hundred_nodules_have_a_hundred_labels(tmp_path):
    labels = np.zeros((40, 40, 40), int)
    labels[20, 2::4, 2::4] = np.arange(1, 101).reshape(10, 10)
    assert len(asked(labels, tmp_path)) == 100


@pytest.mark.parametrize("labels", [1 + ball((20, 20, 20), 5), 255 * ~ball((20, 20, 20), 5), np.ones((9, 9, 9))])
def test_a_label_of_the_background_is_no_nodule(labels, tmp_path):
    reason = refusal(asked, labels, tmp_path)
    assert "marks its corners with" in reason and "as if that was the background; save 0 there" in reason


def test_a_nodule_in_one_corner_is_read(tmp_path):
    assert len(asked(ball((0, 0, 0), 5), tmp_path)) == 1


def test_a_lung_is_passed_over_and_its_nodules_are_not(tmp_path, caplog):
    lung = np.zeros((40, 40, 40), int)
    lung[2:38, 10:30, 10:30] = 1  # 180 mm
    labels = lung + ball((20, 20, 20), 2)
    (request,) = [one for one in asked(labels, tmp_path, spacing=5.0)]
    np.testing.assert_array_equal(request.point_mm, (100, 100, 100))
    assert "marks regions longer than 150 mm, which are no nodules: label_1; they are passed over" in caplog.text
    assert "longer than 150 mm, which are no nodules: label_1; give a mask" in refusal(asked, lung, tmp_path, 5.0)


# Structure sets of treatment planning


def contours(depths, radius=5.0, middle=(0.0, 0.0), kind="CLOSED_PLANAR"):
    """Circles on slices, or points: the type and the coordinates in mm of each."""
    turn = np.linspace(0, 2 * np.pi, 1 if kind == "POINT" else 32, endpoint=False)
    ring = np.stack([middle[0] + radius * np.cos(turn), middle[1] + radius * np.sin(turn)], axis=1)
    return [(kind, np.column_stack([ring, np.full(len(ring), depth)])) for depth in depths]


def write_rtstruct(path, types=(), **rois):
    """Write ROIs of contours, with their interpreted types if these are given, and return the path."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.RTStructureSetStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, kind in enumerate(types, start=1):
        observed = pydicom.Dataset()
        observed.ReferencedROINumber, observed.RTROIInterpretedType = number, kind
        ds.RTROIObservationsSequence.append(observed)
    for number, (name, drawn) in enumerate(rois.items(), start=1):
        named, item = pydicom.Dataset(), pydicom.Dataset()
        named.ROINumber, named.ROIName, item.ReferencedROINumber, item.ContourSequence = number, name, number, []
        for kind, points in drawn:
            contour = pydicom.Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.3f}" for value in points.ravel()]
            item.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(named)
        ds.ROIContourSequence.append(item)
    ds.save_as(path, enforce_file_format=True)
    return str(path)


DEPTHS = np.arange(10, 20, 2.0)
TUMOUR = contours(DEPTHS)
UNREADABLE = {
    "ISO": contours([14], kind="POINT"),
    "COUCH": contours(DEPTHS, 30, (0, 40)),
    "PTV": contours(DEPTHS + 1, 8),
    "WIRE": contours(DEPTHS, kind="OPEN_PLANAR"),
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A DICOM series around the origin, with slices every 2 mm."""
    folder = tmp_path_factory.mktemp("planned") / "ct"
    hu = np.random.default_rng(0).integers(-1000, 400, (15, 60, 60)).astype(np.int16)
    ct_files.write_series(folder, hu, step=(0, 0, 2), origin=(-29.5, -29.5, 0), spacing=(1, 1))
    return str(folder)


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_roi_that_is_no_nodule_is_passed_over(name, planned, tmp_path, caplog):
    other = {name: UNREADABLE[name]}
    file = write_rtstruct(tmp_path / "rt.dcm", **other, GTV=TUMOUR, node=contours(DEPTHS, 3, (15, 15)))
    requests = read_requests(planned, file, "mm")
    assert [request.nodule_id for request in requests] == ["GTV", "node"]
    np.testing.assert_allclose(points_of(requests), [(0, 0, 14), (15, 15, 14)], atol=1)  # mm, a voxel
    assert f"passed over '{name}': " in caplog.text
    assert refusal(read_requests, planned, write_rtstruct(tmp_path / "none.dcm", **other), "mm")


def test_the_reasons_of_all_rois_are_told_where_none_can_be_read(planned, tmp_path):
    reason = refusal(read_requests, planned, write_rtstruct(tmp_path / "rt.dcm", **UNREADABLE), "mm")
    assert "rt.dcm: no nodule can be read; 'ISO': ROI 1 is a point named as an isocentre; draw a contour" in reason
    assert "'COUCH': its grid differs" in reason and "'PTV': its grid differs" in reason
    assert "'WIRE': a contour of ROI 4 is of type OPEN_PLANAR; export it as CLOSED_PLANAR" in reason
    reason = refusal(read_requests, planned, write_rtstruct(tmp_path / "rt.dcm", WIRE=UNREADABLE["WIRE"]), "mm")
    assert reason.endswith("rt.dcm: a contour of ROI 1 is of type OPEN_PLANAR; export it as CLOSED_PLANAR")


def test_each_roi_that_is_passed_over_has_its_own_reason(planned, tmp_path, caplog):
    file = write_rtstruct(
        tmp_path / "rt.dcm",
        BODY=UNREADABLE["COUCH"],
        node=contours(np.delete(DEPTHS, 2)),  # a contour is lost
        COUCH=UNREADABLE["COUCH"],
        undrawn=[],
        GTV=TUMOUR,
    )
    (request,) = read_requests(planned, file, "mm")
    assert request.nodule_id == "GTV"
    body, node, undrawn = [record.getMessage() for record in caplog.records]
    assert f"{file}: passed over 'BODY', 'COUCH': its grid differs" in body and "reaches beyond it" in body
    assert f"{file}: passed over 'node': ROI 2 lacks contours near" in node and "14.0 mm, on 1 slice" in node
    assert undrawn == f"{file}: passed over 'undrawn': ROI 4 has no contours; draw them if it is a nodule"


def test_rois_of_a_single_point_are_points(planned, tmp_path):
    points = {"left": contours([14], 0, (3.25, -4), "POINT"), "right one": contours([11], 0, (-8, 2), "POINT")}
    for types in ((), ("GTV", ""), ("", "ORGAN")):
        requests = read_requests(planned, write_rtstruct(tmp_path / "rt.dcm", types, **points, GTV=TUMOUR), "mm")
        assert [request.nodule_id for request in requests] == ["left", "right_one", "GTV"]
        np.testing.assert_allclose(points_of(requests), [(3.25, -4, 14), (-8, 2, 11), (0, 0, 14)], atol=0.51)
        np.testing.assert_allclose(points_of(requests)[:2], [(3.25, -4, 14), (-8, 2, 11)])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("A", "ISOCENTER"), ("B", "MARKER"), ("nodule", "REGISTRATION"), ("Iso_1", ""), ("ISO", ""), ("isocentre", "")],
)
def test_points_of_the_treatment_are_passed_over(name, kind, planned, tmp_path, caplog):
    point = {name: contours([14], kind="POINT")}
    (request,) = read_requests(planned, write_rtstruct(tmp_path / "rt.dcm", (kind,), **point, GTV=TUMOUR), "mm")
    assert request.nodule_id == "GTV"
    stated = f"of the type {kind}" if kind else "named as an isocentre"
    assert f"passed over '{name}': ROI 1 is a point {stated}; draw a contour if it is a nodule" in caplog.text


def test_points_whose_name_only_contains_iso_are_nodules(planned, tmp_path):
    point = {"isolated": contours([14], kind="POINT")}
    assert len(read_requests(planned, write_rtstruct(tmp_path / "rt.dcm", **point), "mm")) == 1


def test_a_roi_between_the_voxels_centres_is_asked_about_at_its_middle(planned, tmp_path, caplog):
    file = write_rtstruct(tmp_path / "rt.dcm", tiny=contours([14], 0.2, (4, 7)), GTV=TUMOUR)
    tiny, gtv = read_requests(planned, file, "mm")
    assert (tiny.nodule_id, gtv.nodule_id) == ("tiny", "GTV")
    np.testing.assert_allclose(tiny.point_mm, (4, 7, 14), atol=1e-3)
    assert f"{file}: no voxel's centre lies within 'tiny', asked about at the middle of the contours" in caplog.text
