"""The printed table of an evaluation: per cent, with 95 % patient-clustered intervals in brackets."""

import numpy as np

from pnsamp_jax.outlines import TOLERANCE_MM

HEADING = ["", "off-by-one, arg max", "off-by-one, best within one", "best constant", "one reader", "paper"]
NOMINAL_HEADING = ["", "exact, arg max", "", "best constant", "one reader", ""]
# The rows of the means, by their key in the results: their name, and the key of the paper's value.
MEANS = {
    "mean_of_ordinal": ("mean of the seven ordinal", ""),
    "mean_of_nine": ("mean of nine, as in the paper", "mean"),
}


def format_table(results: dict, note: str, paper: dict) -> str:
    """Format the results of one context.

    Args:
      results: of `evaluate.context_results`.
      note: the kind of voxels, written above the table.
      paper: the paper's results for the same variant, in per cent.
    """
    ratings = results["ratings"]
    nominal = [name for name, values in ratings.items() if values["accuracy"] == "exact"]
    rows = [HEADING, *(_row(name, ratings[name], paper.get(name)) for name in ratings if name not in nominal)]
    first_mean = len(rows)
    rows += [_row(name, results[key], paper.get(published)) for key, (name, published) in MEANS.items()]
    first_nominal = len(rows)
    if nominal:
        rows += [NOMINAL_HEADING, *(_row(name, ratings[name], None) for name in nominal)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADING))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * len(lines[0])
    for at in sorted({1, first_mean, first_nominal} & set(range(len(rows))), reverse=True):
        lines.insert(at, rule)
    folds = results["over_folds"]["folds"]
    title = f"{results['n']} nodules of {results['patients']} patients, {folds} fold{'s' * (folds > 1)} ({note})"
    return "\n".join(
        [title, *lines, *_outline_lines(results, paper), *_malignancy_lines(results), *_fold_lines(results)]
    )


def format_diagnosis(results: dict) -> str:
    """Format the AUC against the diagnosis, see `diagnosed.auc_results`."""
    nodules = ", ".join(f"{count} {context}" for context, count in results["nodules"].items()) or "none"
    known = f"{results['patients']} of {results['of_patients']} patients have a known diagnosis"
    lines = [f"{known}; each counts by the highest nodule (nodules: {nodules})"]
    for contrast, found in results["against_benign"].items():
        counted = f"n = {found['n']} of which {found['positive']} {contrast}"
        both = f"network {_percent(found['network'])}, readers' mean rating {_percent(found['readers'])}"
        lines.append(f"AUC of {contrast} against benign: {both}, {counted}")
    return "\n".join(lines)


def _row(name: str, values: dict, published: float | None) -> list[str]:
    constant = _percent(values["best_constant"])
    if "class" in values["best_constant"]:
        constant += f" ({values['best_constant']['class']})"
    reader = f"{_percent(values['one_reader'])} (n = {values['one_reader']['n']})"
    name, paper = name.replace("_", " "), f"{published:.2f}" if published else "-"
    if values.get("accuracy") == "exact":
        return [name, _percent(values.get("arg_max", {}).get("exact")), "", constant, reader, ""]
    cells = [_percent(values.get(decoding, {}).get("off_by_one")) for decoding in ("arg_max", "within_one")]
    return [name, *cells, constant, reader, paper]


def _outline_lines(results: dict, paper: dict) -> list[str]:
    """Return the lines about the mask. The model's Dice and a reader's stand on the same nodules in the second one."""
    dice, three, reader = (results[name] for name in ("dice", "dice_three_readers", "reader_dice"))
    if np.isnan(dice["value"]):
        return []
    lines = [f"Dice {_percent(dice)}, n = {dice['n']}; paper {paper.get('dice', '-')}"]
    if reader["n"]:
        lines.append(
            f"Dice on the nodules with at least three readers {_percent(three)}, n = {three['n']}; there one reader "
            f"against the others' consensus {_percent(reader)}, n = {reader['n']}"
        )
    distance, surface = results["hd95_mm"], results["nsd"]
    if not np.isnan(distance["value"]):
        near = f"{_percent(surface)} % of them within {TOLERANCE_MM:g} mm (NSD)"
        lines.append(f"Surfaces: 95 % within {_format(distance)} mm (HD95), {near}")
    return lines


def _malignancy_lines(results: dict) -> list[str]:
    if "malignancy" not in results:
        return []
    auc, error = results["malignancy"]["auc"], results["malignancy"]["calibration_error"]
    counted = f"n = {auc['n']} of which {auc['malignant']} suspicious"
    return [f"Malignancy AUC {_percent(auc)}, {counted}; calibration error {_percent(error)}"]


def _fold_lines(results: dict) -> list[str]:
    found = {name: value for name, value in results["over_folds"].items() if name != "folds"}
    return [
        f"Over folds, {name.replace('_', ' ')}: {100 * value['mean']:.2f} ({100 * value['sem']:.2f})"
        for name, value in found.items()
        if not np.isnan(value["sem"])
    ]


def _percent(result: dict | None) -> str:
    return _format(result, 100)


def _format(result: dict | None, factor: float = 1) -> str:
    """Format a value with its interval, times a factor; "-" if it is not defined."""
    if result is None or np.isnan(result["value"]):
        return "-"
    text = f"{factor * result['value']:.1f}"
    if "interval" in result and not np.isnan(result["interval"][0]):
        text += " [{:.1f}, {:.1f}]".format(*(factor * bound for bound in result["interval"]))
    return text
