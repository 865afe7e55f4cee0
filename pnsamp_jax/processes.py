"""Several processes that train one network together, as on the machines of a cluster.

Each computes on its share of every batch, and all hold the same state. Process 0 alone works on the files of the
workdir; the others wait for what it finds there, and stop where it has to stop.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pnsamp_jax.errors import UsageError, UserError

HOW = "give 'auto' on SLURM or a TPU pod, or 'address:port,rank,count' such as 'node1:1234,0,2'"


def read_place(distributed: str) -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` that config.distributed stands for.

    Args:
      distributed: "auto", or the address of process 0, the place of this process and their number.

    Raises:
      UsageError: it is neither.
    """
    if distributed == "auto":
        return {}
    try:
        address, rank, count = distributed.split(",")
        host, port = address.rsplit(":", 1)
        place = {"coordinator_address": address, "num_processes": int(count), "process_id": int(rank)}
        if host and 0 < int(port) < 2**16 and 0 <= int(rank) < int(count):
            return place
    except ValueError:
        pass
    raise UsageError(f"config.distributed: {distributed!r} names no process; {HOW}")


def connect(distributed: str) -> None:
    """Connect this process with the others, before any device is touched. Processes but the first print nothing.

    Args:
      distributed: see `read_place`; "" for a process on its own.

    Raises:
      UserError: it names no process, or the processes do not find each other.
    """
    if not distributed or jax.distributed.is_initialized():
        return
    place = read_place(distributed)
    # On CPUs, older JAX has no collectives by default; and SIGTERM is for `noted_sigterm`, not for JAX.
    for option, value in (("jax_cpu_collectives_implementation", "gloo"), ("jax_enable_preemption_service", False)):
        if hasattr(jax.config, option):
            jax.config.update(option, value)
    try:
        jax.distributed.initialize(**place)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"config.distributed: '{distributed}': processes do not connect ({reason}); {HOW}") from error
    if not is_primary():
        sys.stdout = open(os.devnull, "w")


def part() -> None:
    """End the connection. Every process has to call it; afterwards each can only work on its own."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_primary() -> bool:
    """Return whether this is process 0."""
    return jax.process_index() == 0


def share(batch_size: int) -> slice:
    """Return which nodules of a batch are for the devices of this process."""
    size = batch_size // jax.process_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def on_primary(work: Callable[[], Any]) -> Any:
    """Do work in process 0 while the others wait, and return its result there, and None in the others.

    Raises:
      UserError: in the other processes, where `work` raises anything in process 0.
    """
    if jax.process_count() == 1:
        return work()
    result, error = None, None
    if is_primary():
        try:
            result = work()
        except Exception as raised:  # whatever it is: the others wait for an answer
            error = raised
    message = from_primary(None if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    if message is not None:
        raise UserError(f"process 0 stopped: {message}")
    return result


def from_primary(value: Any) -> Any:
    """Return process 0's value, which has to be JSON-able, in every process."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value if is_primary() else None).encode(), np.uint8)
    buffer = np.zeros(broadcast(np.int32(len(content))), np.uint8)
    if is_primary():
        buffer[:] = content
    return json.loads(broadcast(buffer).tobytes())


def broadcast(tree: Any) -> Any:
    """Return process 0's tree of arrays in every process; those of the others need the same shapes."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def require_same(value: str, what: str) -> None:
    """Raise UserError in all processes unless all have the same value."""
    if any_of(value != from_primary(value)):
        raise UserError(f"config.distributed: the processes have different {what}; give all the same config and data")
