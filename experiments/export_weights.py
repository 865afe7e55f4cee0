"""Keeps of a finished run what predicting needs: about 3 MB a fold, instead of some 40.

    python -m experiments.export_weights --workdir runs/full --out pnsamp_jax/weights

Parameters are rounded to bfloat16, 8 bits of precision.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from pnsamp_jax import networks
from pnsamp_jax.checkpoint import save_weights
from pnsamp_jax.data.prepare import atomic_path
from pnsamp_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "The run.")
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.")


def export(workdir: Path, out: Path) -> None:
    """Writes the weights of a run.

    Raises:
      UserError: there is nothing to export, or `out` is there already.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; remove it or name another --out")
    asked = networks.load(workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"root": "", "dicom_root": "", "cache": ""}  # whose machine it was is nobody's business
    config.pop("predict", None)
    with atomic_path(out / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2))
    for name, member in asked.members.items():
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), member.variables["params"])
        save_weights(out / name / "weights", {**member.variables, "params": variables})
        for note in (out / name).rglob("commit_success.txt"):
            note.write_text("complete\n")  # Orbax writes the path of the machine
        shutil.copy(workdir / name / "calibration.json", out / name)


def main(argv: list[str]) -> None:
    """Exports; a user's mistake becomes one line."""
    del argv
    try:
        export(Path(WORKDIR.value), Path(OUT.value))
    except UserError as error:
        sys.exit(f"export_weights: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "out"])
    app.run(main)
