"""DICOM Segmentations and RT Structure Sets as masks, written by highdicom and pydicom."""

import shutil
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from ct_files import edit, refusal, write_itk, write_series
from made_folder import load, tables, write_table
from pydicom.sr.codedict import codes

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.dicom_masks import is_dicom_mask, mask_names, read_dicom_mask
from pnsamp_jax.data.folder_masks import read_readers
from pnsamp_jax.inference.point_files import read_requests

SHAPE = (12, 30, 36)  # (d, h, w)
ORIGIN, STEP, SPACING = (-10, 20, -300), (0, 0, 1.25), (0.8, 0.7)  # mm; write_slice takes (between rows, columns)
REQUIRED = {
    "PatientID": "1",
    "PatientBirthDate": "",
    "PatientSex": "",
    "AccessionNumber": "",
    "StudyID": "1",
    "StudyDate": "20200101",
    "StudyTime": "120000",
    "ReferringPhysicianName": "",
    "SeriesNumber": 1,
    "InstanceNumber": 1,
    "Manufacturer": "none",
    "SliceThickness": 1.25,
    "FrameOfReferenceUID": "1.2.3.5",
}  # by highdicom


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """The files of a CT in ascending order."""
    hu = np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)
    folder = tmp_path_factory.mktemp("series") / "ct"
    return write_series(folder, hu, origin=ORIGIN, step=STEP, spacing=SPACING, **REQUIRED)


@pytest.fixture(scope="module")
def ct(series):
    return read_series(series)


def random_masks(count=1):
    """Return masks (count, *SHAPE) in which nothing is symmetric, and some slices are empty."""
    masks = np.random.default_rng(1).random((count, *SHAPE)) < 0.2
    masks[:, :2] = masks[:, -1] = masks[:, 6] = False
    return masks


def write_seg(path, series, masks, kind="BINARY"):
    """Write masks (n, d, h, w) on the slices of a series as the segments of one file."""
    slices = [pydicom.dcmread(file) for file in series]
    segments = [
        hd.seg.SegmentDescription(
            number,
            f"nodule {number}",
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Nodule,
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(1, len(masks) + 1)
    ]
    pixels = np.moveaxis(masks, 0, -1).astype(float if kind == "FRACTIONAL" else np.uint8)
    made = hd.seg.Segmentation(
        slices,
        pixels,
        hd.seg.SegmentationTypeValues[kind],
        segments,
        hd.UID(),
        9,
        hd.UID(),
        1,
        "none",
        "none",
        "1",
        "1",
    )
    made.save_as(path)
    return path


# Segmentations


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_a_segmentation_is_read_voxel_for_voxel(series, ct, tmp_path, kind):
    masks = random_masks()
    path = write_seg(tmp_path / "seg.dcm", series, masks, kind)
    assert is_dicom_mask(path)
    mask = read_dicom_mask(path, ct, None)
    np.testing.assert_array_equal(mask.array, masks[0])
    np.testing.assert_array_equal(mask.affine, ct.affine)
    np.testing.assert_array_equal(read_dicom_mask(tmp_path, ct, None).array, masks[0])  # the only file of a folder


def test_what_lies_beside_a_segmentation_in_its_folder_does_not_matter(series, ct, tmp_path):
    folder = tmp_path / "mask"
    (folder / "__MACOSX").mkdir(parents=True)
    masks = random_masks()
    write_seg(folder / "seg.dcm", series, masks)
    for name in (".DS_Store", "LICENSE", "preview.png", "__MACOSX/._seg.dcm"):
        (folder / name).write_bytes(b"\0\5\x16\7 anything")
    shutil.copyfile(folder / "seg.dcm", folder / ".seg.dcm")
    shutil.copyfile(series[0], folder / "slice.dcm")
    assert is_dicom_mask(folder)
    np.testing.assert_array_equal(read_dicom_mask(folder, ct, None).array, masks[0])
    shutil.copyfile(folder / "seg.dcm", folder / "seg2.dcm")
    for message in (refusal(read_dicom_mask, folder, ct, None), refusal(mask_names, folder)):
        assert message == f"{folder}: holds 2 DICOM masks, such as seg.dcm and seg2.dcm; name the file"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_one_of_several_segments_must_be_named(series, ct, tmp_path, kind):
    masks = random_masks(3)
    masks[1] &= ~masks[0]  # a label map cannot overlap
    masks[2] &= ~masks[0] & ~masks[1]
    path = write_seg(tmp_path / "seg.dcm", series, masks, kind)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(read_dicom_mask(path, ct, number).array, masks[number - 1])
    message = refusal(read_dicom_mask, path, ct, None)
    assert "seg.dcm: holds 3 segments (1 'nodule 1', 2 'nodule 2', 3 'nodule 3')" in message
    assert "mask_label" in message and "holds no segment 4" in refusal(read_dicom_mask, path, ct, 4)


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_segmentation_fits_an_image_file_of_the_same_voxels_in_any_order(series, ct, tmp_path, name, order):
    masks = random_masks()
    path = write_seg(tmp_path / "seg.dcm", series, masks)
    flipped = np.flip(ct.array, order[0])
    affine = ct.affine.copy()
    affine[:3, 3] = ct.to_lps((np.array(SHAPE) - 1) * (np.arange(3) == order[0]))
    affine[:3, order[0]] *= -1
    write_itk(tmp_path / name, flipped.transpose(order), affine[:, [*order, 3]])
    mask = read_dicom_mask(path, read_image(tmp_path / name), None)
    np.testing.assert_array_equal(mask.array, np.flip(masks[0], order[0]).transpose(order))


def test_a_segmentation_of_a_crop_of_the_image_is_read(series, ct, tmp_path):
    masks = random_masks()
    path = write_seg(tmp_path / "seg.dcm", series, masks)
    affine = ct.affine.copy()
    affine[:3, 3] = ct.to_lps((-2, -3, -4))
    mask = read_dicom_mask(path, Volume(np.zeros(np.add(SHAPE, 9)), affine), None)
    np.testing.assert_array_equal(np.argwhere(mask.array), np.argwhere(masks[0]) + (2, 3, 4))


def shifted(ct, *index):
    affine = ct.affine.copy()
    affine[:3, 3] = ct.to_lps(index)
    return Volume(ct.array, affine)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda ct: shifted(ct, 0.5, 0, 0), "lies 0.50 voxels beside it"),
        (lambda ct: shifted(ct, 0, 0.4, 0), "lies 0.40 voxels beside it"),
        (lambda ct: shifted(ct, 0, 0, 0.3), "lies 0.30 voxels beside it"),
        (lambda ct: shifted(ct, 0, 20, 0), "marks voxels outside of it"),
        (lambda ct: shifted(ct, 30, 0, 0), "marks voxels outside of it"),
        (lambda ct: Volume(ct.array, ct.affine @ np.diag([1, 2, 2, 1])), "pixels of 0.8 x 0.7 mm are no voxels of"),
        (lambda ct: Volume(ct.array, ct.affine @ np.diag([0.5, 1, 1, 1])), "it marks only one of 2 slices"),
    ],
)
def test_a_segmentation_on_another_grid_is_refused(series, ct, tmp_path, change, expected):
    masks = np.zeros((1, *SHAPE), bool)
    masks[0, 2:6, 8:20, 8:20] = True  # as many voxels deep as the CT has, at half of its spacing
    path = write_seg(tmp_path / "seg.dcm", series, masks)
    message = refusal(read_dicom_mask, path, change(ct), None)
    assert f"{path}: its grid differs from that of the image" in message and expected in message


def test_coordinates_may_be_rounded(series, ct, tmp_path):
    path = write_seg(tmp_path / "seg.dcm", series, random_masks())
    affine = ct.affine.copy()
    affine[:3, 3] += 0.05  # mm, as after a step through single precision and text
    np.testing.assert_array_equal(
        read_dicom_mask(path, Volume(ct.array, affine), None).array, read_dicom_mask(path, ct, None).array
    )


def test_a_fractional_segmentation_is_refused(series, ct, tmp_path):
    path = write_seg(tmp_path / "seg.dcm", series, random_masks() * 0.5, "FRACTIONAL")
    assert "its SegmentationType is FRACTIONAL" in refusal(read_dicom_mask, path, ct, None)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"SegmentSequence": None}, "has no attribute 'SegmentSequence'"),
        ({"PixelData": b"\0"}, "the Segmentation cannot be read ("),
        ({"PerFrameFunctionalGroupsSequence": None}, "has no attribute 'PerFrame"),
        ({"SharedFunctionalGroupsSequence": [pydicom.Dataset()]}, "no SegmentIdentificationSequence"),
        ({"SegmentationType": "OTHER"}, "its SegmentationType is 'OTHER', not BINARY"),
    ],
)
def test_a_damaged_segmentation_is_refused_in_a_line(series, ct, tmp_path, elements, expected):
    path = write_seg(tmp_path / "seg.dcm", series, random_masks())
    edit(path, **elements)
    message = refusal(read_dicom_mask, path, ct, None)
    assert message.startswith(str(path)) and expected in message


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("lost", [(4,), (7,), (4, 5), (4, 7), (4, 5, 6)])
def test_frames_that_are_lost_between_others_are_told(series, ct, tmp_path, lost, kind):
    masks = np.zeros((1, *SHAPE), bool)
    masks[0, 2:10, 8:20, 8:20] = True
    masks[0, list(lost)] = False  # which writes no frame
    path = write_seg(tmp_path / "seg.dcm", series, masks, kind)
    message = refusal(read_dicom_mask, path, ct, None)
    run = 3 if len(lost) == 3 else 2 if lost == (4, 5) else 1
    assert "seg.dcm: segment 1 marks nothing near" in message
    assert f", {ct.to_lps((lost[0], 0, 0))[2]:.1f} mm, on {run} slice{'s' * (run > 1)} between two" in message


def test_two_parts_of_a_segment_may_lie_apart(series, ct, tmp_path):
    masks = np.zeros((1, *SHAPE), bool)
    masks[0, 2:4, 8:12, 8:12] = masks[0, 5:7, 20:24, 8:12] = masks[0, 11, 20:24, 8:12] = True
    path = write_seg(tmp_path / "seg.dcm", series, masks)
    np.testing.assert_array_equal(read_dicom_mask(path, ct, None).array, masks[0])


# RT Structure Sets


def write_rtstruct(path, rois, kind="CLOSED_PLANAR"):
    """Write {number: (name, [contours (n, 3) in mm])}."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.RTStructureSetStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    ds.Modality, ds.StructureSetLabel, ds.StructureSetROISequence, ds.ROIContourSequence = "RTSTRUCT", "s", [], []
    for number, (name, contours) in rois.items():
        roi, drawn = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber, drawn.ContourSequence = number, name, number, []
        for points in contours:
            contour = pydicom.Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.8g}" for value in np.ravel(points)]
            drawn.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.save_as(path, enforce_file_format=True)
    return path


def outline(ct, depth, points):
    """Return a contour (n, 3) in mm, given its slice and its points (n, 2) as row and column."""
    return ct.to_lps(np.column_stack([np.full(len(points), depth), points]))


def circle(middle, radius, count=64):
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + 0.1
    return middle + radius * np.column_stack([np.sin(angle), np.cos(angle)])


def test_the_contours_of_an_ellipsoid_enclose_it(ct, tmp_path):
    middle, axes = ct.to_lps((5.3, 14.2, 17.7)), np.array([8.0, 7.0, 5.0])  # mm along x, y, z
    contours = []
    for depth in range(SHAPE[0]):
        z_mm = ct.to_lps((depth, 0, 0))[2]
        share = 1 - ((z_mm - middle[2]) / axes[2]) ** 2
        if share > 0:
            angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
            x_mm, y_mm = middle[:2, None] + np.sqrt(share) * axes[:2, None] * [np.cos(angle), np.sin(angle)]
            contours.append(np.column_stack([x_mm, y_mm, np.full(2000, z_mm)]))
    mask = read_dicom_mask(write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", contours)}), ct, None).array
    away = ct.to_lps(np.moveaxis(np.indices(SHAPE), 0, -1)) - middle
    # A polygon of 2000 edges lies at most 1e-5 mm inside the ellipse: no voxel centre is that near to it.
    np.testing.assert_array_equal(mask, np.linalg.norm(away / axes, axis=-1) <= 1)
    # 3,000 voxels; those at the surface, 4 in 100, are in or out by chance.
    volume_mm3 = mask.sum() * abs(np.linalg.det(ct.affine[:3, :3]))
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * axes.prod(), rel=0.02)


def test_polygons_are_filled_as_by_another_implementation(ct, tmp_path):
    measure = pytest.importorskip("skimage.measure")
    random = np.random.default_rng(3)
    angle = np.sort(random.uniform(0, 2 * np.pi, 40))
    star = np.array([14.0, 17.0]) + random.uniform(3, 13, (40, 1)) * np.column_stack([np.sin(angle), np.cos(angle)])
    crossed = random.uniform(3, 26, (9, 2))  # crosses itself
    contours = [outline(ct, 4, star), outline(ct, 5, crossed), outline(ct, 6, star[::-1])]
    mask = read_dicom_mask(write_rtstruct(tmp_path / "rt.dcm", {7: ("nodule", contours)}), ct, None).array
    filled = [measure.grid_points_in_poly(SHAPE[1:], points) for points in (star, crossed, star)]
    assert all(50 < plane.sum() < 500 for plane in filled)
    np.testing.assert_array_equal(mask[4:7], filled)
    assert not mask[:4].any() and not mask[7:].any()


def test_contours_within_contours_are_holes_and_islands(ct, tmp_path):
    middle = np.array([14.0, 17.0])
    radii = (12.3, 8.3, 3.3)
    contours = [outline(ct, 4, circle(middle, radius, 1000)) for radius in radii]
    contours += [outline(ct, 5, circle((6.2, 7.1), 4, 1000)), outline(ct, 5, circle((22.2, 27.1), 5, 1000))]
    mask = read_dicom_mask(write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", contours)}), ct, None).array
    pixels = np.moveaxis(np.indices(SHAPE[1:]), 0, -1)
    distance = np.linalg.norm(pixels - middle, axis=-1)
    np.testing.assert_array_equal(mask[4], (distance < 12.3) & ~(distance < 8.3) | (distance < 3.3))
    apart = [
        np.linalg.norm(pixels - centre, axis=-1) < radius for centre, radius in (((6.2, 7.1), 4), ((22.2, 27.1), 5))
    ]
    np.testing.assert_array_equal(mask[5], apart[0] | apart[1])


def test_contours_fit_an_image_whose_slices_are_not_its_first_axis(ct, tmp_path):
    contours = [outline(ct, depth, circle((12.2, 18.4), 5.2)) for depth in (4, 5, 6)]
    path = write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", contours)})
    turned = Volume(ct.array.transpose(1, 2, 0), ct.affine[:, [1, 2, 0, 3]])
    mask = read_dicom_mask(path, turned, None).array
    assert mask.any()
    np.testing.assert_array_equal(mask.transpose(2, 0, 1), read_dicom_mask(path, ct, None).array)


def test_one_of_several_rois_must_be_named(ct, tmp_path):
    small, large = ([outline(ct, 4, circle((12.2, 18.4), radius))] for radius in (3, 6))
    path = write_rtstruct(tmp_path / "rt.dcm", {3: ("GTV", small), 8: ("lung", large), 9: ("empty", [])})
    assert 20 < read_dicom_mask(path, ct, 3).array.sum() < 40 < read_dicom_mask(path, ct, 8).array.sum()
    assert "rt.dcm: holds 2 ROIs (3 'GTV', 8 'lung'); name" in refusal(read_dicom_mask, path, ct, None)
    assert "holds no ROI 9, as mask_label names it, but 3 'GTV', 8 'lung'" in refusal(read_dicom_mask, path, ct, 9)


@pytest.mark.parametrize(
    ("contours", "expected"),
    [
        (lambda ct: [outline(ct, 4.4, circle((12, 18), 5))], "lies on none of its slices"),
        (lambda ct: [outline(ct, 40, circle((12, 18), 5))], "lies on none of its slices"),
        (lambda ct: [outline(ct, 4, circle((12, 38), 5))], "reaches beyond it"),
        (lambda ct: [outline(ct, depth, circle((12, 18), 5)) for depth in (2, 4, 6)], "only one of 2 slices"),
        (lambda ct: [outline(ct, 4, circle((12, 18), 5)).ravel()[:-1]], "the RT Structure Set cannot be read ("),
    ],
)
def test_contours_off_the_slices_are_refused(ct, tmp_path, contours, expected):
    path = write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", contours(ct))})
    assert expected in refusal(read_dicom_mask, path, ct, None)


def test_points_are_no_outline(ct, tmp_path):
    path = write_rtstruct(tmp_path / "rt.dcm", {1: ("seed", [outline(ct, 4, circle((12, 18), 5))])}, "POINT")
    assert "a contour of ROI 1 is of type POINT" in refusal(read_dicom_mask, path, ct, None)


STACK = (3, 4, 5, 6)  # slices of a made region


def stack(ct, *circles, depths=STACK):
    """Return contours on several slices, each with circles (middle, radius)."""
    return [outline(ct, depth, circle(*one)) for depth in depths for one in circles]


def read_contours(ct, tmp_path, contours, kind="CLOSED_PLANAR"):
    return read_dicom_mask(write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", contours)}, kind), ct, None).array


def finer(points):
    """Return a contour with a further vertex on each edge."""
    return np.stack([points, (points + np.roll(points, -1, axis=0)) / 2], axis=1).reshape(-1, 3)


MIDDLE = np.array([14.0, 17.0])
COPIES = {
    "the same": lambda points: points,
    "from elsewhere": lambda points: np.roll(points, 20, axis=0),
    "the other way round": lambda points: points[::-1],
    "closed": lambda points: np.concatenate([points, points[:1]]),
    "rounded": lambda points: points.round(1) * (1, 1, 0) + points * (0, 0, 1),  # to 0.1 mm
    "finer": finer,
}


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
@pytest.mark.parametrize("which", [slice(None), slice(1, 2)], ids=["all", "one"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_contour_that_is_stored_again_counts_once(ct, tmp_path, copy, which, kind):
    contours = stack(ct, (MIDDLE, 7.3))
    sound = read_contours(ct, tmp_path, contours)
    again = [copy(points) for points in contours[which]]
    np.testing.assert_array_equal(read_contours(ct, tmp_path, contours + again, kind), sound)
    np.testing.assert_array_equal(read_contours(ct, tmp_path, contours + again + again, kind), sound)


def test_a_copy_of_a_hole_leaves_the_hole(ct, tmp_path):
    contours = stack(ct, (MIDDLE, 8.3), (MIDDLE, 4.3))
    sound = read_contours(ct, tmp_path, contours)
    assert not sound[4, 14, 17] and sound[4, 14, 11]
    np.testing.assert_array_equal(read_contours(ct, tmp_path, contours + contours), sound)


@pytest.mark.parametrize(
    ("middle", "radius", "expected"),
    [
        (MIDDLE, 7.7, "lie less than a pixel apart all round, as if one outline was stored twice"),
        (MIDDLE, 6.5, "lie less than a pixel apart all round"),
        (MIDDLE + (0.3, 0.3), 7.4, "lie less than a pixel apart all round"),  # the copy was shifted
        (MIDDLE + (0, 4), 7.3, "cross, which leaves open what they enclose"),
        (MIDDLE + (0, 4), 4.8, "cross, which leaves open"),
    ],
)
def test_contours_that_enclose_nothing_clear_are_refused(ct, tmp_path, middle, radius, expected):
    contours = [*stack(ct, (MIDDLE, 7.3)), outline(ct, 5, circle(middle, radius))]
    message = refusal(read_contours, ct, tmp_path, contours)
    assert f"rt.dcm: two contours of ROI 1 near {point_of(contours[-1])} mm {expected}" in message


def point_of(contour):
    return ", ".join(f"{value:.1f}" for value in contour[0])


def test_bars_that_cross_without_a_corner_within_each_other_are_refused(ct, tmp_path):
    upright, lying = (
        np.array([(5, 15), (25, 15), (25, 20), (5, 20)]),
        np.array([(12, 5), (17, 5), (17, 30), (12, 30)]),
    )
    contours = [outline(ct, 4, upright), outline(ct, 4, lying)]
    assert "cross, which leaves open" in refusal(read_contours, ct, tmp_path, contours)


def test_contours_of_the_type_xor_may_cross(ct, tmp_path):
    contours = stack(ct, (MIDDLE, 7.3), (MIDDLE + (0, 4), 7.3))
    pixels = np.moveaxis(np.indices(SHAPE[1:]), 0, -1)
    first, second = (np.linalg.norm(pixels - middle, axis=-1) < 7.29 for middle in (MIDDLE, MIDDLE + (0, 4)))
    np.testing.assert_array_equal(read_contours(ct, tmp_path, contours, "CLOSEDPLANAR_XOR")[4], first ^ second)


def test_a_shell_of_more_than_a_voxel_stays_a_shell(ct, tmp_path):
    mask = read_contours(ct, tmp_path, stack(ct, (MIDDLE, 7.2), (MIDDLE, 5.9)))
    distance = np.linalg.norm(np.moveaxis(np.indices(SHAPE[1:]), 0, -1) - MIDDLE, axis=-1)
    np.testing.assert_array_equal(mask[4], (distance < 7.2) & (distance > 5.9))  # none lies between arc and chord


def test_a_shell_of_one_pixel_stays_a_shell(ct, tmp_path):
    outer, inner = (np.array([(a, a), (a, b), (b, b), (b, a)]) for a, b in ((8.5, 20.5), (9.5, 19.5)))
    mask = read_contours(ct, tmp_path, [outline(ct, depth, part) for depth in STACK for part in (outer, inner)])
    assert mask[4].sum() == 12**2 - 10**2 and mask[4, 9, 9:21].all()


def test_a_keyhole_stays_a_hole(ct, tmp_path):
    outer, inner = circle(MIDDLE, 8.3), circle(MIDDLE, 4.3)
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
    drawn = [outline(ct, depth, keyhole) for depth in STACK]
    expected = read_contours(ct, tmp_path, stack(ct, (MIDDLE, 8.3), (MIDDLE, 4.3)))
    np.testing.assert_array_equal(read_contours(ct, tmp_path, drawn), expected)
    np.testing.assert_array_equal(read_contours(ct, tmp_path, drawn + drawn), expected)


@pytest.mark.parametrize("overlap", [0, 0.1, 0.4])
def test_parts_that_touch_are_one_region(ct, tmp_path, overlap):
    left = np.array([(8.5, 8.5), (8.5, 16.5 + overlap), (20.5, 16.5 + overlap), (20.5, 8.5)])
    right = np.array([(8.5, 16.5), (8.5, 26.5), (20.5, 26.5), (20.5, 16.5)])
    mask = read_contours(ct, tmp_path, [outline(ct, depth, part) for depth in STACK for part in (left, right)])
    expected = np.zeros(SHAPE, bool)
    expected[3:7, 9:21, 9:27] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("lost", [(4,), (7,), (4, 5), (4, 7), (4, 5, 6)])
@pytest.mark.parametrize("holed", [False, True])
def test_contours_that_are_lost_between_others_are_told(ct, tmp_path, lost, holed):
    depths = [depth for depth in range(2, 10) if depth not in lost]
    circles = [(MIDDLE, 7.3), (MIDDLE + 1, 3.3)] if holed else [(MIDDLE, 7.3)]
    message = refusal(read_contours, ct, tmp_path, stack(ct, *circles, depths=depths))
    run = 3 if len(lost) == 3 else 2 if lost == (4, 5) else 1
    assert "rt.dcm: ROI 1 lacks contours near" in message
    assert f", {ct.to_lps((lost[0], 0, 0))[2]:.1f} mm, on {run} slice{'s' * (run > 1)} between two" in message


def test_a_lost_contour_is_told_whichever_axis_the_slices_are(ct, tmp_path):
    path = write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", stack(ct, (MIDDLE, 7.3), depths=(3, 4, 6, 7)))})
    turned = Volume(ct.array.transpose(1, 2, 0), ct.affine[:, [1, 2, 0, 3]])
    assert f", {ct.to_lps((5, 0, 0))[2]:.1f} mm, on 1 slice between" in refusal(read_dicom_mask, path, turned, None)


@pytest.mark.parametrize(
    ("above", "depths"),
    [((6.0, 27.0), (5, 6, 7)), ((14.0, 17.0), (8, 9, 10))],  # beside the first in the next slice but one; far above it
    ids=["aside", "far"],
)
def test_two_parts_of_a_region_may_lie_apart(ct, tmp_path, above, depths):
    contours = stack(ct, ((14.0, 17.0), 4.3), depths=(2, 3)) + stack(ct, (np.array(above), 4.3), depths=depths)
    marked = np.flatnonzero(read_contours(ct, tmp_path, contours).any(axis=(1, 2)))
    assert marked.tolist() == [2, 3, *depths]


# In the folder source


def test_a_nodule_may_name_a_dicom_object_as_its_mask(root, series, ct):
    masks = np.zeros((1, *SHAPE), bool)
    masks[0, 4:7, 11:15, 12:18] = True
    write_seg(root / "masks" / "seg.dcm", series, masks)
    (root / "images" / "ct").mkdir()
    for path in series:
        (root / "images" / "ct" / path.rpartition("/")[2]).symlink_to(path)
    nodules, ratings = tables()
    point = dict(zip(("x_mm", "y_mm", "z_mm"), ct.to_lps((5, 12, 14.5)), strict=True))
    write_table(root / "nodules.csv", [{**nodules[2], "image": "images/ct", "mask": "masks/seg.dcm", **point}])
    write_table(root / "ratings.csv", ratings[3:])
    (marked,) = load(root, "images/ct")
    np.testing.assert_array_equal(marked.readers.array, masks)
    assert marked.readers.array.dtype == bool
    # The same voxels, drawn as contours through the middle between voxel centres.
    corners = np.array([(10.5, 11.5), (10.5, 17.5), (14.5, 17.5), (14.5, 11.5)])
    contours = [outline(ct, depth, corners) for depth in (4, 5, 6)]
    path = write_rtstruct(root / "masks" / "rt.dcm", {1: ("nodule", contours)})
    np.testing.assert_array_equal(read_readers(path, ct, marked.nodule, None).array, masks)


def test_an_empty_segment_marks_no_voxel(series, ct, tmp_path):
    path = write_rtstruct(tmp_path / "rt.dcm", {1: ("nodule", [outline(ct, 4, [(9.1, 9.1), (9.2, 9.2)])])})
    assert "the mask marks no voxel" in refusal(read_readers, path, ct, None, None)


# Points from masks


def test_each_region_of_each_segment_is_a_point_to_predict(series, ct, tmp_path):
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 3:5, 10, 10] = masks[0, 8, 20, 20:24] = True  # two regions, of two voxels and of four
    masks[1, 5, 5, 5] = True
    path = write_seg(tmp_path / "seg.dcm", series, masks)
    requests = read_requests(str(Path(series[0]).parent), str(path), "mm")
    assert [request.nodule_id for request in requests] == ["nodule_1_1", "nodule_1_2", "nodule_2"]
    expected = ct.to_lps([(8, 20, 21), (3, 10, 10), (5, 5, 5)])  # of those in a row, the first of the middle ones
    np.testing.assert_allclose([request.point_mm for request in requests], expected, atol=1e-6)


def test_each_roi_is_a_point_to_predict(series, ct, tmp_path):
    rois = {1: ("left upper", [outline(ct, depth, circle((12, 14), 4)) for depth in (4, 5, 6)])}
    path = write_rtstruct(tmp_path / "rt.dcm", rois)
    (request,) = read_requests(str(Path(series[0]).parent), str(path), "mm")
    assert request.nodule_id == "left_upper"
    np.testing.assert_allclose(request.point_mm, ct.to_lps((5, 12, 14)), atol=1e-6)


def test_a_segment_without_a_voxel_is_told(series, tmp_path, caplog):
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 3:5, 10:12, 10:12] = True
    path = write_seg(tmp_path / "seg.dcm", series, masks)
    (request,) = read_requests(str(Path(series[0]).parent), str(path), "mm")
    assert request.nodule_id == "nodule_1"
    assert f"{path}: marks no voxel of 'nodule 2'" in caplog.text
