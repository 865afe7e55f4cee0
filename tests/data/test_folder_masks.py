"""Masks of the `folder` source: one bit per reader, or labels that a column names, and nothing else."""

import os

import numpy as np
import pytest
from ct_files import refusal, write_itk
from made_folder import AFFINE, POINTS, block, change, load, tables, write_table

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.patches import Geometry, consensus_centroid, patch_affine
from pnsamp_jax.data.prepare import dataset_name


def write_mask(root, voxels, name="a1"):
    write_itk(root / "masks" / f"{name}.nrrd", voxels, AFFINE)


def with_labels(root, **labels):
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "mask_label": labels.get(row["nodule_id"], "")} for row in nodules])


@pytest.mark.parametrize("label", [3, 7, 100])
def test_a_label_is_not_taken_for_several_readers(root, label):
    write_mask(root, block((12, 7, 11), (15, 10, 14), label))  # a_n01 has one reader
    message = refusal(load, root)
    assert f"masks/a1.nrrd: its values ({label}) would be the bits of" in message and "mask_label" in message
    assert ("ratings.csv has 1 for 'a_n01'" if label == 3 else "who agree in every voxel") in message


def test_three_readers_who_agree_in_every_voxel_are_a_label_and_two_are_not(root):
    _, ratings = tables()
    more = [{**ratings[2], "reader": reader} for reader in (1, 2, 3)]
    write_table(root / "ratings.csv", [*ratings, *more])  # a_n01 has four readers
    write_mask(root, block((12, 7, 11), (15, 10, 14), 3))
    assert len(load(root)[1].readers.array) == 2
    write_mask(root, block((12, 7, 11), (15, 10, 14), 7))
    assert "its values (7) would be the bits of 3 readers who agree" in refusal(load, root)


@pytest.mark.parametrize("label", [1, 2, 64, 255])
def test_a_single_bit_is_a_single_reader(root, label):
    write_mask(root, block((12, 7, 11), (15, 10, 14), label))
    assert len(load(root)[1].readers.array) == 1


def test_an_interpolated_mask_is_refused(root):
    write_mask(root, block((12, 7, 11), (15, 10, 14)) * np.arange(21, dtype=np.uint8) * 9)
    assert "a1.nrrd: its values (" in refusal(load, root)


def test_the_label_that_a_column_names_is_the_nodule(root):
    write_mask(root, block((12, 7, 11), (15, 10, 14), 7) | block((2, 2, 2), (5, 5, 5), 16))
    with_labels(root, a_n01=7)
    (readers,) = load(root)[1].readers.array
    np.testing.assert_array_equal(readers, block((12, 7, 11), (15, 10, 14)))


@pytest.mark.parametrize("cell", ["nan", "NaN", "-", "N/A", "#N/A", "<NA>", "None"])
def test_what_tables_write_for_no_value_is_no_label_and_no_context(root, cell):
    write_mask(root, block((12, 7, 11), (15, 10, 14)))
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "mask_label": cell, "context": cell} for row in nodules])
    marked = load(root)[1]
    np.testing.assert_array_equal(marked.readers.array, [block((12, 7, 11), (15, 10, 14))])
    assert marked.context == "ct"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (300, "a1.nrrd: holds no label 300, as mask_label names it, but 7, 9; correct nodules.csv"),
        ("7.5", "mask_label: '7.5' is not a"),
        ("x", "'x' is not a"),
    ],
)
def test_a_label_that_is_not_in_the_mask_or_no_label_is_refused(root, label, expected):
    write_mask(root, block((12, 7, 11), (15, 10, 14), 7) | block((2, 2, 2), (3, 3, 3), 9))
    with_labels(root, a_n01=label)
    assert expected in refusal(load, root)


def test_one_label_map_may_hold_several_nodules_if_each_names_its_label(root):
    nodules, _ = tables()
    write_mask(root, block((8, 8, 8), (13, 12, 11), 1) | block((14, 7, 11), (17, 10, 14), 2), "map")
    rows = [{**row, "mask": "masks/map.nrrd" if row["patient_id"] == "a" else row["mask"]} for row in nodules]
    write_table(root / "nodules.csv", rows)
    assert "nodules.csv, line 3: names the same mask as nodule_id 'a_n00'" in refusal(FolderSource(str(root)).series)
    labels = {"a_n00": 1, "a_n01": 2}
    write_table(root / "nodules.csv", [{**row, "mask_label": labels.get(row["nodule_id"], "")} for row in rows])
    first, second = (marked.readers.array for marked in load(root))
    np.testing.assert_array_equal(first, [block((8, 8, 8), (13, 12, 11))])
    np.testing.assert_array_equal(second, [block((14, 7, 11), (17, 10, 14))])


def test_two_rows_may_not_name_the_same_label_of_the_same_mask(root):
    nodules, _ = tables()
    rows = [{**row, "mask": "masks/a0.nrrd", "mask_label": 1} if row["patient_id"] == "a" else row for row in nodules]
    write_table(root / "nodules.csv", rows, [*nodules[0], "mask_label"])
    message = refusal(FolderSource(str(root)).series)
    assert "nodules.csv, line 3: names the same label 1 of the same mask as nodule_id 'a_n00'" in message
    rows[1]["mask"] = "./masks//a0.nrrd"  # another spelling of the path
    write_table(root / "nodules.csv", rows, [*nodules[0], "mask_label"])
    assert "names the same label 1 of the same mask" in refusal(FolderSource(str(root)).series)


# Where a mask lies


def write_at(root, index, array=None):
    """Write the mask of a_n01 so that its first voxel lies at an index of the image."""
    array = block((12, 7, 11), (15, 10, 14)) if array is None else array
    affine = AFFINE.copy()
    affine[:3, 3] = Volume(array, AFFINE).to_lps(index)
    write_itk(root / "masks" / "a1.nrrd", array, affine)


@pytest.mark.parametrize("index", [(1, 0, 0), (0, 0.5, 0), (0, 0, -1), (0.2, 0, 0)])
def test_a_mask_of_the_images_size_beside_the_image_is_refused(root, index):
    write_at(root, index)
    message = refusal(load, root)
    expected = f"lies up to {max(map(abs, index)):.2g} mm off; save it with the geometry of its image"
    assert f"masks/a1.nrrd: has as many voxels as its image, but {expected}" in message


def test_a_mask_of_the_images_size_with_another_spacing_is_refused(root):
    write_itk(root / "masks" / "a1.nrrd", block((12, 7, 11), (15, 10, 14)), AFFINE @ np.diag([1.3, 1, 1, 1]))
    assert "has as many voxels as its image" in refusal(load, root)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_whose_axes_run_the_other_way_is_the_same(root, axis):
    array, (expected,) = block((12, 7, 11), (15, 10, 14)), load(root)[1].readers.array
    affine = AFFINE.copy()
    affine[:3, 3] = Volume(array, AFFINE).to_lps(20 * (np.arange(3) == axis))
    affine[:3, axis] *= -1
    write_itk(root / "masks" / "a1.nrrd", np.flip(array, axis), affine)
    np.testing.assert_array_equal(np.flip(load(root)[1].readers.array[0], axis), expected)


def test_a_mask_may_be_a_crop_or_lie_a_rounding_error_off(root):
    write_at(root, (12, 7, 11), np.ones((3, 3, 3), np.uint8))
    assert load(root)[1].readers.array.sum() == 27
    write_at(root, (0, 1e-3, 0))
    assert load(root)[1].readers.array.sum() == 27


@pytest.mark.parametrize("padded", ["image", "mask"])
def test_an_image_or_a_mask_that_was_padded_or_cropped_without_its_origin_is_refused(root, padded):
    around = ((6, 6), (6, 6), (2, 2))
    hu = np.random.default_rng(0).integers(-1000, 400, (21, 21, 21)).astype(np.int16)
    image, mask = np.pad(hu, around, constant_values=-1024), block((9, 9, 9), (12, 12, 12))
    if padded == "mask":
        image, mask = hu, mask[3:-3, 3:-3, 1:-1]
    write_itk(root / "images" / "b.nrrd", image, AFFINE)
    write_itk(root / "masks" / "b0.nrrd", mask, AFFINE)
    sizes = {"image": "21 x 21 x 21 voxels and not 25 x 33 x 33", "mask": "19 x 15 x 15 voxels and not 21 x 21 x 21"}
    message = refusal(load, root, "images/b.nrrd")
    assert f"masks/b0.nrrd: has the spacing and the origin of its image, but {sizes[padded]}, as if" in message
    assert "was cropped or padded without its origin; save that one" in message


@pytest.mark.parametrize("index", [(3, 0, 0), (9, 8.96, 9)])
def test_a_cropped_mask_that_kept_its_place_is_read(root, index):
    first = np.rint(index).astype(int)
    crop = block((9, 9, 9), (12, 12, 12))[tuple(slice(start, start + 13) for start in first)]
    affine = AFFINE.copy()
    affine[:3, 3] = Volume(None, AFFINE).to_lps(index)
    write_itk(root / "masks" / "b0.nrrd", crop, affine)
    (marked,) = load(root, "images/b.nrrd")
    np.testing.assert_allclose(consensus_centroid(marked.readers), POINTS["b_n00"], atol=0.05)


@pytest.mark.parametrize("index", [(11.5, 6.5, 10.5), (12, 7.2, 11)])
def test_a_cropped_mask_between_the_voxels_of_its_image_is_refused(root, index):
    write_at(root, index, np.ones((3, 3, 3), np.uint8))
    off = 0.87 if index[0] == 11.5 else 0.2
    message = f"masks/a1.nrrd: has the spacing of its image, but lies {off} mm off the image's voxels; save it with"
    assert message in refusal(load, root)


def test_a_mask_that_reaches_beyond_its_image_is_refused(root):
    write_at(root, (13, 7, 11), np.ones((14, 3, 3), np.uint8))  # 6 of its slices lie above the image, at 21 to 26
    assert "a1.nrrd: the mask reaches 6 mm beyond its image" in refusal(load, root)


@pytest.mark.parametrize(("x_mm", "off"), [("2.5", 8.5), ("3.5", None)])
def test_a_point_far_from_its_mask_is_refused(root, x_mm, off):
    change(root, "nodules.csv", 3, x_mm=x_mm)  # the mask begins at x = 11 mm; y and z are right
    if off:
        message = f"a1.nrrd: the mask lies {off:.0f} mm from the point of 'a_n01' in nodules.csv; correct the point"
        assert message in refusal(load, root)
    else:
        assert load(root)[1].centre_mm[0] == float(x_mm)


def test_a_point_in_ras_is_called_that(root):
    centred = patch_affine((0, 0, 0), 41, 1.0)
    hu = np.random.default_rng(0).integers(-1000, 400, (41, 41, 41)).astype(np.int16)
    mask = np.zeros((41, 41, 41), np.uint8)
    mask[19:22, 30:33, 8:11] = 1
    write_itk(root / "images" / "b.nrrd", hu, centred)
    write_itk(root / "masks" / "b0.nrrd", mask, centred)
    change(root, "nodules.csv", 4, x_mm=-11, y_mm=11, z_mm=0)
    assert load(root, "images/b.nrrd")
    change(root, "nodules.csv", 4, x_mm=11, y_mm=-11)
    message = refusal(load, root, "images/b.nrrd")
    assert (
        "30 mm from the point of 'b_n00'" in message and "negate x_mm and y_mm there, which seem to be RAS" in message
    )


def write_large(root, mask):
    """Give b_n00, at the centre, an image of 180 x 40 x 40 voxels of 1 mm with a mask."""
    affine = patch_affine((0, 0, 0), 1, 1.0)
    affine[:3, 3] = (-20, -20, -90)
    random = np.random.default_rng(0)
    write_itk(root / "images" / "b.nrrd", random.integers(-1000, 400, mask.shape).astype(np.int16), affine)
    write_itk(root / "masks" / "b0.nrrd", mask, affine)
    change(root, "nodules.csv", 4, x_mm=0, y_mm=0, z_mm=0)


def test_a_mask_with_a_second_nodule_is_refused(root):
    mask = np.zeros((180, 40, 40), np.uint8)
    mask[88:93, 18:23, 18:23] = 1
    mask[110:113, 18:23, 18:23] = 1  # 18 mm further: a second part of the nodule
    write_large(root, mask)
    assert load(root, "images/b.nrrd")[0].readers.array.sum() == 200
    mask[150, 18, 18] = 1
    write_large(root, mask)
    message = refusal(load, root, "images/b.nrrd")
    assert "b0.nrrd: the mask of 'b_n00' has a region 58 mm away; give that of this nodule alone" in message


def test_a_mask_of_the_lung_is_refused(root):
    mask = np.zeros((180, 40, 40), np.uint8)
    mask[10:170, 5:35, 5:35] = 1
    write_large(root, mask)
    assert "the mask of 'b_n00' is 159 mm long; give that of this nodule alone" in refusal(load, root, "images/b.nrrd")


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_voxels_that_change_next_to_their_header_are_prepared_anew(root, name):
    nodules, _ = tables()
    voxels = np.random.default_rng(0).integers(-1000, 400, (21, 21, 21)).astype(np.int16)
    write_itk(root / "images" / name, voxels, AFFINE)
    write_table(root / "nodules.csv", [{**row, "image": row["image"].replace("a.nrrd", name)} for row in nodules])
    before = dataset_name(FolderSource(str(root)), Geometry())
    data = root / "images" / "a.raw"
    status = data.stat()
    data.write_bytes((voxels + 200).tobytes())
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert dataset_name(FolderSource(str(root)), Geometry()) != before


def without_ratings(root):
    path = root / "ratings.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def test_probabilities_are_not_the_bits_of_readers_who_rated_nothing(root):
    away = np.linalg.norm(np.indices((21, 21, 21)).T - 10, axis=-1).T
    write_mask(root, (100 * np.clip(1 - away / 8, 0, 1)).astype(np.uint8), "b0")
    without_ratings(root)
    assert "different values, as of probabilities" in refusal(load, root, "images/b.nrrd")


def test_every_combination_of_four_readers_who_rated_nothing_is_read(root):
    bits = block((6, 6, 6), (15, 15, 15)) * (np.arange(21, dtype=np.uint8) % 15 + 1)
    write_mask(root, np.maximum(bits, block((9, 9, 6), (12, 12, 15)) * 15).astype(np.uint8), "b0")
    without_ratings(root)
    assert len(load(root, "images/b.nrrd")[0].readers.array) == 4


@pytest.mark.parametrize("voxels", [1 - block((9, 9, 9), (12, 12, 12)), np.ones((21, 21, 21), np.uint8)])
def test_a_mask_of_the_background_is_refused(root, voxels):
    write_mask(root, voxels, "b0")
    assert "b0.nrrd: marks the corners of its image" in refusal(load, root, "images/b.nrrd")


def ball(radius, hole=0.0, axis=None):
    """Return a mask of a ball with a hole around its centre; across an axis, each slice has a hole of its own."""
    index = np.indices((21, 21, 21)) - 10
    away = np.linalg.norm(index, axis=0)
    if axis is None:
        return ((away <= radius) & (away > hole)).astype(np.uint8)
    inplane = np.linalg.norm(np.delete(index, axis, axis=0), axis=0)
    own = np.sqrt(np.maximum(radius**2 - index[axis] ** 2, 0))  # radius of the slice
    return ((away <= radius) & (inplane > own - 1)).astype(np.uint8)


@pytest.mark.parametrize("voxels", [ball(6, axis=0), ball(6, axis=1), ball(4, axis=2), ball(7, hole=6)])
def test_a_mask_of_the_outline_alone_is_refused(root, voxels):
    write_mask(root, voxels, "b0")
    assert "b0.nrrd: marks only the outline of the nodule; fill it in" in refusal(load, root, "images/b.nrrd")


@pytest.mark.parametrize("voxels", [ball(1), ball(2), ball(6), ball(8, hole=5), ball(8, hole=3)])
def test_small_nodules_and_those_with_a_cavity_are_read(root, voxels):
    write_mask(root, voxels, "b0")
    assert load(root, "images/b.nrrd")[0].readers.array.sum() == voxels.sum()


def test_a_mask_that_is_too_faint_or_not_a_number_says_so(root):
    write_mask(root, block((9, 9, 9), (12, 12, 12)) / np.float32(255), "b0")
    reason = refusal(load, root, "images/b.nrrd")
    assert "masks/b0.nrrd: contains 0.003922, as a map of probabilities does; a mask has whole numbers: thr" in reason
    write_mask(root, np.where(block((9, 9, 9), (12, 12, 12)), 1, np.nan).astype(np.float32), "b0")
    assert "contains -1024 or NaN" in refusal(load, root, "images/b.nrrd")


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_slice_that_is_lost_within_a_nodule_is_told(root, lost):
    voxels = block((6, 9, 9), (14, 12, 12))
    voxels[9 : 9 + lost] = 0
    write_mask(root, voxels, "b0")
    reason = refusal(load, root, "images/b.nrrd")
    assert "masks/b0.nrrd: the mask marks nothing near" in reason
    assert f"on {lost} slice{'s' * (lost > 1)} between two that overlap" in reason


def test_one_of_two_readers_may_skip_a_slice(root):
    with_readers(root, 2)
    first, second = block((6, 9, 9), (14, 12, 12)), block((6, 9, 9), (14, 12, 13))
    second[9] = 0
    nodules, _ = tables()
    write_mask(root, first | second << 1, nodules[0]["mask"].removeprefix("masks/").removesuffix(".nrrd"))
    np.testing.assert_array_equal(load(root)[0].readers.array, [first, second])


def test_slices_behind_a_link_that_change_make_their_series_out_of_date(root, tmp_path_factory):
    archive = tmp_path_factory.mktemp("archive")
    (archive / "000.dcm").write_bytes(b"one")
    (root / "images" / "ct").mkdir()
    (root / "images" / "ct" / "slices").symlink_to(archive)
    nodules, _ = tables()
    write_table(root / "nodules.csv", [{**row, "image": "images/ct", "patient_id": "a"} for row in nodules])
    before = FolderSource(str(root)).inputs("images/ct")
    (archive / "000.dcm").write_bytes(b"three")
    assert FolderSource(str(root)).inputs("images/ct") != before


# Votes and labels in place of bits


def with_readers(root, count):
    """Give a_n00 the ratings of so many readers, none for 0."""
    _, ratings = tables()
    rows = [{**ratings[0], "reader": reader} for reader in range(count)]
    write_table(root / "ratings.csv", [*rows, *ratings[2:]])


def outlines(count):
    """Return the masks of readers who agree about most of a nodule: (readers, 21, 21, 21) of 0 and 1."""
    index = np.indices((21, 21, 21)).T - 10
    centres = np.array([(0, 0, 0), (0, 1, 0), (1, 0, -1), (0, -1, 1)])[:count]
    return np.array([np.linalg.norm(index - centre, axis=-1).T <= 4 + reader for reader, centre in enumerate(centres)])


def as_bits(masks):
    return np.sum([mask.astype(np.uint8) << reader for reader, mask in enumerate(masks)], axis=0, dtype=np.uint8)


@pytest.mark.parametrize("rated", [True, False])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_votes_are_not_taken_for_bits(root, count, rated):
    with_readers(root, count * rated)
    masks = outlines(count)
    write_mask(root, masks.sum(axis=0, dtype=np.uint8), "a0")
    shown = ", ".join(map(str, range(1, count + 1)))
    assert f"a0.nrrd: its values ({shown}) are labels or numbers of readers who agree" in refusal(load, root)
    write_mask(root, as_bits(masks), "a0")
    np.testing.assert_array_equal(load(root)[0].readers.array, masks)


@pytest.mark.parametrize("count", [2, 4])
def test_the_number_of_the_last_reader_who_marked_a_voxel_is_not_taken_for_bits(root, count):
    with_readers(root, count)
    numbers = np.max([mask * np.uint8(reader) for reader, mask in enumerate(outlines(count)[::-1], 1)], axis=0)
    write_mask(root, numbers, "a0")
    assert "are labels or numbers of readers who agree, rather than bits" in refusal(load, root)


def test_two_regions_that_meet_are_labels(root):
    with_readers(root, 4)
    write_mask(root, block((8, 8, 8), (13, 13, 11), 1) | block((8, 8, 11), (13, 13, 14), 4), "a0")
    assert "its values (1, 4) are labels" in refusal(load, root)


def test_readers_who_mark_different_things_apart_are_read(root):
    with_readers(root, 2)
    write_mask(root, block((8, 8, 8), (13, 13, 11), 1) | block((8, 8, 12), (13, 13, 14), 2), "a0")
    assert load(root)[0].readers.array.sum(axis=(1, 2, 3)).tolist() == [67, 42]


def test_a_reader_within_another_and_fewer_outlines_than_ratings_are_read(root):
    with_readers(root, 3)
    for masks in ((ball(6), ball(4)), outlines(2)):
        write_mask(root, as_bits(masks), "a0")
        np.testing.assert_array_equal(load(root)[0].readers.array, masks)


# A box


def box(*sides):
    mask = np.zeros((21, 21, 21), np.uint8)
    mask[tuple(slice(10 - side // 2, 10 - side // 2 + side) for side in sides)] = 1
    return mask


@pytest.mark.parametrize("sides", [(2, 5, 5), (5, 7, 6), (12, 14, 13), (6, 6, 3)])
def test_a_box_is_no_outline(root, sides):
    mask = box(*sides)
    write_mask(root, mask, "b0")
    size = " x ".join(map(str, sides[::-1]))
    message = refusal(load, root, "images/b.nrrd")
    assert f"masks/b0.nrrd: is a box of {size} voxels, not an outline; draw the outline" in message
    mask[10, 10] = np.where(np.arange(21) == 10, 0, mask[10, 10])  # all but a voxel
    if mask.sum() > 100:
        write_mask(root, mask, "b0")
        assert "is a box of" in refusal(load, root, "images/b.nrrd")


@pytest.mark.parametrize("mask", [box(1, 7, 7), box(3, 4, 4), box(4, 6, 4), ball(3), ball(6)])
def test_small_boxes_and_balls_may_be_nodules(root, mask):
    write_mask(root, mask, "b0")
    assert load(root, "images/b.nrrd")[0].readers.array.sum() == mask.sum()


# What is most of an image


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (block((5, 0, 3), (16, 21, 12)), "reaches across its image"),
        (block((5, 6, 0), (16, 12, 21)), "reaches across its image"),
        (block((2, 3, 3), (18, 18, 18)), "fills 33% of its image"),
    ],
)
def test_the_lung_of_a_crop_is_no_nodule(root, mask, expected):
    write_mask(root, mask, "b0")
    message = refusal(load, root, "images/b.nrrd")
    assert f"b0.nrrd: the mask of 'b_n00' {expected}; give that of this nodule alone, or an image that" in message


@pytest.mark.parametrize(
    "mask",
    [
        block((0, 8, 8), (21, 13, 13)),  # a crop may have been cut at the first and the last slice of its nodule
        block((5, 0, 8), (16, 13, 13)),
        block((5, 0, 0), (16, 13, 13)),
        block((3, 3, 3), (18, 18, 15)),  # 25 % of the image
    ],
)
def test_a_large_nodule_or_one_at_a_border_is_read(root, mask):
    write_mask(root, mask, "b0")
    assert load(root, "images/b.nrrd")[0].readers.array.sum() == mask.sum()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_slices_may_be_any_axis_of_an_image(root, order):
    hu = np.random.default_rng(0).integers(-1000, 400, (21, 21, 21)).astype(np.int16)
    affine = AFFINE[:, [*order, 3]]
    write_itk(root / "images" / "b.nrrd", hu.transpose(order), affine)
    for mask, refused in ((block((0, 8, 8), (21, 13, 13)), False), (block((8, 0, 8), (13, 21, 13)), True)):
        write_itk(root / "masks" / "b0.nrrd", np.ascontiguousarray(mask.transpose(order)), affine)
        if refused:
            assert "reaches across its image" in refusal(load, root, "images/b.nrrd")
        else:
            assert load(root, "images/b.nrrd")[0].readers.array.sum() == mask.sum()


def test_a_mask_with_a_grid_of_its_own_is_measured_in_its_image(root):
    write_itk(root / "masks" / "b0.nrrd", np.ones((4, 4, 4), np.uint8), patch_affine((10, -20, 30), 4, 1.5))
    assert load(root, "images/b.nrrd")[0].readers.array.all()
    write_itk(root / "masks" / "b0.nrrd", np.ones((4, 4, 4), np.uint8), patch_affine((10, -20, 30), 4, 3.75))
    assert "fills 36% of its image" in refusal(load, root, "images/b.nrrd")
