"""What the training of a fold leaves behind: lines in its log, and checkpoints."""

from dataclasses import dataclass

import numpy as np

from pnsamp_jax import processes
from pnsamp_jax.errors import UserError
from pnsamp_jax.state import TrainState
from pnsamp_jax.workdir.checkpoint import Checkpoints
from pnsamp_jax.workdir.metrics_log import MetricsLog


@dataclass
class Journal:
    """The log and the checkpoints of a fold that is being trained.

    Of several processes, all call its methods together, and process 0 writes.

    Attributes:
      fold: its number.
      config: with which checkpoints are saved, JSON-able.
      checkpoints, log: of the fold; None in other processes than the first.
      saved: the step of the last checkpoint, or None.
    """

    fold: int
    config: dict
    checkpoints: Checkpoints
    log: MetricsLog
    saved: int | None

    def write(self, part: str, step: int, scores: dict[str, float], slices: np.ndarray | None = None) -> None:
        """Append the scores of a step; see `MetricsLog.write`.

        Raises:
          UserError: the loss is not finite. The last good checkpoint is kept.
        """
        if not np.isfinite(scores["loss"]):
            self.finish()
            kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "no checkpoint was saved yet"
            raise UserError(
                f"fold {self.fold}, step {step}: the loss is {scores['loss']}; {kept}; lower config.learning_rate"
            )
        processes.on_primary(lambda: self.log.write(part, step, scores, slices))

    def save(self, state: TrainState, step: int, loss: float) -> None:
        """Begin to save a state; see `Checkpoints.save`."""
        processes.on_primary(lambda: self.checkpoints.save(state, self.config, loss))
        self.saved = step

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        processes.on_primary(lambda: self.checkpoints.wait())
