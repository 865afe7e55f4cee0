"""pnsamp_jax.export.artifact: what is exported answers as the networks do, in a process that knows nothing of them."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import made_up_run, tiny_config, tiny_plus_config

from pnsamp_jax import __version__, cli
from pnsamp_jax.errors import UserError
from pnsamp_jax.export import artifact
from pnsamp_jax.inference import ensemble

pytestmark = pytest.mark.usefixtures("quick_compilation")

PACKAGES = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
# Each reads the artifact `path`, asks it about `images`, and keeps the `results` by name and the `windows` in it.
PROGRAMS = {
    "stablehlo": """
import json
from pathlib import Path
from jax import export
artifact = export.deserialize(bytearray(Path(path).read_bytes()))
results = artifact.call(images)
windows = json.loads(Path(path).with_suffix(".json").read_text())["windows"]
assert artifact.platforms == ("cpu", "cuda", "tpu")
""",
    "onnx": """
import json, onnxruntime
session = onnxruntime.InferenceSession(path)
results = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"images": images})))
windows = json.loads(session.get_modelmeta().custom_metadata_map["windows"])
assert "jax" not in sys.modules
""",
    "openvino": """
sys.modules["openvino_telemetry"] = None
import json, openvino
core = openvino.Core()
model = core.read_model(path)
found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)
results = {name: found[name] for name in ("mask", "probabilities")}
windows = json.loads(model.get_rt_info(["pnsamp", "windows"]).value)
assert "jax" not in sys.modules
""",
}
PROGRAM = """
import sys
import numpy as np
path, asked, answers = sys.argv[1:]
images = np.load(asked)
{}
assert "pnsamp_jax" not in sys.modules and "flax" not in sys.modules
assert windows == [[1600.0, -600.0], [700.0, -600.0]]
np.savez(answers, **results)
"""


@pytest.fixture(scope="module", params=["pn_samp", "pn_samp_plus"])
def workdir(request, tmp_path_factory, quick_compilation):
    """A run of two of its folds, whose masks are shifted."""
    config = {"pn_samp": tiny_config, "pn_samp_plus": tiny_plus_config}[request.param]()
    return made_up_run(tmp_path_factory.mktemp("run"), (0, 2), config, mask_shift=0.5)


def need(form):
    for package in PACKAGES[form]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'pnsamp-jax[test]'")


# XLA takes long to compile what JAX has exported.
@pytest.mark.parametrize("form", [pytest.param("stablehlo", marks=pytest.mark.slow), "onnx", "openvino"])
def test_an_artifact_answers_as_the_networks_do_without_this_package(form, workdir, tmp_path):
    need(form)
    path = tmp_path / f"net{artifact.FORMATS[form].suffixes[0]}"
    written = artifact.export(str(workdir), form, path)
    assert sorted(tmp_path.iterdir()) == sorted(written) and path in written
    images = np.random.default_rng(0).integers(-1000, 400, (3, 16, 16, 16)).astype(np.float32)
    expected = ensemble.predict(ensemble.load(workdir), images, flips=False)
    np.save(tmp_path / "asked.npy", images)
    arguments = [str(path), str(tmp_path / "asked.npy"), str(tmp_path / "answers.npz")]
    subprocess.run([sys.executable, "-c", PROGRAM.format(PROGRAMS[form]), *arguments], check=True, cwd=tmp_path)
    with np.load(tmp_path / "answers.npz") as found:
        # The same sums in another order; at full size they differed by less, see docs/how-to/deploy.md.
        np.testing.assert_allclose(found["mask"], expected.mask, atol=1e-4)
        np.testing.assert_allclose(found["probabilities"], expected.mean_probabilities, atol=1e-4)
    assert 0.01 < (expected.mask > 0.5).mean() < 0.99


def test_the_metadata_tell_how_to_use_it(workdir):
    networks = ensemble.load(workdir)
    metadata = artifact.describe(networks, shipped=False)
    assert (metadata["patch_size"], metadata["spacing_mm"], metadata["version"]) == (16, 2.0, __version__)
    assert metadata["ratings"]["texture"][0] == "non-solid" and list(metadata["ratings"])[-1] == "malignancy"
    assert metadata["mask_threshold"] == 0.5
    assert artifact.describe(networks._replace(fitted_threshold=True), False)["mask_threshold"] == "best expected Dice"
    assert metadata["mask_shifts"] == {"fold_0": 0.5, "fold_2": 0.5} and metadata["trained_on_simulated_voxels"]
    assert metadata["mask_adaptation"] == 0
    temperature = metadata["temperatures"]["fold_2"]["malignancy"]
    assert temperature == pytest.approx(networks.members["fold_2"].temperatures[-1])
    assert "LIDC" in artifact.describe(networks, shipped=True)["training_data"]
    assert json.loads(json.dumps(metadata)) == metadata


def test_the_command_writes_a_file_and_names_it(workdir, tmp_path, capsys):
    need("onnx")
    cli.main(["export", str(workdir), "--format", "onnx", "--out", str(tmp_path / "new" / "net.onnx")])
    path = tmp_path / "new" / "net.onnx"
    assert capsys.readouterr().out == f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB\n"
    with pytest.raises(SystemExit, match="1"):
        cli.main(["export", str(workdir), "--format=onnx", f"--out={path}"])
    assert capsys.readouterr().err == f"pnsamp: {path}: exists already; remove it or choose another --out\n"


def test_mistakes_are_told_before_anything_is_written(workdir, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"net\.bin' does not end in \.xml, as --format openvino does"):
        artifact.export(str(workdir), "openvino", tmp_path / "net.bin")
    (tmp_path / "net.json").touch()
    with pytest.raises(UserError, match=r"net\.json: exists already"):
        artifact.export(str(workdir), "stablehlo", tmp_path / "net.stablehlo")
    with pytest.raises(UserError, match="no such file; give the workdir of a training"):
        artifact.export(str(tmp_path), "onnx", tmp_path / "net.onnx")
    for package, form, extra in (("flatbuffers", "stablehlo", "stablehlo"), ("openvino", "openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        path = tmp_path / f"other{artifact.FORMATS[form].suffixes[0]}"
        with pytest.raises(UserError, match=rf"{package} is not installed; run `pip install 'pnsamp-jax\[{extra}\]'`"):
            artifact.export(str(workdir), form, path)
    assert [path.name for path in tmp_path.iterdir()] == ["net.json"]
