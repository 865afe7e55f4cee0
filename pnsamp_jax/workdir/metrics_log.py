"""What a fold's training reports while it runs: metrics.jsonl, and the same for TensorBoard."""

import json
import time
from pathlib import Path

from pnsamp_jax.files import atomic_path


class MetricsLog:
    """Metrics of a fold, as lines of metrics.jsonl and for TensorBoard.

    Written by this thread alone, so that a full disk is this thread's error.
    """

    def __init__(self, folder: Path, resumed_step: int):
        from tensorboardX import event_file_writer, proto, summary  # brings PyTorch along, where there is one

        self._path = folder / "metrics.jsonl"
        # What a stopped run logged after its last checkpoint is about to happen again.
        lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._events = event_file_writer.EventsWriter(str(folder / "tensorboard" / "events"))
        self._event, self._scalar = proto.event_pb2.Event, summary.scalar
        start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        self._events.write_event(self._event(wall_time=time.time(), step=resumed_step + 1, session_log=start))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self._events.close()

    def write(self, part: str, step: int, metrics: dict[str, float]) -> None:
        """Appends one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "part": part, **metrics}) + "\n")
        for name, value in metrics.items():
            scalar = self._scalar(f"{part}/{name}", value)
            self._events.write_event(self._event(wall_time=time.time(), step=step, summary=scalar))
        if part == "validation":
            self._events.flush()  # which waits for the disk


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut short when the run was killed
        return float("inf")
