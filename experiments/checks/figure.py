"""The table and the figure of the checks of explanations."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.checks import deletion, randomisation, redrawn
from pnsamp_jax.files import atomic_path
from pnsamp_jax.report.evaluation_figures import BLUE, GREY

ORANGE, GREEN, VIOLET, RED = "#b35806", "#1b7837", "#6a4fa3", "#b2182b"
ORDER_STYLES = {"saliency": (BLUE, "-"), "random": (GREY, "--"), "edges": (GREEN, "-."), "mask": (ORANGE, ":")}
MEASURE_STYLES = ((BLUE, "-", "o"), (GREY, "--", "s"), (ORANGE, "-.", "^"))
ATTRIBUTE_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VIOLET, "v"), (RED, "D"), (GREY, "X"))


def spoken(result: dict) -> str:
    """Return a mean with its interval."""
    low, high = result["interval"]
    return f"{result['value']:.2f} [{low:.2f}, {high:.2f}]"


def rows(*cells: list[str]) -> str:
    """Return the lines of a Markdown table; the first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(cells[0]), *body])


def markdown(results: dict) -> str:
    """Return the tables of the results of `experiments.explanations` as Markdown."""
    folds = ", ".join(map(str, results["folds"]))
    intro = f"{results['nodules']} test nodules and {results['phantoms']} phantoms; networks of the folds {folds}."
    by_measure = results["randomisation"]
    layers = list(by_measure[randomisation.MEASURES[0]])
    randomised = [[layer, *(spoken(by_measure[m][layer]) for m in randomisation.MEASURES)] for layer in layers]
    deleted = [
        [order]
        + [spoken(results["deletion"][curve][order]["change"]) for curve in deletion.CURVES]
        + [
            "-" if order == "saliency" else spoken(results["deletion"][curve][order]["saliency_ahead"])
            for curve in deletion.CURVES
        ]
        for order in deletion.ORDERS
    ]

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f} %"

    def correlation(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    changed = []
    for name, (present, absent) in redrawn.EVIDENCE.items():
        found = results["redrawn"][name]
        means = [spoken(found[what]) for what in ("rating", "malignancy", "contribution")]
        agreeing = [f"{share(found['same_sign'])} of {found['visible']}", correlation(found["rank_correlation"])]
        title = f"{name.replace('_', ' ')}, {present} for {absent}"
        changed.append([title, *means, *agreeing, share(found["changes_most"])])
    found = results["redrawn"]["all"]
    agreeing = [f"{share(found['same_sign'])} of {found['visible']}", correlation(found["rank_correlation"])]
    changed.append(["all", "", "", "", *agreeing, ""])
    parts = [
        "# Checks of the explanations",
        intro + " Means with 95 % patient-clustered intervals.",
        "## Randomisation: rank correlation with the explanation of the trained network",
        rows(["randomised down to", *randomisation.MEASURES], *randomised),
        "## Deletion and insertion: mean fall and rise of the expected malignancy, in classes",
        rows(["order", *deletion.CURVES, *(f"saliency ahead, {curve}" for curve in deletion.CURVES)], *deleted),
        "## Redrawn phantoms: with the evidence of an attribute minus without it",
        rows(
            ["evidence", "its rating", "expected malignancy", "its contribution", "same sign", "rank correlation"]
            + ["its contribution changes most"],
            *changed,
        ),
        "## Ratings: does the contribution of an attribute follow its rating?",
        rows(
            ["attribute", "spread of its contribution, classes", "rank correlation with its rating, without sign"],
            *[
                [name.replace("_", " "), f"{found['spread']:.3f}", f"{found['rank_correlation']:.2f}"]
                for name, found in results["ratings"].items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def draw(results: dict, changes: redrawn.Redrawn, path: Path) -> None:
    """Draw the checks: the randomised layers, both curves, and the redrawn phantoms."""
    figure = Figure(figsize=(13.0, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    _randomisation_panel(figure.add_subplot(2, 2, 1), results["randomisation"])
    for panel, curve in enumerate(deletion.CURVES, start=3):
        _curve_panel(figure.add_subplot(2, 2, panel), results["deletion"][curve], curve)
    _redrawn_panel(figure.add_subplot(2, 2, 2), changes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _randomisation_panel(axes: Axes, found: dict) -> None:
    for measure, (color, line, marker) in zip(randomisation.MEASURES, MEASURE_STYLES, strict=True):
        layers = list(found[measure])
        means = np.array([found[measure][layer]["value"] for layer in layers])
        low, high = np.array([found[measure][layer]["interval"] for layer in layers]).T
        axes.plot(range(len(layers)), means, color=color, linestyle=line, marker=marker, markersize=4, label=measure)
        axes.fill_between(range(len(layers)), low, high, color=color, alpha=0.15, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    axes.set(title="Layers randomised from the output to the input", ylabel="rank correlation", ylim=(-0.5, 1.05))
    axes.legend(fontsize=8)


def _curve_panel(axes: Axes, found: dict, curve: str) -> None:
    for order, (color, line) in ORDER_STYLES.items():
        axes.plot(100 * deletion.SHARES, found[order]["curve"], color=color, linestyle=line, label=order)
    axes.axhline(0, color=GREY, linewidth=0.8)
    verb = "fall" if curve == "deletion" else "rise"
    what = "replaced by lung" if curve == "deletion" else "put into lung"
    axes.set(xscale="log", xlabel=f"voxels {what}, per cent of the patch", title=curve.capitalize())
    axes.set_ylabel(f"{verb} of the expected malignancy, classes")
    axes.legend(fontsize=8)


def _redrawn_panel(axes: Axes, changes: redrawn.Redrawn) -> None:
    for i, (name, (color, marker)) in enumerate(zip(redrawn.EVIDENCE, ATTRIBUTE_STYLES, strict=True)):
        x, y = changes.malignancy[:, i], changes.own[:, i]
        axes.scatter(x, y, s=18, color=color, marker=marker, alpha=0.7, linewidths=0, label=name.replace("_", " "))
    for line in (axes.axhline, axes.axvline):
        line(0, color=GREY, linewidth=0.8)
    axes.set(
        title="Phantoms with the evidence of an attribute minus without", xlabel="change of the malignancy, classes"
    )
    axes.set_ylabel("change of the attribute's contribution")
    axes.legend(fontsize=8)
