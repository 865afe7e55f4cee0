"""The `luna16` source: MetaImage copies of LIDC-IDRI's scans give the records of the DICOM files themselves."""

import dataclasses
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import REAL, refusal, write_itk

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.data import lidc, lidc_ct, schema
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.luna16 import Luna16Source, _places
from pnsamp_jax.data.patches import Geometry, consensus_centroid
from pnsamp_jax.data.prepare import make_records, prepare
from pnsamp_jax.data.series_files import read_records

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"  # of LIDC-IDRI-0001
HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm"
GEOMETRY = Geometry(16, 2, 1.2)


@pytest.fixture(scope="module")
def scan():
    """The scan with the fewest slices that are equally far apart and show a nodule of three readers."""
    uniform = [
        scan
        for scan in lidc.scans_by_series().values()
        if len(scan.annotations) >= 3 and np.ptp(np.diff(scan.slice_z_mm)) < 1e-3
    ]
    return min(uniform, key=lambda scan: len(scan.slice_z_mm))


@pytest.fixture(scope="module")
def root(scan, tmp_path_factory):
    """LUNA16's layout with a made-up CT of that scan: a body with two lungs, and the nodules that readers marked."""
    folder = tmp_path_factory.mktemp("luna16")
    (folder / "subset3").mkdir()
    row, column = np.indices((512, 512)) - 255.5
    body = np.where(np.hypot(row / 180, column / 240) < 1, 30, -1000)
    body[np.minimum(np.hypot(row / 120, (column - 110) / 85), np.hypot(row / 120, (column + 110) / 85)) < 1] = -850
    hu = (body + np.zeros((len(scan.slice_z_mm), 1, 1))).astype(np.int16)
    for item in lidc.series_nodules(scan.series_uid):
        masks, origin = item.masks()
        hu[tuple((np.argwhere(masks.any(axis=0)) + origin).T)] = 30
    affine = np.eye(4)
    step = np.diff(scan.slice_z_mm).mean()
    spacing = scan.pixel_spacing_mm
    affine[:3, :3] = np.array([[0, 0, spacing], [0, spacing, 0], [step, 0, 0]])
    affine[:3, 3] = (-spacing * 255.5, -spacing * 255.5, scan.slice_z_mm[0])
    write_itk(folder / "subset3" / f"{scan.series_uid}.mhd", hu, affine)
    write_itk(folder / "subset3" / "1.2.3.mhd", hu[:3, :16, :16], affine)  # of no scan of the archive
    return folder


def centroids(source, uid):
    """The centroid of each nodule of at least three readers, as annotations.csv has it."""
    return [consensus_centroid(one.readers) for one in source.load(uid) if len(one.readers.array) >= 3]


def test_the_scans_of_the_archive_are_found_in_any_subset(root, scan):
    source = Luna16Source(str(root))
    assert source.series() == [scan.series_uid]
    found = source.load(scan.series_uid)
    assert [one.nodule.nodule_id for one in found] == [
        item.nodule.nodule_id for item in lidc.series_nodules(scan.series_uid)
    ]


def test_contours_lie_on_the_rows_and_columns_that_were_annotated(root, scan):
    source = Luna16Source(str(root))
    for one, item in zip(source.load(scan.series_uid), lidc.series_nodules(scan.series_uid), strict=True):
        index = one.ct.to_index(one.readers.to_lps((0, 0, 0)))
        np.testing.assert_allclose(index, item.masks()[1], atol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_nodules_of_a_scan_whose_voxels_were_turned_cannot_be_used(root, scan, tmp_path, axis):
    ct = read_image(root / "subset3" / f"{scan.series_uid}.mhd")
    write_itk(tmp_path / f"{scan.series_uid}.mhd", np.flip(ct.array, axis), ct.affine)
    where = f"{scan.patient_id}, series {scan.series_uid}"
    for nodule in Luna16Source(str(tmp_path)).load(scan.series_uid):
        assert nodule.reason.startswith(f"{where}: the mask of '{nodule.nodule_id}' marks nothing that differs from")
        assert "(0 HU brighter, " in nodule.reason


def test_the_places_of_the_challenge_are_checked(root, scan, tmp_path):
    (tmp_path / "subset0").symlink_to(root / "subset3")
    source, table = Luna16Source(str(tmp_path)), tmp_path / "annotations.csv"
    rows = [",".join(map(str, (scan.series_uid, *point, 8.0))) for point in centroids(source, scan.series_uid)]
    table.write_text("\n".join([HEADER, *rows, "1.2.4,0,0,0,5"]))
    source.series()
    assert source.load(scan.series_uid)
    elsewhere = dataclasses.replace(source, root=f"{tmp_path}/")  # a root of its own, so that the table is read anew
    table.write_text("\n".join([HEADER, f"{scan.series_uid},0,0,{scan.slice_z_mm[0]},5"]))
    message = refusal(elsewhere.load, scan.series_uid)
    assert "annotations.csv has a nodule at (0.0, 0.0," in message and "give LUNA16's own files" in message


def test_an_empty_table_of_places_is_called_empty(root, scan, tmp_path):
    (tmp_path / "subset0").symlink_to(root / "subset3")
    (tmp_path / "annotations.csv").touch()
    message = refusal(Luna16Source(str(tmp_path)).load, scan.series_uid)
    assert message.startswith(f"{tmp_path}/annotations.csv: is empty; give a table with the columns seriesuid, ")


def test_masks_of_the_lungs_are_no_scans_and_two_scans_of_a_name_are_refused(root, scan, tmp_path):
    (tmp_path / "subset3").symlink_to(root / "subset3")
    for folder in ("seg-lungs-LUNA16", "a_seg"):
        (tmp_path / folder).mkdir()
        write_itk(tmp_path / folder / f"{scan.series_uid}.mhd", np.full((4, 5, 6), 3, np.uint8))
    source = Luna16Source(str(tmp_path))
    with collected() as notes:
        assert source.series() == [scan.series_uid] and source.load(scan.series_uid)
    assert [line for line in notes if "passed over 2 images" in line and "(a_seg, seg-lungs-LUNA16)" in line]
    (tmp_path / "a_seg").rename(tmp_path / "twice")
    reason = refusal(source.series)
    assert f"subset3/{scan.series_uid}.mhd: " in reason and f"twice/{scan.series_uid}.mhd has the same name" in reason


def test_a_scan_may_have_a_name_in_capitals(root, scan, tmp_path):
    for file in (root / "subset3").glob(f"{scan.series_uid}.*"):
        shutil.copyfile(file, tmp_path / (file.stem + file.suffix.upper()))
    source = Luna16Source(str(tmp_path))
    assert source.series() == [scan.series_uid] and source.load(scan.series_uid)


def test_a_folder_without_a_scan_is_refused(tmp_path):
    assert "none of the 0 .mhd files" in refusal(Luna16Source(str(tmp_path)).series)
    (tmp_path / "subset0.zip").touch()
    assert "with nodules; unpack the archive subset0.zip" in refusal(Luna16Source(str(tmp_path)).series)
    assert "is no folder" in refusal(Luna16Source(str(tmp_path / "none")).series)


def test_a_scan_that_is_written_again_is_prepared_again(root, scan, tmp_path):
    source = Luna16Source(str(root))
    before = source.inputs(scan.series_uid)
    raw = root / "subset3" / f"{scan.series_uid}.raw"
    raw.touch()
    assert source.inputs(scan.series_uid) != before
    prepared = prepare(source, GEOMETRY, tmp_path, workers=1)
    records = read_records(prepared.files, None)
    assert len(records[schema.NODULE_ID]) == len(lidc.series_nodules(scan.series_uid)) and not prepared.failures


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs a DICOM scan of LIDC-IDRI, which is not part of the repository")
def test_a_real_scan_gives_the_same_records_as_its_dicom_files(tmp_path):
    """As LUNA16 was made: the DICOM series, written by ITK as a MetaImage."""
    paths = index_series(REAL)[UID]
    ct = read_series(paths)
    (tmp_path / "subset0").mkdir()
    image = write_itk(tmp_path / "subset0" / f"{UID}.mhd", ct.array, ct.affine)
    assert sitk.ReadImage(str(image)).GetSize() == (512, 512, 133)
    (tmp_path / "annotations.csv").write_text(f"{HEADER}\n{UID},56.4,86.3,-116.0,23.4\n")  # known from the readers
    (by_luna, _), (by_lidc, _) = (
        make_records(source, UID, GEOMETRY) for source in (Luna16Source(str(tmp_path)), LidcSource(str(REAL)))
    )
    for name in (schema.MASK, schema.RATING_COUNTS, schema.NODULE_ID, schema.CONTEXT):
        np.testing.assert_array_equal(by_luna[name], by_lidc[name])
    assert np.abs(by_luna[schema.IMAGE].astype(int) - by_lidc[schema.IMAGE]).max() <= 1  # HU, of rounding


def test_a_nodule_whose_outlines_enclose_no_voxel_costs_no_other_of_its_scan(root, scan, tmp_path, monkeypatch):
    (tmp_path / "subset0").symlink_to(root / "subset3")
    source = Luna16Source(str(tmp_path))
    source.series()
    rows = [",".join(map(str, (scan.series_uid, *point, 8.0))) for point in centroids(source, scan.series_uid)]
    (tmp_path / "annotations.csv").write_text("\n".join([HEADER, *rows]))
    _places.cache_clear()
    first, *others = [item.nodule.nodule_id for item in lidc.series_nodules(scan.series_uid)]
    masks = lidc_ct.reader_masks
    of_first = lidc.series_nodules(scan.series_uid)[0].annotations

    def emptied(annotations, slice_z_mm):
        found, origin = masks(annotations, slice_z_mm)
        return found & (annotations != of_first), origin

    monkeypatch.setattr(lidc_ct, "reader_masks", emptied)
    records, failures = make_records(source, scan.series_uid, GEOMETRY)
    assert records[schema.NODULE_ID].tolist() == others
    assert failures == {first: "the mask marks no voxel; a nodule needs at least one"}
