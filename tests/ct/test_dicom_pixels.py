"""What says that pixels are HU, however it is spelt, and what makes them padding."""

import numpy as np
import pydicom
import pytest
from ct_files import HU, edit, refusal, write_series

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_folder import only_series
from pnsamp_jax.ct.read import read_image
from pnsamp_jax.ct.volume import AIR

UNITS = ["HU", " hu ", "Hounsfield", "HU units", "Hounsfield Units", "HOUNSFIELD_UNITS", "H.U.", "US", ""]


@pytest.mark.parametrize("unit", UNITS)
def test_hounsfield_units_are_known_by_their_spellings(tmp_path, unit):
    write_series(tmp_path, RescaleType=unit)
    np.testing.assert_array_equal(read_image(tmp_path).array, HU)


@pytest.mark.parametrize("unit", ["OD", "MGML", "PCT", "HUGE", "US HU", "Z_EFF", "HU/1000"])
def test_other_units_are_refused(tmp_path, unit):
    write_series(tmp_path, RescaleType=unit)
    expected = f"according to its RescaleType '{unit}', the values are not HU; export them in HU"
    assert expected in refusal(read_image, tmp_path)


def test_the_modality_may_be_in_lower_case(tmp_path):
    paths = write_series(tmp_path)
    for path in paths:
        edit(path, Modality="ct")
    assert only_series(tmp_path) == paths
    np.testing.assert_array_equal(read_image(tmp_path).array, HU)


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_pixels_that_are_no_integers_are_named(tmp_path, keyword):
    paths = write_series(tmp_path)
    for path in paths:
        edit(path, PixelData=None, **{keyword: HU[0].astype("<f8" if keyword[0] == "D" else "<f4").tobytes()})
    assert refusal(read_series, paths) == (
        f"{paths[0]}: its pixels are {keyword}, which is not read here; export them as integers (PixelData)"
    )


def padded(folder, value, kind="SS"):
    """Write slices with a corner of 1124 HU, for which a PixelPaddingValue stands."""
    hu = np.full((2, 3, 4), 40, np.int16)
    hu[:, 0, :2] = 1124
    paths = write_series(folder, hu, intercept=0)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", kind, value)
        ds.save_as(path)
    return paths, hu


def test_a_padding_that_is_given_twice_is_padding(tmp_path):
    paths, hu = padded(tmp_path, [1124, 1124])
    np.testing.assert_array_equal(read_series(paths).array, np.where(hu == 1124, AIR, hu))


@pytest.mark.parametrize(("value", "kind"), [([1124, -2000], "SS"), (b"\x64\x04\x00\x00", "OB"), (None, "SS")])
def test_a_padding_that_is_no_number_counts_as_absent(tmp_path, value, kind):
    paths, hu = padded(tmp_path, value, kind)
    np.testing.assert_array_equal(read_series(paths).array, hu)
