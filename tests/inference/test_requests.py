"""Which nodules a user asks for: points and ids as people write them."""

from pathlib import Path

import numpy as np
import pytest
from ct_files import refusal

from pnsamp_jax.inference.requests import read_requests


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
        "56.4\t86.3\t-116.0;1\t2\t3",
    ],
)
def test_points_are_read_however_they_are_separated(text):
    points = [request.point for request in read_requests("ct.nii", text, "mm")]
    np.testing.assert_array_equal(points, [[56.4, 86.3, -116.0], [1, 2, 3]])


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "1,5 2,5 3,5", "1,2,three", "1,2,nan", "1,2,inf", "(1,2,3"])
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
