"""Files that are found under a folder."""

from pnsamp_jax.files import files_under


def test_files_are_found_through_links_that_lead_back(tmp_path):
    root, archive = tmp_path / "root", tmp_path / "archive"
    for folder in (root / "a" / "b", archive):
        folder.mkdir(parents=True)
    for path in (root / "a" / "b" / "one.MHD", archive / "two.mhd", archive / "three.raw"):
        path.touch()
    (root / "linked").symlink_to(archive)
    (root / "a" / "up").symlink_to(root)  # two loops, which meet each other
    (root / "a" / "b" / "up").symlink_to(root / "a")
    assert files_under(root, ".mhd") == [root / "a" / "b" / "one.MHD", root / "linked" / "two.mhd"]
    assert len(files_under(root, "")) == 3
