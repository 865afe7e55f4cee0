"""Overlapping segments of 3D Slicer as masks: the right voxels of the right layer, or a line that says what it is."""

import gzip

import numpy as np
import pytest
from ct_files import refusal
from made_folder import AFFINE, block, load, tables, write_table

from pnsamp_jax.ct.read import read_image
from pnsamp_jax.inference.point_files import read_requests

NODULE, VESSEL = block((12, 7, 11), (15, 10, 14)), block((11, 8, 5), (14, 12, 18))  # which overlap
LABEL_MAP = NODULE * np.uint8(2) | block((2, 2, 2), (5, 5, 5), 1)


def write_segmentation(path, layers, *segments, encoding="raw", first="list"):
    """Write layers (layers, d, h, w) as 3D Slicer does, and segments: (number, {field: value})."""
    directions = " ".join(f"({','.join(f'{x:g}' for x in AFFINE[:3, axis])})" for axis in (2, 1, 0))
    stacked = len(layers) > 1 or first == "one"
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "type: unsigned char",
        f"dimension: {3 + stacked}",
        "space: left-posterior-superior",
        f"sizes: {f'{len(layers)} ' * stacked}21 21 21",
        f"space directions: {'none ' * stacked}{directions}",
        f"kinds: {f'{first} '.replace('one', 'list') * stacked}domain domain domain",
        f"encoding: {encoding}",
        f"space origin: ({','.join(f'{x:g}' for x in AFFINE[:3, 3])})",
        *(f"Segment{number}_{name}:={value}" for number, fields in segments for name, value in fields.items()),
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|Closed surface|",
    ]
    data = np.stack(layers, axis=-1).astype(np.uint8).tobytes()  # layers fastest, then w, h and d
    header = ("\n".join(lines) + "\n\n").encode()
    path.write_bytes(header + (gzip.compress(data) if encoding == "gzip" else data))


def segment(name, **fields):
    return {
        "ID": f"Segment_{name}",
        "Name": name,
        **fields,
        "Extent": "0 20 0 20 0 20",
        "Tags": "TerminologyEntry:~^1|",
    }


def name_mask(root, label=""):
    """Make masks/a.seg.nrrd the mask of a_n01."""
    nodules, _ = tables()
    nodules[1]["mask"] = "masks/a.seg.nrrd"
    rows = [{**row, "mask_label": label if row["nodule_id"] == "a_n01" else ""} for row in nodules]
    write_table(root / "nodules.csv", rows)
    return root / "masks" / "a.seg.nrrd"


OVERLAPPING = (
    (0, segment("vessel", Layer=0, LabelValue=1)),
    (1, segment("knoten \u00fc", Layer=1, LabelValue=1)),
)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize(("label", "expected"), [(1, VESSEL), (2, NODULE)])
def test_segments_with_the_same_value_are_named_by_their_place_in_the_list(root, label, expected, encoding):
    write_segmentation(name_mask(root, label), (VESSEL, NODULE), *OVERLAPPING, encoding=encoding)
    np.testing.assert_array_equal(load(root)[1].readers.array, [expected])


@pytest.mark.parametrize(("label", "expected"), [(7, VESSEL), (2, NODULE), (3, block((12, 3, 11), (15, 6, 14)))])
def test_segments_with_values_of_their_own_are_named_by_them(root, label, expected):
    first = VESSEL * 7 + block((12, 3, 11), (15, 6, 14), 3)
    segments = (segment("a", Layer=0, LabelValue=7), segment("b", Layer=1, LabelValue=2))
    segments = (*segments, segment("c", Layer=0, LabelValue=3))
    write_segmentation(name_mask(root, label), (first, NODULE * 2), *enumerate(segments))
    np.testing.assert_array_equal(load(root)[1].readers.array, [expected])


def test_before_slicer_4_11_each_segment_had_a_layer_of_its_own(root):
    write_segmentation(name_mask(root, 2), (VESSEL, NODULE), *enumerate((segment("a"), segment("b"))))
    np.testing.assert_array_equal(load(root)[1].readers.array, [NODULE])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (
            "",
            "holds 2 overlapping segments (1 'vessel', 2 'knoten \u00fc'); name the nodule's number in a column",
        ),
        (3, "holds no segment 3, as mask_label names it, but 1 'vessel', 2 'knoten \u00fc'; correct nodules.csv"),
    ],
)
def test_one_of_several_overlapping_segments_must_be_named(root, label, expected):
    write_segmentation(name_mask(root, label), (VESSEL, NODULE), *OVERLAPPING)
    assert f"masks/a.seg.nrrd: {expected}" in refusal(load, root)


@pytest.mark.parametrize("fields", [{"Layer": 2}, {"Layer": "x"}, {"LabelValue": ""}])
def test_a_layer_that_is_not_there_is_refused(root, fields):
    broken = (1, segment("b", **{"Layer": 1, "LabelValue": 1, **fields}))
    write_segmentation(name_mask(root, 2), (VESSEL, NODULE), OVERLAPPING[0], broken)
    assert "a.seg.nrrd: Segment1 is in layer" in refusal(load, root)


def test_a_segment_that_is_cut_off_is_refused(root):
    path = name_mask(root, 2)
    write_segmentation(path, (VESSEL, NODULE), *OVERLAPPING)
    path.write_bytes(path.read_bytes()[:-1])
    assert "a.seg.nrrd: truncated" in refusal(load, root)


def test_what_must_be_true_of_a_mask_must_be_true_of_a_segment(root):
    empty = np.zeros_like(NODULE)
    write_segmentation(name_mask(root, 2), (VESSEL, empty), *OVERLAPPING)
    assert "the mask marks no voxel" in refusal(load, root)
    write_segmentation(name_mask(root, 2), (VESSEL, 1 - NODULE), *OVERLAPPING)
    assert "marks the corners of its image" in refusal(load, root)


@pytest.mark.parametrize("first", ["list", "one"])
def test_segments_in_a_single_layer_are_a_label_map(root, first):
    segments = enumerate((segment("a", Layer=0, LabelValue=1), segment("b", Layer=0, LabelValue=2)))
    write_segmentation(name_mask(root, 2), (LABEL_MAP,), *segments, first=first)
    np.testing.assert_array_equal(load(root)[1].readers.array, [NODULE])


def test_overlapping_segments_are_no_image(root):
    path = name_mask(root)
    write_segmentation(path, (VESSEL, NODULE), *OVERLAPPING)
    expected = "a.seg.nrrd: holds overlapping segments in 2 layers, as 3D Slicer saves them; export them as a labelmap"
    assert expected in refusal(read_image, path)


# Points


def test_each_of_overlapping_segments_is_a_point_with_its_name(root, caplog):
    path = name_mask(root)
    segments = (
        *OVERLAPPING[:1],
        (1, segment("left nodule", Layer=1, LabelValue=1)),
        (2, segment("none", Layer=1, LabelValue=7)),
    )
    write_segmentation(path, (VESSEL, NODULE), *segments)
    requests = read_requests("none.nrrd", str(path), "mm")
    assert [request.nodule_id for request in requests] == ["vessel", "left_nodule"]
    for request, mask in zip(requests, (VESSEL, NODULE), strict=True):
        index = np.linalg.inv(AFFINE) @ [*request.point_mm, 1]
        assert mask[tuple(np.rint(index[:3]).astype(int))]
        np.testing.assert_allclose(index[:3], np.argwhere(mask).mean(axis=0), atol=0.51)
    assert f"{path}: marks no voxel of 'none'" in caplog.text


def test_segments_of_one_layer_give_their_names_too(root, caplog):
    path = name_mask(root)
    named = [(0, segment("apex", Layer=0, LabelValue=2)), (1, segment("base", Layer=0, LabelValue=1))]
    write_segmentation(path, (LABEL_MAP,), *named, (2, segment("none", Layer=0, LabelValue=9)))
    assert [request.nodule_id for request in read_requests("none.nrrd", str(path), "mm")] == ["base", "apex"]
    assert f"{path}: marks no voxel of 'none'" in caplog.text
    write_segmentation(path, (NODULE,), (0, segment("only", LabelValue=1)))  # as before 3D Slicer 4.11
    assert [request.nodule_id for request in read_requests("none.nrrd", str(path), "mm")] == ["only"]


def test_a_segment_of_the_background_is_refused(root):
    path = name_mask(root)
    write_segmentation(path, (VESSEL, 1 - NODULE), *OVERLAPPING)
    assert "marks its corners with 1, as if that was the background" in refusal(
        read_requests, "ct.nrrd", str(path), "mm"
    )


def test_an_image_of_vectors_is_not_called_segments(root):
    path = name_mask(root)
    write_segmentation(path, (VESSEL, NODULE), first="vector")
    assert "has voxels of vector of 8-bit unsigned integer; give one 3D image" in refusal(load, root)
    write_segmentation(path, (VESSEL, NODULE))
    assert "has voxels of vector of 8-bit unsigned integer; give one 3D image" in refusal(load, root)
