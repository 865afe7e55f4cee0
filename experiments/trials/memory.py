"""The memory of a long training: it must not grow.

    python -m experiments.trials.memory --workdir runs/memory --steps=2000

Trains one fold of the small run for so many steps, and notes the process's resident memory and the bytes that live on
the device every half second. Draws both against the step to memory.png, and writes memory.json: the median of the
second and of the last quarter of the steps, and their ratio. Above 1.05 is a failure.
"""

import json
import threading
from pathlib import Path

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.trials import small_run
from pnsamp_jax import train
from pnsamp_jax.errors import UserError

EVERY_S = 0.5
MOST = 1.05  # of the earlier quarter's memory


def resident_bytes() -> int:
    """What the system counts as this process's memory (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def device_bytes() -> int:
    """The sizes of all arrays that live on devices."""
    return sum(array.nbytes for array in jax.live_arrays())


def last_step(metrics: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 before there is one."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def sample(workdir: Path, until: threading.Event) -> list[tuple[int, int, int]]:
    """(step, resident bytes, device bytes), again and again until the event is set."""
    samples = []
    while not until.wait(EVERY_S):
        samples.append((last_step(workdir / "fold_0" / "metrics.jsonl"), resident_bytes(), device_bytes()))
    return samples


def figures(samples: np.ndarray, steps: int) -> dict:
    """The medians of both memories in the second and the last quarter of the steps, of (n, 3) samples.

    Raises:
      UserError: a quarter went by without a sample.
    """
    result, failures = {"steps": steps}, []
    step = samples[:, 0]
    quarters = (step >= steps / 4) & (step < steps / 2), step >= steps * 3 / 4
    if not all(quarter.any() for quarter in quarters):
        raise UserError(f"--steps: {steps} go by too fast to be watched; take more")
    for column, name in enumerate(("resident", "device"), start=1):
        early, late = (float(np.median(samples[quarter, column])) for quarter in quarters)
        result[name] = {"second_quarter_mb": early / 1e6, "last_quarter_mb": late / 1e6, "ratio": late / early}
        if late / early > MOST:
            failures.append(f"{name} memory grew to {late / early:.3f} of what it was")
    return result | {"failures": failures}


def draw(samples: np.ndarray, path: Path) -> None:
    """Both memories against the step."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for panel, column, name in zip(
        axes, (1, 2), ("resident memory of the process", "arrays on the device"), strict=True
    ):
        panel.plot(samples[:, 0], samples[:, column] / 1e6)
        panel.set(xlabel="training step", ylabel="MB", title=name, ylim=(0, None))
    figure.savefig(path, dpi=120)


def measure(workdir: Path, steps: int) -> dict:
    """Trains and watches; see the module."""
    config = small_run.small_config(small_run.empty(workdir) / "cache", fold=0, batch_size=1, log_every_steps=1)
    per_epoch = 8  # of the small run's fold with its validation part taken off
    config.num_epochs, config.checkpoint_every_epochs = -(-steps // per_epoch), 25
    until, samples = threading.Event(), []
    watch = threading.Thread(target=lambda: samples.extend(sample(workdir, until)))
    watch.start()
    try:
        train.train_and_evaluate(config, workdir)
    finally:
        until.set()
        watch.join()
    draw(np.array(samples), workdir / "memory.png")
    return figures(np.array(samples), last_step(workdir / "fold_0" / "metrics.jsonl"))


def launch() -> None:
    """The command line."""
    steps = flags.DEFINE_integer("steps", 2000, "How many steps at least.")
    small_run.launch("memory", lambda workdir: measure(workdir, steps.value))


if __name__ == "__main__":
    launch()
