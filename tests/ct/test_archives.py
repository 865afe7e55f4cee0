"""Images in archives: read as the unpacked files are, or refused in a line; nothing is left or written outside."""

import errno
import io
import os
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ct_files import HU, UID, refusal, write_itk, write_series

from pnsamp_jax.ct import archives
from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.read import open_image, read_image

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, which a test must leave empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def pack(path, folder, extra=()):
    """Put the files of a folder, and further (name, content), into an archive."""
    members = [(str(p.relative_to(folder)), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]
    members += extra
    if path.suffix == ".zip":
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            warnings.simplefilter("ignore")  # of a name that appears twice
            for name, content in members:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


SUFFIXES = ("zip", "tar", "tar.gz", "tgz", "ZIP")


@pytest.fixture(params=SUFFIXES[:4])
def target(tmp_path, request):
    return tmp_path / f"ct.{request.param}"


@pytest.mark.parametrize("inside", ["", "patient 1/é/series"])
def test_a_zipped_series_reads_as_its_folder_does(tmp_path, target, inside):
    write_series(tmp_path / "made" / inside)
    image = open_image(pack(target, tmp_path / "made", [("__MACOSX/._000.dcm", b"x"), (".DS_Store", b"x")]))
    np.testing.assert_array_equal(image.volume.array, HU)
    np.testing.assert_allclose(image.volume.to_lps((0, 0, 0)), (-10, 20, -300))


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd"])
def test_a_zipped_image_file_is_read(tmp_path, target, name):
    (tmp_path / "made").mkdir()
    write_itk(tmp_path / "made" / name, HU)
    np.testing.assert_array_equal(read_image(pack(target, tmp_path / "made")).array, HU)


def test_a_series_in_an_archive_is_chosen_by_its_uid(tmp_path, target):
    write_series(tmp_path / "made" / "a")
    write_series(tmp_path / "made" / "b", HU[:3], SeriesInstanceUID="1.2.9")
    pack(target, tmp_path / "made")
    assert len(open_image(target, "1.2.9").volume.array) == 3
    message = refusal(read_image, target)
    assert message.startswith(f"{target}: contains 2 DICOM CT series") and UID in message and "1.2.9" in message


def test_errors_name_the_archive_and_the_file_in_it(tmp_path, target):
    paths = write_series(tmp_path / "made")
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:-2])
    assert refusal(read_image, pack(target, tmp_path / "made")).startswith(f"{target}/002.dcm: ")


def test_notes_name_the_archive(tmp_path, target):
    write_series(tmp_path / "made")
    with collected() as notes:
        read_image(pack(target, tmp_path / "made", [("part.bin", b"x")]))
    assert notes == [f"{target}: 5 slices read; passed over: 1 file that is not DICOM (part.bin)"]


def test_a_name_that_appears_twice_does_not_cost_a_slice(tmp_path, target):
    paths = write_series(tmp_path / "made")
    twice = [("002.dcm", Path(paths[4]).read_bytes())]
    assert "holds two files of the name '002.dcm'" in refusal(read_image, pack(target, tmp_path / "made", twice))


@pytest.mark.parametrize("name", ["../evil.dcm", "a/../../evil.dcm", "/tmp/evil.dcm", "C:\\evil.dcm", "..\\evil.dcm"])
def test_entries_that_point_outside_are_refused(tmp_path, target, temporary, name):
    write_series(tmp_path / "made")
    message = refusal(read_image, pack(target, tmp_path / "made", [(name, b"x")]))
    assert message.startswith(f"{target}: has an entry that points outside it")
    assert not list(tmp_path.rglob("evil*")) and not os.path.exists("/tmp/evil.dcm")


def test_links_in_an_archive_are_not_followed(tmp_path):
    write_series(tmp_path / "made")
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(b"x")
    with tarfile.open(tmp_path / "ct.tar", "w") as archive:
        archive.add(tmp_path / "made", "made")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("made/link")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    np.testing.assert_array_equal(read_image(tmp_path / "ct.tar").array, HU)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_fills_the_disk(
    tmp_path, target, temporary, monkeypatch
):
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 20)
    written = []
    monkeypatch.setattr(archives, "CHUNK", 1 << 16)
    real_open = open

    def watch(path, mode):
        written.append(path)
        return real_open(path, mode)

    monkeypatch.setattr(archives, "open", watch, raising=False)
    pack(target, tmp_path / "made", [("bomb", bytes(50 << 20)), ("second", b"x")])
    assert f"{target}: unpacks to more than" in refusal(read_image, target)
    assert len(written) == 1


def test_too_many_files_are_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    write_series(tmp_path / "made")
    assert f"{target}: holds more than 3 files" in refusal(read_image, pack(target, tmp_path / "made"))


def test_an_encrypted_archive_is_called_that(tmp_path):
    write_series(tmp_path / "made")
    data = bytearray(pack(tmp_path / "ct.zip", tmp_path / "made").read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + offset] |= 1
    (tmp_path / "ct.zip").write_bytes(data)
    assert refusal(read_image, tmp_path / "ct.zip").startswith(f"{tmp_path}/ct.zip: is encrypted")


@pytest.mark.parametrize("damage", [0.0, 0.1, 0.5, 0.99, "flip", "text"])
def test_damaged_archives_are_refused_in_a_line(tmp_path, target, damage):
    write_series(tmp_path / "made", np.random.default_rng(0).integers(-900, 900, (5, 40, 40)).astype(np.int16))
    data = bytearray(pack(target, tmp_path / "made").read_bytes())
    if damage == "flip":
        if target.suffix == ".tar":
            pytest.skip("a .tar has no checksum of its contents")
        data[len(data) // 2] ^= 255
    elif damage == "text":
        data = b"no archive" * 99
    else:
        data = data[: int(len(data) * damage)]
    target.write_bytes(data)
    if target.suffix == ".tar" and damage == 0.99:
        return  # only the empty blocks at its end are lost
    assert refusal(read_image, target).startswith(str(target))


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_tar_that_ends_at_a_slice_is_not_taken_for_a_shorter_series(tmp_path, damage):
    write_series(tmp_path / "made")
    path = pack(tmp_path / "ct.tar", tmp_path / "made")
    data = bytearray(path.read_bytes())
    start = data.index(b"003.dcm")
    path.write_bytes(data[:start] if damage == "cut" else data[:start] + b"x" * 512 + data[start + 512 :])
    assert refusal(read_image, path) == f"{path}: the archive is damaged; copy it again"


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_never_end_in_a_traceback(tmp_path, target, seed):
    write_series(tmp_path / "made", HU[:3])
    whole = pack(target, tmp_path / "made").read_bytes()
    random = np.random.default_rng(seed)
    for _ in range(30):
        data = bytearray(whole)
        for index in random.integers(0, len(data), 3):
            data[index] = random.integers(256)
        target.write_bytes(data)
        try:
            read_image(target)
        except archives.UserError as error:
            assert "\n" not in str(error) and str(error).startswith(str(target))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "contains 0 DICOM CT series"),
        ([("notes.txt", b"x")], "contains 0 DICOM CT series"),
        ([("a/inner.zip", b"PK")], "1 file that is not DICOM (a/inner.zip); unpack it and give a/inner.zip"),
        ([("a.nii", b"x"), ("b/c.nrrd", b"x")], "contains several images (a.nii, b/c.nrrd"),
    ],
)
def test_an_archive_without_exactly_one_image_is_refused(tmp_path, target, content, expected):
    (tmp_path / "made").mkdir()
    message = refusal(read_image, pack(target, tmp_path / "made", content))
    assert message.startswith(str(target)) and expected in message


def test_a_series_beside_an_image_file_is_no_choice(tmp_path, target):
    write_series(tmp_path / "made")
    write_itk(tmp_path / "made" / "ct.nii", HU)
    assert "contains several images" in refusal(read_image, pack(target, tmp_path / "made"))


def test_a_full_disk_is_not_taken_for_a_damaged_archive(tmp_path, target, monkeypatch):
    write_series(tmp_path / "made", HU)
    pack(target, tmp_path / "made")

    def full(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "open", full, raising=False)
    assert "cannot be unpacked ([Errno 28] No space left on device)" in refusal(read_image, target)
