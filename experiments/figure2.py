"""Figure 2 of the paper for nodules of a test fold: both outlines, and the ratings beside the readers'.

    python -m experiments.figure2 --config configs/pn_samp_m_32.py --workdir runs/m32 --config.fold=0 \\
        --config.data.source=folder --config.data.root=/path/to/nodules --out docs/nodules.png [--context=cube]
"""

import sys
from pathlib import Path

import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from pnsamp_jax import transforms
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.predict import make_finding
from pnsamp_jax.report.nodules import draw_nodules
from pnsamp_jax.workdir import layout


def test_findings(config: ml_collections.ConfigDict, workdir: Path, count: int, context: str = "") -> list[Finding]:
    """What the network of the config's fold says of some of its test nodules, with what the readers say.

    Args:
      config: of the run; its `fold` is the one that is shown, the first if it is -1.
      workdir: of the run.
      count: how many nodules at most, spread evenly over the fold's by diameter.
      context: only nodules of this one; of any if empty.

    Returns:
      By diameter, the smallest first.

    Raises:
      UserError: the run is not there, the fold is not tested, or tests no such nodule.
    """
    split = workdir / "folds.json"
    if not split.is_file():  # which `load_folds` would make
        raise UserError(f"{split}: no such file; give the workdir of a training")
    layout.check(config, workdir)
    fold = max(config.fold, 0)
    asked = ensemble.of_fold(ensemble.load(workdir), fold)
    records = layout.load_records(config)
    test = layout.places_of(records, layout.load_folds(config, records, split)[fold]["test"])
    test = test[(records[schema.CONTEXT][test] == context) | (context == "")]
    if not len(test):
        raise UserError(f"--context={context}: fold {fold} tests no such nodule; leave it out, or take another fold")
    by_size = test[np.argsort(records[schema.DIAMETER][test])]
    spread = np.unique(np.linspace(0, len(by_size) - 1, count).round().astype(int))
    chosen = {name: values[by_size[spread]] for name, values in records.items()}
    images = np.stack([np.asarray(transforms.crop(image, config.patch_size)) for image in chosen[schema.IMAGE]])
    answers, truth = ensemble.predict(asked, images), cohort.rounded_rating(chosen[schema.RATING_COUNTS])
    findings = []
    for i, share in enumerate(chosen[schema.MASK]):
        finding = make_finding(
            answers,
            i,
            config.spacing_mm,
            nodule_id=str(chosen[schema.NODULE_ID][i]),
            image=f"{chosen[schema.CONTEXT][i]}, {chosen[schema.DIAMETER][i]:.0f} mm",
            point_mm=np.zeros(3),  # a record no more knows
            hu=images[i].astype(np.int16),
            saliency=None,
            readers_mask=np.asarray(transforms.segmentation_target(transforms.crop(share, config.patch_size))) > 0,
            truth=truth[i],
        )
        findings.append(finding)
    return findings


def launch() -> None:
    """The command line; a user's mistake becomes one line."""
    config = config_flags.DEFINE_config_file("config", None, "The config file of the run.")
    workdir = flags.DEFINE_string("workdir", None, "The run.")
    out = flags.DEFINE_string("out", None, "PNG or PDF file to write.")
    count = flags.DEFINE_integer("count", 6, "How many nodules, spread evenly over the test fold by diameter.")
    context = flags.DEFINE_string("context", "", "Only nodules of this context, as cube; all by default.")

    def main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)
        try:
            if Path(out.value).suffix not in (".png", ".pdf"):
                raise UserError(f"--out={out.value}: draws .png or .pdf")
            findings = test_findings(config.value, Path(workdir.value), count.value, context.value)
            draw_nodules(findings, Path(out.value))
        except UserError as error:
            sys.exit(f"figure2: {error}")

    flags.mark_flags_as_required(["config", "workdir", "out"])
    app.run(main)


if __name__ == "__main__":
    launch()
