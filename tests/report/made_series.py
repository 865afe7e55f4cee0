"""DICOM series with random masks, and the objects that are written for them, read back."""

import os

import highdicom as hd
import numpy as np
import pydicom
from ct_files import HU, write_series
from findings import make_finding

from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.report.dicom_objects import write_objects

FRAME = "1.2.3.5"


def make_series(folder, hu=HU, **options):
    return write_series(folder / "ct", hu, **{"FrameOfReferenceUID": FRAME} | options)


def finding(name="nodule_1", seed=0, **changes):
    return make_finding(name, seed, size=8, **changes)


def make_masks(paths, count=1):
    """Return random overlapping masks on the grid of a series; the lowest slice is empty, to reveal an offset."""
    ct = read_series(paths)
    masks = np.random.default_rng(1).random((count, *ct.array.shape)) < 0.2
    masks[:, 0] = False
    return [Volume(mask, ct.affine) for mask in masks]


def on_grid(masks):
    """Return the index of the marked voxels of each mask, and the affine of the grid."""
    return [np.argwhere(mask.array) for mask in masks], masks[0].affine


def write_and_read(folder, findings, masks, paths, **options):
    """Write both objects into folder/out. Return the Segmentation, read back, or None if there is no file."""
    seg_path, sr_path = folder / "out" / "seg.dcm", folder / "out" / "sr.dcm"
    marked, affine = on_grid(masks)
    write_objects(findings, marked, affine, paths, seg_path, sr_path, **options)
    assert {"sr.dcm"} <= {*os.listdir(folder / "out")} <= {"seg.dcm", "sr.dcm"}
    return hd.seg.segread(seg_path) if seg_path.exists() else None


def read_report(folder):
    return hd.sr.srread(folder / "out" / "sr.dcm")


def frames_of(seg):
    """Return (segment, UID of the source slice) -> (position, pixels), from the elements of the file alone."""
    (shared,), frames = seg.SharedFunctionalGroupsSequence, {}
    stack = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, stack, strict=True):
        identification = (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        key = identification[0].ReferencedSegmentNumber, source.ReferencedSOPInstanceUID
        frames[key] = list(group.PlanePositionSequence[0].ImagePositionPatient), pixels
    assert len(frames) == seg.NumberOfFrames
    return frames


def assert_frames_are(seg, masks, paths):
    """Assert that each slice has a frame, at the right position, for each mask that marks it at the nearest depth."""
    frames = frames_of(seg)
    for path in paths:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        depths = masks[0].to_lps([[d, 0, 0] for d in range(len(masks[0].array))])
        nearest = np.linalg.norm(depths - np.array(header.ImagePositionPatient), axis=1).argmin()
        for number, mask in enumerate(masks, 1):
            frame = frames.pop((number, header.SOPInstanceUID), None)
            assert (frame is not None) == mask.array[nearest].any()
            if frame is not None:
                assert frame[0] == header.ImagePositionPatient
                np.testing.assert_array_equal(frame[1], mask.array[nearest])
    assert not frames
