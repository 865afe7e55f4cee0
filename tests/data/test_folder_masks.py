"""Masks of the `folder` source: one bit per reader, or labels that a column names, and nothing else."""

import os

import numpy as np
import pydicom
import pytest
from ct_files import refusal, write_itk
from made_folder import AFFINE, block, load, tables, write_table

from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.prepare import dataset_name


def write_mask(root, voxels, name="a1"):
    write_itk(root / "masks" / f"{name}.nrrd", voxels, AFFINE)


def with_labels(root, **labels):
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "mask_label": labels.get(row["nodule_id"], "")} for row in nodules])


@pytest.mark.parametrize("label", [3, 7, 100])
def test_a_label_is_not_taken_for_several_readers(root, label):
    write_mask(root, block((12, 7, 11), (15, 10, 14), label))  # a_n01 has one reader
    message = refusal(load, root)
    assert f"masks/a1.nrrd: its values ({label}) would be the bits of" in message and "mask_label" in message
    assert ("ratings.csv has 1 for 'a_n01'" if label == 3 else "who agree in every voxel") in message


def test_three_readers_who_agree_in_every_voxel_are_a_label_and_two_are_not(root):
    _, ratings = tables()
    more = [{**ratings[2], "reader": reader} for reader in (1, 2, 3)]
    write_table(root / "ratings.csv", [*ratings, *more])  # a_n01 has four readers
    write_mask(root, block((12, 7, 11), (15, 10, 14), 3))
    assert len(load(root)[1].readers.array) == 2
    write_mask(root, block((12, 7, 11), (15, 10, 14), 7))
    assert "its values (7) would be the bits of 3 readers who agree" in refusal(load, root)


@pytest.mark.parametrize("label", [1, 2, 64, 255])
def test_a_single_bit_is_a_single_reader(root, label):
    write_mask(root, block((12, 7, 11), (15, 10, 14), label))
    assert len(load(root)[1].readers.array) == 1


def test_an_interpolated_mask_is_refused(root):
    write_mask(root, block((12, 7, 11), (15, 10, 14)) * np.arange(21, dtype=np.uint8) * 9)
    assert "a1.nrrd: its values (" in refusal(load, root)


def test_the_label_that_a_column_names_is_the_nodule(root):
    write_mask(root, block((12, 7, 11), (15, 10, 14), 7) | block((2, 2, 2), (5, 5, 5), 16))
    with_labels(root, a_n01=7)
    (readers,) = load(root)[1].readers.array
    np.testing.assert_array_equal(readers, block((12, 7, 11), (15, 10, 14)))


@pytest.mark.parametrize(
    ("label", "expected"),
    [(300, "the mask marks no voxel"), ("7.5", "mask_label: '7.5' is not a"), ("x", "'x' is not a")],
)
def test_a_label_that_is_not_in_the_mask_or_no_label_is_refused(root, label, expected):
    write_mask(root, block((12, 7, 11), (15, 10, 14), 7))
    with_labels(root, a_n01=label)
    assert expected in refusal(load, root)


def test_one_label_map_may_hold_several_nodules_if_each_names_its_label(root):
    nodules, _ = tables()
    write_mask(root, block((8, 8, 8), (13, 12, 11), 1) | block((14, 7, 11), (17, 10, 14), 2), "map")
    rows = [{**row, "mask": "masks/map.nrrd" if row["patient_id"] == "a" else row["mask"]} for row in nodules]
    write_table(root / "nodules.csv", rows)
    assert "nodules.csv, line 3: names the same mask as nodule_id 'a_n00'" in refusal(FolderSource(str(root)).series)
    labels = {"a_n00": 1, "a_n01": 2}
    write_table(root / "nodules.csv", [{**row, "mask_label": labels.get(row["nodule_id"], "")} for row in rows])
    first, second = (marked.readers.array for marked in load(root))
    np.testing.assert_array_equal(first, [block((8, 8, 8), (13, 12, 11))])
    np.testing.assert_array_equal(second, [block((14, 7, 11), (17, 10, 14))])


@pytest.mark.parametrize(
    ("uid", "kind"),
    [
        (pydicom.uid.SegmentationStorage, "a DICOM Segmentation"),
        (pydicom.uid.RTStructureSetStorage, "a DICOM RT Structure Set"),
    ],
)
def test_a_dicom_segmentation_is_called_that(root, uid, kind):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid
    ds.SOPInstanceUID = pydicom.uid.generate_uid()
    ds.save_as(root / "masks" / "a1.dcm", enforce_file_format=True)
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "mask": row["mask"].replace("a1.nrrd", "a1.dcm")} for row in nodules])
    assert f"masks/a1.dcm: {kind}" in refusal(load, root)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_voxels_that_change_next_to_their_header_are_prepared_anew(root, name):
    nodules, _ = tables()
    voxels = np.random.default_rng(0).integers(-1000, 400, (21, 21, 21)).astype(np.int16)
    write_itk(root / "images" / name, voxels, AFFINE)
    write_table(root / "nodules.csv", [{**row, "image": row["image"].replace("a.nrrd", name)} for row in nodules])
    before = dataset_name(FolderSource(str(root)), Geometry())
    data = root / "images" / "a.raw"
    status = data.stat()
    data.write_bytes((voxels + 200).tobytes())
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert dataset_name(FolderSource(str(root)), Geometry()) != before
