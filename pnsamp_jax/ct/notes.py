"""Notes about files that were read, but that the user should know more about. They are log records until collected."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("pnsamp_jax.ct")


def note(text: str) -> None:
    """Tell the user something about a file in one line: on the terminal, unless the notes are collected."""
    LOGGER.warning("%s", text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the notes of a block instead of printing them, for a caller who knows when to print.

    What else is logged below the package, as that an index could not be saved, is no note and goes its own way.
    """
    texts: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        texts.append(record.getMessage())
        return False  # it goes no further

    filters, LOGGER.filters = LOGGER.filters, [collect]  # of this logger alone, whose records notes are
    try:
        yield texts
    finally:
        LOGGER.filters = filters
