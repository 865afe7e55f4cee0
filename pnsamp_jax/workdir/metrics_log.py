"""The log of a fold's training: metrics.jsonl, and the same values for TensorBoard."""

import json
import time
from pathlib import Path

from pnsamp_jax.files import atomic_path


class MetricsLog:
    """Metrics of a fold, appended to metrics.jsonl and to TensorBoard's event file.

    Both are written by the calling thread, so that a full disk raises its error there.
    """

    def __init__(self, folder: Path, resumed_step: int):
        from tensorboardX import event_file_writer, proto, summary  # imports PyTorch where it is installed

        self._path = folder / "metrics.jsonl"
        # The steps that a stopped run took after its last checkpoint are about to be taken again.
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
        """Append the metrics of a step; `part` is "train" or "validation"."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "part": part, **metrics}) + "\n")
        for name, value in metrics.items():
            scalar = self._scalar(f"{part}/{name}", value)
            self._events.write_event(self._event(wall_time=time.time(), step=step, summary=scalar))
        if part == "validation":
            self._events.flush()  # waits for the disk, and so only now and then


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line that was cut off when the run was killed
        return float("inf")
