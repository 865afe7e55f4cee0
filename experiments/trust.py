"""How far the answers of a run can be trusted: coverage of its sets of classes, and what `unsure` nodules have.

    python -m experiments.trust --workdir runs/plus --forest runs/radiomics

The sets are those of `inference.conformal`, with the limits that were fitted on each fold's validation nodules
(fold_<k>/calibration.json), on the test nodules of the run. A forest's folder has no such limits; its sets use those
of the other folds' test nodules, whose patients are others. A run's tables hold the mean over flips, to which the
temperatures are applied here, where a prediction applies them to each flip. For each context, prints the tables as
Markdown and writes them to trust.md in the workdir:

- the share of nodules whose set holds the readers' class, by malignancy and size, and the mean number of classes in a
  set, beside the number of classes between the lowest and the highest that a nodule's own readers gave;
- the accuracy of malignancy on the nodules that are left when the least sure ones are put aside, and the area under
  this curve, by what decides who is sure;
- how well that finds the nodules on which the readers disagree.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from experiments.comparison.runs import select
from experiments.comparison.scores import Estimate, mean_estimate
from experiments.launch import launch, path_flag
from experiments.reliability import scaled
from pnsamp_jax import intervals, metrics
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import write_text
from pnsamp_jax.inference import calibration, conformal
from pnsamp_jax.workdir.tables import Table, read_tables

SMALL_MM = 8.0  # diameter of the ball with the volume of the readers' consensus, about the median
DISAGREE = 2  # classes between the readers' lowest and highest malignancy from which on they disagree
RESAMPLES = 2000
KEPT = (1.0, 0.9, 0.8, 0.7, 0.5)  # shares of the nodules, the surest ones


def sets_of_run(table: Table, workdir: Path) -> np.ndarray:
    """Return the sets of the classes of a run's test nodules, (2, N, 9, 6) bool.

    Raises:
      UserError: a fold has no limits.
    """
    sets = np.zeros((len(conformal.COVERAGES), *table["probabilities"].shape), bool)
    for fold in np.unique(table["fold"]).astype(int):
        path = workdir / f"fold_{fold}" / "calibration.json"
        limits = calibration.read(path).class_limits
        if limits is None:
            raise UserError(f"{path}: has no limits; run --mode evaluate on this workdir, which fits them")
        chosen = table["fold"] == fold
        sets[:, chosen] = conformal.class_sets(table["probabilities"][chosen], limits)
    return sets


def sets_across_folds(table: Table) -> np.ndarray:
    """Return sets like `sets_of_run`, with limits fitted to the test nodules of the other folds."""
    sets = np.zeros((len(conformal.COVERAGES), *table["probabilities"].shape), bool)
    for fold in np.unique(table["fold"]):
        own, others = table["fold"] == fold, table["fold"] != fold
        limits = conformal.fit_limits(
            table["probabilities"][others], table["truth"][others], table["patient_id"][others]
        )
        sets[:, own] = conformal.class_sets(table["probabilities"][own], limits)
    return sets


def holds(sets: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return whether sets (N, K) hold the true class (N,): (N,) 0, 1, or NaN where it is not known."""
    inside = np.take_along_axis(sets, np.maximum(truth, 1)[:, None] - 1, axis=1)[:, 0]
    return np.where(truth > 0, inside, np.nan)


def readers_classes(table: Table) -> np.ndarray:
    """Return the number of classes from the readers' lowest to their highest malignancy, (N,); NaN below 2 readers."""
    given = table["rating_counts"][:, schema.MALIGNANCY] > 0
    lowest, highest = given.argmax(axis=1), given.shape[1] - 1 - given[:, ::-1].argmax(axis=1)
    several = table["rating_counts"][:, schema.MALIGNANCY].sum(axis=1) >= 2
    return np.where(several, highest - lowest + 1.0, np.nan)


def groups(table: Table) -> dict[str, np.ndarray]:
    """Return the groups of nodules that coverage is measured in."""
    truth, size = table["truth"][:, schema.MALIGNANCY], table["diameter_mm"]
    return {
        "all": truth > 0,
        "rated 1 or 2": np.isin(truth, (1, 2)),
        "rated 3": truth == 3,
        "rated 4 or 5": np.isin(truth, (4, 5)),
        f"below {SMALL_MM:g} mm": (truth > 0) & (size < SMALL_MM),
        f"{SMALL_MM:g} mm or more": (truth > 0) & (size >= SMALL_MM),
    }


def coverage_lines(systems: dict[str, tuple[Table, np.ndarray]]) -> Iterable[str]:
    """Yield a Markdown table of the coverage of malignancy and of the mean size of the sets."""
    table = next(iter(systems.values()))[0]
    yield (
        "| malignancy | "
        + " | ".join(f"{name}, {_percent(c)}" for name in systems for c in conformal.COVERAGES)
        + " |"
    )
    yield "|---" * (1 + len(systems) * len(conformal.COVERAGES)) + "|"
    for group, chosen in groups(table).items():
        cells = [
            mean_estimate(
                holds(level[chosen, schema.MALIGNANCY], own["truth"][chosen, schema.MALIGNANCY]),
                own["patient_id"][chosen],
                RESAMPLES,
            )
            for own, sets in systems.values()
            for level in sets
        ]
        yield f"| {group}, n = {chosen.sum()} | " + " | ".join(map(str, cells)) + " |"
    rated = groups(table)["all"]
    sizes = [level[rated, schema.MALIGNANCY].sum(axis=1).mean() for _, sets in systems.values() for level in sets]
    yield "| classes in a set | " + " | ".join(f"{size:.2f}" for size in sizes) + " |"
    spread = readers_classes(table)
    yield (
        f"\nClasses from the lowest to the highest that a nodule's own readers gave: {np.nanmean(spread):.2f} "
        f"(n = {np.isfinite(spread).sum()} with two readers or more).\n"
    )


def rating_lines(table: Table, sets: np.ndarray) -> Iterable[str]:
    """Yield a Markdown table of the coverage of all ratings."""
    yield "| rating | " + " | ".join(f"{_percent(c)} | classes" for c in conformal.COVERAGES) + " |"
    yield "|---" * (1 + 2 * len(conformal.COVERAGES)) + "|"
    for index, name in enumerate(schema.RATING_NAMES):
        cells = []
        for level in sets:
            inside = holds(level[:, index], table["truth"][:, index])
            known = np.isfinite(inside)
            cells += [str(mean_estimate(inside, table["patient_id"], RESAMPLES))]
            cells += [f"{level[known, index].sum(axis=1).mean():.2f}"]
        yield f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |"


def doubts(table: Table, sets: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores (N,) that are higher where malignancy is less sure, by what they come from."""
    p = table["probabilities"][:, schema.MALIGNANCY, :5]
    before = conformal.mass_before(p)
    classes = np.arange(1, 6)
    mean = p @ classes
    return {
        "unsure, then by the mass before 2 and 4": _spans(sets) - np.maximum(before[:, 1], before[:, 3]),
        "entropy": -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1),
        "variance of the class": p @ classes**2 - mean**2,
        "suspicion near one half": -np.abs(metrics.malignant_probability(p) - 0.5),
        "at random": np.random.default_rng(0).random(len(p)),
    }


def selective_lines(table: Table, sets: np.ndarray) -> Iterable[str]:
    """Yield a Markdown table of the accuracy of the surest nodules.

    Malignancy is right where the likeliest side, 1 or 2 against 4 or 5, is that of the readers; nodules rated 3 are
    left out.
    """
    suspected = metrics.suspected(table["truth"][:, schema.MALIGNANCY])
    chosen = ~np.isnan(suspected)
    p = table["probabilities"][chosen, schema.MALIGNANCY]
    right = ((metrics.malignant_probability(p) > 0.5) == (suspected[chosen] == 1)).astype(float)
    patients = table["patient_id"][chosen]
    yield "| least sure by | " + " | ".join(f"{100 * share:.0f} % kept" for share in KEPT) + " | area |"
    yield "|---" * (2 + len(KEPT)) + "|"
    for name, doubt in doubts(table, sets).items():
        order = np.argsort(doubt[chosen], kind="stable")
        curve = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
        cells = [f"{100 * curve[max(0, round(share * len(curve)) - 1)]:.1f}" for share in KEPT]
        area = Estimate(float(curve.mean()), intervals.cluster_bootstrap(_area(doubt[chosen], right), patients, 500))
        yield f"| {name} | " + " | ".join(cells) + f" | {area} |"


def _area(doubt: np.ndarray, right: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the area under the curve of accuracy against the share kept, as a function of the nodules' weights."""
    order = np.argsort(doubt, kind="stable")

    def area(weights: np.ndarray) -> float:
        weight = weights[order]
        kept = np.cumsum(weight)
        return float((weight * np.cumsum(weight * right[order]) / np.maximum(kept, 1e-9)).sum() / kept[-1])

    return area


def disagreement_lines(table: Table, sets: np.ndarray) -> Iterable[str]:
    """Yield a Markdown table of how well doubt finds the nodules on which readers disagree, or that they rate 3."""
    apart, truth = readers_classes(table) - 1, table["truth"][:, schema.MALIGNANCY]
    several = np.isfinite(apart)
    questions = {
        f"readers differ by {DISAGREE} or more": (several, apart >= DISAGREE),
        "rated 3": (truth > 0, truth == 3),
    }
    yield "| AUC of | " + " | ".join(f"{name}, {p[k].sum()} of {k.sum()}" for name, (k, p) in questions.items()) + " |"
    yield "|---" * (1 + len(questions)) + "|"
    for name, doubt in doubts(table, sets).items():
        cells = []
        for known, positive in questions.values():
            score, found, patients = doubt[known], positive[known], table["patient_id"][known]
            interval = intervals.cluster_bootstrap(partial(metrics.auc, score, found), patients, 500)
            cells.append(str(Estimate(metrics.auc(score, found), interval)))
        yield f"| {name} | " + " | ".join(cells) + " |"


def unsure_line(table: Table, sets: np.ndarray) -> str:
    """Return how many nodules are unsure, and how many of those whose readers disagree are among them."""
    unsure, apart = _spans(sets), readers_classes(table) - 1
    several = np.isfinite(apart)
    found = [unsure[several & chosen].mean() for chosen in (apart >= DISAGREE, apart < DISAGREE)]
    return (
        f"{100 * unsure.mean():.1f} % of the nodules are unsure: {100 * found[0]:.1f} % of those whose readers differ "
        f"by {DISAGREE} or more, {100 * found[1]:.1f} % of the others."
    )


def _spans(sets: np.ndarray) -> np.ndarray:
    """Return whether the sets of malignancy at the lowest coverage hold both 2 and 4, (N,) bool."""
    return sets[0, :, schema.MALIGNANCY, 1] & sets[0, :, schema.MALIGNANCY, 3]


def _percent(coverage: float) -> str:
    return f"{100 * coverage:.0f} % stated"


def run(workdir: Path, forest: Path | None = None) -> str:
    """Write trust.md of a run; see the module's docstring.

    Args:
      workdir: of the run, all of whose folds are tested.
      forest: workdir of `experiments.baselines.radiomics` on the same nodules, if there is one.

    Returns:
      The content of trust.md.

    Raises:
      UserError: a table or the limits of a fold are missing.
    """
    whole = scaled(read_tables(workdir), workdir)
    sets, lines = sets_of_run(whole, workdir), []
    for context in sorted(set(whole["context"])):
        chosen = whole["context"] == context
        table, own = select(whole, chosen), sets[:, chosen]
        systems = {"network": (table, own)}
        if forest is not None:
            rated = read_tables(forest)
            systems["forest"] = _on_the_same_nodules(table, rated, sets_across_folds(rated), forest)
        patients = len(set(table["patient_id"]))
        lines += [f"## {len(own[0])} nodules of {patients} patients ({CONTEXT_NOTES[context]})", ""]
        for part in (
            coverage_lines(systems),
            rating_lines(table, own),
            [unsure_line(table, own)],
            selective_lines(table, own),
            disagreement_lines(table, own),
        ):
            lines += [*part, ""]
    text = "\n".join(lines)
    write_text(workdir / "trust.md", text)
    print(text)
    return text


def _on_the_same_nodules(table: Table, other: Table, sets: np.ndarray, folder: Path) -> tuple[Table, np.ndarray]:
    place = {nodule_id: i for i, nodule_id in enumerate(other["nodule_id"].tolist())}
    missing = [name for name in table["nodule_id"].tolist() if name not in place]
    if missing:
        raise UserError(f"{folder}: has no prediction of nodule '{missing[0]}'; use a forest of the same cohort")
    order = np.array([place[name] for name in table["nodule_id"].tolist()])
    return select(other, order), sets[:, order]


if __name__ == "__main__":
    launch(run, workdir="Workdir of the run.", forest=path_flag("forest", "Workdir of a radiomics forest."))
