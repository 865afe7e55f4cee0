"""Keeps of a finished run what predicting needs: about 3 MB a fold, instead of some 40.

    python -m experiments.export_weights --workdir runs/full --out pnsamp_jax/weights

Parameters are rounded to bfloat16, 8 bits of precision.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.workdir.checkpoint import save_weights


def export(workdir: Path, out: Path) -> None:
    """Writes the weights of a run into a folder, which is there whole or not at all.

    Raises:
      UserError: there is nothing to export, or `out` is there already.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; remove it or name another --out")
    asked = ensemble.load(workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"root": "", "dicom_root": "", "cache": ""}  # whose machine it was is nobody's business
    config.pop("predict", None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside:
        unfinished = Path(beside) / out.name
        for name, member in asked.members.items():
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), member.variables["params"])
            save_weights(unfinished / name / "weights", {**member.variables, "params": params})
            shutil.copy(workdir / name / "calibration.json", unfinished / name)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2))
        unfinished.rename(out)


def launch() -> None:
    """The command line; a user's mistake becomes one line."""
    workdir = flags.DEFINE_string("workdir", None, "The run.", required=True)
    out = flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        try:
            export(Path(workdir.value), Path(out.value))
        except UserError as error:
            sys.exit(f"export_weights: {error}")

    app.run(main)


if __name__ == "__main__":
    launch()
