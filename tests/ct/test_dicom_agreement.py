"""Headers that contradict each other or lost their geometry: refused by name; one wrong element alone is ignored."""

import numpy as np
import pytest
from ct_files import HU, edit, refusal, write_series

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.notes import collected
from pnsamp_jax.ct.read import read_image

MANY = np.resize(HU, (12, *HU.shape[1:]))


# Lost positions


@pytest.mark.parametrize(
    ("position", "shown"),
    [((0, 0, 0), "0\\0\\0"), ((-10, 20, -300.5), "-10\\20\\-300.5"), ((0, 0, -1e-5), "0\\0\\-1e-05")],
)
def test_one_position_of_all_slices_is_called_removed(tmp_path, position, shown):
    paths = write_series(tmp_path, HU, origin=position, step=(0, 0, 0))
    message = refusal(read_series, paths)
    assert message.startswith(paths[0])
    assert f"ImagePositionPatient is the same ({shown}) in all 5 slices, as if it was removed" in message


def test_slices_in_one_plane_are_called_that(tmp_path):
    coronal_positions = write_series(tmp_path, HU, step=(0, 2.5, 0))  # with the orientation of axial slices
    assert "all 5 slices lie in one plane, so ImagePositionPatient or" in refusal(read_series, coronal_positions)


def test_two_phases_are_not_called_without_positions(tmp_path):
    paths = write_series(tmp_path / "a", HU) + write_series(tmp_path / "b", HU + 100)
    assert "has the same depth as" in refusal(read_series, paths)


# Identities and spacings, as typed or rounded


@pytest.mark.parametrize("other", ["a1", "A1 ", "A 1"])
def test_a_patient_id_may_differ_in_case_and_blanks(tmp_path, other):
    paths = write_series(tmp_path, PatientID="A1")
    edit(paths[2], PatientID=other)
    np.testing.assert_array_equal(read_series(paths).array, HU)


def test_a_pixel_spacing_may_be_rounded(tmp_path):
    paths = write_series(tmp_path, spacing=("0.703125", "0.703125"))
    edit(paths[0], PixelSpacing=["0.703", "0.703"])
    volume = read_series(paths)
    np.testing.assert_array_equal(volume.array, HU)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.703125, 0.703125), rtol=1e-9)
    edit(paths[0], PixelSpacing=["0.7", "0.7"])
    assert "PixelSpacing differs" in refusal(read_series, paths)


# Steps that contradict what else is stated


def stated(folder, step, location=None, between=None, thickness=None):
    """Write slices at a step, with another step in SliceLocation, SpacingBetweenSlices and SliceThickness."""
    paths = write_series(folder, HU, step=step)
    for index, path in enumerate(paths):
        if location is not None:
            edit(path, SliceLocation=f"{location * index - 140:.6g}")
        if between is not None:
            edit(path, SpacingBetweenSlices=between)
        if thickness is not None:
            edit(path, SliceThickness=thickness)
    return paths


@pytest.mark.parametrize(
    ("step", "location", "between"),
    [(1, 2.5, "2.5"), (1, -1.25, "1.25"), (1, 2.5, "-2.5"), (0.25, 2.5, "2.5"), (1, 0.7, "0.699999")],
)
def test_positions_that_two_elements_contradict_are_refused(tmp_path, step, location, between):
    message = refusal(read_series, stated(tmp_path, (0, 0, step), location, between))
    assert f"ImagePositionPatient steps by {step} mm from slice to slice" in message
    assert f"SliceLocation and SpacingBetweenSlices by {abs(location)} mm" in message


@pytest.mark.parametrize(("location", "between"), [(2.5, None), (-2.5, None), (2.5, "5"), (2.5, "0"), (2.5, "")])
def test_positions_that_the_location_and_the_thickness_contradict_are_refused(tmp_path, location, between):
    message = refusal(read_series, stated(tmp_path, (0, 0, 1), location, between, "2.5"))
    assert (
        "ImagePositionPatient steps by 1 mm from slice to slice, but SliceLocation and SliceThickness by 2.5"
        in message
    )


@pytest.mark.parametrize(
    ("step", "location", "between", "thickness"),
    [
        (1, 1, None, "2.5"),  # slices that overlap
        (1, 1, None, "0.5"),  # and that lie apart
        (1, 2.5, "1", "2.5"),
        (1, 2.5, None, "2"),
        (1, 2.5, None, "0"),
        (1, None, None, "2.5"),
        (1, 0, None, "0"),
        (10, 2.5, None, "2.5"),  # slices that lie apart, of which a note tells
    ],
)
def test_a_thickness_that_is_not_the_step_contradicts_nothing(tmp_path, step, location, between, thickness):
    paths = stated(tmp_path, (0, 0, step), location, between, thickness)
    np.testing.assert_array_equal(read_series(paths).array, HU)


TILT = (0, 2.5 * np.sin(0.5), 2.5 * np.cos(0.5))  # 29 degrees: 2.19 mm along the normal


@pytest.mark.parametrize(
    ("step", "location", "between"),
    [
        ((0, 0, 1), 2.5, None),
        ((0, 0, 1), None, "2.5"),
        ((0, 0, 1), 2.5, "1"),
        ((0, 0, 1), 1, "2.5"),
        ((0, 0, 1), 2.5, "5"),
        ((0, 0, 1), 0, "0"),
        ((0, 0, 5), 5, "2.5"),  # every second slice was left out
        (TILT, 2.5, "2.5"),
        (TILT, 2.5 * np.cos(0.5), f"{2.5 * np.cos(0.5):.6g}"),
        ((0, 0, 2.4), 2.5, "2.5"),
    ],
)
def test_one_element_or_a_tilt_contradicts_nothing(tmp_path, step, location, between):
    paths = stated(tmp_path, step, location, between)
    np.testing.assert_array_equal(read_series(paths).array, HU)


# A lost pixel spacing

WIDE = np.random.default_rng(1).integers(-1000, 400, (3, 40, 40)).astype(np.int16)


def test_a_lost_pixel_spacing_is_told_by_the_diameter(tmp_path):
    paths = write_series(tmp_path, WIDE, spacing=(1, 1), ReconstructionDiameter="28")
    assert "PixelSpacing is 1\\1, which makes the image 40 mm wide, but ReconstructionDiameter is 28 mm" in refusal(
        read_series, paths
    )


@pytest.mark.parametrize(
    ("hu", "spacing", "diameter"),
    [
        (WIDE, ("1", "1"), "40"),
        (WIDE, ("1", "1"), "39"),  # rounded
        (WIDE, ("1", "1"), "70"),  # a part of what was reconstructed
        (WIDE, ("1", "1"), None),
        (WIDE, ("1", "1"), "0"),
        (WIDE, ("1.02", "1.02"), "28"),  # data may lie beyond the diameter
        (np.pad(WIDE, ((0, 0), (6, 6), (6, 6)), constant_values=-1024), ("1", "1"), "40"),  # a margin was added
        (np.pad(WIDE, ((0, 0), (0, 0), (6, 6)), mode="edge"), ("1", "1"), "40"),
    ],
)
def test_a_pixel_spacing_that_may_be_right_is_read(tmp_path, hu, spacing, diameter):
    elements = {} if diameter is None else {"ReconstructionDiameter": diameter}
    paths = write_series(tmp_path, hu, spacing=spacing, **elements)
    np.testing.assert_array_equal(read_series(paths).array, hu)


# Slices far apart


@pytest.mark.parametrize("thickness", ["1", "1.2"])
def test_slices_farther_apart_than_they_are_thick_are_told(tmp_path, thickness):
    write_series(tmp_path, MANY, SliceThickness=thickness)
    with collected() as notes:
        np.testing.assert_array_equal(read_image(tmp_path).array, MANY)
    expected = f"12 slices read, {thickness} mm thick but 2.5 mm apart, so that most between them was not imaged"
    assert notes == [f"{tmp_path}: {expected}"]


@pytest.mark.parametrize("thickness", ["1.25", "2.5", "5", "0", "", "thin"])
def test_slices_of_any_other_thickness_are_not_worth_a_word(tmp_path, thickness):
    paths = write_series(tmp_path, MANY)
    for path in paths:
        write_odd_thickness(path, thickness)
    with collected() as notes:
        np.testing.assert_array_equal(read_image(tmp_path).array, MANY)
    assert notes == []


def write_odd_thickness(path, value):
    try:
        edit(path, SliceThickness=value)
    except ValueError:  # pydicom writes no number like this
        edit(path, SliceThickness="")
