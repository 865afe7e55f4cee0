"""The command line: flags and dispatch, nothing else. See README.md for what the modes do."""

import signal
import sys
from importlib import import_module
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from pnsamp_jax.allocator import keep_freed_memory
from pnsamp_jax.errors import Interrupted, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file; --config.field=value overrides a field.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, tables and pictures go.")
MODES = {
    "train": ("train", "train_and_evaluate"),
    "evaluate": ("train", "test_and_evaluate"),
    "predict": ("predict", "predict"),
    "prepare": ("train", "prepare_data"),
}
MODE = flags.DEFINE_enum(
    "mode",
    None,
    list(MODES),
    "train, the default unless the config names another, ends with the evaluation; prepare reads the data only.",
)


def main(argv: list[str]) -> None:
    """Runs the mode; a user's mistake becomes one line and exit status 1, or 2 for a usage error."""
    if len(argv) > 1:
        _usage_error(f"unexpected argument '{argv[1]}'")
    config = CONFIG.value
    mode, workdir = MODE.value or config.get("mode", "train"), WORKDIR.value or config.get("workdir")
    if mode not in MODES:
        _usage_error(f"config.mode: '{mode}' is none of {', '.join(MODES)}")
    if workdir is None:
        _usage_error("--workdir is missing")
    keep_freed_memory()
    logging.set_verbosity(logging.WARNING)  # JAX tells of absent accelerators, Orbax of every file
    module, function = MODES[mode]
    run = getattr(import_module(f"pnsamp_jax.{module}"), function)  # imports JAX: a usage error need not wait for it
    try:
        run(config, Path(workdir))
    except Interrupted as error:
        print(f"pnsamp_jax: {error}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except UserError as error:
        sys.exit(f"pnsamp_jax: {error}")
    except OSError as error:
        sys.exit(f"pnsamp_jax: {error}; check that the path exists, is writable and that the disk is not full")
    except KeyboardInterrupt:
        print("pnsamp_jax: interrupted; the same command goes on from what was saved", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _usage_error(message: str) -> None:
    print(f"pnsamp_jax: {message}; usage: python -m pnsamp_jax.main --config FILE --workdir DIR", file=sys.stderr)
    sys.exit(2)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what cannot be parsed ends in one line and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            raise flags.Error("--config is missing")
        CONFIG.value.keys()  # a file that could not be read says so only when it is used
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _usage_error(" ".join(str(error).split()))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
