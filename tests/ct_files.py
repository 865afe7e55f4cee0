"""Image and DICOM files for tests, and the checks of refused files."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pnsamp_jax.errors import UserError

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL = DATA / "dicom" / "LIDC-IDRI-0001"
UID = "1.2.3.4"
AXIAL = (1, 0, 0, 0, 1, 0)
NAMES = "Doe^Jane"
# (d, h, w). All voxels differ and nothing is symmetric, so that a wrong order or direction of axes is noticed.
HU = (np.random.default_rng(0).permutation(5 * 6 * 7).reshape(5, 6, 7) * 4 - 500).astype(np.int16)


def write_slice(path, hu, position, orientation=AXIAL, spacing=(0.8, 0.5), slope=1, intercept=-1024, **elements):
    """Write one DICOM file and return its path; elements set to None are left out."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    ds.PatientName, ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = NAMES, "CT", UID, "1.2.3"
    ds.Rows, ds.Columns = hu.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.ImagePositionPatient = [f"{v:.9g}" for v in position]
    ds.ImageOrientationPatient = [f"{v:.9g}" for v in orientation]
    ds.PixelSpacing = list(spacing)
    ds.PixelData = np.rint((np.float64(hu) - intercept) / slope).astype("<i2").tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return str(path)


def write_series(folder, hu=HU, depths=None, step=(0, 0, 2.5), origin=(-10, 20, -300), names=None, **elements):
    """Write one file for each slice, at origin + depth * step. Return the paths in the order of `hu`."""
    depths = range(len(hu)) if depths is None else depths
    names = [f"{i:03}.dcm" for i in range(len(hu))] if names is None else names
    positions = [np.array(origin) + depth * np.array(step) for depth in depths]
    return [write_slice(folder / n, h, p, **elements) for n, h, p in zip(names, hu, positions, strict=True)]


def write_itk(path, array, affine=None, pixel=None, compress=False):
    """Write (d, h, w) voxels with a (4, 4) affine from (d, h, w, 1) to LPS mm as an image file and return its path."""
    image = sitk.GetImageFromArray(array) if pixel is None else sitk.Cast(sitk.GetImageFromArray(array), pixel)
    if affine is not None:
        columns = affine[:3, 2::-1]
        spacing = np.linalg.norm(columns, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((columns / spacing).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path), compress)
    return path


def edit(path, **elements):
    """Change elements of a DICOM file, also to invalid values; None deletes an element."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        for name, value in elements.items():
            delattr(ds, name) if value is None else setattr(ds, name, value)
        ds.save_as(path)


def refusal(call, *args, **fields):
    """Return the message of the UserError that a call must raise: one line, without the patient's name."""
    with pytest.raises(UserError) as caught:
        call(*args, **fields)
    message = str(caught.value)
    assert "\n" not in message and "Doe" not in message
    return message
