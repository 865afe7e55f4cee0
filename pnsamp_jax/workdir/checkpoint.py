"""Checkpoints of one fold, saved through Orbax: the best step and the last one. No other module imports Orbax.

    checkpoints/<step>/          written by Orbax
    checkpoints/digests.json     {step: SHA-256 of its files}, by which damage is noticed before Orbax reads the files

Exported weights are a checkpoint without the optimizer's state, in a folder with its digest next to it in a .sha256
file.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from pnsamp_jax.errors import UserError
from pnsamp_jax.files import write_text
from pnsamp_jax.state import TrainState

WHICH = ("best", "last")  # checkpoints that are kept: that of the lowest validation loss, and the latest


class Checkpoints:
    """The checkpoints in a folder, each with its validation loss.

    Only the checkpoint with the lowest validation loss and the latest one are kept. A save is atomic, and goes on in a
    thread while the training does; the next call waits for it. Of several processes, one alone may use this class.

    Raises:
      UserError: a checkpoint is damaged; `set_aside_damaged` renames it, so that an earlier one can be used.
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
            # Otherwise Orbax would wait for the other processes, which save nothing.
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
            create=False,  # which Orbax cannot do for one of several processes
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._opened = ocp.CheckpointManager(self.folder, options=options)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception_type: type | None, *exception) -> None:
        try:
            if exception_type is None:
                self.wait()
        finally:
            self._writer.shutdown()
            self._opened.close()

    @property
    def last_step(self) -> int | None:
        """Return the latest saved step, or None."""
        return self._manager.latest_step()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Return Orbax's manager, when nothing is being written."""
        self.wait()
        return self._opened

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
          OSError: as `save`.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def save(self, state: TrainState, config: dict, loss: float) -> None:
        """Begin to save a state with the config that made it, and return before it is written; see `wait`.

        Args:
          state: unstacked. It is copied first, so that the next step may consume it.
          config: JSON-able.
          loss: on the validation subset, which decides which checkpoint is the best.

        Raises:
          OSError: the disk is full or not writable; earlier checkpoints are kept. It may be raised by the next call.
        """
        self.wait()
        state = jax.tree.map(np.array, jax.device_get(state))
        # Tried first, since on a full disk each of Orbax's many writers would print a traceback of its own.
        with self._explained(int(state.step)), tempfile.TemporaryFile(dir=self.folder) as room:
            room.write(bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(state))))
        self._writing = self._writer.submit(self._write, state, config, float(loss))

    def _write(self, state: TrainState, config: dict, loss: float) -> None:
        """Write a checkpoint, and then its digest."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config))
        with self._explained(int(state.step)):
            self._opened.save(int(state.step), args=items, metrics={"loss": loss})
        known = _read_digests(self.folder)
        kept = {step: known.get(step) or _digest(self.folder / str(step)) for step in _steps(self.folder)}
        _write_digests(self.folder, kept)

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Raise errors of the system, which TensorStore passes on as ValueError, as OSError with the step."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            raise OSError(f"{self.folder}: step {step} was not saved ({error})") from error

    def config(self, which: str = "last") -> dict:
        """Return the config that made a checkpoint; see `restore`."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._manager.restore(self._step(which), args=items)["config"]

    def restore(self, like: TrainState, which: str = "last") -> TrainState:
        """Read a state.

        Args:
          like: a state of the same shapes, or its shapes and types.
          which: "last", or "best" for the lowest validation loss.

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
    """Rename damaged checkpoints to <step>.damaged_<n> and forget missing ones. The caller must hold the fold's lock.

    Returns:
      A line about each.
    """
    lines = []
    for step in damaged_steps(folder):
        path = folder / str(step)
        if path.exists():
            aside = next(name for n in count(1) if not (name := folder / f"{step}.damaged_{n}").exists())
            path.rename(aside)
            lines.append(f"{path}: damaged; set aside as {aside.name}")
        else:
            lines.append(f"{path}: missing")
    if lines:
        kept = _steps(folder)
        _write_digests(folder, {step: digest for step, digest in _read_digests(folder).items() if step in kept})
    return lines


def damaged_steps(folder: Path) -> list[int]:
    """Return the steps whose files have changed since they were saved, and the last one if it is missing.

    Raises:
      UserError: digests.json itself is damaged.
    """
    there, saved = _steps(folder), _read_digests(folder)
    changed = [step for step, digest in saved.items() if step in there and _digest(folder / str(step)) != digest]
    # Any other missing checkpoint was deleted when a later one was saved.
    missing = [step for step in saved if step > max(there, default=-1)]
    return sorted(changed + missing)


def _steps(folder: Path) -> list[int]:
    """Return the steps that Orbax has saved; a checkpoint that is being saved has a longer name."""
    return [int(path.name) for path in folder.glob("*/") if path.name.isdecimal()]


def _digest(step_folder: Path) -> str:
    """Compute the SHA-256 of the names and contents of all files of a checkpoint."""
    whole = hashlib.sha256()
    for path in sorted(path for path in step_folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(step_folder)}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def _read_digests(folder: Path) -> dict[int, str]:
    path = folder / "digests.json"
    try:
        return {int(step): digest for step, digest in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:  # killed between the first save and the writing of this file
        return {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to use the checkpoints unchecked") from error


def _write_digests(folder: Path, digests: dict[int, str]) -> None:
    write_text(folder / "digests.json", json.dumps(digests, indent=1))


def save_weights(folder: Path, weights: dict) -> None:
    """Save a tree of arrays in a folder that does not exist yet, and its digest next to it."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), weights)
    for note in folder.rglob("commit_success.txt"):
        note.write_text("complete\n")  # Orbax writes the path of the machine
    write_text(folder.with_suffix(".sha256"), _digest(folder))


def load_weights(folder: Path, like: dict) -> dict:
    """Read a tree of arrays.

    Args:
      folder: written by `save_weights`.
      like: arrays or their shapes and types, to which the values are converted.

    Raises:
      UserError: a file is damaged.
    """
    digest = folder.with_suffix(".sha256")
    if not digest.is_file() or digest.read_text() != _digest(folder):
        raise UserError(
            f"{folder}: damaged, since it does not match {digest.name}; copy the weights again from their source"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
