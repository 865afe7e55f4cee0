"""Summaries of a benchmark's turns: spreads, ratios and shares of the machine's limits; the table and the figures."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pnsamp_jax.files import atomic_path, write_text
from pnsamp_jax.report.evaluation_figures import BLUE

NOTES = """
- Median [least, most] over {rounds} rounds, in which the systems take turns, each in its own process on
  {machine[cores]} cores, on random voxels. "times ours" is the ratio within a round: above 1 this package is faster.
- Training: windows (this package only), model, loss, gradients and Adam; "augmenting" also augments the patches, as
  training does. One patch: from the host and back, by one network, without flips; p50 and p99 over all calls.
- Peak: memory of the GPU for JAX and PyTorch on a GPU, otherwise of the process with its libraries. The machine
  reaches {rates[flops]:.3g} FLOP/s in a matrix product and {rates[bytes]:.3g} B/s in a copy; the shares of training in
  these rest on {flops[train_step]:.4g} FLOP for each patch, counted by hand, and on the bytes that XLA counts.
- The archive's annotations are read in {preparation[read_s]:.1f} s, clustered in {preparation[cluster_s]:.1f} s and
  rasterised in {preparation[rasterise_s]:.1f} s.
"""
LABELS = {"batch": "patches in a batch", "patch": "voxels on a side of the patch", "devices": "devices"}
DICOM = (
    "- {nodules} nodules from DICOM to patches in {series_s:.1f} s, after all files were indexed in {index_s:.1f} s.\n"
)
PREDICTION = "- Predict, from its start to its table: {cold_s:.1f} s; with compiled programs {warm_s:.1f} s.\n"


def spread(values: list[float] | np.ndarray) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def per_call(turns: list[dict], part: str) -> np.ndarray:
    """Return the seconds of the median call of a part in each round."""
    return np.array([np.median(turn["seconds"][part]) for turn in turns])


def steps(turns: list[dict], batch: int) -> dict[str, Any]:
    """Return the spreads over the rounds of a system.

    Args:
      turns: of the system, from `worker.measure`.
      batch: patches in a batch.

    Returns:
      `peak_bytes`, and for each part `ms_per_patch`, `patches_per_second` and `compile_s`.
    """
    results: dict[str, Any] = {"peak_bytes": spread([turn["peak_bytes"] for turn in turns])}
    for part in turns[0]["seconds"]:
        rate = (1 if part == "latency" else batch) / per_call(turns, part)
        results[part] = {
            "ms_per_patch": spread(1e3 / rate),
            "patches_per_second": spread(rate),
            "compile_s": spread([turn["compile_s"][part] for turn in turns]),
        }
    return results


def summarise(runs: dict[str, list[dict]], batch: int) -> dict:
    """Summarise the turns of all systems.

    Args:
      runs: turns by system; the first system is `machine`.
      batch: patches in a batch.

    Returns:
      The `rates` that the machine reaches; the `flops` of a patch, counted by hand; and `systems`: for each its
      description and `steps`, with `ratio` (its time divided by ours in the same round), the percentiles of the
      latency, and the shares in the rates.
    """
    machine, rates, systems = runs["machine"], {}, {}
    for unit, part in (("flops", "matmul"), ("bytes", "copy")):
        rates[unit] = float(machine[0]["costs"][part][unit] / np.median(per_call(machine, part)))
    flops = {part: cost["flops"] / batch for part, cost in runs["jax"][0]["costs"].items()}
    for name, turns in list(runs.items())[1:]:
        results = systems[name] = turns[0]["about"] | steps(turns, batch)
        for part in turns[0]["seconds"]:
            results[part]["ratio"] = spread(per_call(turns, part) / per_call(runs["jax"], part))
        calls = 1e3 * np.concatenate([turn["seconds"]["latency"] for turn in turns])
        results["latency"] |= {f"p{percent}_ms": float(np.percentile(calls, percent)) for percent in (50, 99)}
        for part, count in [(part, count) for part, count in flops.items() if part in results]:
            rate, costs = results[part]["patches_per_second"]["median"], turns[0]["costs"].get(part, {})
            results[part]["of_matmul"] = rate * count / rates["flops"]
            if "xla_bytes" in costs:
                results[part]["of_copy"] = rate * costs["xla_bytes"] / batch / rates["bytes"]
                results[part] |= {unit: costs[unit] / batch for unit in ("xla_flops", "xla_bytes")}
    return {"rates": rates, "flops": flops, "systems": systems}


def row(results: dict) -> dict[str, str]:
    """Return a system's row of the table; "-" for what it does not do."""
    step, cells = results.get("train_step"), {"system": f"{results['name']} {results['version']}"}
    for part, title in (("train_step", "training"), ("forward", "forward")):
        for metric, label in (("ms_per_patch", "ms a patch"), ("ratio", "times ours")):
            values = results.get(part, {}).get(metric)
            cells[f"{title}, {label}"] = "{median:.2f} [{min:.2f}, {max:.2f}]".format(**values) if values else "-"
    return cells | {
        "one patch, p50 and p99 ms": "{p50_ms:.2f}, {p99_ms:.2f}".format(**results["latency"]),
        "compile, s": f"{(step or results['forward'])['compile_s']['median']:.1f}",
        "peak, GB": f"{results['peak_bytes']['median'] / 1e9:.2f}",
        "of matmul, %": f"{100 * step['of_matmul']:.1f}" if step else "-",
        "of copy, %": f"{100 * step['of_copy']:.1f}" if step and "of_copy" in step else "-",
    }


def write_markdown(content: dict, path: Path) -> str:
    """Write the table of benchmark.json with its notes, and return the text."""
    rows = [row(results) for results in content["systems"].values()]
    lines = [list(rows[0]), ["-"] * len(rows[0]), *(list(cells.values()) for cells in rows)]
    text = "# PN-SAMP, batch {batch_size}, {patch_size} voxels, {model[dtype]}\n\n".format(**content["config"])
    text += f"{content['machine']['system']}; {content['systems']['jax']['device']}\n\n"
    text += "".join(f"| {' | '.join(line)} |\n" for line in lines) + NOTES.format(**content)
    text += DICOM.format(**content["preparation"]) if "nodules" in content["preparation"] else ""
    text += PREDICTION.format(**content["prediction"]) if "prediction" in content else ""
    text += "".join(f"- {name} failed: {reason}\n" for name, reason in content["failures"].items())
    write_text(path, text)
    return text


def draw_sweep(name: str, rows: dict[str, dict], path: Path) -> None:
    """Draw patches per second and peak memory against the size, from the `steps` of each size, to a PNG file."""
    figure, sizes = Figure(figsize=(9, 3), layout="constrained"), [int(size) for size in rows]
    FigureCanvasAgg(figure)
    panels = {
        "training, patches a second": (1, [results["train_step"]["patches_per_second"] for results in rows.values()]),
        "forward, patches a second": (1, [results["forward"]["patches_per_second"] for results in rows.values()]),
        "peak memory, GB": (1e9, [results["peak_bytes"] for results in rows.values()]),
    }
    for axes, (label, (unit, spreads)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        low, middle, high = (np.array([values[key] for values in spreads]) / unit for key in ("min", "median", "max"))
        axes.errorbar(sizes, middle, (middle - low, high - middle), fmt="o-", color=BLUE, capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, sizes, minor=False)
        axes.set(xlabel=LABELS[name], ylabel=label, ylim=(0, 1.1 * high.max()))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
