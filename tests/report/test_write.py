"""The files of a prediction take the place of an earlier one's whole, and of nobody else's."""

import json

import numpy as np
import pytest
from ct_files import refusal

from pnsamp_jax.errors import UserError
from pnsamp_jax.inference.requests import Request
from pnsamp_jax.report import write


def requests(folder, *names):
    return [Request(name, "ct.nii", folder / "ct.nii", np.zeros(3)) for name in names]


def predicted(folder, *names):
    """Write what a prediction of these nodules leaves; each file holds its own name."""
    with write.replacing(folder) as unfinished:
        for name in names:
            (unfinished / "masks").mkdir(exist_ok=True)
            (unfinished / "masks" / f"{name}.nii.gz").write_text(name)
        (unfinished / "predictions.csv").write_text(",".join(names))
        nodules = [{"nodule_id": name} for name in names]
        (unfinished / "predictions.json").write_text(json.dumps({"nodules": nodules}))
    (folder / "report.html").write_text("report")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_prediction_takes_the_place_of_an_earlier_one(tmp_path):
    predicted(tmp_path, "a", "b")
    (tmp_path / "notes.txt").write_text("mine")
    write.check_workdir(tmp_path, requests(tmp_path, "b", "c"))
    predicted(tmp_path, "b", "c")
    assert files(tmp_path) == [
        *("masks/b.nii.gz", "masks/c.nii.gz", "notes.txt", "predictions.csv", "predictions.json", "report.html"),
    ]
    assert (tmp_path / "predictions.csv").read_text() == "b,c"


@pytest.mark.parametrize("error", [OSError("full"), UserError("wrong"), KeyboardInterrupt()])
def test_one_that_is_stopped_leaves_the_earlier_one(tmp_path, error):
    predicted(tmp_path, "a")
    before = files(tmp_path)
    with pytest.raises(type(error)), write.replacing(tmp_path) as unfinished:
        (unfinished / "predictions.csv").write_text("half of")
        raise error
    assert files(tmp_path) == before and (tmp_path / "predictions.csv").read_text() == "a"


def test_what_a_killed_prediction_left_is_not_taken_over(tmp_path):
    (tmp_path / ".unfinished" / "masks").mkdir(parents=True)
    (tmp_path / ".unfinished" / "masks" / "old.nii.gz").write_text("old")
    predicted(tmp_path, "a")
    assert files(tmp_path) == ["masks/a.nii.gz", "predictions.csv", "predictions.json", "report.html"]


def test_two_predictions_do_not_write_into_one_folder_at_once(tmp_path):
    with write.replacing(tmp_path) as unfinished:
        (unfinished / "predictions.csv").write_text("first")
        with pytest.raises(UserError, match="another prediction is writing there"), write.replacing(tmp_path):
            pass
        assert (unfinished / "predictions.csv").read_text() == "first"
    assert (tmp_path / "predictions.csv").read_text() == "first"


@pytest.mark.parametrize("name", ["masks/n1.nii.gz", "dicom/n1_seg.dcm", "report.html", "predictions.csv"])
def test_a_file_that_no_prediction_wrote_is_not_replaced(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of a reader")
    reason = refusal(write.check_workdir, tmp_path, requests(tmp_path, "n1"))
    assert reason == f"{tmp_path / name}: exists, and no prediction that is here wrote it; choose another folder"


def test_masks_of_other_nodules_do_not_matter(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "other.nii.gz").write_text("of a reader")
    predicted(tmp_path, "n1")
    write.check_workdir(tmp_path, requests(tmp_path, "n1"))
    assert (tmp_path / "masks" / "other.nii.gz").read_text() == "of a reader"


def test_what_cannot_be_written_is_said_before_the_prediction(tmp_path):
    (tmp_path / "out" / "masks" / "n1.nii.gz").mkdir(parents=True)
    assert "is a folder, where a file must be" in refusal(
        write.check_workdir, tmp_path / "out", requests(tmp_path, "n1")
    )
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is a link to a folder that does not exist" in refusal(write.check_workdir, tmp_path / "link", [])
    with pytest.raises(UserError, match=r"x: cannot be written \(No space left on device\); check the path"):
        with write.writing(tmp_path / "x"):
            raise OSError(28, "No space left on device")
