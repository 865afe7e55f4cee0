"""Files whose content is of another kind than their name says, which are read or called what they are."""

import gzip
import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from ct_files import HU, refusal, write_itk, write_series, write_slice

from pnsamp_jax.ct.file_kinds import DICOM, EMPTY, METAIMAGE, NIFTI, NRRD, TAR, ZIP, kind_of
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.data.csv_tables import column_names

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
PAGE = b"\n<!DOCTYPE html><html>Not found</html>"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)
GET, AGAIN = "get the file by git lfs pull", "download the file again"


def archive(kind, entries):
    """Return the bytes of an archive with entries, by their names."""
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as packed:
            for name, content in entries.items():
                packed.writestr(name, content)
        return made.getvalue()
    with tarfile.open(fileobj=made, mode="w:gz" if kind == "tar.gz" else "w") as packed:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.nii", NIFTI), ("a.nii.gz", NIFTI), ("a.nrrd", NRRD), ("a.mha", METAIMAGE), ("a.mhd", METAIMAGE)],
)
def test_the_kind_of_an_image_is_known_by_its_content(tmp_path, name, kind):
    write_itk(tmp_path / name, HU)
    (tmp_path / name).rename(tmp_path / "renamed")
    assert kind_of(tmp_path / "renamed") == kind


@pytest.mark.parametrize(("made", "kind"), [("zip", ZIP), ("tar", TAR), ("tar.gz", TAR)])
@pytest.mark.parametrize("entries", [{"a.txt": b"x"}, {}], ids=["one", "empty"])
def test_the_kind_of_an_archive_is_known_by_its_content(tmp_path, made, kind, entries):
    (tmp_path / "a").write_bytes(archive(made, entries))
    assert kind_of(tmp_path / "a") == (kind if entries or made == "zip" else "")  # an empty .tar is a row of zeros


def test_the_kind_of_a_dicom_file_is_known_by_its_content(tmp_path):
    write_slice(tmp_path / "a.dcm", HU[0], (0, 0, 0))
    (tmp_path / "b").write_bytes(gzip.compress((tmp_path / "a.dcm").read_bytes()))
    assert kind_of(tmp_path / "a.dcm") == kind_of(tmp_path / "b") == DICOM


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", EMPTY), (b"x,y\n1,2\n", ""), (bytes(1000), ""), (b"\x1f\x8b", ""), (gzip.compress(b"x"), ""), (b"PK", "")],
)
def test_what_tells_nothing_has_no_kind(tmp_path, content, kind):
    (tmp_path / "a").write_bytes(content)
    assert kind_of(tmp_path / "a") == kind


@pytest.mark.parametrize("made", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", ["ct.zip", "ct.tar", "ct.tar.gz", "ct.tgz"])
def test_an_archive_is_opened_by_its_content(tmp_path, made, name):
    inside = write_itk(tmp_path / "ct.mha", HU).read_bytes()
    (tmp_path / name).write_bytes(archive(made, {"ct.mha": inside}))
    np.testing.assert_array_equal(read_image(tmp_path / name).array, HU)


@pytest.mark.parametrize("name", ["ct.zip", "ct.tar.gz", "ct.nii", "ct.nii.gz", "ct.mhd", "ct.dcm", "ct"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, f"is a pointer of Git LFS in place of the file; {GET}"),
        (PAGE, f"is a web page in place of the file; {AGAIN}"),
        (b"", "is empty and cannot be read; copy the file again"),
        (PNG, "is a .png picture; give "),
    ],
    ids=["pointer", "page", "empty", "picture"],
)
def test_what_is_no_image_is_called_what_it_is(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert refusal(read_image, tmp_path / name).startswith(f"{tmp_path / name}: {expected}")


@pytest.mark.parametrize(
    ("written", "named", "expected"),
    [
        ("a.dcm", "ct.nii", "is a DICOM file; give the folder that contains the whole series"),
        ("a.dcm", "ct.zip", "is a DICOM file; give the folder"),
        ("a.nrrd", "ct.nii", "is an NRRD image; rename it so that it ends in .nrrd"),
        ("a.nrrd", "ct.mha", "is an NRRD image; rename it"),
        ("a.nii", "ct.nrrd", "is a NIfTI image; rename it so that it ends in .nii"),
        ("a.nii.gz", "ct.tar.gz", "is a NIfTI image; rename it so that it ends in .nii or, compressed, in .nii.gz"),
        ("a.mha", "ct.nii.gz", "is a MetaImage; rename it so that it ends in .mha"),
        ("a.zip", "ct.nii.gz", "is a .zip archive; rename it so that it ends in .zip"),
        ("a.tar.gz", "ct.nii.gz", "is a .tar archive; rename it so that it ends in .tar"),
        ("a.nii", "ct", "is a NIfTI image; rename it"),
        ("a.zip", "ct.dcm", "is a .zip archive; rename it"),
    ],
)
def test_an_image_under_the_name_of_another_kind_is_called_what_it_is(tmp_path, written, named, expected):
    if written.endswith(".dcm"):
        write_slice(tmp_path / written, HU[0], (0, 0, 0))
    elif written in ("a.zip", "a.tar.gz"):
        (tmp_path / written).write_bytes(archive(written[2:], {"ct.nii": b"x"}))
    else:
        write_itk(tmp_path / written, HU)
    shutil.move(tmp_path / written, tmp_path / named)
    assert refusal(read_image, tmp_path / named).startswith(f"{tmp_path / named}: {expected}")


@pytest.mark.parametrize(
    ("content", "held", "advice"),
    [
        (
            POINTER,
            "4 pointers of Git LFS in place of files (0.dcm, 1.dcm, 2.dcm, ...)",
            "get the files by git lfs pull",
        ),
        (PAGE, "4 web pages in place of files (0.dcm, 1.dcm, 2.dcm, ...)", "download the files again"),
        (b"x", "4 files that are not DICOM (0.dcm, 1.dcm, 2.dcm, ...)", "give a folder that contains exactly one"),
    ],
    ids=["pointers", "pages", "others"],
)
def test_a_folder_of_what_is_no_dicom_says_what_it_is(tmp_path, content, held, advice):
    for number in range(4):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    (tmp_path / "index.html").write_bytes(PAGE)  # as often beside a series
    assert refusal(read_image, tmp_path) == f"{tmp_path}: contains 0 DICOM CT series but {held}; {advice}"


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_in_place_of_a_series_are_named(tmp_path, packed):
    path = tmp_path / "ct"
    path.mkdir()
    for number in range(4):
        (path / f"{number}.jpg").write_bytes(PNG)
    if packed:
        path = shutil.make_archive(tmp_path / "ct", "zip", path)
    expected = "contains 0 DICOM CT series but 4 .jpg files, which hold no HU (0.jpg, 1.jpg, 2.jpg, ...)"
    assert refusal(read_image, path) == f"{path}: {expected}; export the CT as DICOM"


def test_pictures_beside_a_series_are_not_worth_a_word(tmp_path):
    write_series(tmp_path)
    (tmp_path / "0.jpg").write_bytes(PNG)
    np.testing.assert_array_equal(read_image(tmp_path).array, HU)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, f"is a pointer of Git LFS in place of the file; {GET}"),
        (PAGE, f"is a web page in place of the file; {AGAIN}"),
        (PNG, "is a .png picture, not a table; save the table as CSV in UTF-8"),
        (gzip.compress(archive("tar", {"a": b"x"})), "is a .tar archive, not a table; save the table as CSV in UTF-8"),
    ],
    ids=["pointer", "page", "picture", "archive"],
)
def test_what_is_no_table_is_called_what_it_is(tmp_path, content, expected):
    (tmp_path / "points.csv").write_bytes(content)
    assert refusal(column_names, tmp_path / "points.csv") == f"{tmp_path}/points.csv: {expected}"
