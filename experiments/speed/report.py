"""What a benchmark's turns come to: spreads, ratios, shares of what the machine can do; the table and the pictures."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pnsamp_jax.files import atomic_path
from pnsamp_jax.report.figures import BLUE

NOTES = """
- Median [least, most] over {rounds} rounds, in which the systems take turns, each in a process of its own on
  {machine[cores]} cores, on random voxels. "times ours" is taken within a round: above 1 this package is faster.
- Training: windows (this package only), model, loss, gradients and Adam; "augmenting" also moves the patches, as
  training does. One patch: from the host and back, by one network, without flips; p50 and p99 over all calls.
- Peak: of a GPU where JAX or PyTorch has one, else of the process with its libraries. The machine reaches
  {rates[flops]:.3g} FLOP/s in a matrix product and {rates[bytes]:.3g} B/s in a copy; training's shares in these are of
  {flops[train_step]:.4g} FLOP a patch, counted by hand, and of the bytes that XLA counts.
- The archive's annotations are read in {preparation[read_s]:.1f} s, clustered in {preparation[cluster_s]:.1f} s and
  rasterised in {preparation[rasterise_s]:.1f} s.
"""
LABELS = {"batch": "patches in a batch", "patch": "voxels on a side of the patch", "devices": "devices"}
DICOM = (
    "- {nodules} nodules from DICOM to patches in {series_s:.1f} s, after all files were indexed in {index_s:.1f} s.\n"
)
PREDICTION = "- Predict, from its start to its table: {cold_s:.1f} s; with compiled programs at hand {warm_s:.1f} s.\n"


def spread(values: list[float] | np.ndarray) -> dict[str, float]:
    """Median, least and most."""
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def per_call(turns: list[dict], part: str) -> np.ndarray:
    """Seconds of the median call of a part in each round."""
    return np.array([np.median(turn["seconds"][part]) for turn in turns])


def steps(turns: list[dict], batch: int) -> dict:
    """`peak_bytes`, and of each part `ms_per_patch`, `patches_per_second` and `compile_s`; spreads over the rounds."""
    found = {"peak_bytes": spread([turn["peak_bytes"] for turn in turns])}
    for part in turns[0]["seconds"]:
        rate = (1 if part == "latency" else batch) / per_call(turns, part)
        found[part] = {"ms_per_patch": spread(1e3 / rate), "patches_per_second": spread(rate)}
        found[part]["compile_s"] = spread([turn["compile_s"][part] for turn in turns])
    return found


def figures(runs: dict[str, list[dict]], batch: int) -> dict:
    """What the turns of all systems, the first of them `machine`, come to: the `rates` that the machine reaches, the
    `flops` of a patch by hand, and `systems`: what is known about each and its `steps`, with `ratio` (of its time to
    ours in the same round), the latency's percentiles, and shares in the rates. `batch` is of a step."""
    machine, rates, systems = runs["machine"], {}, {}
    for unit, part in (("flops", "matmul"), ("bytes", "copy")):
        rates[unit] = float(machine[0]["costs"][part][unit] / np.median(per_call(machine, part)))
    flops = {part: cost["flops"] / batch for part, cost in runs["jax"][0]["costs"].items()}
    for name, turns in list(runs.items())[1:]:
        found = systems[name] = turns[0]["about"] | steps(turns, batch)
        for part in turns[0]["seconds"]:
            found[part]["ratio"] = spread(per_call(turns, part) / per_call(runs["jax"], part))
        calls = 1e3 * np.concatenate([turn["seconds"]["latency"] for turn in turns])
        found["latency"] |= {f"p{percent}_ms": float(np.percentile(calls, percent)) for percent in (50, 99)}
        for part, count in flops.items():
            rate, costs = found[part]["patches_per_second"]["median"], turns[0]["costs"].get(part, {})
            found[part]["of_matmul"] = rate * count / rates["flops"]
            if "xla_bytes" in costs:
                found[part]["of_copy"] = rate * costs["xla_bytes"] / batch / rates["bytes"]
                found[part] |= {unit: costs[unit] / batch for unit in ("xla_flops", "xla_bytes")}
    return {"rates": rates, "flops": flops, "systems": systems}


def row(found: dict) -> dict[str, str]:
    """A system's row of the table."""
    step, cells = found["train_step"], {"system": f"{found['name']} {found['version']}"}
    for part, title in (("train_step", "training"), ("forward", "forward")):
        for figure, label in (("ms_per_patch", "ms a patch"), ("ratio", "times ours")):
            cells[f"{title}, {label}"] = "{median:.2f} [{min:.2f}, {max:.2f}]".format(**found[part][figure])
    return cells | {
        "one patch, p50 and p99 ms": "{p50_ms:.2f}, {p99_ms:.2f}".format(**found["latency"]),
        "compile, s": f"{step['compile_s']['median']:.1f}",
        "peak, GB": f"{found['peak_bytes']['median'] / 1e9:.2f}",
        "of matmul, %": f"{100 * step['of_matmul']:.1f}",
        "of copy, %": f"{100 * step['of_copy']:.1f}" if "of_copy" in step else "-",
    }


def write_markdown(results: dict, path: Path) -> str:
    """Writes the table and its notes, of the content of benchmark.json, and gives the text."""
    rows = [row(found) for found in results["systems"].values()]
    lines = [list(rows[0]), ["-"] * len(rows[0]), *(list(one.values()) for one in rows)]
    text = "# PN-SAMP, batch {batch_size}, {patch_size} voxels, {model[dtype]}\n\n".format(**results["config"])
    text += f"{results['machine']['system']}; {results['systems']['jax']['device']}\n\n"
    text += "".join(f"| {' | '.join(line)} |\n" for line in lines) + NOTES.format(**results)
    text += DICOM.format(**results["preparation"]) if "nodules" in results["preparation"] else ""
    text += PREDICTION.format(**results["prediction"]) if "prediction" in results else ""
    text += "".join(f"- {name} failed: {reason}\n" for name, reason in results["failures"].items())
    with atomic_path(path) as temporary:
        temporary.write_text(text)
    return text


def draw_sweep(name: str, rows: dict[str, dict], path: Path) -> None:
    """Draws patches a second and peak memory against the size, of the `steps` of each size, as a PNG file."""
    picture, sizes = Figure(figsize=(9, 3), layout="constrained"), [int(size) for size in rows]
    FigureCanvasAgg(picture)
    panels = {
        "training, patches a second": (1, [found["train_step"]["patches_per_second"] for found in rows.values()]),
        "forward, patches a second": (1, [found["forward"]["patches_per_second"] for found in rows.values()]),
        "peak memory, GB": (1e9, [found["peak_bytes"] for found in rows.values()]),
    }
    for axes, (label, (unit, spreads)) in zip(picture.subplots(1, 3), panels.items(), strict=True):
        low, middle, high = (np.array([one[key] for one in spreads]) / unit for key in ("min", "median", "max"))
        axes.errorbar(sizes, middle, (middle - low, high - middle), fmt="o-", color=BLUE, capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, sizes, minor=False)
        axes.set(xlabel=LABELS[name], ylabel=label, ylim=(0, 1.1 * high.max()))
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120)
