"""Config files: found by path or by the name of a shipped config, loaded, and overridden on the command line.

Everything that can go wrong here is a `UsageError`: one line that names the file or field and what it must be. What
the values mean is checked in `pnsamp_jax.config`.
"""

import ast
import re
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from itertools import pairwise
from pathlib import Path
from traceback import extract_tb
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pnsamp_jax import configs
from pnsamp_jax.errors import UsageError
from pnsamp_jax.files import user_path

flags.disclaim_key_flags()  # --config belongs to the command that defines it, so that its --help lists the flag

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}


def shipped() -> dict[str, Path]:
    """Return the paths of the shipped configs by name."""
    paths = Path(configs.__path__[0]).glob("*.py")
    return {path.stem: path for path in sorted(paths) if path.stem != "__init__"}


def summaries() -> dict[str, str]:
    """Return the first line of each shipped config's docstring by name."""
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for name, path in shipped().items()}
    return {name: (docstring or "").partition("\n")[0] for name, docstring in docstrings.items()}


def resolve(name_or_path: str) -> Path:
    """Return the path of a config. The name of a shipped config takes precedence over a file; give that as ./name.

    Args:
      name_or_path: the name of a shipped config, or the path of a Python file.

    Raises:
      UsageError: there is no such file; lists the shipped configs.
    """
    known = shipped()
    path = known.get(name_or_path, user_path(name_or_path))
    if path.is_file():
        return path
    if not name_or_path:
        problem = "--config: is empty"
    elif path.is_dir():
        problem = f"{path}: is a folder, not a Python file"
    else:
        problem = f"{path}: no such file or shipped config"
    raise UsageError(f"{problem}; the shipped configs are {', '.join(known)}")


def load(name_or_path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a config and override fields. The config is locked: no field can be added.

    Args:
      name_or_path: see `resolve`; what follows a colon is passed to `get_config`.
      overrides: arguments of the command line, such as "--config.batch_size=4", or the flag and the value in turn.

    Raises:
      UsageError: the file cannot be loaded, a field does not exist or a value is of another type.
    """
    config, rest = _override(_read(name_or_path), overrides)
    if rest:
        raise UsageError(f"unexpected argument '{rest[0]}'; give fields as --config.field=value")
    return config


def define_flag(description: str) -> flags.FlagHolder:
    """Define the flag --config of a command that parses its flags with `parse_flags`. The value is a ConfigDict."""
    return flags.DEFINE(_ConfigParser(), "config", None, description)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse a command line with --config and its overrides. Pass it to `absl.app.run` as `flags_parser`.

    Returns:
      The program and the arguments that are not flags.

    Raises:
      UsageError: see `load`; or a flag is unknown or has a wrong value.
    """
    try:
        program, *arguments = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        name, arguments = _take_config(arguments)
        if name is not None:
            config, arguments = _override(_read(name), arguments)
            flags.FLAGS.config = config
        return flags.FLAGS([program, *arguments])
    except (flags.Error, ValueError) as error:
        raise UsageError(_one_line(error)) from error


class _ConfigParser(flags.ArgumentParser):
    def parse(self, argument: Any) -> ConfigDict:
        return argument if isinstance(argument, ConfigDict) else load(argument)


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of the last --config, and the other arguments."""
    name, rest, remaining = None, [], iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            rest += [argument, *remaining]
        elif flag not in ("--config", "-config"):
            rest.append(argument)
        else:
            name = value if equals else next(remaining, "")
    return name, rest


def _read(name_or_path: str) -> ConfigDict:
    """Return what the `get_config` of a config file returns."""
    name, colon, argument = name_or_path.partition(":")
    path = resolve(name)
    loader = SourceFileLoader("pnsamp_jax_config", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError(f"{path}: has no function get_config()")
        config = module.get_config(argument) if colon else module.get_config()
    except UsageError:
        raise
    except Exception as error:  # the file is the user's, and may raise anything
        raise UsageError(f"{path}: {_explain(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: get_config() returned {type(config).__name__}; it must return a ConfigDict")
    return config


def _explain(error: Exception, path: Path) -> str:
    """Return in which line a config file went wrong, and how."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "configs":
        return "import the shipped configs from pnsamp_jax, as in: from pnsamp_jax.configs import base"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {_one_line(error)}"


def _override(config: ConfigDict, arguments: Sequence[str]) -> tuple[ConfigDict, list[str]]:
    """Return the config with the overrides among the arguments, and the other arguments."""
    given = {}
    for argument, following in pairwise([*arguments, ""]):
        if match := re.fullmatch(r"--?(?:no)?config\.([^=]*)(=.*)?", argument, re.DOTALL):
            field, value = match.groups()
            _check_field(config, field)
            given[field] = following if value is None else value[1:]
    command = ["", *arguments]
    values = flags.FlagValues()  # of this call alone, so that any number of configs can be loaded
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
        return config, values(command, known_only=True)[1:]
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --config\.([^=]+)=", str(error))
        raise UsageError(_wrong_type(config, match[1], given[match[1]]) if match else _one_line(error)) from error
    except (flags.Error, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(_one_line(error)) from error


def _check_field(config: ConfigDict, field: str) -> None:
    """Raise UsageError unless the command line can set a field."""
    fields = _fields(config)
    name, bracket, _ = field.partition("[")
    if bracket and isinstance(fields.get(name), tuple):
        raise UsageError(f"config.{field}: elements of a tuple cannot be set; set the whole of config.{name}")
    if bracket:
        return  # an element of a list, which ml_collections finds
    if field not in fields:
        closest = max(fields, key=lambda known: _likeness(field, known))
        raise UsageError(f"config.{field}: there is no such field; the closest is config.{closest}")
    if not isinstance(fields[field], (ConfigDict, *KINDS)):
        kind = type(fields[field]).__name__
        raise UsageError(f"config.{field}: is of type {kind}, which can only be set in a config file")


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return all fields and groups of fields by their dotted names."""
    fields = {}
    for name, value in config.items():
        fields[prefix + name] = value
        if isinstance(value, ConfigDict):
            fields |= _fields(value, f"{prefix}{name}.")
    return fields


def _likeness(field: str, known: str) -> float:
    """Return how alike two dotted names are, as a whole and in their last parts."""
    pairs = ((field, known), (field.rpartition(".")[2], known.rpartition(".")[2]))
    return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs)


def _wrong_type(config: ConfigDict, field: str, value: str) -> str:
    default = _fields(config).get(field)
    if isinstance(default, ConfigDict):
        example = next(iter(default), "field")
        return f"config.{field}: is a group of fields; set one of them, as in --config.{field}.{example}=value"
    kind = KINDS.get(type(default), "another value")
    example = "" if isinstance(default, bool) else f" such as {default!r}"
    return f"config.{field}: must be {kind}{example}, not '{' '.join(value.split())}'"


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    message: object = error
    while isinstance(message, Exception) and len(message.args) == 1:
        message = message.args[0]  # str() of a KeyError would escape the message
    return " ".join(str(message).split())
