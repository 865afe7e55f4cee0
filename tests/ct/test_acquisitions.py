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
    ("mark", "one", "other"), [("ConvolutionKernel", "B30f", "B70f"), ("SeriesNumber", 2, 3), ("KVP", "80", "140")]
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


TWELVE = np.resize(HU, (12, *HU.shape[1:]))


def marked(folder, **values):
    """Write twelve slices, each with its own value of the elements, None to leave it out."""
    paths = write_series(folder, TWELVE)
    for index, path in enumerate(paths):
        edit(path, **{name: of[index] for name, of in values.items() if of[index] is not None})
    return paths


NO_AGENT = "a slice without ContrastBolusAgent lies between slices of Iomeron"


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("AcquisitionNumber", [None, 2] * 6, "AcquisitionNumber 2 lies between slices without AcquisitionNumber"),
        ("ContrastBolusAgent", ["Iomeron", None] * 6, NO_AGENT),
        ("ContrastBolusAgent", ["Iomeron"] * 6 + [None, "Iomeron"] * 3, NO_AGENT),
        ("ContrastBolusAgent", ["none", "Iomeron"] * 6, "ContrastBolusAgent Iomeron lies between slices of none"),
        ("SliceThickness", ["1.25", "1.25", "5"] * 4, "SliceThickness 5 lies between slices of 1.25"),
        ("SliceThickness", [None, "5"] * 6, "SliceThickness 5 lies between slices without SliceThickness"),
        ("SeriesDescription", ["native", "venous"] * 6, "SeriesDescription venous lies between slices of native"),
        ("SeriesTime", ["120000", "120100"] * 6, "SeriesTime 120100 lies between slices of 120000"),
        ("TemporalPositionIdentifier", [1, 2] * 6, "TemporalPositionIdentifier 2 lies between slices of 1"),
        ("AcquisitionTime", ["115950", "120010"] * 6, "AcquisitionTime 120010 lies between slices of 115950"),
        ("AcquisitionTime", [None, "120010"] * 6, "AcquisitionTime"),
        ("AcquisitionTime", [f"12{i % 2:02}{i:02}.5" for i in range(12)], "AcquisitionTime 120101.5 lies between"),
    ],
)
def test_what_else_tells_two_volumes_in_turns_is_named(tmp_path, name, values, expected):
    assert expected in refusal(read_series, marked(tmp_path, **{name: values}))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("KVP", ["120", "120.0"] * 6),
        ("AcquisitionNumber", ["1", "01"] * 6),
        ("AcquisitionNumber", [0, 1, 1, 1, 0, 1, 2, 2, 2, 2, 2, 2]),  # 0 where it was lost
        ("ConvolutionKernel", ["STANDARD", "STANDARD "] * 6),
        ("ContrastBolusAgent", ["Iomeron"] * 6 + [None] * 6),
        ("ContrastBolusAgent", ["Iomeron"] * 6 + [None] + ["Iomeron"] * 5),
        ("SliceThickness", ["0.6", "0.7"] * 6),  # made up from rounded positions
        ("SliceThickness", ["2.5", "2.500000"] * 6),
        ("SliceThickness", ["5"] * 4 + ["1.25"] * 4 + ["5"] * 4),
        ("SliceThickness", ["1.25"] * 5 + ["2.5"] + ["1.25"] * 6),
        ("SliceThickness", ["nan", "-1"] * 6),
        ("SeriesDescription", [f"slice {i}" for i in range(12)]),
        ("SeriesDescription", ["upper"] * 6 + ["lower"] * 6),
        ("AcquisitionTime", [f"1200{i:02}.25" for i in range(12)]),
        ("AcquisitionTime", [f"1200{59 - i:02}" for i in range(12)]),
        ("AcquisitionTime", ["115959"] * 6 + ["120130"] * 6),
        ("AcquisitionTime", ["120001", "120000"] * 6),  # a second, as from rounding
        ("AcquisitionTime", [f"12{i:02}00" for i in np.random.default_rng(0).permutation(12)]),
        ("AcquisitionTime", ["120000"] * 7 + [None] + ["120000"] * 4),
    ],
)
def test_what_differs_in_the_slices_of_one_volume_is_read(tmp_path, name, values):
    np.testing.assert_array_equal(read_series(marked(tmp_path, **{name: values})).array, TWELVE)


def test_a_second_phase_at_half_steps_is_refused(tmp_path):
    native = write_series(tmp_path / "a", HU)
    venous = write_series(tmp_path / "b", HU[:, ::-1], origin=(-10, 20, -298.75), ContrastBolusAgent="Iomeron")
    message = refusal(read_series, [*native, *venous])
    assert message.startswith(venous[0]) and "between slices without ContrastBolusAgent; give one acq" in message
