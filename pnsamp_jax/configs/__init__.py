"""The configs of a checkout, which are in its top folder `configs`. An installed package has them here instead."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

__path__ = [str(Path(__file__).resolve().parents[2] / "configs")]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Return a config: type checkers do not follow `__path__`."""
