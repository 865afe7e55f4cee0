"""The `lidc` source: DICOM scans and their annotations fit together, tested on one real scan."""

import csv
import json
import random
import shutil
import zipfile
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest
from ct_files import HU, REAL, refusal, write_itk, write_series
from scipy import ndimage
from tiny_run import tiny_config

from pnsamp_jax.config import read_settings
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.data import lidc, lidc_ct, schema
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.folder_tables import NODULE_COLUMNS, RATING_COLUMNS
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry, consensus_centroid, make_record
from pnsamp_jax.data.prepare import prepare
from pnsamp_jax.data.series_files import read_records
from pnsamp_jax.errors import UserError

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


def without(paths, gone):
    """Return the files of all slices whose z in mm is not `gone`."""
    return [path for z, path in by_z(paths).items() if not gone(z)]


@pytest.mark.parametrize(
    ("gone", "lost"),
    [
        (lambda z: z < -230, "-340"),  # the download stopped far from the nodule
        (lambda z: z == marked_z_mm()[3], None),
        (lambda z: z == marked_z_mm()[0] - 50, None),  # one slice that no reader marked
    ],
    ids=["a cut", "a marked slice", "another slice"],
)
def test_a_scan_that_lacks_slices_is_refused_by_name_and_number(real_paths, tmp_path, gone, lost):
    kept = without(real_paths, gone)
    source = LidcSource(str(link(kept, tmp_path / "scan")))
    lost = lost or f"{next(z for z in by_z(real_paths) if gone(z)):g}"
    message = refusal(source.load, UID)
    assert message.startswith(f"LIDC-IDRI-0001, series {UID}: only {len(kept)} of its 133 slices are in {tmp_path}")
    assert f"the first one missing is at z = {lost} mm; download the series again" in message


def copy_shifted(paths, folder, **elements):
    """Write copies of DICOM files in which elements are changed by functions of their values."""
    folder.mkdir()
    for number, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        for name, function in elements.items():
            setattr(ds, name, function(getattr(ds, name)))
        ds.save_as(folder / f"{number}.dcm")
    return folder


def test_a_scan_whose_slices_lie_elsewhere_is_refused(real_paths, tmp_path):
    root = copy_shifted(real_paths, tmp_path / "scan", ImagePositionPatient=lambda p: [p[0], p[1], p[2] + 1.25])
    message = refusal(LidcSource(str(root)).load, UID)
    assert "LIDC-IDRI-0001" in message and "0 of its 133 slices lie where they were annotated" in message
    assert "z is -338.75 to -8.75 mm here, and -340 to -10 mm there" in message


def test_a_scan_with_other_pixels_is_refused(real_paths, tmp_path):
    root = copy_shifted(real_paths, tmp_path / "scan", PixelSpacing=lambda spacing: [2 * side for side in spacing])
    message = refusal(LidcSource(str(root)).load, UID)
    assert "512 x 512 pixels of 1.406 mm, but was annotated on 512 x 512 of 0.7031 mm" in message


def test_a_refused_scan_does_not_cost_the_others_and_is_told(real_paths, tmp_path, capsys, monkeypatch):
    link(real_paths, tmp_path / "scans" / "whole")
    other = next(
        scan for uid, scan in lidc.scans_by_series().items() if scan.annotations and len(scan.slice_z_mm) > 133
    )
    copy_shifted(real_paths[:4], tmp_path / "scans" / "cut", SeriesInstanceUID=lambda _: other.series_uid)
    prepared = prepare(LidcSource(str(tmp_path / "scans")), Geometry(16, 0, 1.2), tmp_path / "cache", workers=1)
    assert read_records(prepared.files)[schema.NODULE_ID].tolist() == ["LIDC-IDRI-0001_n00"]
    assert list(prepared.failures) == [other.series_uid]
    output = capsys.readouterr().out
    assert "Left out 1 of 2 series" in output
    assert f"{other.patient_id}, series {other.series_uid}: only 0 of its {len(other.slice_z_mm)} slices" in output


def test_every_scan_of_the_archive_is_accepted_with_the_positions_in_the_database(monkeypatch):
    """Also the four whose slices are unevenly spaced, one of which lacks slices in the archive itself."""
    for scan in lidc.scans_by_series().values():
        positions = np.zeros((len(scan.slice_z_mm), 3))
        positions[:, 2] = np.round(scan.slice_z_mm + 0.004, 2)  # as other software may write them
        monkeypatch.setattr(lidc_ct, "slice_positions", lambda paths, positions=positions: positions)
        lidc_ct._require_slices(scan, ["scan/0.dcm"])


def test_a_series_is_prepared_again_when_a_slice_changes_and_only_then(real_paths, tmp_path, monkeypatch):
    root, geometry, loaded = link(real_paths, tmp_path / "scan"), Geometry(16, 0, 1.2), []
    load = LidcSource.load
    monkeypatch.setattr(LidcSource, "load", lambda self, series: loaded.append(series) or load(self, series))

    def prepare_again():
        loaded.clear()
        source = LidcSource(str(root), str(tmp_path / "cache" / "index.json"))
        prepared = prepare(source, geometry, tmp_path / "cache", workers=1)
        return len(loaded), prepared

    (first, before), (second, again) = prepare_again(), prepare_again()
    assert (first, second) == (1, 0) and again == before
    lost = next(root.rglob("IM0004"))
    target = lost.resolve()
    lost.unlink()  # the source has an index of its own, and sees it in the same process
    with pytest.raises(UserError, match="only 132 of its 133 slices"):
        prepare_again()
    shutil.copy(target, lost)  # again, but written now
    count, after = prepare_again()
    assert count == 1 and after.files != before.files and after.folder == before.folder
    assert list(after.folder.glob("*.npz")) == after.files


def test_a_folder_without_scans_of_the_archive_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal(LidcSource(str(tmp_path / "empty")).series)
    assert message.startswith("config.data.dicom_root: none of the 0 CT series") and "empty" in message
    write_series(tmp_path / "other", HU[:2])
    message = refusal(LidcSource(str(tmp_path / "other")).series)
    assert message.startswith("config.data.dicom_root: none of the 1 CT series")
    assert "nowhere: no such folder" in refusal(LidcSource(str(tmp_path / "nowhere")).series)


def test_a_file_and_a_folder_of_archives_are_told_from_a_folder_without_scans(tmp_path):
    (tmp_path / "manifest.tcia").write_text("downloadServerUrl=...")
    message = refusal(LidcSource(str(tmp_path / "manifest.tcia")).series)
    assert message == f"{tmp_path}/manifest.tcia: is a file, not a folder; give the one that contains the DICOM files"
    settings = read_settings(tiny_config(**{"data.source": "lidc", "data.dicom_root": f"{tmp_path}/manifest.tcia"}))
    expected = f"config.data.dicom_root: is a file, not a folder: {tmp_path}/manifest.tcia"
    assert refusal(lambda: settings.source) == expected
    (tmp_path / "LIDC-IDRI").mkdir()
    for name in ("0001.zip", "0002.ZIP"):
        with zipfile.ZipFile(tmp_path / "LIDC-IDRI" / name, "w") as archive:
            archive.writestr("1-01.dcm", b"")
    message = refusal(LidcSource(str(tmp_path)).series)
    assert (
        "none of the 0 CT series" in message and "unpack the 2 archives there, such as LIDC-IDRI/0001.zip" in message
    )
