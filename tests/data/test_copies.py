"""A nodule that is there under two names is told, whether its voxels are in memory or on disk."""

import shutil

import numpy as np
import pytest
from ct_files import refusal
from made_folder import change
from tiny_run import tiny_config

from pnsamp_jax.data import schema
from pnsamp_jax.data.copies import require_no_copies
from pnsamp_jax.data.on_disk import open_records
from pnsamp_jax.data.series_files import read_records
from pnsamp_jax.run import prepare_run

READ = [read_records, open_records]


def write(folder, patients, images, masks):
    """Write one series for each nodule, and return the files."""
    paths = []
    for number, (patient, image, mask) in enumerate(zip(patients, images, masks, strict=True)):
        paths.append(folder / f"{number}.npz")
        np.savez(
            paths[-1],
            **{
                schema.NODULE_ID: np.array([f"n{number}"]),
                schema.PATIENT_ID: np.array([patient]),
                schema.IMAGE: image[None],
                schema.MASK: mask[None],
                schema.RATING_COUNTS: np.ones((1, 9, 6), np.uint8),
            },
        )
    return paths


def made_up(count):
    rng = np.random.default_rng(0)
    images = rng.integers(-1024, 3072, (count, 6, 6, 6)).astype(np.int16)
    return images, rng.integers(0, 253, (count, 6, 6, 6)).astype(np.uint8)


@pytest.mark.parametrize("read", READ)
def test_an_image_under_two_patients_is_refused(tmp_path, read):
    images, masks = made_up(4)
    images[3] = images[1]
    message = refusal(require_no_copies, read(write(tmp_path, "abcd", images, masks)))
    assert message.startswith(
        "'n1' (patient 'b') and 'n3' (patient 'd') have the same voxels, as if an image was copied"
    )
    assert "correct patient_id or give the second patient's own image" in message


@pytest.mark.parametrize("read", READ)
def test_a_nodule_of_a_patient_under_two_ids_is_refused(tmp_path, read):
    images, masks = made_up(4)
    images[2], masks[2] = images[0], masks[0]
    message = refusal(require_no_copies, read(write(tmp_path, "aaab", images, masks)))
    assert message == (
        "'n0' (patient 'a') and 'n2' (patient 'a') have the same voxels and the same mask, so they are one nodule; "
        "keep one"
    )


@pytest.mark.parametrize("read", READ)
def test_nodules_that_share_a_plane_or_all_but_their_mask_are_two(tmp_path, read):
    images, masks = made_up(4)
    images[1, 3] = images[0, 3]  # of two patients
    images[3] = images[2]  # of one
    require_no_copies(read(write(tmp_path, "abcc", images, masks)))


@pytest.mark.parametrize("read", READ)
def test_patches_of_nothing_are_no_copies(tmp_path, read):
    images, masks = made_up(3)
    images[1:] = -1024
    require_no_copies(read(write(tmp_path, "abc", images, masks)))


def test_a_run_refuses_a_copied_image_of_a_second_patient(root, tmp_path):
    shutil.copy(root / "images" / "a.nrrd", root / "images" / "b.nrrd")
    options = {"data.source": "folder", "data.root": str(root), "data.cache": str(tmp_path / "cache")}
    config = tiny_config(**options, **{"data.cohort": "all"})
    message = refusal(prepare_run, config, tmp_path / "run")
    assert message.startswith("'a_n00' (patient 'a') and 'b_n00' (patient 'b') have the same voxels")
    change(root, "nodules.csv", 4, patient_id="a")  # the mask is another
    prepare_run(config, tmp_path / "run")
