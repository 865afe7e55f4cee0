"""pnsamp_jax.transforms: the network receives the stored patch, moved only as the options allow, and its targets."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pnsamp_jax import transforms
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.transforms import Augmentation

pytestmark = pytest.mark.usefixtures("quick_compilation")

OFF = Augmentation(flip=False, turn=False, permute=False, translate=0, rotate=0.0)
ALL = Augmentation(flip=True, turn=True, permute=True, translate=2, rotate=20.0)
SIZE, STORED = 6, 10
MIDDLE = np.s_[2:8, 2:8, 2:8]
# All voxels differ and there is no symmetry, so that every mistake of axis or sign shows.
HU = (np.random.default_rng(0).permutation(STORED**3).reshape([STORED] * 3) - 500).astype(np.int16)
SHARES = (np.abs(HU) % 253).astype(np.uint8)


@cache
def batched(options, size):
    """Return `transforms.augment`, compiled and batched as in training: (keys, image, mask) -> images, masks."""
    return jax.jit(jax.vmap(partial(transforms.augment, size=size, options=options), in_axes=(0, None, None)))


def augment_many(options, image=HU, mask=SHARES, size=SIZE, count=200):
    """Return `count` augmentations of one patch."""
    samples = jax.vmap(jax.random.key)(np.arange(count))
    return jax.tree.map(np.asarray, batched(options, size)(samples, image, mask))


def axial(degrees):
    """Return the (3, 3) rotation from the second axis towards the third."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return jnp.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], jnp.float32)


def offsets(size):
    """Return the offset of each voxel from the centre, (3, size, size, size)."""
    return np.indices([size] * 3) - (size - 1) / 2


# Windows


@pytest.mark.parametrize(
    ("hu", "wide", "narrow"),
    [
        (-3000, 0.0, 0.0),
        (-1400, 0.0, 0.0),  # lower edge of 1600/-600
        (-1000, 0.25, 0.0),
        (-950, 0.28125, 0.0),  # lower edge of 700/-600
        (-600, 0.5, 0.5),
        (-425, 0.609375, 0.75),
        (-250, 0.71875, 1.0),  # upper edge of 700/-600
        (200, 1.0, 1.0),  # upper edge of 1600/-600
        (3000, 1.0, 1.0),
    ],
)
def test_window_is_linear_between_its_edges_and_flat_beyond(hu, wide, narrow):
    shown = transforms.window(jnp.full((2, 3), hu, jnp.int16), ((1600.0, -600.0), (700.0, -600.0)))
    assert shown.shape == (2, 3, 2) and shown.dtype == jnp.float32
    np.testing.assert_allclose(shown[0, 0], [wide, narrow], atol=1e-7)


def test_one_window_keeps_a_channel_axis():
    assert transforms.window(jnp.zeros((4, 4, 4)), ((700.0, -600.0),)).shape == (4, 4, 4, 1)


# Cropping


def test_crop_is_the_middle():
    cropped = transforms.crop(jnp.asarray(HU), SIZE)
    assert cropped.dtype == jnp.float32
    np.testing.assert_array_equal(cropped, HU[MIDDLE])


def test_crop_without_a_margin_is_everything():
    np.testing.assert_array_equal(transforms.crop(jnp.asarray(HU), STORED), HU)


# Whole voxels


def fetched(matrix, shift, options):
    """Return `HU`, moved voxel by voxel."""
    return transforms.fetch(jnp.asarray(HU), jnp.asarray(matrix), jnp.asarray(shift), SIZE, order=0)


def moved(matrix, shift, options):
    """Return `HU`, moved as on TPU."""
    matrix, shift = jnp.asarray(matrix), jnp.asarray(shift)
    return transforms.move(jnp.asarray(HU), matrix, shift, SIZE, options.translate, options.permute)


@pytest.mark.parametrize("place", [fetched, moved])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, -2, 2), (-2, 2, 1), (2, 2, 2)])
def test_whole_voxel_translation_is_slicing(place, shift):
    cropped = place(np.eye(3), shift, OFF._replace(translate=2))
    assert cropped.dtype == jnp.float32
    np.testing.assert_array_equal(cropped, HU[tuple(slice(2 + s, 8 + s) for s in shift)])


@pytest.mark.parametrize("place", [fetched, moved])
def test_beyond_the_stored_voxels_the_edge_is_extended(place):
    cropped = place(np.eye(3), (5, 0, -4), OFF._replace(translate=5))
    extended = np.pad(HU, 5, mode="edge")
    np.testing.assert_array_equal(cropped, extended[12:18, 7:13, 3:9])


@pytest.mark.parametrize("place", [fetched, moved])
def test_each_symmetry_of_a_cube_takes_the_voxels_that_its_matrix_names(place):
    shift = np.array([2, -1, 0])
    cubes = [
        np.diag(signs) @ np.eye(3)[list(order)]
        for signs in itertools.product((-1, 1), repeat=3)
        for order in itertools.permutations(range(3))
    ]
    results = jax.jit(jax.vmap(lambda cube: place(cube, shift, ALL)))(np.stack(cubes))
    for cube, result in zip(cubes, results, strict=True):
        points = np.einsum("ij,jdhw->idhw", cube, offsets(SIZE)) + (shift + (STORED - 1) / 2)[:, None, None, None]
        np.testing.assert_array_equal(result, HU[tuple(points.astype(int))])


# Rotation


def test_half_a_voxel_is_the_mean_of_two():
    cropped = transforms.fetch(jnp.asarray(HU), jnp.eye(3), jnp.array([0.0, 0.5, 0.0]), SIZE, order=1)
    np.testing.assert_array_equal(cropped, (HU[2:8, 2:8, 2:8] + HU[2:8, 3:9, 2:8].astype(float)) / 2)


@pytest.mark.parametrize("degrees", [0.0, 10.0, 50.0, 180.0])
@pytest.mark.parametrize("size", [8, 18])  # one block, and three along each axis of which the last is not full
def test_rotation_in_blocks_is_trilinear(size, degrees):
    rng = np.random.default_rng(1)
    volume, shift = rng.integers(-1000, 400, [size + 4] * 3).astype(np.int16), np.array([3, 0, -2])
    on_tpu = jax.jit(partial(transforms.rotate, size=size, degrees=degrees))
    for number in range(4):
        turn_key, order_key = jax.random.split(jax.random.key(number))
        matrix = transforms.permutation_matrix(order_key) @ transforms.rotation_matrix(turn_key, degrees)
        centre = shift + (size + 3) / 2  # some points lie beyond the stored voxels
        points = np.einsum("ij,jdhw->idhw", np.asarray(matrix, float), offsets(size)) + centre[:, None, None, None]
        exact = ndimage.map_coordinates(volume.astype(float), points, order=1, mode="nearest")
        # Points up to 22 are rounded to 2e-6; between neighbouring voxels there are up to 1400 HU along each axis.
        np.testing.assert_allclose(on_tpu(volume, matrix, shift), exact, atol=0.02)


@pytest.mark.parametrize("degrees", [10.0, 30.0, -75.0])
def test_rotation_moves_a_known_point_right(degrees):
    size, point = 32, np.array([3.0, 8.0, -2.0])
    distance = ((offsets(size) - point[:, None, None, None]) ** 2).sum(0)
    blob = jnp.asarray(np.exp(-distance / (2 * 1.5**2)), jnp.float32)
    turned = np.asarray(transforms.fetch(blob, axial(degrees), jnp.zeros(3), size, order=1))
    centroid = (offsets(size) * turned).sum((1, 2, 3)) / turned.sum()
    # The matrix maps positions in the result to positions in the volume, so the content moves the opposite way.
    np.testing.assert_allclose(centroid, np.asarray(axial(degrees)).T @ point, atol=0.02)


def test_rotation_preserves_the_volume_of_a_ball():
    size, radius = 32, 8.0
    ball = ((offsets(size) - np.array([1.0, -2.0, 3.0])[:, None, None, None]) ** 2).sum(0) <= radius**2
    rotate = OFF._replace(rotate=45.0)
    _, turned = augment_many(rotate, np.zeros([size] * 3, np.int16), ball.astype(np.uint8) * 252, size, count=5)
    np.testing.assert_allclose(turned.sum((1, 2, 3)) / 252, ball.sum(), rtol=0.005)
    after_cut = np.asarray(transforms.segmentation_target(turned)).sum((1, 2, 3))
    np.testing.assert_allclose(after_cut, ball.sum(), rtol=0.02)


@pytest.mark.parametrize("degrees", [20.0, 120.0])
def test_rotation_matrices_are_rotations_by_at_most_the_angle(degrees):
    draw = jax.vmap(partial(transforms.rotation_matrix, degrees=degrees))
    matrices = np.asarray(draw(jax.vmap(jax.random.key)(jnp.arange(300))), np.float64)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (300, 3, 3)), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-6)
    skew = (matrices - matrices.transpose(0, 2, 1)) / 2
    axis = np.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], axis=1)  # times the sine
    angles = np.rad2deg(np.arctan2(np.linalg.norm(axis, axis=1), (np.trace(matrices, axis1=1, axis2=2) - 1) / 2))
    assert angles.max() <= degrees + 1e-3
    assert angles.max() > 0.95 * degrees and angles.min() < 0.05 * degrees
    assert np.abs((axis / np.linalg.norm(axis, axis=1, keepdims=True)).mean(0)).max() < 0.15  # none is preferred


# Augmentation


def test_flips_and_turns_are_exact_and_all_of_them_occur():
    middle = HU[MIDDLE].astype(np.float32)
    flips = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]
    possible = [np.rot90(np.flip(middle, axes), turn, (1, 2)) for axes in flips for turn in range(4)]
    images, _ = augment_many(OFF._replace(flip=True, turn=True))
    possible, found = {image.tobytes() for image in possible}, {image.tobytes() for image in images}
    assert len(possible) == 16  # the 32 coincide in pairs: both in-plane flips together are half a turn
    assert found == possible


@pytest.mark.parametrize(("field", "number"), [("flip", 8), ("turn", 4), ("permute", 6)])
def test_flips_turns_and_permutations_alone(field, number):
    images, _ = augment_many(OFF._replace(**{field: True}))
    assert len({image.tobytes() for image in images}) == number


def test_permuted_axes_are_transpositions_and_with_flips_all_48_symmetries_of_a_cube():
    middle = HU[MIDDLE].astype(np.float32)
    orders = list(itertools.permutations(range(3)))
    images, _ = augment_many(OFF._replace(permute=True))
    assert {image.tobytes() for image in images} == {middle.transpose(order).tobytes() for order in orders}
    images, _ = augment_many(OFF._replace(flip=True, permute=True))
    flips = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]
    possible = {np.flip(middle.transpose(order), axes).tobytes() for order in orders for axes in flips}
    found = {image.tobytes() for image in images}
    assert found <= possible and len(possible) == 48 and len(found) > 40


def test_augment_with_everything_off_is_crop():
    images, masks = augment_many(OFF)
    for image, mask in zip(images, masks, strict=True):
        np.testing.assert_array_equal(image, HU[MIDDLE])
        np.testing.assert_array_equal(mask, SHARES[MIDDLE])


def test_translation_is_by_whole_voxels_up_to_the_limit_in_every_direction():
    ramps = 100 * np.indices([STORED] * 3).astype(np.int16)
    shifts = []
    for ramp in ramps:
        images, _ = augment_many(OFF._replace(translate=2), image=ramp)
        moved = (images - ramp[MIDDLE]) / 100
        np.testing.assert_array_equal(moved, np.broadcast_to(moved[:, :1, :1, :1], moved.shape))
        shifts.append(moved[:, 0, 0, 0])
    assert all(set(along) == {-2, -1, 0, 1, 2} for along in shifts)
    assert np.abs(np.corrcoef(shifts) - np.eye(3)).max() < 0.2  # the axes are independent


def test_image_and_mask_move_together():
    images, masks = augment_many(ALL, image=SHARES.astype(np.int16), mask=SHARES)
    np.testing.assert_array_equal(images, masks)


def test_the_key_alone_decides():
    once, again = augment_many(ALL)[0], augment_many(ALL)[0]
    np.testing.assert_array_equal(once, again)
    assert len({image.tobytes() for image in once}) == len(once)


def test_vmap_changes_nothing():
    together, _ = augment_many(ALL)
    one = jax.jit(partial(transforms.augment, size=SIZE, options=ALL))
    for number in range(3):
        alone, _ = one(jax.random.key(number), HU, SHARES)
        np.testing.assert_allclose(alone, together[number], atol=0.05)  # of 1000 HU


@pytest.mark.parametrize("options", [ALL, ALL._replace(rotate=0.0), OFF._replace(flip=True, turn=True, translate=4)])
def test_patches_are_the_same_on_tpu(monkeypatch, options):
    elsewhere = augment_many(options, count=20)
    monkeypatch.setattr(transforms.lax, "platform_dependent", lambda *arrays, tpu, default: tpu(*arrays))
    batched.cache_clear()
    on_tpu = augment_many(options, count=20)
    batched.cache_clear()
    for ours, theirs in zip(on_tpu, elsewhere, strict=True):
        # A point is rounded to 5e-7 at most; between neighbouring voxels there are up to 1000 HU along each axis.
        np.testing.assert_allclose(ours, theirs, atol=2e-3 if options.rotate else 0)


# Targets


def test_segmentation_target_counts_exactly_one_half():
    shares = jnp.array([0, 63, 84, 125, 126, 127, 168, 189, 252], jnp.uint8)
    target = transforms.segmentation_target(shares)
    assert target.dtype == jnp.float32
    np.testing.assert_array_equal(target, [0, 0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(("share", "expected"), [(126, 1.0), (125, 0.0)])
def test_segmentation_target_of_a_tie_survives_interpolation(share, expected):
    _, masks = augment_many(ALL, mask=np.full([STORED] * 3, share, np.uint8))
    np.testing.assert_array_equal(transforms.segmentation_target(masks), expected)


def counts_of(classes):
    """Return the rating_counts (9, 6) of readers who choose the same class for all nine ratings."""
    return cohort.count_ratings(np.repeat(np.array(classes, int).reshape(-1, 1), len(schema.RATINGS), axis=1))


@pytest.mark.parametrize("nominal", ["modal", "mean"])
def test_rating_targets_are_the_cohorts_labels(nominal):
    groups = [list(g) for n in range(5) for g in itertools.combinations_with_replacement(range(1, 7), n)]
    random = np.random.default_rng(0).integers(0, 60, (200, 9, 6)) * schema.CLASS_EXISTS  # sums beyond a uint8
    rating_counts = np.concatenate([np.stack([counts_of(group) for group in groups]), random]).astype(np.uint8)
    targets = np.asarray(transforms.rating_targets(jnp.asarray(rating_counts), "rounded", nominal))
    assert targets.dtype == np.float32
    expected = cohort.labels(rating_counts, nominal)
    np.testing.assert_array_equal(targets, (np.arange(1, 7) == expected[..., None]).astype(np.float32))
    assert (expected == 0).any() and targets[expected == 0].sum() == 0


@pytest.mark.parametrize(("classes", "label"), [([2, 3], 3), ([1, 2], 2), ([1, 1, 2], 1), ([1, 2, 4, 3], 3), ([], 0)])
def test_rating_targets_round_half_up(classes, label):
    one_hot = [float(k == label) for k in range(1, 7)]
    np.testing.assert_array_equal(transforms.rating_targets(jnp.asarray(counts_of(classes)), "rounded")[0], one_hot)


@pytest.mark.parametrize(
    ("classes", "shares"),
    [([2, 3], [0, 1 / 2, 1 / 2, 0, 0, 0]), ([1, 1, 2, 5], [1 / 2, 1 / 4, 0, 0, 1 / 4, 0]), ([], [0] * 6)],
)
def test_the_distribution_as_target_is_the_share_of_the_readers(classes, shares):
    for nominal in ("modal", "mean"):
        targets = transforms.rating_targets(jnp.asarray(counts_of(classes)), "distribution", nominal)
        np.testing.assert_allclose(targets[0], shares, rtol=1e-7)
        np.testing.assert_allclose(targets[2], shares, rtol=1e-7)  # calcification
