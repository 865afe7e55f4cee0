"""Checkpoints of one fold through Orbax: the best step and the last one. The only module that imports Orbax.

Beside them, weights alone: what is left of a checkpoint that only predicts.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from pnsamp_jax.errors import UserError
from pnsamp_jax.state import TrainState


class Checkpoints:
    """The checkpoints in a folder, each with the validation loss that it reached.

    Only the one with the least validation loss and the latest are kept. A save is complete or not there at all.
    """

    def __init__(self, folder: Path):
        keep = [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: -metrics["loss"], n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
            best_fn=lambda metrics: -metrics["loss"],
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    @property
    def last_step(self) -> int | None:
        """The latest saved step, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: dict, loss: float) -> None:
        """Saves a state with the settings that made it.

        Args:
          state: unstacked.
          config: JSON-able.
          loss: on the validation part; decides which checkpoint is the best.
        """
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config))
        self._manager.save(int(state.step), args=items, metrics={"loss": float(loss)})

    def restore(self, like: TrainState, which: str = "last") -> TrainState:
        """Reads a state.

        Args:
          like: a state of the same shapes, for instance a freshly created one.
          which: "last", or "best" for the least validation loss.

        Raises:
          UserError: there is no checkpoint.
        """
        step = {"last": self._manager.latest_step, "best": self._manager.best_step}[which]()
        if step is None:
            raise UserError(f"{self._manager.directory}: holds no checkpoint; run --mode train first")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=items)["state"]


def save_weights(folder: Path, weights: dict) -> None:
    """Saves a tree of arrays in a folder that does not exist yet."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), weights)


def load_weights(folder: Path, like: dict) -> dict:
    """Reads a tree of arrays.

    Args:
      folder: of `save_weights`.
      like: arrays, or their shapes and types, to which what is read is converted.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
