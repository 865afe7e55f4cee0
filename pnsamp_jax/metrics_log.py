"""What a fold's training reports while it runs: metrics.jsonl, and the same for TensorBoard."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from pnsamp_jax.data.prepare import atomic_path


class MetricsLog:
    """Metrics of a fold, as lines of metrics.jsonl and for TensorBoard."""

    def __init__(self, folder: Path, resumed_step: int):
        self._path = folder / "metrics.jsonl"
        # What a stopped run logged after its last checkpoint is about to happen again.
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self._board.close()

    def write(self, part: str, step: int, metrics: dict[str, float]) -> None:
        """Appends one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "part": part, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(f"{part}/{name}", value, step)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut short when the run was killed
        return float("inf")
