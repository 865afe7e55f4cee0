"""The `lidc` source: DICOM scans and their annotations fit together, tested on one real scan."""

import csv
import json
import random
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from ct_files import HU, REAL, refusal, write_itk, write_series
from scipy import ndimage

from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.data import lidc, schema
from pnsamp_jax.data.folder import NODULE_COLUMNS, RATING_COLUMNS, FolderSource
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry, consensus_centroid, make_record

pytestmark = pytest.mark.filterwarnings("error")

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
GEOMETRY = Geometry(64, 8, 0.6)


@pytest.fixture(scope="module")
def real_paths():
    return index_series(REAL)[UID]


@pytest.fixture(scope="module")
def marked(real_paths):
    """The scan's only nodule."""
    source = LidcSource(str(REAL))
    assert source.series() == [UID]
    (only,) = source.load(UID)
    return only


@pytest.fixture(scope="module")
def record(marked):
    return make_record(marked, GEOMETRY)


def link(paths, root):
    """Link the files into several folders, under names that do not reveal the order of the slices."""
    shuffled = random.Random(0).sample(list(paths), len(paths))
    for number, path in enumerate(shuffled):
        folder = root / f"study {number % 3}" / ("é" if number % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IM{number:04}").symlink_to(path)
    return root


def marked_z_mm():
    """Return the positions of all slices that a reader marked."""
    (item,) = lidc.series_nodules(UID)
    return sorted({contour.z_mm for annotation in item.annotations for contour in annotation.contours})


def by_z(paths):
    """Return {slice position: path}, since the file names do not follow the order of the slices."""
    import pydicom

    return {float(pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2]): p for p in paths}


# Annotations


def test_a_patients_nodules_are_numbered_across_the_scans():
    scans = Counter(scan.patient_id for scan in lidc.scans_by_series().values())
    twice = [patient for patient, count in scans.items() if count == 2]
    assert len(lidc.scans_by_series()) == 1018 and len(twice) == 8
    for patient in twice[:3]:
        series = [scan.series_uid for scan in lidc.scans_by_series().values() if scan.patient_id == patient]
        ids = [item.nodule.nodule_id for uid in series for item in lidc.series_nodules(uid)]
        assert ids == [f"{patient}_n{number:02}" for number in range(len(ids))]
        assert all(item.scan.series_uid == uid for uid in series for item in lidc.series_nodules(uid))


def test_ratings_are_those_of_the_archives_own_xml(marked, record):
    (path,) = REAL.rglob("*.xml")
    space = {"n": "http://www.nih.gov"}
    names = ("subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation", "spiculation")
    names += ("texture", "malignancy")
    rows = []
    for session in ElementTree.parse(path).getroot().findall("n:readingSession", space):
        for rated in session.findall("n:unblindedReadNodule/n:characteristics", space):
            row = [rated.findtext(f"n:{name}", namespaces=space) for name in names]
            if all(row):  # nodules under 3 mm are only marked by a point, without ratings
                rows.append([int(value) for value in row])
    assert len(rows) == 4
    assert sorted(marked.nodule.ratings.tolist()) == sorted(rows)
    expected = np.zeros((9, 6), int)
    for row in rows:
        expected[np.arange(9), np.array(row) - 1] += 1
    np.testing.assert_array_equal(record[schema.RATING_COUNTS], expected)
    assert (record[schema.NODULE_ID], record[schema.PATIENT_ID]) == ("LIDC-IDRI-0001_n00", "LIDC-IDRI-0001")


# Voxels


def test_the_mask_covers_the_nodule_in_the_ct(marked, record):
    share = record[schema.MASK].astype(float) / schema.MASK_UNIT
    by_all, by_none = record[schema.MASK] == schema.MASK_UNIT, record[schema.MASK] == 0
    distance = ndimage.distance_transform_edt(by_none) * GEOMETRY.spacing_mm
    shell = (distance > 2) & (distance < 6)  # beyond the imprecision of the contours
    inside, outside = record[schema.IMAGE][by_all], record[schema.IMAGE][shell]
    # A solid mass (texture 5) in a contrast CT: median 83 HU inside, -831 HU around it, 5th percentile inside -113 HU.
    assert by_all.sum() > 10000 and shell.sum() > 10000
    assert 0 < np.median(inside) < 150
    assert np.median(outside) < -600
    assert np.percentile(inside, 5) > np.median(outside) + 300
    # A mask that is mirrored or shifted by two slices correlates less with the density.
    hu = record[schema.IMAGE].clip(-1000, 200).ravel()
    best = np.corrcoef(share.ravel(), hu)[0, 1]
    for axis in range(3):
        for moved in (np.flip(share, axis), np.roll(share, -8, axis), np.roll(share, 8, axis)):
            assert np.corrcoef(moved.ravel(), hu)[0, 1] < best - 0.01
    middle = np.argwhere(share >= 0.5).mean(axis=0)
    np.testing.assert_allclose(middle, 39.5, atol=0.5)
    assert record[schema.READER_DICE] > 0.8 and 20 < record[schema.DIAMETER] < 30


def test_masks_are_on_the_scans_grid_at_the_contours_slices(marked):
    assert marked.context == "ct" and marked.readers.array.shape[0] == 4
    np.testing.assert_allclose(marked.readers.affine[:3, :3], marked.ct.affine[:3, :3])
    corner = marked.ct.to_index(marked.readers.to_lps((0, 0, 0)))
    np.testing.assert_allclose(corner, np.rint(corner), atol=1e-6)
    depth = np.flatnonzero(marked.readers.array.any(axis=(0, 2, 3)))
    z_mm = marked.readers.to_lps(np.stack([depth, 0 * depth, 0 * depth], axis=1))[:, 2]
    np.testing.assert_allclose(z_mm, marked_z_mm(), atol=0.01)


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_the_same_scan_as_an_image_file_gives_the_same_record(marked, record, tmp_path, name):
    # For speed, a crop that contains the whole patch of 48 mm.
    centre = consensus_centroid(marked.readers)
    low, high = (np.sort([marked.ct.to_index(centre - 27), marked.ct.to_index(centre + 27)], axis=0)).astype(int)
    crop = marked.ct.array[tuple(map(slice, low, high + 1))]
    affine = marked.ct.affine.copy()
    affine[:3, 3] = marked.ct.to_lps(low)
    bits = (marked.readers.array * 2 ** np.arange(4)[:, None, None, None]).sum(axis=0).astype(np.uint8)
    write_itk(tmp_path / name, crop, affine)
    write_itk(tmp_path / f"mask-{name}", bits, marked.readers.affine)
    nodule = marked.nodule
    point = [repr(float(value)) for value in centre]
    with (tmp_path / "nodules.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [NODULE_COLUMNS, (nodule.nodule_id, nodule.patient_id, name, f"mask-{name}", *point)]
        )
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        rows = [(nodule.nodule_id, reader, *row) for reader, row in enumerate(nodule.ratings.tolist())]
        csv.writer(file).writerows([RATING_COLUMNS, *rows])
    (from_image,) = FolderSource(str(tmp_path)).load(name)
    again = make_record(from_image, GEOMETRY)
    assert set(again) == set(record)
    # NIfTI stores its geometry in single precision: 1e-5 mm, which at 1e3 HU per mm is well below 1 HU.
    for feature, bound in ((schema.IMAGE, 1), (schema.MASK, 1)):
        assert np.abs(again[feature].astype(int) - record[feature]).max() <= bound
    for feature in (schema.RATING_COUNTS, schema.NODULE_ID, schema.PATIENT_ID, schema.CONTEXT, schema.READER_DICE):
        np.testing.assert_array_equal(again[feature], record[feature])
    assert again[schema.DIAMETER] == pytest.approx(record[schema.DIAMETER], rel=1e-5)


# Folder layouts and errors


def test_any_folder_layout_and_file_names_give_the_same_nodule(real_paths, marked, tmp_path):
    source = LidcSource(str(link(real_paths, tmp_path / "any where")), str(tmp_path / "index.json"))
    assert source.series() == [UID]
    (again,) = source.load(UID)
    np.testing.assert_array_equal(again.ct.array, marked.ct.array)
    np.testing.assert_array_equal(again.readers.array, marked.readers.array)
    np.testing.assert_array_equal(again.readers.affine, marked.readers.affine)
    assert (tmp_path / "index.json").is_file()
    assert json.loads(json.dumps(source.description())) == source.description()


def near(paths, keep):
    """Return the files of slices near the nodule whose z passes `keep`; fewer files are read faster."""
    low, *_, high = marked_z_mm()
    return [path for z, path in by_z(paths).items() if low - 15 < z < high + 15 and keep(z)]


def test_part_of_a_scan_suffices_if_it_has_the_marked_slices(real_paths, marked, tmp_path):
    (part,) = LidcSource(str(link(near(real_paths, lambda z: True), tmp_path))).load(UID)
    assert len(part.ct.array) < 40
    np.testing.assert_array_equal(part.readers.array, marked.readers.array)
    np.testing.assert_allclose(part.readers.affine, marked.readers.affine, atol=1e-6)


@pytest.mark.parametrize("which", [0, 3, -1])
def test_a_missing_slice_that_a_reader_marked_is_reported(real_paths, tmp_path, which):
    lost = marked_z_mm()[which]
    source = LidcSource(str(link(near(real_paths, lambda z: abs(z - lost) > 0.1), tmp_path)))
    message = refusal(source.load, UID)
    assert f"z = {lost:g} mm" in message and UID in message


def test_a_scan_that_ends_before_the_last_marked_slice_is_refused(real_paths, tmp_path):
    *_, last, highest = marked_z_mm()
    source = LidcSource(str(link(near(real_paths, lambda z: z < last - 0.1), tmp_path)))
    assert f"z = {highest:g} mm" in refusal(source.load, UID)


def test_a_missing_slice_that_no_reader_marked_does_not_matter(real_paths, marked, tmp_path):
    lost = marked_z_mm()[0] - 5
    (part,) = LidcSource(str(link(near(real_paths, lambda z: abs(z - lost) > 0.1), tmp_path))).load(UID)
    np.testing.assert_array_equal(part.readers.array, marked.readers.array)
    np.testing.assert_allclose(part.readers.affine, marked.readers.affine, atol=1e-6)


def test_a_folder_without_scans_of_the_archive_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal(LidcSource(str(tmp_path / "empty")).series)
    assert message.startswith("config.data.dicom_root: none of the 0 CT series") and "empty" in message
    write_series(tmp_path / "other", HU[:2])
    message = refusal(LidcSource(str(tmp_path / "other")).series)
    assert message.startswith("config.data.dicom_root: none of the 1 CT series")
    assert "nowhere: no such folder" in refusal(LidcSource(str(tmp_path / "nowhere")).series)
