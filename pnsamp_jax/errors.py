"""The exceptions that a user is meant to see."""

from pnsamp_jax.files import readable


class UserError(Exception):
    """A mistake in the user's files or settings.

    Its message is one line that names the file or field and says what to do. `main` prints that line and
    exits with status 1; nothing else is caught, so that a bug keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(readable(message))


class Interrupted(UserError):
    """A run was told to stop, and has saved what it has done; `main` exits with 143, as a process ended by SIGTERM."""
