"""Scans that are named after their series, among files that have the same names."""

import pytest
from ct_files import refusal

from pnsamp_jax.ct.notes import collected
from pnsamp_jax.data.named_scans import named_scans, note_passed_over, only_scan


@pytest.mark.parametrize(
    "folder",
    [
        *(
            "seg-lungs-LUNA16",
            "seg_lungs",
            "masks",
            "segmentations/subset0",
            "lungmask",
            "Labels",
            "labelsTr",
            "lungs",
        ),
        *("SEG", "LungMasks", "masks2", "subset0/a_seg"),
    ],
)
def test_folders_of_masks_are_passed_over(folder, tmp_path):
    for name in (folder, "subset0", "Lung_CT"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "1.2.3.MHD").touch()
    (tmp_path / "subset0" / "1.2.3.MHD").touch()
    (tmp_path / "Lung_CT" / "1.2.4.nii.gz").touch()
    scans = {"1.2.3": [tmp_path / "subset0" / "1.2.3.MHD"], "1.2.4": [tmp_path / "Lung_CT" / "1.2.4.nii.gz"]}
    found = named_scans(tmp_path, ".mhd", ".nii.gz")
    assert found.by_uid == scans
    with collected() as notes:
        note_passed_over(tmp_path, found)
    (line,) = notes
    assert line.startswith(f"{tmp_path}: passed over 1 image in folders") and f"({folder.split('/subset')[0]})" in line


@pytest.mark.parametrize("folder", ["segmented_patients", "unlabeled", "labeled", "Lung_CT", "lungs_ct", "massegna"])
def test_folders_whose_names_merely_contain_such_a_word_hold_scans(folder, tmp_path):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "1.2.3.mhd").touch()
    found = named_scans(tmp_path, ".mhd")
    assert list(found.by_uid) == ["1.2.3"]
    with collected() as notes:
        note_passed_over(tmp_path, found)
    assert not notes


def test_the_folder_itself_may_have_any_name(tmp_path):
    root = tmp_path / "segmentation_challenge"
    root.mkdir()
    (root / "1.2.3.mhd").touch()
    assert list(named_scans(root, ".mhd").by_uid) == ["1.2.3"]


def test_a_scan_is_one_file_or_links_to_it(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert only_scan([tmp_path / "a", tmp_path / "c"]) == tmp_path / "a"
    reason = refusal(only_scan, [tmp_path / "a", tmp_path / "b"])
    assert reason.startswith(f"{tmp_path}/a: {tmp_path}/b has the same name")
