"""pnsamp_jax.steps on a small model: one step, many steps, two devices, bfloat16, and batches that must not matter.

As a script it runs the same steps on whatever devices there are: `python tests/test_steps.py RESULTS.npz`.
"""

import os
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax import input_pipeline, losses, models, outlines, steps, transforms
from pnsamp_jax.appearance import Appearance
from pnsamp_jax.data import schema
from pnsamp_jax.inference import calibration
from pnsamp_jax.state import create_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, MARGIN, BATCH = 16, 2, 4
WINDOWS = ((1600.0, -600.0), (700.0, -600.0))


def make_task(dtype="float32"):
    """A small multi-task model with every augmentation on; two levels, since each of them compiles for long."""
    return steps.Task(
        model=models.create("pn_samp", dtype, steps.AXIS, features=(2, 4), mask_features=(2,)),
        patch_size=SIZE,
        windows=WINDOWS,
        augmentation=transforms.Augmentation(flip=True, turn=True, permute=True, translate=2, rotate=10.0),
        labels="rounded",
        weights=losses.Weights(segmentation=1.0, attributes=1.0, malignancy=1.0),
        nominal="modal",
    )


def make_records(count, seed=0):
    """Noise with a bright box in it that the mask marks, and four readers who agree more or less."""
    rng = np.random.default_rng(seed)
    side = SIZE + 2 * MARGIN
    image = rng.normal(-800, 60, (count, side, side, side))
    mask = np.zeros(image.shape, np.uint8)
    for nodule in range(count):
        low, high = rng.integers(5, 8), rng.integers(11, 15)
        box = np.s_[nodule, low:high, low : high - 1, low + 1 : high]
        image[box] += 700
        mask[box] = schema.MASK_UNIT
    rating_counts = (rng.multinomial(4, [0.1, 0.2, 0.4, 0.2, 0.05, 0.05], (count, 9)) * schema.CLASS_EXISTS).astype(
        np.uint8
    )
    return {schema.IMAGE: image.astype(np.int16), schema.MASK: mask, schema.RATING_COUNTS: rating_counts}


def flatten(tree):
    """Every leaf by its path."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


@cache
def initial_state():
    """On the host, since a step consumes the state that it is given."""
    return jax.device_get(create_state(make_task().model, make_task().patch_size, len(WINDOWS), seed=0))


def predict(variables, batch):
    """The compiled prediction step on a batch, with temperatures of 1."""
    task = make_task()
    step = steps.compile_predict_step(task.model, task.patch_size, task.windows)
    return step(variables, np.ones(len(schema.RATINGS), np.float32), 0.0, batch[schema.IMAGE])


def run_some_steps():
    """Two training steps and an evaluation: {"state": , "metrics": , "results": , "start": } of flat trees."""
    task, batch = make_task(), make_records(BATCH)
    state = steps.replicate(jax.tree.map(jnp.asarray, initial_state()))
    start = flatten(state)
    step = steps.compile_train_step(task)
    history = []
    for _ in range(2):
        state, measured = step(state, batch, 7, np.float32(1e-3))
        history.append(measured)
    variables = state.variables
    results = steps.compile_eval_step(task)(variables, batch) | predict(variables, batch)
    return {"start": start, "state": flatten(state), "metrics": flatten(history), "results": flatten(results)}


@pytest.fixture(scope="module")
def one_device():
    """`run_some_steps` here."""
    return run_some_steps()


@pytest.fixture(scope="module")
def initial():
    """`initial_state`, compiled as quickly as the rest."""
    return initial_state()


def train(initial, batch, count, dtype="float32", learning_rate=1e-2):
    """`count` steps on one batch: the last state, and each step's metrics as floats."""
    step = steps.compile_train_step(make_task(dtype))
    state, history = steps.replicate(jax.tree.map(jnp.asarray, initial)), []
    for _ in range(count):
        state, measured = step(state, batch, 7, np.float32(learning_rate))
        history.append({name: float(value) for name, value in measured.items()})
    return state, history


# One step


def test_steps_change_every_parameter_and_keep_them_finite(one_device):
    start, state = one_device["start"], one_device["state"]
    assert start.keys() == state.keys()
    assert start[".step"] == 0 and state[".step"] == 2
    for name, values in state.items():
        assert values.dtype == start[name].dtype and values.shape == start[name].shape
        assert np.isfinite(values).all(), name
        assert (values != start[name]).any(), name


def test_metrics_are_the_loss_its_terms_and_the_gradients_norm(one_device):
    measured = one_device["metrics"]
    names = {"loss", "segmentation", "attributes", "malignancy", "gradient_norm"}
    assert measured.keys() == {f"[{step}]['{name}']" for step in (0, 1) for name in names}
    assert all(np.isfinite(value) and value.shape == () for value in measured.values())
    total = sum(measured[f"[0]['{name}']"] for name in ("segmentation", "attributes", "malignancy"))
    np.testing.assert_allclose(measured["[0]['loss']"], total, rtol=1e-5)


def test_random_keys_differ_by_seed_step_and_place():
    drawn = [
        np.asarray(jax.random.key_data(steps.sample_keys(np.uint32(seed), step, jnp.arange(4))))
        for seed in (0, 1)
        for step in (0, 1)
    ]
    assert len({tuple(key) for key in np.concatenate(drawn)}) == 16
    places = steps.sample_keys(np.uint32(1), 1, jnp.arange(2, 4))
    np.testing.assert_array_equal(jax.random.key_data(places), drawn[3][2:])  # a device's share of the batch


# Two devices


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """`run_some_steps` in a process that takes the CPU for two devices."""
    path = tmp_path_factory.mktemp("steps") / "results.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    path_there = os.pathsep.join(sys.path)  # the package, however it is found here
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path_there}
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True)
    with np.load(path) as arrays:
        parts = {}
        for name, values in arrays.items():
            part, _, leaf = name.partition("|")
            parts.setdefault(part, {})[leaf] = values
    return parts


@pytest.mark.slow
@pytest.mark.skipif(jax.local_device_count() != 1, reason="needs one device to compare with")
@pytest.mark.parametrize("part", ["start", "state", "metrics", "results"])
def test_two_devices_do_what_one_does(one_device, two_devices, part):
    assert two_devices["devices"][""] == 2
    assert one_device[part].keys() == two_devices[part].keys()
    # Adam divides a gradient by its size: the rounding of one near zero shows as part of a step, which is 1e-3.
    atol = 1e-4 if part == "state" else 1e-5
    for name, expected in one_device[part].items():
        assert two_devices[part][name].shape == expected.shape  # the state stays unstacked
        np.testing.assert_allclose(two_devices[part][name], expected, rtol=1e-5, atol=atol, err_msg=name)


# Many steps


def test_training_lowers_the_loss(initial):
    _, history = train(initial, make_records(BATCH), 30)
    for term in ("loss", "segmentation", "attributes", "malignancy"):
        first, last = (np.mean([measured[term] for measured in part]) for part in (history[:3], history[-3:]))
        assert last < 0.9 * first, term


def test_the_same_seed_trains_the_same_model(initial):
    (state, history), (again, repeated) = (train(initial, make_records(BATCH), 3) for _ in range(2))
    assert history == repeated
    jax.tree.map(np.testing.assert_array_equal, state, again)


def test_missing_ratings_of_all_nodules_leave_the_segmentation_to_train(initial):
    batch = make_records(BATCH)
    batch[schema.RATING_COUNTS][:] = 0
    state, history = train(initial, batch, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    for measured in history:
        assert measured["attributes"] == measured["malignancy"] == 0
        assert measured["loss"] == measured["segmentation"] > 0
        assert np.isfinite(measured["gradient_norm"]) and measured["gradient_norm"] > 0


def test_extreme_nodules_alone_in_a_batch_keep_everything_finite(initial):
    step, ordinary = steps.compile_train_step(make_task()), make_records(1)
    one_voxel, all_voxels = np.zeros_like(ordinary[schema.MASK]), np.full_like(ordinary[schema.MASK], schema.MASK_UNIT)
    one_voxel[0, SIZE // 2, SIZE // 2, SIZE // 2] = schema.MASK_UNIT
    changes = [{schema.IMAGE: np.full_like(ordinary[schema.IMAGE], hu)} for hu in (-32768, -1000, 0, 32767)]
    changes += [{schema.MASK: mask} for mask in (np.zeros_like(one_voxel), one_voxel, all_voxels)]
    changes += [{schema.RATING_COUNTS: np.zeros_like(ordinary[schema.RATING_COUNTS])}]
    changes += [
        change | {schema.MASK: one_voxel, schema.RATING_COUNTS: np.zeros_like(ordinary[schema.RATING_COUNTS])}
        for change in changes
    ]
    for change in changes:
        state = steps.replicate(jax.tree.map(jnp.asarray, initial))
        for _ in range(2):  # the second sees what the first did to the parameters
            state, measured = step(state, ordinary | change, 7, np.float32(1e-2))
            assert all(np.isfinite(value) for value in measured.values()), (change.keys(), measured)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)), change.keys()


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same_and_keeps_parameters_in_float32(initial):
    batch = make_records(BATCH)
    state, halves = train(initial, batch, 2, "bfloat16", learning_rate=1e-3)
    _, whole = train(initial, batch, 2, learning_rate=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype(np.float32), np.dtype(np.int32)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    for half, full in zip(halves, whole, strict=True):
        np.testing.assert_allclose(half["loss"], full["loss"], rtol=0.02)
        np.testing.assert_allclose(half["gradient_norm"], full["gradient_norm"], rtol=0.1)


# Evaluation


def evaluate(initial, records, batch_size):
    """Results of all nodules, padding left out."""
    step = steps.compile_eval_step(make_task())
    parts = [
        {name: np.asarray(values)[:count] for name, values in step(initial.variables, batch).items()}
        for batch, count in input_pipeline.eval_batches(
            records, np.arange(len(records[schema.RATING_COUNTS])), batch_size
        )
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_evaluation_depends_on_neither_batch_size_nor_padding_nor_order(initial):
    records = make_records(7)
    results = evaluate(initial, records, BATCH)
    assert results.keys() == {"loss", "segmentation", "attributes", "malignancy", "dice", "slices"}
    assert all(values.shape == (7,) for name, values in results.items() if name != "slices")
    assert len(np.unique(results["loss"])) == 7
    order = np.array([6, 2, 0, 5, 1, 4, 3])
    shuffled = evaluate(initial, {name: values[order] for name, values in records.items()}, BATCH)
    by_3 = evaluate(initial, records, 3)
    for name, values in results.items():
        np.testing.assert_allclose(shuffled[name], values[order], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_3[name], values, rtol=1e-5, atol=1e-6)


def test_probabilities_are_distributions_over_the_classes_that_exist(one_device):
    probabilities = one_device["results"]["['probabilities']"]
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert not probabilities[:, ~schema.CLASS_EXISTS].any()


def test_predictions_are_what_the_evaluation_scores(initial):
    batch = make_records(BATCH)
    predicted = predict(initial.variables, batch)
    scored = steps.compile_eval_step(make_task())(initial.variables, batch)
    classes = np.floor(batch[schema.RATING_COUNTS] @ np.arange(1, 7) / batch[schema.RATING_COUNTS].sum(-1) + 0.5)
    true = np.take_along_axis(np.asarray(predicted["probabilities"]), classes.astype(int)[..., None] - 1, axis=-1)
    np.testing.assert_allclose(scored["malignancy"], -np.log(true[:, schema.MALIGNANCY, 0]), rtol=1e-4)
    inner = slice(MARGIN, -MARGIN)
    truth = batch[schema.MASK][:, inner, inner, inner] > 0
    expected = [outlines.dice(mask, reference) for mask, reference in zip(predicted["mask"] > 0.5, truth, strict=True)]
    np.testing.assert_allclose(scored["dice"], expected, rtol=1e-5)
    grey, probability, consensus = np.moveaxis(np.asarray(scored["slices"]), 1, 0)
    middle = predicted["mask"].shape[1] // 2
    np.testing.assert_allclose(probability, predicted["mask"][:, middle], atol=1e-6)
    np.testing.assert_array_equal(consensus, truth[:, middle])
    assert grey.shape == consensus.shape and 0 <= grey.min() < grey.max() <= 1


def test_temperatures_divide_the_logits(initial):
    task, batch = make_task(), make_records(BATCH)
    step = steps.compile_predict_step(task.model, task.patch_size, task.windows)
    temperatures = np.linspace(0.5, 2.5, 9, dtype=np.float32)
    plain, scaled = (
        step(initial.variables, t, 0.0, batch[schema.IMAGE]) for t in (np.ones(9, np.float32), temperatures)
    )
    expected = calibration.scale(plain["probabilities"], temperatures)
    np.testing.assert_allclose(scaled["probabilities"], expected, rtol=1e-4)
    np.testing.assert_array_equal(scaled["mask"], plain["mask"])


def test_the_mask_shift_is_added_to_the_logits_of_the_mask(initial):
    task, batch = make_task(), make_records(BATCH)
    step = steps.compile_predict_step(task.model, task.patch_size, task.windows)
    ones = np.ones(9, np.float32)
    plain, shifted = (step(initial.variables, ones, shift, batch[schema.IMAGE]) for shift in (0.0, 1.5))
    p = np.asarray(plain["mask"], np.float64)
    assert 0 < p.min() < p.max() < 1
    np.testing.assert_allclose(shifted["mask"], 1 / (1 + (1 - p) / p * np.exp(-1.5)), rtol=1e-5)  # of float32
    np.testing.assert_array_equal(shifted["probabilities"], plain["probabilities"])


def test_the_step_over_flips_predicts_each_flip(initial):
    task, batch = make_task(), make_records(BATCH)
    flips, images = ((False, False, False), (True, False, True)), batch[schema.IMAGE]
    static, ones = (task.model, task.patch_size, task.windows), np.ones(9, np.float32)
    single, together = steps.compile_predict_step(*static), steps.compile_predict_flips_step(*static)
    first, second = (single(initial.variables, ones, 0.5, x) for x in (images, np.flip(images, (1, 3))))
    both = together(initial.variables, ones, 0.5, flips, images)
    # Two compiled programs.
    np.testing.assert_allclose(both["mask"], first["mask"] + np.flip(second["mask"], (1, 3)), atol=1e-5)
    for name in ("probabilities", "features"):
        expected = np.stack([first[name], second[name]], axis=1)
        np.testing.assert_allclose(both[name], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(first["probabilities"] - second["probabilities"]).max() > 1e-4


def test_dice_is_that_of_the_metrics():
    rng = np.random.default_rng(0)
    predicted, mask = rng.random((6, 4, 4, 4)) < 0.3, rng.random((6, 4, 4, 4)) < 0.3
    predicted[0] = mask[0]
    predicted[1] = mask[1] = False
    predicted[2], mask[3] = False, False
    mask[4] = ~predicted[4]
    expected = [outlines.dice(*pair) for pair in zip(predicted, mask, strict=True)]
    np.testing.assert_allclose(steps.dice(jnp.asarray(predicted), jnp.asarray(mask)), expected, rtol=1e-6)
    assert expected[:2] == [1, 1] and expected[2:5] == [0, 0, 0] and 0 < expected[5] < 1


def test_the_moving_average_follows_the_weights():
    average, value = {"w": jnp.zeros(2)}, {"w": jnp.array([1.0, -2.0])}
    first = steps.moving_average(average, value, jnp.int32(0), 0.99)
    np.testing.assert_allclose(first["w"], [0.9, -1.8], rtol=1e-6)  # the decay begins at 1/10
    late = steps.moving_average(average, value, jnp.int32(10**6), 0.99)
    np.testing.assert_allclose(late["w"], [0.01, -0.02], rtol=1e-4)


def test_the_average_is_what_is_tested_and_saved():
    task = make_task()._replace(average_decay=0.5)
    state = steps.replicate(create_state(task.model, task.patch_size, len(WINDOWS), seed=0, average=True))
    start = jax.device_get(state.params)
    state, _ = steps.compile_train_step(task)(state, make_records(BATCH), 0, 1e-2)
    assert state.variables is state.average
    for tree in ("params", "batch_stats"):
        assert flatten(state.average[tree]).keys() == flatten(getattr(state, tree)).keys()
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, start, jax.device_get(state.params))
    for name, value in flatten(state.average["params"]).items():
        np.testing.assert_allclose(value, flatten(expected)[name], atol=1e-6)


def test_indeterminate_nodules_teach_no_malignancy():
    rating_counts = np.zeros((3, 9, 6), np.uint8)
    rating_counts[0, :, 2] = 3  # 3, 3, 3
    rating_counts[1, :, [1, 2]] = 1  # 2 and 3: 2.5, which rounds up to 3
    rating_counts[2, :, 2] = 3
    rating_counts[2, 8] = [0, 2, 1, 0, 0, 0]  # 2, 2 and 3: it rounds to 2
    before = transforms.rating_targets(jnp.asarray(rating_counts), "distribution", "modal")
    after = np.asarray(transforms.without_indeterminate(before, jnp.asarray(rating_counts)))
    np.testing.assert_array_equal(after[:, :8], before[:, :8])
    np.testing.assert_array_equal(after[:2, 8], 0)
    np.testing.assert_array_equal(after[2, 8], before[2, 8])


def test_the_validation_loss_leaves_out_what_training_leaves_out(initial):
    records = make_records(BATCH)
    records[schema.RATING_COUNTS] = np.zeros((BATCH, 9, 6), np.uint8)
    records[schema.RATING_COUNTS][:, :, 2] = 3  # every reader rates 3
    taught, left_out = (
        steps.compile_eval_step(make_task()._replace(indeterminate=learnt))(initial.variables, records)
        for learnt in (True, False)
    )
    assert (np.asarray(taught["malignancy"]) > 0).all()
    np.testing.assert_array_equal(left_out["malignancy"], 0)
    np.testing.assert_array_equal(left_out["attributes"], taught["attributes"])


def test_faded_nodules_teach_the_outline_only():
    task = make_task()._replace(appearance=Appearance(enlarge=1.0, largest=1.5))
    state = steps.replicate(jax.tree.map(jnp.asarray, initial_state()))
    _, scores = steps.compile_train_step(task)(state, make_records(BATCH), 0, 1e-3)
    assert float(scores["attributes"]) == float(scores["malignancy"]) == 0
    assert float(scores["segmentation"]) > 0


if __name__ == "__main__":
    parts = run_some_steps()
    arrays = {f"{part}|{name}": values for part, tree in parts.items() for name, values in tree.items()}
    np.savez(sys.argv[1], **arrays, **{"devices|": jax.local_device_count()})
