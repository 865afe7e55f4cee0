"""A mask that marks no nodule is told by its contrast, and other masks are not."""

import numpy as np
import pytest
from ct_files import refusal, write_itk
from made_folder import AFFINE, block, load, tables, write_table

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.contrast import require_contrast
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.patches import patch_affine
from pnsamp_jax.errors import UserError

SIDE = 41
AXIAL = patch_affine((0, 0, 0), SIDE, 1.0)


def ball(shift=(0, 0, 0), radius=3.0):
    index = np.moveaxis(np.indices((SIDE,) * 3), 0, -1) - SIDE // 2 - shift
    return np.linalg.norm(index, axis=-1) <= radius


def nodule_in_lung(inside=0.0, lung=-850.0, noise=20.0):
    """Return a nodule in the middle of a lung with noise, in HU."""
    noise = np.random.default_rng(0).normal(0, noise, (SIDE,) * 3)
    return (np.where(ball(), inside, lung) + noise).astype(np.int16)


def check(mask, hu, affine=AXIAL, mask_affine=None):
    mask_affine = affine if mask_affine is None else mask_affine
    require_contrast("m.nrrd: the mask of 'n'", Volume(mask[np.newaxis], mask_affine), Volume(hu, affine))


@pytest.mark.parametrize("shift", [(0, 6, 0), (0, 0, -6), (0, 6, 6)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_a_mask_beside_its_nodule_is_refused(shift, order):
    turned, affine = nodule_in_lung().transpose(order), AXIAL[:, [*order, 3]]
    message = refusal(check, np.roll(ball(), shift, (0, 1, 2)).transpose(order), turned, affine)
    assert message.startswith("m.nrrd: the mask of 'n' marks nothing that differs from its surroundings (1")
    assert message.endswith("check that mask and image belong together")
    check(ball().transpose(order), turned, affine)


@pytest.mark.parametrize("shift", [(0, 14, 0), (0, -9, 12), (10, 0, 0)])
def test_a_mask_in_the_lung_is_refused(shift):
    hu = nodule_in_lung(noise=10)
    assert "marks nothing that differs" in refusal(check, np.roll(ball(), shift, (0, 1, 2)), hu)


def test_a_mask_that_is_somewhat_brighter_is_refused_only_if_it_would_be_far_brighter_aside():
    faint = nodule_in_lung(inside=-820)  # its lower quartile around is 13 HU below -850
    check(ball(), faint)
    bright = np.where(ball((0, 6, 0)), 0, faint).astype(np.int16)
    assert " HU within 6 voxels)" in refusal(check, ball() & ~ball((0, 6, 0)), bright)


@pytest.mark.parametrize("inside", [-700, -300, 50, 1000])
def test_nodules_of_any_density_are_read(inside):
    check(ball(), nodule_in_lung(inside))


def test_a_nodule_at_the_chest_wall_and_one_with_a_cavity_are_read():
    hu = nodule_in_lung()
    hu[:, SIDE // 2 + 2 :] = 30
    check(ball(), hu)
    check(ball(radius=6), np.where(ball(radius=6) & ~ball(radius=4), 30, -900).astype(np.int16))


def test_a_mask_of_another_grid_is_measured_in_its_image():
    fine = patch_affine((0, 0, 0), 15, 0.4)
    check(np.ones((15,) * 3, bool), nodule_in_lung(), AXIAL, fine)
    beside = patch_affine((0, 6, 0), 15, 0.4)
    refusal(check, np.ones((15,) * 3, bool), nodule_in_lung(), AXIAL, beside)


def test_a_mask_of_nothing_or_outside_the_image_is_left_to_others():
    check(np.zeros((SIDE,) * 3, bool), nodule_in_lung())
    check(np.ones((5,) * 3, bool), nodule_in_lung(), AXIAL, patch_affine((0, 500, 0), 5, 1.0))


def test_a_folder_with_such_a_mask_is_refused_unless_its_voxels_are_made_up(root):
    hu = np.random.default_rng(0).integers(-1000, 400, (21, 21, 21)).astype(np.int16)
    hu[block((9, 9, 9), (12, 12, 12)) > 0] = -700
    write_itk(root / "images" / "b.nrrd", hu, AFFINE)
    message = refusal(load, root, "images/b.nrrd")
    assert message.startswith(f"{root}/masks/b0.nrrd: the mask of 'b_n00' marks nothing that differs from its surr")
    write_table(root / "nodules.csv", [{**row, "context": "simulated"} for row in tables()[0]])
    assert load(root, "images/b.nrrd")


@pytest.mark.data
def test_real_masks_are_read_and_many_are_not_where_they_were_shifted(lidc_subset):
    source = FolderSource(str(lidc_subset))
    series, refused = source.series()[5::60], 0
    for name in series:
        (marked,) = source.load(name)
        shifted = Volume(np.roll(marked.readers.array, 6, axis=2), marked.readers.affine)
        try:
            require_contrast("the mask", shifted, marked.ct)
        except UserError:
            refused += 1
    assert len(series) > 30 and refused > 0.2 * len(series)
