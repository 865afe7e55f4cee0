"""DICOM files that lack a part of what the standard asks for around the dataset or in it, or that hold more."""

import gzip
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_files import HU, edit, refusal, write_series
from pydicom.uid import JPEGLosslessSV1

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_folder import only_series
from pnsamp_jax.ct.read import read_image


@pytest.fixture
def paths(tmp_path):
    return list(map(Path, write_series(tmp_path / "ct", HU)))


def without_preamble(path):
    """The dataset alone, as old scanners and some networks write it."""
    path.write_bytes(path.read_bytes()[132:])  # file meta follows


def without_meta(path):
    ds = pydicom.dcmread(path)
    meta, ds.file_meta, ds.preamble = ds.file_meta, pydicom.dataset.FileMetaDataset(), None
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[128:132] != b"DICM" and meta


def without_syntax(path):
    ds = pydicom.dcmread(path)
    del ds.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert "TransferSyntaxUID" not in pydicom.dcmread(path).file_meta


def gzipped(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def without_modality(path):
    edit(path, Modality=None)


CHANGES = [without_preamble, without_meta, without_syntax, gzipped, without_modality]


@pytest.mark.parametrize("which", [slice(None), slice(None, None, 2)], ids=["all", "every second"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_lacking_around_a_dataset_costs_no_slice(paths, change, which):
    expected = read_series(paths)
    for path in paths[which]:
        change(path)
    assert sorted(only_series(paths[0].parent)) == sorted(map(str, paths))
    volume = read_image(paths[0].parent)
    np.testing.assert_array_equal(volume.array, HU)
    np.testing.assert_allclose(volume.affine, expected.affine)


@pytest.mark.parametrize(
    "keyword", ["BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"]
)
def test_an_element_that_the_pixels_need_is_named(paths, keyword):
    edit(paths[2], **{keyword: None})
    assert f"{paths[2]}: has no {keyword}" in refusal(read_series, paths)


def test_compressed_pixels_of_unknown_syntax_are_called_that(paths):
    ds = pydicom.dcmread(paths[2])
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    del ds.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(paths[2], ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert f"{paths[2]}: has no TransferSyntaxUID" in refusal(read_series, paths)


def test_other_files_are_still_passed_over(paths):
    for name, content in {
        "notes.txt": b"\x08\x00 some text",
        "zeros": bytes(500),
        "packed.gz": gzip.compress(b"x"),
        "damaged.gz": gzip.compress(bytes(range(256)) * 99)[:-20],
        "garbled.gz": b"\x1f\x8b garbage",
        "ct.raw": np.arange(2, 999, dtype="<i2").tobytes(),  # begins as a group number does
        "other.raw": np.full(999, 8, "<i2").tobytes(),
    }.items():
        (paths[0].parent / name).write_bytes(content)
    assert sorted(only_series(paths[0].parent)) == sorted(map(str, paths))


def lengthened(path, extra, undefined=b"\0"):
    ds = pydicom.dcmread(path)
    ds.PixelData += undefined * extra
    ds.save_as(path)


@pytest.mark.parametrize("fill", [b"\0", b"\x20"])
@pytest.mark.parametrize("extra", [2, 4, 10])  # a row of 7 pixels takes 14 bytes, a column of 6 takes 12
def test_padding_after_the_pixels_is_not_taken_for_pixels(paths, extra, fill):
    lengthened(paths[2], extra, fill)
    np.testing.assert_array_equal(read_image(paths[0].parent).array, HU)


@pytest.mark.parametrize("extra", [12, 14, 28, 84, 2 * 84])
def test_pixels_longer_by_rows_or_columns_or_a_frame_are_refused(paths, extra):
    lengthened(paths[2], extra)
    assert f"{paths[2]}: the pixel data are not Rows x Columns" in refusal(read_image, paths[0].parent)


@pytest.mark.parametrize("lacking", [2, 14])
def test_pixels_that_are_too_few_are_refused(paths, lacking):
    ds = pydicom.dcmread(paths[2])
    ds.PixelData = ds.PixelData[:-lacking]
    ds.save_as(paths[2])
    assert f"{paths[2]}: the pixel data are truncated" in refusal(read_image, paths[0].parent)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100, 512])
def test_bytes_after_the_last_element_are_padding(paths, count):
    paths[2].write_bytes(paths[2].read_bytes() + bytes(count))
    np.testing.assert_array_equal(read_image(paths[0].parent).array, HU)
