"""Scans that are named after their series, among files that have the same names."""

import pytest
from ct_files import refusal

from pnsamp_jax.data.named_scans import only_scan, scans_by_uid


@pytest.mark.parametrize(
    "folder", ["seg-lungs-LUNA16", "masks", "segmentations/subset0", "lungmask", "Labels", "lungs"]
)
def test_folders_of_masks_are_passed_over(folder, tmp_path):
    for name in (folder, "subset0", "Lung_CT"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / folder / "1.2.3.MHD").touch()
    (tmp_path / "subset0" / "1.2.3.MHD").touch()
    (tmp_path / "Lung_CT" / "1.2.4.nii.gz").touch()
    scans = {"1.2.3": [tmp_path / "subset0" / "1.2.3.MHD"], "1.2.4": [tmp_path / "Lung_CT" / "1.2.4.nii.gz"]}
    assert scans_by_uid(tmp_path, ".mhd", ".nii.gz") == scans


def test_the_folder_itself_may_have_any_name(tmp_path):
    root = tmp_path / "segmentation_challenge"
    root.mkdir()
    (root / "1.2.3.mhd").touch()
    assert list(scans_by_uid(root, ".mhd")) == ["1.2.3"]


def test_a_scan_is_one_file_or_links_to_it(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert only_scan([tmp_path / "a", tmp_path / "c"]) == tmp_path / "a"
    reason = refusal(only_scan, [tmp_path / "a", tmp_path / "b"])
    assert reason.startswith(f"{tmp_path}/a: {tmp_path}/b has the same name")
