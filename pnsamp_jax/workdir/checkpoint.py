"""Checkpoints of one fold through Orbax: the best step and the last one. The only module that imports Orbax.

    checkpoints/<step>/          Orbax's
    checkpoints/digests.json     {step: SHA-256 of its files}, so that a damaged one is known before Orbax reads it

Beside them, weights alone: what is left of a checkpoint that only predicts, with its digest in weights.sha256.
"""

import hashlib
import json
import tempfile
from itertools import count
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path
from pnsamp_jax.state import TrainState


class Checkpoints:
    """The checkpoints in a folder, each with the validation loss that it reached.

    Only the one with the least validation loss and the latest are kept. A save is complete or not there at all.

    Raises:
      UserError: one is damaged; `set_aside_damaged` makes way for the last good one.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        damaged = damaged_steps(folder)
        if damaged:
            raise UserError(
                f"{folder / str(damaged[0])}: damaged or missing; run --mode train on this workdir, which goes on "
                "from the last good checkpoint"
            )
        keep = [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: -metrics["loss"], n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
            best_fn=lambda metrics: -metrics["loss"],
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

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

        Raises:
          OSError: the disk does not take it; what was saved before is kept.
        """
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config))
        try:
            # Asked first, since each of Orbax's many writers has a traceback of its own to print on a full disk.
            with tempfile.TemporaryFile(dir=self.folder) as room:
                room.write(bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(state))))
            self._manager.save(int(state.step), args=items, metrics={"loss": float(loss)})
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "os_error_code" not in str(error):  # what the system told TensorStore
                raise
            raise OSError(f"{self.folder}: step {int(state.step)} was not saved ({error})") from error
        known = _read_digests(self.folder)
        kept = {step: known.get(step) or _digest(self.folder / str(step)) for step in _steps(self.folder)}
        _write_digests(self.folder, kept)

    def config(self, which: str = "last") -> dict:
        """The settings that made a checkpoint; see `restore`."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._manager.restore(self._step(which), args=items)["config"]

    def restore(self, like: TrainState, which: str = "last") -> TrainState:
        """Reads a state.

        Args:
          like: a state of the same shapes, for instance a freshly created one.
          which: "last", or "best" for the least validation loss.

        Raises:
          UserError: there is no checkpoint.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(self._step(which), args=items)["state"]

    def _step(self, which: str) -> int:
        step = {"last": self._manager.latest_step, "best": self._manager.best_step}[which]()
        if step is None:
            raise UserError(f"{self.folder}: holds no checkpoint; run --mode train first")
        return step


def set_aside_damaged(folder: Path) -> list[str]:
    """Renames damaged checkpoints to <step>.damaged_<n>, and forgets missing ones; gives a line on each.

    Only for who is alone at work on the fold.
    """
    lines = []
    for step in damaged_steps(folder):
        path = folder / str(step)
        if path.exists():
            aside = next(it for n in count(1) if not (it := folder / f"{step}.damaged_{n}").exists())
            path.rename(aside)
            lines.append(f"{path}: damaged; set aside as {aside.name}")
        else:
            lines.append(f"{path}: missing")
    if lines:
        kept = _steps(folder)
        _write_digests(folder, {step: digest for step, digest in _read_digests(folder).items() if step in kept})
    return lines


def damaged_steps(folder: Path) -> list[int]:
    """The steps whose files are no longer what was saved, and the last one if it is missing.

    Raises:
      UserError: digests.json itself is damaged.
    """
    there, saved = _steps(folder), _read_digests(folder)
    changed = [step for step, digest in saved.items() if step in there and _digest(folder / str(step)) != digest]
    # Another one that is missing was deleted to make place for a later one.
    missing = [step for step in saved if step > max(there, default=-1)]
    return sorted(changed + missing)


def _steps(folder: Path) -> list[int]:
    """The steps that Orbax has saved; while it saves, the name is longer."""
    return [int(path.name) for path in folder.glob("*/") if path.name.isdecimal()]


def _digest(step_folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a checkpoint."""
    whole = hashlib.sha256()
    for path in sorted(path for path in step_folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(step_folder)}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def _read_digests(folder: Path) -> dict[int, str]:
    path = folder / "digests.json"
    try:
        return {int(step): digest for step, digest in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:  # of a run before there were digests, or killed between its first save and this file
        return {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to take the checkpoints unchecked") from error


def _write_digests(folder: Path, digests: dict[int, str]) -> None:
    with atomic_path(folder / "digests.json") as temporary:
        temporary.write_text(json.dumps(digests, indent=1))


def save_weights(folder: Path, weights: dict) -> None:
    """Saves a tree of arrays in a folder that does not exist yet, and their digest beside it."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), weights)
    for note in folder.rglob("commit_success.txt"):
        note.write_text("complete\n")  # Orbax writes the path of the machine
    with atomic_path(folder.with_suffix(".sha256")) as temporary:
        temporary.write_text(_digest(folder))


def load_weights(folder: Path, like: dict) -> dict:
    """Reads a tree of arrays.

    Args:
      folder: of `save_weights`.
      like: arrays, or their shapes and types, to which what is read is converted.

    Raises:
      UserError: a file is damaged.
    """
    digest = folder.with_suffix(".sha256")
    if not digest.is_file() or digest.read_text() != _digest(folder):
        raise UserError(
            f"{folder}: damaged, it does not fit {digest.name}; take the weights anew from where they came"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
