"""Write the networks of a run as one artifact that answers without this package: from HU to their mean probabilities.

An artifact has one input, `images` (N, S, S, S) float32 HU with N of any size, and two outputs: `mask` (N, S, S, S)
and `probabilities` (N, 9, 6), calibrated, each the mean over the networks. What else one must know to use it, such as
the size of a voxel, is its metadata, see `describe`.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

import pnsamp_jax
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UsageError, UserError
from pnsamp_jax.export.onnx_model import translate
from pnsamp_jax.export.openvino_model import convert, openvino
from pnsamp_jax.export.packages import needed
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.masks import THRESHOLD

PLATFORMS = ("cpu", "cuda", "tpu")
LICENCE = "Apache-2.0 (pnsamp_jax)"
SHIPPED_DATA = "LIDC-IDRI, CC BY 3.0, doi 10.7937/K9/TCIA.2015.LO9QL9SX"

Function = Callable[[jax.Array], dict[str, jax.Array]]


def export(name: str, form: str, out: Path) -> list[Path]:
    """Write the networks of a run into a new file, and return all files that were written.

    Args:
      name: the workdir of a run, or "shipped".
      form: one of `FORMATS`.
      out: the file, with the suffix of its format.

    Raises:
      UserError: the folder has no networks that are ready, a file exists already, the suffix is another, or a package
        is missing.
    """
    suffixes, write = FORMATS[form]
    if out.suffix != suffixes[0]:
        raise UsageError(f"--out: '{out}' does not end in {suffixes[0]}, as --format {form} does")
    files = [out.with_suffix(suffix) for suffix in suffixes]
    for path in files:
        if path.exists():
            raise UserError(f"{path}: exists already; remove it or choose another --out")
    networks = ensemble.load(ensemble.chosen_folder("DIR", name))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        metadata = describe(networks, name == "shipped")
        write(mean_answer(networks), networks.patch_size, metadata, Path(temporary, out.name))
        for path in files:
            Path(temporary, path.name).rename(path)
    return files


def mean_answer(networks: ensemble.Networks) -> Function:
    """Return the function from images (N, S, S, S) to the mean `mask` and `probabilities` of the networks."""
    asks = [networks.ask(network) for network in networks.members.values()]

    def answer(images: jax.Array) -> dict[str, jax.Array]:
        first, *others = (ask(images) for ask in asks)
        names = ("mask", "probabilities")
        return {name: sum((one[name] for one in others), first[name]) / len(asks) for name in names}

    return answer


def describe(networks: ensemble.Networks, shipped: bool) -> dict[str, Any]:
    """Return the metadata of an artifact, as JSON has them."""
    return {
        "name": "PN-SAMP",
        "description": "Segmentation and radiologists' ratings of the lung nodule at the centre of a CT patch",
        "notice": "For research only; not a medical device",
        "version": pnsamp_jax.__version__,
        "licence": LICENCE,
        "training_data": SHIPPED_DATA if shipped else "those of the run",
        "trained_on_simulated_voxels": networks.simulated,
        "patch_size": networks.patch_size,
        "spacing_mm": networks.spacing_mm,
        "axes": ["superior", "posterior", "left"],
        "windows": [list(window) for window in networks.windows],
        "ratings": {rating.name: list(rating.words) for rating in schema.RATINGS},
        "temperatures": {
            name: dict(zip(schema.RATING_NAMES, network.temperatures.tolist(), strict=True))
            for name, network in networks.members.items()
        },
        "mask_threshold": "best expected Dice" if networks.fitted_threshold else THRESHOLD,
        "mask_shifts": {name: network.mask_shift for name, network in networks.members.items()},
        "mask_adaptation": networks.mask_adaptation,
    }


def write_stablehlo(function: Function, size: int, metadata: dict[str, Any], path: Path) -> None:
    """Write an artifact of `jax.export` for all `PLATFORMS`, and the metadata, for which it has no place, beside it.

    Args:
      function: see `mean_answer`.
      size: of the patch.
      metadata: see `describe`.
      path: of the artifact; the metadata get the suffix .json.
    """
    needed("flatbuffers", "stablehlo")  # in which JAX writes it
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, size), np.float32)
    path.write_bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())
    path.with_suffix(".json").write_text(json.dumps(metadata, indent=1))


def write_onnx(function: Function, size: int, metadata: dict[str, Any], path: Path) -> None:
    """Write an ONNX model with its metadata; for the arguments see `write_stablehlo`."""
    path.write_bytes(translate(function, (None, size, size, size), _as_text(metadata)).SerializeToString())


def write_openvino(function: Function, size: int, metadata: dict[str, Any], path: Path) -> None:
    """Write the two files of an OpenVINO model in float32; for the arguments see `write_stablehlo`."""
    model = convert(function, (None, size, size, size), _as_text(metadata))
    openvino().save_model(model, path, compress_to_fp16=False)


def _as_text(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the values as text: text as it is, and everything else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


class Format(NamedTuple):
    """A format of artifacts: the suffixes of its files, of which the user names the first, and what writes them."""

    suffixes: tuple[str, ...]
    write: Callable[[Function, int, dict[str, Any], Path], None]


FORMATS = {
    "stablehlo": Format((".stablehlo", ".json"), write_stablehlo),
    "onnx": Format((".onnx",), write_onnx),
    "openvino": Format((".xml", ".bin"), write_openvino),
}
