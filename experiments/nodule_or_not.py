"""How well the networks of a run tell nodules from points at which there is none (`nodule_like`).

    python -m experiments.nodule_or_not --config pn_samp_plus --workdir runs/plus \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Each fold's network is asked about its test nodules (whose scores are in predictions.csv) and about the points beside
them (`data.background`), neither of which it was fitted to. For each context, prints the tables as Markdown and writes
them to nodule_or_not.md in the workdir:

- the AUC of nodules against points, of each fold and of all;
- the share of nodules that are lost, which do not look like nodules to their network, by texture and size;
- the share of points that are told apart so, and what the others would have got: a mask, one of more than 20 mm3, a
  suspicion above one half.

`experiments.random_points` asks the same about points in whole scans.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.comparison.runs import select
from experiments.comparison.scores import Estimate, mean_estimate
from experiments.launch import launch
from pnsamp_jax import intervals, metrics, testing
from pnsamp_jax.config import read_settings
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import ensemble, likeness
from pnsamp_jax.inference.masks import THRESHOLD, central_component
from pnsamp_jax.run import Run, open_run
from pnsamp_jax.workdir.tables import Table, read_tables

LARGE_MM3 = 20.0  # a mask that looks like an answer
GLASS, SOLID = 2.5, 3.5  # mean texture up to which a nodule is ground glass, and from which on it is solid
SIZES_MM = (6.0, 10.0)  # between small, medium and large nodules; of the ball with the consensus' volume
RESAMPLES = 2000


class Points(NamedTuple):
    """What networks answer at N points at which there is no nodule.

    Attributes:
      patients: (N,) ids.
      bright: (N,) bool: moved to the brightest voxel near by, see `data.background`.
      nodule_like: (N,).
      volume_mm3: (N,) of the mask.
      suspicion: (N,).
      context: (N,), see `schema.CONTEXT`.
      fold: (N,) of the network; -1 for several.
    """

    patients: np.ndarray
    bright: np.ndarray
    nodule_like: np.ndarray
    volume_mm3: np.ndarray
    suspicion: np.ndarray
    context: np.ndarray
    fold: np.ndarray

    def chosen(self, which: np.ndarray) -> "Points":
        """Return some of the points, by (N,) bool."""
        return Points(*(values[which] for values in self))


def ask_points(run: Run, networks: ensemble.Networks, fold: int) -> Points:
    """Ask a fold's network about the points beside its test nodules.

    Args:
      run: with a background.
      networks: of the run, see `ensemble.load`.
      fold: its number.

    Raises:
      UserError: the network has no head that tells nodules from points.
    """
    assert run.background is not None
    member, points = networks.member(fold), run.beside(fold, "test")
    if any(one.likeness is None for one in member.members.values()):
        raise UserError(
            f"{run.fold_folder(fold)}: its calibration.json has no likeness; run --mode evaluate with "
            f"--config.data.background={run.settings.background} on this workdir"
        )
    columns: list[list[np.ndarray]] = [[], [], []]
    for _, predictions, count in testing.ask_background(run, member, points, run.settings.test_flips):
        assert predictions.mask is not None
        volumes = [central_component(one > THRESHOLD).sum() * member.spacing_mm**3 for one in predictions.mask]
        suspicion = metrics.malignant_probability(predictions.mean_probabilities[:, schema.MALIGNANCY])
        scores = member.nodule_like(predictions)
        assert scores is not None
        for column, values in zip(columns, (scores, volumes, suspicion), strict=True):
            column.append(np.asarray(values)[:count])
    ids = run.background[schema.NODULE_ID][points].tolist()
    scores, volumes_mm3, suspicions = (np.concatenate(column) if column else np.zeros(0) for column in columns)
    return Points(
        patients=run.background[schema.PATIENT_ID][points],
        bright=np.array([int(name.rpartition("_beside")[2]) % 2 == 1 for name in ids], bool),
        nodule_like=scores,
        volume_mm3=volumes_mm3,
        suspicion=suspicions,
        context=run.background[schema.CONTEXT][points],
        fold=np.full(len(points), fold),
    )


def auc_lines(table: Table, points: Points) -> Iterable[str]:
    """Yield a Markdown table of the AUC of nodules against points, by fold and of all."""
    yield "| fold | nodules | points | AUC |"
    yield "|---|---|---|---|"
    for fold in (*np.unique(table["fold"]).astype(int).tolist(), None):
        here = select(table, np.ones(len(table["fold"]), bool) if fold is None else table["fold"] == fold)
        there = points if fold is None else points.chosen(points.fold == fold)
        scores = np.concatenate([here[schema.NODULE_LIKE], there.nodule_like])
        nodule = np.arange(len(scores)) < len(here[schema.NODULE_LIKE])
        patients = np.concatenate([here["patient_id"], there.patients])
        interval = intervals.cluster_bootstrap(partial(metrics.auc, scores, nodule), patients, RESAMPLES)
        estimate = Estimate(metrics.auc(scores, nodule), interval)
        yield f"| {'all' if fold is None else fold} | {nodule.sum()} | {(~nodule).sum()} | {estimate} |"


def groups(table: Table) -> dict[str, np.ndarray]:
    """Return the groups of nodules in which losses are counted."""
    texture = cohort.mean_rating(table["rating_counts"][:, schema.TEXTURE])
    size, (small, large) = table["diameter_mm"], SIZES_MM
    return {
        "all": np.ones(len(size), bool),
        f"texture up to {GLASS:g} (ground glass)": texture <= GLASS,
        "texture between": (texture > GLASS) & (texture < SOLID),
        f"texture from {SOLID:g} (solid)": texture >= SOLID,
        f"below {small:g} mm": size < small,
        f"{small:g} to {large:g} mm": (size >= small) & (size < large),
        f"{large:g} mm or more": size >= large,
    }


def lost_lines(table: Table) -> Iterable[str]:
    """Yield a Markdown table of the share of nodules that do not look like nodules to their network."""
    yield "| nodules | n | lost, % | lowest tenth of nodule_like |"
    yield "|---|---|---|---|"
    for name, chosen in groups(table).items():
        scores = table[schema.NODULE_LIKE][chosen]
        if not len(scores):
            continue
        lost = mean_estimate((scores < likeness.LEAST).astype(float), table["patient_id"][chosen], RESAMPLES)
        yield f"| {name} | {len(scores)} | {lost} | {np.quantile(scores, 0.1):.2f} |"


def point_lines(points: Points) -> Iterable[str]:
    """Yield a Markdown table of what the networks say at points without a nodule."""
    told = points.nodule_like < likeness.LEAST
    shares = {
        "do not look like a nodule": told,
        "get a mask": points.volume_mm3 > 0,
        f"get a mask of more than {LARGE_MM3:g} mm3": points.volume_mm3 > LARGE_MM3,
        "get such a mask and look like a nodule": (points.volume_mm3 > LARGE_MM3) & ~told,
        "get a mask and a suspicion above 50 %": (points.volume_mm3 > 0) & (points.suspicion > 0.5),
        "get both and look like a nodule": (points.volume_mm3 > 0) & (points.suspicion > 0.5) & ~told,
    }
    kinds = {"all": np.ones(len(told), bool), "drawn uniformly": ~points.bright, "brightest near by": points.bright}
    yield "| share of points, % | " + " | ".join(f"{name}, n = {kind.sum()}" for name, kind in kinds.items()) + " |"
    yield "|---" * (1 + len(kinds)) + "|"
    for name, share in shares.items():
        cells = [mean_estimate(share[kind].astype(float), points.patients[kind], RESAMPLES) for kind in kinds.values()]
        yield f"| {name} | " + " | ".join(map(str, cells)) + " |"


def run(config: ConfigDict, workdir: Path) -> str:
    """Write nodule_or_not.md of a run, whose folds are tested with a background; see the module's docstring.

    Returns:
      The content of nodule_or_not.md.

    Raises:
      UserError: the config asks for no background, or a fold was tested without.
    """
    if not read_settings(config).background:
        raise UserError("config.data.background: is 0; give the number of points beside each nodule, such as 2")
    opened, networks = open_run(config, workdir), ensemble.load(workdir)
    table = read_tables(workdir)
    asked = [ask_points(opened, networks, fold) for fold in np.unique(table["fold"]).astype(int).tolist()]
    points = Points(*(np.concatenate(values) for values in zip(*asked, strict=True)))
    lines = []
    for context in sorted(set(table["context"])):
        own, beside = select(table, table["context"] == context), points.chosen(points.context == context)
        lines += [f"## {len(own['fold'])} nodules and {len(beside.fold)} points ({CONTEXT_NOTES[context]})", ""]
        for part in (auc_lines(own, beside), lost_lines(own), point_lines(beside)):
            lines += [*part, ""]
    text = "\n".join(lines)
    write_text(workdir / "nodule_or_not.md", text)
    print(text)
    return text


if __name__ == "__main__":
    launch(run, config="The config of the run, with data.background.", workdir="Workdir of the run.")
