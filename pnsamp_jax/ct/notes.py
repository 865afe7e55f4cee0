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
    """Collect the notes of a block instead of printing them, for a caller who knows when to print."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    handlers, propagate = LOGGER.handlers, LOGGER.propagate
    LOGGER.handlers, LOGGER.propagate = [handler], False
    try:
        yield texts
    finally:
        LOGGER.handlers, LOGGER.propagate = handlers, propagate
