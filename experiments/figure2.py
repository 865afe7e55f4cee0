"""Figure 2 of the paper for nodules of a test fold: both outlines, and the predicted ratings next to the readers'.

    python -m experiments.figure2 --config pn_samp_m_32 --workdir runs/m32 --config.fold=0 \\
        --config.data.source=folder --config.data.root=/path/to/nodules --out docs/nodules.png [--context=cube]
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.launch import launch, path_flag
from pnsamp_jax import transforms
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.patches import patch_affine
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.asking import make_findings
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.requests import Located, Request
from pnsamp_jax.report.nodule_figure import draw_nodules
from pnsamp_jax.run import load_folds, load_records
from pnsamp_jax.workdir import layout


def test_findings(config: ConfigDict, workdir: Path, count: int, context: str = "") -> list[Finding]:
    """Predict some test nodules of the config's fold, and add the readers' outlines and ratings.

    Args:
      config: of the run; `config.fold` is the fold that is shown, the first if it is -1.
      workdir: of the run.
      count: at most so many nodules, spread evenly over those of the fold by diameter.
      context: of the nodules; "" for any.

    Returns:
      The findings by diameter, the smallest first.

    Raises:
      UserError: there is no such run, or the fold is not tested or tests no such nodule.
    """
    split = workdir / "folds.json"
    if not split.is_file():  # `load_folds` would write it
        raise UserError(f"{split}: no such file; give the workdir of a training")
    settings = read_settings(config)
    layout.check_config(workdir, settings.fields)
    fold = settings.folds[0]
    networks = ensemble.load(workdir).member(fold)
    records = load_records(settings)
    tested = np.isin(records[schema.NODULE_ID], load_folds(settings, records, split)[fold]["test"])
    test = np.flatnonzero(tested & ((records[schema.CONTEXT] == context) | (context == "")))
    if not len(test):
        raise UserError(f"--context={context}: fold {fold} tests no such nodule; leave it out, or choose another fold")
    by_size = test[np.argsort(records[schema.DIAMETER][test])]
    spread = np.unique(np.linspace(0, len(by_size) - 1, count).round().astype(int))
    chosen = {name: np.asarray(values[by_size[spread]]) for name, values in records.items()}
    return _predict(chosen, networks)


def _predict(records: schema.Records, networks: ensemble.Networks) -> list[Finding]:
    """Return the findings of all records, with the readers' masks and ratings."""
    size = networks.patch_size
    images = np.stack([np.asarray(transforms.crop(image, size)) for image in records[schema.IMAGE]])
    located = []
    for nodule_id, context, diameter, image in zip(
        records[schema.NODULE_ID], records[schema.CONTEXT], records[schema.DIAMETER], images, strict=True
    ):
        unknown = np.zeros(3)  # records do not keep the position in the CT
        request = Request(str(nodule_id), f"{context}, {diameter:.0f} mm", Path(), unknown)
        affine = patch_affine(unknown, size, networks.spacing_mm)
        located.append(Located(request, unknown, image.astype(np.int16), image.shape, affine))
    batch_size = -(-len(images) // jax.local_device_count()) * jax.local_device_count()
    predictions = ensemble.predict(networks, np.resize(images, (batch_size, *images.shape[1:])))
    findings = make_findings(located, predictions, networks)
    truth = cohort.labels(records[schema.RATING_COUNTS], "modal")  # the figure shows nominal ratings as such
    return [
        dataclasses.replace(
            finding,
            readers_mask=np.asarray(transforms.segmentation_target(transforms.crop(mask, size))) > 0,
            truth=ratings,
        )
        for finding, mask, ratings in zip(findings, records[schema.MASK], truth, strict=True)
    ]


def run(config: ConfigDict, workdir: Path, out: Path, count: int, context: str) -> None:
    """Draw the findings of `test_findings` to a PNG or PDF file."""
    if out.suffix not in (".png", ".pdf"):
        raise UserError(f"--out={out}: give a name that ends with .png or .pdf")
    draw_nodules(test_findings(config, workdir, count, context), out)


if __name__ == "__main__":
    launch(
        run,
        config="The config of the run.",
        workdir="Workdir of the run.",
        out=path_flag("out", "PNG or PDF file to write.", required=True),
        count=flags.DEFINE_integer("count", 6, "Number of nodules, spread evenly over the test fold by diameter."),
        context=flags.DEFINE_string("context", "", "Only nodules of this context, such as cube; all by default."),
    )
