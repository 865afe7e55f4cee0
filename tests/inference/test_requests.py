"""Which nodules a user asks for: points and ids as people write them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ct_files import refusal, write_itk, write_series
from findings import make_finding

from pnsamp_jax.ct.read import open_ct, read_ct
from pnsamp_jax.inference.point_files import read_requests
from pnsamp_jax.inference.requests import Failure, Request, by_image, locate


@pytest.mark.parametrize(
    "text",
    [
        "56.4,86.3,-116.0;1,2,3",
        "56.4, 86.3, -116.0 ; 1, 2, 3;",
        "56.4 86.3 -116.0; 1 2 3",
        "(56.4,86.3,-116.0);(1,2,3)",
        "(56.4, 86.3, -116.0), (1, 2, 3)",
        "[56.4, 86.3, -116.0] [1, 2, 3]",
        "56.4,86.3,−116.0;1,2,3",  # the minus of word processors
        "56.4,86.3,–116.0;1,2,3",  # and their en dash
        "56.4 86.3 ‐116.0; 1 2 3",  # a hyphen of Unicode
        "56.4\t86.3\t-116.0;1\t2\t3",
    ],
)
def test_points_are_read_however_they_are_separated(text):
    points = [request.point for request in read_requests("ct.nii", text, "mm")]
    np.testing.assert_array_equal(points, [[56.4, 86.3, -116.0], [1, 2, 3]])


@pytest.mark.parametrize(
    "text", ["1,2", "1,2,3,4", "1,5 2,5 3,5", "1,2,three", "1,2,nan", "1,2,inf", "1,2–3,4", "1,2,–", "(1,2,3"]
)
def test_what_is_not_three_numbers_is_refused(text):
    if text == "(1,2,3":
        assert len(read_requests("ct.nii", text, "mm")) == 1  # a bracket that was not closed hides nothing
    else:
        assert "is not a point" in refusal(read_requests, "ct.nii", text, "mm")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (request,) = read_requests("~/ct.nii.gz", "1,2,3", "mm")
    assert request.path == tmp_path / "ct.nii.gz" and request.image == "~/ct.nii.gz"
    (tmp_path / "points.csv").write_text("nodule_id,image,x_mm,y_mm,z_mm\na,~/a.nii,1,2,3\nb,b.nii,1,2,3\n")
    paths = [request.path for request in read_requests("", "~/points.csv", "mm")]
    assert paths == [tmp_path / "a.nii", tmp_path / "b.nii"]


def test_an_id_may_be_a_series_uid_and_a_number(tmp_path):
    nodule_id = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192_n00"
    (tmp_path / "points.csv").write_text(f"nodule_id,image,x_mm,y_mm,z_mm\n{nodule_id},a.nii,1,2,3\n")
    (request,) = read_requests("", str(tmp_path / "points.csv"), "mm")
    assert request.nodule_id == nodule_id and request.path == Path(tmp_path / "a.nii")
    (tmp_path / "points.csv").write_text(f"nodule_id,image,x_mm,y_mm,z_mm\n{'a' * 129},a.nii,1,2,3\n")
    assert "at most 128 letters" in refusal(read_requests, "", str(tmp_path / "points.csv"), "mm")


@pytest.mark.parametrize(
    ("other", "shown"), [("B7", "'b7' and 'B7' differ only in case"), ("b7", "'b7' appears twice")]
)
def test_ids_whose_files_would_be_the_same_are_refused(other, shown, tmp_path):
    (tmp_path / "points.csv").write_text(f"nodule_id,x_mm,y_mm,z_mm\nb7,1,2,3\n{other},4,5,6\n")
    assert shown in refusal(read_requests, "a.nii", str(tmp_path / "points.csv"), "mm")


def test_names_that_differ_only_in_case_become_numbers(tmp_path):
    names = [{"name": name, "point": [1, 2, 3]} for name in ("Left", "left")]
    (tmp_path / "a.json").write_text(json.dumps({"points": names}))
    requests = read_requests("a.nii", str(tmp_path / "a.json"), "mm")
    assert [request.nodule_id for request in requests] == ["nodule_1", "nodule_2"]


# Several series in a folder, archives, and what is told about files

POINT = "0,0,20"


@pytest.fixture
def folder(tmp_path):
    """Two series of a body with a lung, the second 100 HU higher."""
    hu = np.where(np.hypot(*np.indices((60, 60)) - 30) < 15, -850, 30) + np.zeros((20, 1, 1), int)
    for i, uid in enumerate(("1.2.8", "1.2.9")):
        where = {"origin": (-30, -30, 0), "step": (0, 0, 2), "spacing": (1, 1)}
        write_series(tmp_path / "ct" / str(i), (hu + 100 * i).astype(np.int16), SeriesInstanceUID=uid, **where)
    return tmp_path / "ct"


def values(requests):
    """The voxel at each request's point, or the reason why there is none."""
    located = locate(by_image(requests), 4, 1.0)
    return [one.reason if isinstance(one, Failure) else int(one.hu[2, 2, 2]) for one in located]


def test_the_series_of_a_folder_is_chosen_for_all_points_or_row_by_row(folder, tmp_path):
    assert values(read_requests(str(folder), POINT, "mm", "1.2.8")) == [-850]
    assert values(read_requests(str(folder), POINT, "mm", "1.2.9")) == [-750]
    rows = ["a,ct,0,0,20,1.2.9", "b,ct,0,0,20,", "c,ct,0,0,20,1.2.9", "d,ct,0,0,20,1.2.7"]
    (tmp_path / "points.csv").write_text("\n".join(["nodule_id,image,x_mm,y_mm,z_mm,series", *rows]))
    requests = read_requests("", str(tmp_path / "points.csv"), "mm", "1.2.8")
    assert [request.nodule_id for request in by_image(requests)] == ["a", "c", "b", "d"]
    first, second, third, reason = values(requests)
    assert (first, second, third) == (-750, -750, -850)
    assert "none with the SeriesInstanceUID 1.2.7: 1.2.8 (20 slices), 1.2.9 (20 slices)" in reason
    assert "choose by" not in reason  # one was chosen


def test_a_series_without_an_image_is_told_and_not_the_masks_of_others(folder, tmp_path):
    image = read_ct(folder / "0")
    luna = tmp_path / "luna"
    for part in ("subset0", "seg-lungs-LUNA16"):
        (luna / part).mkdir(parents=True)
        write_itk(luna / part / "1.2.8.mhd", image.array, image.affine)
    (luna / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n1.2.8,{POINT}\n1.2.3,{POINT}\n")
    value, reason = values(read_requests(str(luna), str(luna / "annotations.csv"), "mm"))
    assert value == -850
    assert reason == f"no image of series 1.2.3 in {luna}; add it, or give the folder that holds it"


def test_a_file_has_no_series_to_choose(folder, tmp_path):
    hu = read_ct(folder / "0")
    write_itk(tmp_path / "ct.nii", hu.array, hu.affine)
    assert values(read_requests(str(tmp_path / "ct.nii"), POINT, "mm", "1.2.8")) == [-850]


def test_several_series_are_refused_with_the_way_to_choose(folder):
    (reason,) = values(read_requests(str(folder), POINT, "mm"))
    assert "1.2.8 (20 slices), 1.2.9 (20 slices)" in reason and "or choose by series=UID" in reason


def test_zipped_images_are_rows_like_any_other(folder, tmp_path):
    shutil.make_archive(str(tmp_path / "one"), "zip", folder / "0")
    shutil.make_archive(str(tmp_path / "two"), "gztar", folder)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and nothing more")
    rows = ["a,one.zip,0,0,20,", "b,bad.zip,0,0,20,", "c,two.tar.gz,0,0,20,1.2.9"]
    (tmp_path / "points.csv").write_text("\n".join(["nodule_id,image,x_mm,y_mm,z_mm,series", *rows]))
    first, reason, last = values(read_requests("", str(tmp_path / "points.csv"), "mm"))
    assert (first, last) == (-850, -750)
    assert reason == f"{tmp_path}/bad.zip: the archive is damaged; copy it again"


def test_a_located_nodule_has_its_slice_of_the_ct_until_the_patches_are_dropped(tmp_path):
    affine = np.array([[0, 0, 2.0, -40], [0, 2, 0, -30], [2, 0, 0, 10], [0, 0, 0, 1]])
    hu = np.random.default_rng(0).normal(-850, 40, (10, 20, 30))
    hu[:, 5:10, 5:10] = 20
    path = write_itk(tmp_path / "ct.nii", hu.astype(np.int16), affine)
    (found,) = locate([Request("a", "ct.nii", path, np.array([-20.0, -10.0, 20.0]))], 4, 1.0)
    assert found.locator.grey.shape == (20, 30) and found.locator.pixel_mm == pytest.approx(2.0)
    np.testing.assert_allclose(found.locator.corner_mm, [-41, -31], atol=1e-4)
    finding = make_finding(locator=found.locator)
    assert finding.without_patches().locator is None and finding.locator is not None


def test_what_was_passed_over_is_told_once_per_image(folder, capfd):
    (folder / "0" / "part.bin").write_bytes(b"x")
    assert values(read_requests(str(folder / "0"), f"{POINT};1,1,22", "mm")) == [-850, -850]
    told = capfd.readouterr().err.splitlines()
    assert told == [f"{folder}/0: 20 slices read; passed over: 1 file that is not DICOM (part.bin)"]


def test_an_image_that_takes_too_much_memory_costs_no_other(folder, tmp_path, monkeypatch):
    def read(path, series):
        if path.name == "0":
            raise MemoryError
        return open_ct(path, series)

    monkeypatch.setattr("pnsamp_jax.inference.requests.open_ct", read)
    (tmp_path / "points.csv").write_text("nodule_id,image,x_mm,y_mm,z_mm\na,ct/0,0,0,20\nb,ct/1,0,0,20\n")
    reason, value = values(read_requests("", str(tmp_path / "points.csv"), "mm"))
    assert reason == f"{folder / '0'}: takes more memory than there is; close other programs or cut it out"
    assert value == -750
