"""The command line that the experiments share."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from pnsamp_jax import config_file
from pnsamp_jax.allocator import keep_freed_memory
from pnsamp_jax.errors import UserError, reported

flags.disclaim_key_flags()  # the flags defined here belong to the experiment, so that its --help lists them


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str | Path) -> Path | None:
        """Return the path; None for an empty argument."""
        return Path(argument) if argument else None


def path_flag(name: str, description: str, required: bool = False) -> flags.FlagHolder:
    """Define a flag that holds a Path, or None if it is not given."""
    return flags.DEFINE(_PathParser(), name, None, description, required=required)


def require_new(out: Path) -> None:
    """Raise UserError if what `--out` names exists already."""
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or choose another --out")


def launch(run: Callable[..., object], *, config: str = "", workdir: str = "", **options: flags.FlagHolder) -> None:
    """Parse the command line and run an experiment; see `errors.reported` for how it reports errors.

    Args:
      run: the experiment, called with the values of its flags by name.
      config: description of --config; "" if the experiment has no config.
      workdir: description of --workdir; "" if it has no workdir.
      **options: the experiment's own flags, by the name of the argument that `run` takes them as.
    """
    holders, name = dict(options), Path(sys.argv[0]).stem
    if config:
        holders["config"] = config_file.define_flag(config)
        flags.mark_flag_as_required("config")
    if workdir:
        holders["workdir"] = path_flag("workdir", workdir, required=True)

    def parse_flags(argv: list[str]) -> list[str]:
        with reported(name):
            return config_file.parse_flags(argv)

    def main(argv: list[str]) -> None:
        del argv
        keep_freed_memory()
        logging.set_verbosity(logging.WARNING)  # JAX reports missing accelerators, and Orbax every file
        values = {option: holder.value for option, holder in holders.items()}
        with reported(name):
            if config:
                from pnsamp_jax.config import cache_folder, use_compilation_cache  # imports JAX

                use_compilation_cache(cache_folder(values["config"]))
            run(**values)

    app.run(main, flags_parser=parse_flags)
