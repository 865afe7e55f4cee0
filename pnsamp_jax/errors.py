"""The errors that a user is meant to see, and how a command reports them."""

import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pnsamp_jax.files import readable

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would end the line, or steer a terminal


def list_names(names: Mapping[int, str]) -> str:
    """Return the first five of numbered names, by their numbers, as a message lists them: "1 'lung', 2 'nodule'"."""
    listed = ", ".join(f"{number} '{name}'" for number, name in sorted(names.items())[:5])
    return listed + (", ..." if len(names) > 5 else "")


class UserError(Exception):
    """A mistake in the user's files or settings.

    The message is one line that names the file or field and the way out. Line breaks in it, as of a path, are escaped.

    Attributes:
      exit_status: of the command that reports the error.
    """

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], readable(message)))


class UsageError(UserError):
    """A mistake on the command line or in a config file."""

    exit_status = 2


class Interrupted(UserError):
    """A run that was asked to stop, and has saved its work."""

    exit_status = 128 + signal.SIGTERM  # like a process that SIGTERM ended


@contextmanager
def reported(program: str = "pnsamp_jax") -> Iterator[None]:
    """Report what a user can act on as one line on stderr, and exit with its status.

    Any other exception is a bug and keeps its traceback.

    Args:
      program: the name at the beginning of the line.
    """
    try:
        yield
        return
    except UserError as error:
        message, status = str(error), error.exit_status
    except OSError as error:
        message, status = f"{error}; check that the path exists, is writable and that the disk is not full", 1
    except KeyboardInterrupt:
        message = "interrupted; the same command starts again, a training from what was saved"
        status = 128 + signal.SIGINT
    print(f"{program}: {readable(message)}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def noted_sigterm() -> Iterator[threading.Event]:
    """Yield an event that is set when SIGTERM arrives, instead of the process ending at once.

    Schedulers send SIGTERM before they take a machine back. Outside the main thread, where Python cannot handle
    signals, the event is never set.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
