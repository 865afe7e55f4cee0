import numpy as np
import pytest
from findings import make_finding

from pnsamp_jax.data import schema


def of_set(*classes):
    sets = np.zeros((2, 9, 6), bool)
    sets[0, schema.MALIGNANCY, np.array(classes) - 1] = True
    return make_finding(size=8, class_sets=sets, volume_mm3=500.0)


@pytest.mark.parametrize(
    ("classes", "unsure"),
    [((3,), False), ((2, 3), False), ((3, 4, 5), False), ((2, 3, 4), True), ((1, 2, 3, 4, 5), True)],
)
def test_a_nodule_is_unsure_if_it_may_be_unsuspicious_or_suspicious(classes, unsure):
    finding = of_set(*classes)
    assert finding.malignancy_set == classes and finding.unsure is unsure
    told = f"unsure: radiologists may rate the malignancy anything from {classes[0]} to {classes[-1]}"
    assert finding.note == (told if unsure else "")


def test_a_finding_of_networks_without_limits_is_neither_sure_nor_unsure():
    finding = make_finding(size=8, volume_mm3=500.0)
    assert finding.malignancy_set == () and finding.unsure is None and finding.note == ""


@pytest.mark.parametrize(("nodule_like", "unlike"), [(None, False), (0.49, True), (0.5, False)])
def test_what_does_not_look_like_a_nodule_is_uncertain_and_noted(nodule_like, unlike):
    finding = make_finding(size=8, volume_mm3=500.0, nodule_like=nodule_like)
    assert finding.unlike_nodules is finding.uncertain is unlike and finding.status == "ok"
    told = "uncertain: this does not look like the nodules that the network learnt from"
    assert finding.note == (told if unlike else "")


def test_the_mask_of_a_moved_patch_lies_where_the_patch_is():
    affine = np.array([[0, 0, 1.0, -30], [0, 1, 0, -30], [1, 0, 0, -30], [0, 0, 0, 1]])
    point = np.array([2.0, -3.0, 5.0])
    for centre in (None, point + (0, 4, -2)):
        finding = make_finding(size=32, point_mm=point, centre_mm=centre)  # a ball around the middle of its patch
        marked = np.argwhere(finding.mask_on((61, 61, 61), affine).array)
        x, y, z = marked.mean(axis=0)[::-1] - 30
        # The ball is symmetric; half a voxel for the grid, on which it is marked whole.
        np.testing.assert_allclose((x, y, z), point if centre is None else centre, atol=0.5)
