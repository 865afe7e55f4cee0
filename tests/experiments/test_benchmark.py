"""The benchmark: the compared networks are the same network, and the measurements are what their names say."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.speed import jax_systems, report, worker
from experiments.speed.worker import Job
from pnsamp_jax import steps, transforms
from pnsamp_jax.config import read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.models import conv3d, layers
from pnsamp_jax.models.pn_samp import PNSAMP
from pnsamp_jax.state import create_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

SMALL = {
    "features": (2, 3, 4, 5),
    "mask_features": (2, 2, 3, 3),
}  # different widths, so that layers cannot be mixed up


def small_config():
    """Return a config with 32 voxels: at the bottom BatchNorm has 16 values a channel; two would amplify rounding."""
    config = base.get_config()
    config.batch_size, config.patch_size, config.data.margin = 2, 32, 2
    config.model.update(SMALL)
    config.loss.update({"segmentation": 1.5, "attributes": 0.7, "malignancy": 0.4})
    return config


@pytest.fixture(scope="module")
def flax():
    """Return parameters, outputs in inference mode, and the loss and gradients of the first training step."""
    config, random = small_config(), np.random.default_rng(0)
    task = read_settings(config).task
    like = jax.eval_shape(partial(create_state, task.model, 32, 2, seed=0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), like.params)
    stats = jax.tree.map_with_path(lambda path, leaf: leaf + (path[-1].key == "var"), state.batch_stats)
    state = steps.replicate(state.replace(params=params, batch_stats=stats))
    with pytest.MonkeyPatch.context() as patch:
        use_native_convolutions(patch)  # they compile faster
        patch.setattr(transforms, "augment", jax_systems.crop_only)
        patches = worker.network_inputs(config)[0]
        outputs = jax.jit(PNSAMP(**SMALL).apply)({"params": params, "batch_stats": stats}, patches)
        after, metrics = steps.compile_train_step(task)(state, worker.draw_batch(config), 0, 1e-3)
    ratings = {rating.name: outputs.ratings[:, i, : rating.classes] for i, rating in enumerate(schema.RATINGS)}
    gradients = jax.tree.map(lambda moment: np.asarray(moment) / 0.1, after.opt_state.mu)  # 0.1 is Adam's 1 - b1
    return params, {"mask": outputs.mask, **ratings}, jax.device_get(metrics), gradients


def use_native_convolutions(patch):
    """Replace the convolutions for CPUs by XLA's own."""
    patch.setattr(conv3d, "conv3d", conv3d.conv3d_native)
    patch.setattr(layers, "conv3d", conv3d.conv3d_native)
    patch.setattr(layers, "conv3d_of_upsampled_concat", conv3d.conv3d_of_upsampled_concat_native)


def by_layer(params):
    """Return the parameters of the Flax model by the names of Keras' layers."""
    found = {name: [leaves["kernel"], leaves["bias"]] for name, leaves in params["heads"].items()}
    for name in params.keys() - {"heads", "mask"}:
        norm, conv = params[name]["BatchNorm_0"], params[name]["Conv3x3x3_0"]
        found |= {f"{name}_norm": [norm["scale"], norm["bias"]], f"{name}_conv": [conv["kernel"], conv["bias"]]}
    of_up, of_skip = np.split(params["mask"]["kernel"].reshape(1, 1, 1, -1, 1), 2, axis=3)
    return found | {"mask_up": [of_up], "mask_skip": [of_skip, params["mask"]["bias"]]}


def assert_same(theirs, ours, atol):
    """Compare arrays by name, in float32, which adds up rounding errors over 65,536 voxels."""
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0, atol=atol, err_msg=name)


def test_pytorch_is_the_same_network(flax):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'pnsamp-jax[compare]'")
    from experiments.speed import torch_pn_samp

    def pairs(tree):  # Flax has channels and features last; PyTorch has features and channels first
        for name, values in by_layer(tree).items():
            for i, (parameter, value) in enumerate(zip(model.layers[name].parameters(), values, strict=True)):
                value = np.asarray(value) if np.ndim(value) == 1 else np.moveaxis(value, (-1, -2), (0, 1))
                yield f"{name} {i}", parameter, value

    params, outputs, metrics, gradients = flax
    patches, *truth = worker.network_inputs(small_config())
    inputs, model = torch.from_numpy(patches).permute(0, 4, 1, 2, 3), torch_pn_samp.PNSAMP(2, **SMALL)
    for _, parameter, value in pairs(params):
        parameter.data = torch.tensor(value)
    assert_same({name: value.detach() for name, value in model.eval()(inputs).items()}, outputs, 2e-4)
    theirs = torch_pn_samp.combined_loss(model.train()(inputs), *map(torch.from_numpy, truth), small_config().loss)
    theirs.backward()
    assert theirs.item() == pytest.approx(metrics["loss"], rel=1e-5)
    found = list(pairs(gradients))
    ours = {name: value for name, _, value in found}
    assert_same({name: parameter.grad for name, parameter, _ in found}, ours, 2e-4 * metrics["gradient_norm"])


def test_keras_is_the_same_network(flax):
    pytest.importorskip("keras", reason="needs Keras: pip install 'pnsamp-jax[compare]'")
    from experiments.speed import keras_pn_samp

    params, outputs, metrics, gradients = flax
    patches, mask, classes = worker.network_inputs(small_config())
    model = keras_pn_samp.build(32, 2, **SMALL)
    for name, values in by_layer(params).items():
        for variable, value in zip(model.get_layer(name).trainable_variables, values, strict=True):
            variable.assign(value)
    assert_same(model.predict_on_batch(patches), outputs, 2e-4)
    keras_pn_samp.compile_model(model, 1e-3, small_config().loss)
    truth = {"mask": mask, **dict(zip(schema.RATING_NAMES, classes.T, strict=True))}
    assert model.train_on_batch(patches, truth, return_dict=True)["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    moments = iter(variable for variable in model.optimizer.variables if variable.path.endswith("_momentum"))
    theirs = {variable.path: np.asarray(next(moments)) / 0.1 for variable in model.trainable_variables}
    layers_of = ((model.get_layer(name).trainable_variables, values) for name, values in by_layer(gradients).items())
    ours = {variable.path: value for pair in layers_of for variable, value in zip(*pair, strict=True)}
    # Where TensorFlow's sums nearly cancel, they were off by up to 0.002 of the norm, differently in each run.
    assert_same(theirs, ours, 0.01 * metrics["gradient_norm"])


def test_flops_counted_by_hand_are_those_of_xla(monkeypatch):
    def padded(x, kernel):  # XLA does not count multiplications by the zeros that it pads with itself
        x, layout = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))), ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "VALID", dimension_numbers=layout)

    monkeypatch.setattr(conv3d, "conv3d_native", padded)
    use_native_convolutions(monkeypatch)
    model, x = PNSAMP(), jax.ShapeDtypeStruct((1, 64, 64, 64, 2), jnp.float32)
    by_hand, variables = jax_systems.forward_flops(model, 64, 2), jax.eval_shape(model.init, jax.random.key(0), x)
    counted = jax.jit(model.apply).lower(variables, x).cost_analysis()["flops"]  # with the elementwise operations
    assert by_hand == pytest.approx(5.79e9, rel=1e-3) and 1 < counted / by_hand < 1.05


def turn(seconds, costs):
    """Return the measurements of a worker whose median call of each part takes so many seconds."""
    calls = dict.fromkeys(("train_step", "forward", "latency", *costs), [seconds, seconds / 2, 9 * seconds])
    found = {"seconds": calls, "compile_s": calls.fromkeys(calls, 5.0), "peak_bytes": 2e9, "costs": costs}
    return found | {"about": {"name": "a system", "version": "1", "device": "1 x cpu"}}


MACHINE = turn(0.5, {"matmul": {"flops": 50}, "copy": {"bytes": 100}})
COSTS = {"train_step": {"flops": 60.0, "xla_flops": 70.0, "xla_bytes": 80.0}, "forward": {"flops": 20.0}}
SECONDS = {"jax": [1.0, 2.0, 4.0], "training": [3.0, 4.0, 4.0], "native": [1.0]}


def test_turns_and_files(tmp_path, monkeypatch, capsys):
    taken = []

    def take(job, log):
        taken.append(job.system)
        if taken.count("native") == 2 and job.system == "native":
            raise UserError("no memory")
        return MACHINE if job.system == "machine" else turn(SECONDS[job.system][taken.count(job.system) - 1], COSTS)

    monkeypatch.setattr(benchmark, "take_turn", take)
    monkeypatch.setattr(benchmark, "read_scans", lambda: [])
    benchmark.benchmark(small_config(), tmp_path, ["native"], "", rounds=3, seconds=0.0)
    assert taken == ["machine", "jax", "training", "native"] * 2 + ["machine", "jax", "training"]
    found, text = json.loads((tmp_path / "benchmark.json").read_text()), (tmp_path / "benchmark.md").read_text()
    assert found["rates"] == {"flops": 100, "bytes": 200} and found["flops"] == {"train_step": 30, "forward": 10}
    assert list(found["systems"]) == ["jax", "training"] and found["failures"] == {"native": "no memory"}
    step, latency = found["systems"]["training"]["train_step"], found["systems"]["training"]["latency"]
    assert step["ratio"] == {"median": 2.0, "min": 1.0, "max": 3.0}  # within rounds: 3 / 1, 4 / 2, 4 / 4
    assert step["of_matmul"] == pytest.approx(30 * 0.5 / 100) and step["of_copy"] == pytest.approx(40 * 0.5 / 200)
    assert latency["p50_ms"] == 4000 and 27_000 < latency["p99_ms"] <= 36_000
    assert "| a system 1 | 2000.00 [1500.00, 2000.00] | 2.00 [1.00, 3.00] " in text and text in capsys.readouterr().out


def test_a_system_that_only_predicts_has_no_cells_of_training():
    predicting = turn(0.5, {})
    del predicting["seconds"]["train_step"]
    runs = {"machine": [MACHINE], "jax": [turn(1.0, COSTS)], "openvino": [predicting]}
    found = report.summarise(runs, batch=2)["systems"]["openvino"]
    assert found["forward"]["ratio"]["median"] == 0.5 and "train_step" not in found
    cells = report.row(found)
    assert cells["training, ms a patch"] == cells["of copy, %"] == "-" and cells["forward, times ours"].startswith(
        "0.5"
    )


def test_openvino_is_measured(tmp_path):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'pnsamp-jax[openvino]'")
    found = benchmark.take_turn(Job("openvino", small_config(), 0.0), tmp_path / "log")
    assert list(found["seconds"]) == ["forward", "latency"] and found["about"]["device"] == "CPU"


def test_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "take_turn", lambda job, log: turn(0.1 * job.config.batch_size, COSTS))
    benchmark.sweep("batch", small_config(), tmp_path, rounds=1, seconds=0.0)
    sizes = json.loads((tmp_path / "sweep_batch.json").read_text())["sizes"]
    assert [found["train_step"]["patches_per_second"]["median"] for found in sizes.values()] == pytest.approx([10] * 7)
    assert (tmp_path / "sweep_batch.png").read_bytes().startswith(b"\x89PNG")


def test_a_worker_measures(tmp_path):
    found = benchmark.take_turn(Job("native", small_config(), 0.0, ("forward",), devices=2), tmp_path / "log")
    assert list(found["seconds"]) == ["forward"] and found["about"]["device"] == "2 x cpu"
    assert found["costs"]["forward"]["xla_flops"] > 0 and found["peak_bytes"] > 1e8
