"""The log of a fold's training: metrics.jsonl, and for TensorBoard the same values, the config and outlines."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.files import write_text
from pnsamp_jax.workdir.layout import flatten

COMPARED = ("validation/loss", "validation/dice")  # by which TensorBoard's page of hyperparameters compares runs
READERS, PREDICTED = (255, 217, 47), (78, 179, 255)  # colours of the outlines, as in the report's figures
SHOWN = 8  # nodules
ENLARGED = 4  # pixels of an image along a voxel


class MetricsLog:
    """Metrics of a fold, appended to metrics.jsonl and to TensorBoard's event file.

    Both are written by the calling thread, so that a full disk raises its error there.
    """

    def __init__(self, folder: Path, resumed_step: int, config: dict[str, Any]):
        from tensorboardX import event_file_writer, proto, summary  # imports PyTorch where it is installed

        self._path = folder / "metrics.jsonl"
        # The steps that a stopped run took after its last checkpoint are about to be taken again.
        lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        write_text(self._path, "".join(line + "\n" for line in kept))
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._events = event_file_writer.EventsWriter(str(folder / "tensorboard" / "events"))
        self._event, self._summary = proto.event_pb2.Event, summary
        start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        self._events.write_event(self._event(wall_time=time.time(), step=resumed_step + 1, session_log=start))
        self._write(resumed_step, summary.text("config", f"```json\n{json.dumps(config, indent=2)}\n```"))
        fields = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flatten(config).items()
            if not name.startswith("predict.")
        }
        for part in summary.hparams(fields, dict.fromkeys(COMPARED)):
            self._write(resumed_step, part)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self._events.close()

    def write(self, part: str, step: int, metrics: dict[str, float], slices: np.ndarray | None = None) -> None:
        """Append the metrics of a step.

        Args:
          part: "train" or "validation".
          step: after which they were measured.
          metrics: by name.
          slices: (n, 3, H, W) for TensorBoard only, see `outlined`.
        """
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "part": part, **metrics}) + "\n")
        for name, value in metrics.items():
            self._write(step, self._summary.scalar(f"{part}/{name}", value))
        if slices is not None:
            self._write(step, self._summary.image(f"{part}/outlines", outlined(slices[:SHOWN]), dataformats="HWC"))
        if part == "validation":
            self._events.flush()  # waits for the disk, and so only now and then

    def _write(self, step: int, summary: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, summary=summary))


def outlined(slices: np.ndarray) -> np.ndarray:
    """Draw nodules side by side, with the outlines of the readers and of the network.

    Args:
      slices: (n, 3, H, W) float: grey values in 0..1, probability of the mask, and the readers' consensus, 0 or 1.

    Returns:
      (4 H, 4 n W, 3) uint8.
    """
    images = []
    for grey, probability, consensus in slices.repeat(ENLARGED, axis=2).repeat(ENLARGED, axis=3):
        image = np.repeat((255 * grey.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=-1)
        for mask, colour in ((consensus > 0.5, READERS), (probability > 0.5, PREDICTED)):
            image[_edge(mask)] = colour
        images.append(image)
    return np.concatenate(images, axis=1)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (H, W) that have a neighbour outside of it; beyond the border is outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line that was cut off when the run was killed
        return float("inf")
