"""Data files of .mhd and .nhdr under names that headers spell in other ways, and headers with fields that repeat."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from ct_files import HU, refusal, write_itk

from pnsamp_jax.ct.itk_files import data_file
from pnsamp_jax.ct.read import read_image

NAMES = ["ct.mhd", "ct.nhdr"]


def with_data(path, named, stored):
    """Write an image whose header names its data file by bytes, while the file has another name on disk."""
    header = write_itk(path, HU)
    content = header.read_bytes()
    assert content.count(b" ct.raw\n") == 1
    header.write_bytes(content.replace(b" ct.raw\n", b" " + named + b"\n"))
    os.rename(os.fsencode(path.parent / "ct.raw"), os.path.join(os.fsencode(path.parent), stored))
    return header


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", ["utf-8", "latin-1"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_data_file_with_an_umlaut_is_found(tmp_path, name, written, form):
    stored = unicodedata.normalize(form, "Lunge_März.raw").encode()
    header = with_data(tmp_path / name, "Lunge_März.raw".encode(written), stored)
    np.testing.assert_array_equal(read_image(header).array, HU)
    assert os.fsencode(data_file(str(header))) == os.path.join(os.fsencode(tmp_path), stored)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("named", "stored"),
    [
        (b"CT.RAW", b"ct.raw"),
        (b"ct.raw", b"CT.Raw"),
        (b"C:\\data\\CT.RAW", b"ct.raw"),
        ("MÄRZ.RAW".encode(), "märz.raw".encode()),
        ("März.raw".encode("latin-1"), "März.raw".encode("latin-1")),  # not UTF-8 on disk either
        ("Lunge – März.raw".encode(), unicodedata.normalize("NFD", "Lunge – März.raw").encode()),
        (b"e", b"E"),  # also a letter of other fields
        (b"my ct.raw", b"my ct.raw"),
    ],
)
def test_a_data_file_is_found_whatever_the_spelling_of_its_name(tmp_path, name, named, stored):
    np.testing.assert_array_equal(read_image(with_data(tmp_path / name, named, stored)).array, HU)


def test_one_of_two_data_files_that_differ_by_case_is_not_guessed(tmp_path):
    header = with_data(tmp_path / "ct.mhd", b"CT.RAW", b"ct.raw")
    (tmp_path / "Ct.Raw").write_bytes(bytes(2 * HU.size))
    assert "check that it is complete and that its data file is in the same folder" in refusal(read_image, header)
    (tmp_path / "CT.RAW").write_bytes(HU[::-1].tobytes())
    np.testing.assert_array_equal(read_image(header).array, HU[::-1])  # the exact name is preferred


def with_lines(path, before, lines):
    header = write_itk(path, HU)
    content = header.read_bytes()
    assert content.count(before) == 1
    header.write_bytes(content.replace(before, lines + before))
    return header


@pytest.mark.parametrize(
    ("name", "before", "lines"),
    [
        ("ct.mha", b"NDims", b"Comment = one\nComment = two\n"),
        ("ct.nrrd", b"space:", b"DICOM_series:=a\nDICOM_series:=b\n"),
        ("ct.nrrd", b"space:", b"space:=foo\nsizes:=one\ntype:=CT\nencoding:=none\n"),
        ("ct.nrrd", b"space:", b"# one: 1\n# one: 2\n"),
    ],
)
def test_comments_and_keys_with_values_are_no_fields_of_the_image(tmp_path, name, before, lines):
    np.testing.assert_array_equal(read_image(with_lines(tmp_path / name, before, lines)).array, HU)


@pytest.mark.parametrize(
    ("name", "before", "lines", "field"),
    [
        ("ct.mha", b"NDims", b"ElementSpacing = 1 1 5\n", "ElementSpacing"),
        ("ct.nrrd", b"space:", b"sizes: 6 7 5\n", "sizes"),
    ],
)
def test_a_field_that_repeats_is_named(tmp_path, name, before, lines, field):
    path = with_lines(tmp_path / name, before, lines)
    assert refusal(read_image, path) == f"{path}: the header has {field} 2 times; leave the right one"


@pytest.mark.parametrize(("name", "field"), [("ct.mhd", "ElementDataFile"), ("ct.nhdr", "data file")])
@pytest.mark.parametrize("suffix", [".raw", ".RAW", ".raw.gz"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_header_that_was_copied_with_its_data_but_names_those_of_the_original_is_refused(
    tmp_path, name, field, suffix, kept
):
    header = with_data(tmp_path / name, f"ct{suffix}".encode(), f"ct{suffix}".encode())
    copied = header.rename(header.with_stem("1.2.copy"))
    data = tmp_path / f"ct{suffix}"
    shutil.copy(data, tmp_path / f"1.2.copy{suffix}")
    if not kept:
        data.unlink()
    assert refusal(read_image, copied) == (
        f"{copied}: names ct{suffix}, but 1.2.copy{suffix} is beside it; correct {field} in it"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_header_may_name_a_data_file_of_another_stem_if_there_is_none_of_its_own(tmp_path, name):
    header = write_itk(tmp_path / name, HU).rename(tmp_path / name.replace("ct", "renamed"))
    (tmp_path / "renamed.txt").write_text("notes")
    (tmp_path / "other.raw").write_bytes(bytes(2 * HU.size))
    np.testing.assert_array_equal(read_image(header).array, HU)
