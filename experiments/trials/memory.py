"""The memory of a long training, which must not grow.

    python -m experiments.trials.memory --workdir runs/memory --steps=2000

Trains one fold of the small run for so many steps, and records the resident memory of the process and the bytes of all
arrays on the device every half second. Draws both against the step to memory.png, and writes memory.json: the median
of the second and of the last quarter of the steps, and their ratio. A ratio above 1.05 is a failure.
"""

import json
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.trials import small_run
from pnsamp_jax import train
from pnsamp_jax.errors import UserError

INTERVAL_S = 0.5
LARGEST_RATIO = 1.05  # of the later to the earlier memory


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def device_bytes() -> int:
    """Return the size of all arrays on devices."""
    return sum(array.nbytes for array in jax.live_arrays())


def last_step(metrics: Path) -> int:
    """Return the step of the last complete line of metrics.jsonl; 0 if there is none."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def sample(workdir: Path, until: threading.Event) -> list[tuple[int, int, int]]:
    """Record (step, resident bytes, device bytes) at every interval until the event is set."""
    samples = []
    while not until.wait(INTERVAL_S):
        samples.append((last_step(workdir / "fold_0" / "metrics.jsonl"), resident_bytes(), device_bytes()))
    return samples


def summarise(samples: np.ndarray, steps: int) -> dict:
    """Return the medians of both memories in the second and the last quarter of the steps.

    Args:
      samples: (n, 3) of `sample`.
      steps: of the training.

    Raises:
      UserError: a quarter has no sample.
    """
    results: dict[str, Any] = {"steps": steps}
    failures = []
    step = samples[:, 0]
    quarters = (step >= steps / 4) & (step < steps / 2), step >= steps * 3 / 4
    if not all(quarter.any() for quarter in quarters):
        raise UserError(f"--steps: {steps} take too little time to be sampled; give more")
    for column, name in enumerate(("resident", "device"), start=1):
        early, late = (float(np.median(samples[quarter, column])) for quarter in quarters)
        results[name] = {"second_quarter_mb": early / 1e6, "last_quarter_mb": late / 1e6, "ratio": late / early}
        if late / early > LARGEST_RATIO:
            failures.append(f"{name} memory grew by a factor of {late / early:.3f}")
    return results | {"failures": failures}


def draw(samples: np.ndarray, path: Path) -> None:
    """Draw both memories against the step."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for panel, column, name in zip(
        axes, (1, 2), ("resident memory of the process", "arrays on the device"), strict=True
    ):
        panel.plot(samples[:, 0], samples[:, column] / 1e6)
        panel.set(xlabel="training step", ylabel="MB", title=name, ylim=(0, None))
    figure.savefig(path, dpi=120)


def measure(workdir: Path, steps: int) -> dict:
    """Train and record the memory; see the module's docstring."""
    config = small_run.small_config(small_run.make_empty(workdir) / "cache", fold=0, batch_size=1, log_every_steps=1)
    per_epoch = 8  # training nodules of the fold
    config.num_epochs, config.checkpoint_every_epochs = -(-steps // per_epoch), 25
    until, samples = threading.Event(), []
    recorder = threading.Thread(target=lambda: samples.extend(sample(workdir, until)))
    recorder.start()
    try:
        train.train_and_evaluate(config, workdir)
    finally:
        until.set()
        recorder.join()
    draw(np.array(samples), workdir / "memory.png")
    return summarise(np.array(samples), last_step(workdir / "fold_0" / "metrics.jsonl"))


if __name__ == "__main__":
    small_run.launch_trial(
        "memory", measure, steps=flags.DEFINE_integer("steps", 2000, "Least number of training steps.")
    )
