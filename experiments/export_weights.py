"""Export what predicting needs from a finished run: about 3 MB for each fold, instead of some 40.

The patients of each fold's test set come along, so that `experiments.held_out` can test the weights again.

    python -m experiments.export_weights --workdir runs/full --out pnsamp_jax/weights

Parameters are rounded to bfloat16, which has 8 bits of precision.
"""

import json
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.launch import launch, path_flag, require_new
from pnsamp_jax.inference import ensemble
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.checkpoint import save_weights


def export(workdir: Path, out: Path) -> None:
    """Write the weights of a run into a new folder, completely or not at all.

    Raises:
      UserError: there is nothing to export, `out` exists already, or a patient is in the test sets of two folds.
    """
    require_new(out)
    networks, tested = ensemble.load(workdir), layout.fold_of_patients(workdir / "folds.json")
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"root": "", "dicom_root": "", "cache": ""}  # paths of one machine do not belong into a release
    config.pop("predict", None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        unfinished = Path(temporary) / out.name
        for name, member in networks.members.items():
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), member.variables["params"])
            save_weights(unfinished / name / "weights", {**member.variables, "params": params})
            shutil.copy(workdir / name / "calibration.json", unfinished / name)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2))
        layout.write_fold_of_patients(unfinished / "folds.json", tested)
        unfinished.rename(out)


if __name__ == "__main__":
    launch(
        export, workdir="Workdir of the run.", out=path_flag("out", "Folder to write; must not exist.", required=True)
    )
