"""DICOM files that lack a part of what the standard asks for around the dataset, or in it."""

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
