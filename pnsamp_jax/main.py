"""The command line of a run: python -m pnsamp_jax.main --config NAME --workdir DIR.

docs/reference/command-line.md describes the modes.
"""

from importlib import import_module
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from pnsamp_jax import config_file
from pnsamp_jax.allocator import keep_freed_memory
from pnsamp_jax.errors import UsageError, reported
from pnsamp_jax.files import user_path

CONFIG = config_file.define_flag(
    "A Python file, or the name of a shipped config: "
    f"{', '.join(config_file.shipped())}. --config.field=value overrides a field."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder for checkpoints, tables and figures.")
MODES = {
    "train": ("train", "train_and_evaluate"),
    "evaluate": ("train", "test_and_evaluate"),
    "predict": ("predict", "predict"),
    "prepare": ("run", "prepare_run"),
}
MODE = flags.DEFINE_enum(
    "mode",
    None,
    list(MODES),
    "train also tests and evaluates, and is the default unless the config names another mode; evaluate tests trained "
    "folds again; predict predicts nodules of a CT; prepare only prepares the data.",
)
USAGE = "usage: python -m pnsamp_jax.main --config NAME --workdir DIR"


def main(argv: list[str]) -> None:
    """Run the mode that the flags name, and report a user's mistake as one line."""
    with reported():
        if len(argv) > 1:
            raise UsageError(f"unexpected argument '{argv[1]}'; {USAGE}")
        if CONFIG.value is None:
            raise UsageError(f"--config is missing; {USAGE}")
        config = CONFIG.value
        workdir = WORKDIR.value or config.get("workdir")
        if not workdir:
            raise UsageError(f"--workdir is missing; {USAGE}")
        run(MODE.value or config.get("mode", "train"), config, user_path(workdir))


def run(mode: str, config: ConfigDict, workdir: Path) -> None:
    """Run one of the `MODES`.

    Raises:
      UsageError: there is no such mode.
      UserError: see the functions of the modes.
    """
    if mode not in MODES:
        raise UsageError(f"config.mode: '{mode}' is none of {', '.join(MODES)}")
    keep_freed_memory()
    logging.set_verbosity(logging.WARNING)  # JAX reports missing accelerators, and Orbax every file
    module, function = MODES[mode]
    getattr(import_module(f"pnsamp_jax.{module}"), function)(config, workdir)  # imports JAX: too slow for the top


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line, and report a mistake in it as one line; see `config_file.parse_flags`."""
    with reported():
        return config_file.parse_flags(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
