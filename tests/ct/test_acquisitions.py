"""Several acquisitions in one DICOM series: one after the other they are a volume, in turns they are not."""

import numpy as np
import pytest
from ct_files import HU, edit, refusal, write_series

from pnsamp_jax.ct.dicom import read_series


def write(folder, numbers, depths=None):
    hu = np.resize(HU, (len(numbers), *HU.shape[1:]))
    paths = write_series(folder, hu, depths=depths)
    for path, number in zip(paths, numbers, strict=True):
        if number is not None:
            edit(path, AcquisitionNumber=number)
    return paths, hu


@pytest.mark.parametrize(
    "numbers",
    [[1] * 6, [1, 1, 1, 2, 2, 2], [2, 2, 1, 1, 3, 3], [1, 2, 3, 4, 5, 6], [1, 1, None, 1, 2, 2], [None] * 6],
)
def test_acquisitions_that_follow_one_another_are_read(tmp_path, numbers):
    paths, hu = write(tmp_path, numbers)
    np.testing.assert_array_equal(read_series(paths).array, hu)


@pytest.mark.parametrize("numbers", [[1, 2, 1, 2, 1, 2], [1, 1, 2, 1, 2, 2], [1, 2, 2, 2, 2, 1]])
def test_acquisitions_in_turns_are_refused_and_named(tmp_path, numbers):
    message = refusal(read_series, write(tmp_path, numbers)[0])
    assert "AcquisitionNumber 2 lies between slices of 1" in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("mark", "one", "other"), [("ConvolutionKernel", "B30f", "B70f"), ("SeriesNumber", 2, 3), ("KVP", "80.0", "140.0")]
)
def test_reconstructions_in_turns_are_refused_and_named(tmp_path, mark, one, other):
    paths, hu = write(tmp_path, [None] * 6)
    for index, path in enumerate(paths):
        edit(path, **{mark: one if index < 3 else other})
    np.testing.assert_array_equal(read_series(paths).array, hu)  # one after the other
    for index, path in enumerate(paths):
        edit(path, **{mark: one if index % 2 else other})
    message = refusal(read_series, paths)
    assert f"{mark} {one} lies between slices of {other}; give one acquisition and reconstruction" in message
