"""The packages that only an export, or a prediction by another runtime, needs."""

from importlib import import_module
from typing import Any

from pnsamp_jax.errors import UserError


def needed(package: str, extra: str) -> Any:
    """Import a package of an extra.

    Raises:
      UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"{package} is not installed; run `pip install 'pnsamp-jax[{extra}]'`") from error
