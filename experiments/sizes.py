"""How well the size of a nodule is known: its volume and long axis against the readers', and the intervals of both.

    python -m experiments.sizes --config pn_samp_plus --networks pnsamp_jax/weights --out runs/sizes.md \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Each nodule is measured by the networks that never saw its patient, see `experiments.held_out`, and its intervals are
those of a prediction, see `inference.extent`: they are stated to hold the size of the readers' consensus in 9 of 10
nodules. Beside the width of an interval, its upper end over its lower one, stands how far the readers are apart: the
largest volume that one of them outlined over the smallest. Images and masks are read again for that. Prints a
Markdown table for each context, and writes them to --out.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.comparison.scores import mean_estimate
from experiments.held_out import unseen
from experiments.launch import launch, path_flag, require_new
from experiments.nodule_or_not import groups
from pnsamp_jax import testing
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import require_usable
from pnsamp_jax.data.prepare import Source
from pnsamp_jax.errors import UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import ensemble, extent
from pnsamp_jax.inference.asking import extent_limits
from pnsamp_jax.run import Run

RESAMPLES = 2000


def measure(
    networks: ensemble.Networks, probability: np.ndarray, mask: np.ndarray, consensus: np.ndarray
) -> np.ndarray:
    """Measure nodules: (N, 2, 4) by `extent.MEASURES` the predicted size, its interval, and that of the consensus.

    Args:
      networks: that predicted them.
      probability: (N, S, S, S) of the masks.
      mask: (N, S, S, S) bool, the predicted ones.
      consensus: (N, S, S, S) bool, the readers'.

    Raises:
      UserError: the networks have no limits of the intervals.
    """
    limits, spacing_mm = extent_limits(networks), networks.spacing_mm
    if limits is None:
        raise UserError("the networks have no intervals; test them with this version")
    found = np.zeros((len(mask), len(extent.MEASURES), 4))
    for i in range(len(mask)):
        sizes = extent.measure(probability[i], mask[i], spacing_mm)
        true = extent.measure_marked(consensus[i], spacing_mm)
        doubt = extent.doubt(probability[i])
        for j, size in enumerate(sizes):
            found[i, j] = (size, *extent.interval(size, doubt, limits[j]), true[j])
    return found


def readers_ratio(source: Source, wanted: set[str]) -> dict[str, float]:
    """Return the largest volume that a reader outlined over the smallest, by nodule id; only where two readers did."""
    ratios = {}
    for series in source.series():
        for marked in require_usable(source.load(series), wanted):
            volumes = marked.readers.array.sum(axis=(1, 2, 3))
            volumes = volumes[volumes > 0]
            if len(volumes) > 1:
                ratios[marked.nodule.nodule_id] = float(volumes.max() / volumes.min())
    return ratios


def size_lines(nodules: dict[str, np.ndarray]) -> Iterable[str]:
    """Yield a Markdown table of how well sizes are known, by texture and size.

    Args:
      nodules: `sizes` (N, 2, 4) of `measure`, `readers` (N,) of `readers_ratio` or NaN, and `patient_id`,
        `rating_counts` and `diameter_mm` as in a table of predictions.
    """
    columns = [
        "nodules", "n", "volume held, %", "width", "readers' ratio", "predicted over true", "axis held, %", "width"
    ]  # fmt: skip
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for name, chosen in groups(nodules).items():
        sizes, patients = nodules["sizes"][chosen], nodules["patient_id"][chosen]
        found = sizes[:, 0, 0] > 0  # a prediction without a mask has no interval
        if not found.any():
            continue
        size, low, high, true = np.moveaxis(sizes[found], -1, 0)
        held = ((low <= true) & (true <= high)).astype(float)
        several = nodules["readers"][chosen]
        several = several[np.isfinite(several)]
        ratio = f"{np.median(several):.2f} (n = {len(several)})" if len(several) else "-"
        row = [
            name,
            len(held),
            mean_estimate(held[:, 0], patients[found], RESAMPLES),
            f"{np.median(high[:, 0] / low[:, 0]):.2f}",
            ratio,
            f"{np.median(size[:, 0] / true[:, 0]):.2f}",
            mean_estimate(held[:, 1], patients[found], RESAMPLES),
            f"{np.median(high[:, 1] / low[:, 1]):.2f}",
        ]
        yield "| " + " | ".join(map(str, row)) + " |"


def run(config: ConfigDict, networks: Path, out: Path) -> str:
    """Measure the nodules of a config, and write the tables; see the module's docstring.

    Returns:
      The content of `out`.

    Raises:
      UserError: see `held_out.unseen` and `measure`, or `out` exists.
    """
    require_new(out)
    settings = read_settings(config)
    records, parts = unseen(settings, networks)
    opened = Run(out.parent, settings, records, folds=[])
    sizes = np.full((len(records[schema.NODULE_ID]), len(extent.MEASURES), 4), np.nan)
    for members, nodules in parts.values():
        found = testing.predict_nodules(opened, members, nodules, flips=settings.test_flips, masks=True)
        sizes[nodules] = measure(members, found["mask_probability"], found["mask"], found["consensus"])
    ids, tested = records[schema.NODULE_ID].tolist(), np.concatenate([nodules for _, nodules in parts.values()])
    ratios = readers_ratio(settings.source, {ids[i] for i in tested})
    everything = {
        "sizes": sizes,
        "readers": np.array([ratios.get(name, np.nan) for name in ids]),
        "patient_id": records[schema.PATIENT_ID],
        "rating_counts": records[schema.RATING_COUNTS],
        "diameter_mm": records[schema.DIAMETER],
    }
    lines = []
    for context in sorted(set(records[schema.CONTEXT][tested].tolist())):
        chosen = tested[records[schema.CONTEXT][tested] == context]
        part = {name: np.asarray(values)[chosen] for name, values in everything.items()}
        patients = len(set(part["patient_id"].tolist()))
        lines += [f"## {len(chosen)} nodules of {patients} patients ({CONTEXT_NOTES[context]})", ""]
        lines += [*size_lines(part), ""]
    text = "\n".join(lines)
    write_text(out, text)
    print(text)
    return text


if __name__ == "__main__":
    launch(
        run,
        config="The config that names the nodules; of the same grid as the networks.",
        networks=path_flag("networks", "Workdir of a run, or exported weights.", required=True),
        out=path_flag("out", "Markdown file to write; must not exist.", required=True),
    )
