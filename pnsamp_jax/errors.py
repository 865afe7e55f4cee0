"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake in the user's files or settings.

    Its message is one line that names the file or field and says what to do. `main` prints that line and
    exits with status 1; nothing else is caught, so that a bug keeps its traceback.
    """
