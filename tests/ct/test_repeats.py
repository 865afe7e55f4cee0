"""Slices of a series that repeat, and different images that claim one position."""

import numpy as np
import pytest
from ct_files import HU, edit, refusal, write_series

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.read import open_image


@pytest.mark.parametrize("shift", [0, 0.002, 0.02])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_series_that_was_sent_again_with_rounded_positions_counts_once(tmp_path, shift, copies):
    paths = write_series(tmp_path)
    for copy in range(1, copies + 1):
        write_series(tmp_path, origin=(-10, 20, -300 + shift * copy / copies), names=[f"z{copy}{i}" for i in range(5)])
    image = open_image(tmp_path)
    np.testing.assert_array_equal(image.volume.array, HU)
    np.testing.assert_allclose(image.volume.to_lps((4, 0, 0)), (-10, 20, -290))
    assert image.files == paths  # to each of which a DICOM object may refer


def test_slices_that_are_close_are_not_taken_for_repeats(tmp_path):
    paths = write_series(tmp_path, step=(0, 0, 0.11))
    np.testing.assert_array_equal(read_series(paths).array, HU)


SERIES = np.resize(HU, (20, *HU.shape[1:]))


@pytest.mark.parametrize("spacing", [0.5, 0.6, 0.8])
def test_positions_that_were_rounded_to_whole_mm_are_named(tmp_path, spacing):
    paths = write_series(tmp_path, SERIES, depths=np.rint(np.arange(20) * spacing), step=(0, 0, 1))
    message = refusal(read_series, paths)
    assert "all depths are whole numbers of mm, as if ImagePositionPatient was rounded" in message


@pytest.mark.parametrize("location", [True, False])
def test_a_few_rounded_positions_are_told_from_slices_that_were_sent_twice_by_their_location(tmp_path, location):
    paths = write_series(tmp_path, SERIES, depths=np.rint(np.arange(20) * 0.9), step=(0, 0, 1))
    for index, path in enumerate(paths):
        edit(path, SliceLocation=f"{0.9 * index:.6g}" if location else "")
    expected = "as if ImagePositionPatient was rounded" if location else "as if it was sent twice"
    assert expected in refusal(read_series, paths)


@pytest.mark.parametrize("count", [1, 3])
def test_a_slice_that_was_sent_twice_and_differs_is_named(tmp_path, count):
    paths = write_series(tmp_path, SERIES)
    again = write_series(tmp_path, SERIES[:count] + 1, names=[f"again{i}" for i in range(count)])
    assert refusal(read_series, paths + again) == (
        f"{again[0]}: has the same depth as {paths[0]} but is a different image, as if it was sent twice and changed "
        "in between; keep one of the two in series 1.2.3.4"
    )


@pytest.mark.parametrize(
    ("step", "count", "elements"),
    [
        (2.5, 4, {}),  # too many
        (1, 20, {}),  # each depth of whole mm occurs as often as the others
        (2.5, 1, {"AcquisitionNumber": 2}),  # of another scan, as its number says
    ],
)
def test_other_images_at_one_depth_are_of_another_phase(tmp_path, step, count, elements):
    paths = write_series(tmp_path, SERIES, step=(0, 0, step), AcquisitionNumber=1)
    names = [f"again{i}" for i in range(count)]
    again = write_series(tmp_path, SERIES[:count] + 1, step=(0, 0, step), names=names, AcquisitionNumber=1)
    for path in again:
        edit(path, **elements)
    expected = "is a different image; keep only one phase or reconstruction of series 1.2.3.4"
    assert refusal(read_series, paths + again).endswith(expected)
