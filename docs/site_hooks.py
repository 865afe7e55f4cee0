"""Hooks of MkDocs: what a page takes from the code or from another file is put in when the site is built.

On the site the repository's own paths are kept, except that `docs/` is its root. A link that works in the repository
therefore works on the site: documents of the repository become pages, and other files that pages link to are copied.

A line `<!-- generated: NAME -->` is replaced by what `GENERATED` makes under that name.
"""

import ast
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from pnsamp_jax import cli, config_file

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = "docs/"
DOCUMENTS = (  # of the repository, which are pages of the site too
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "experiments/RELIABILITY.md",
    "experiments/RESULTS.md",
    "experiments/notebooks/README.md",
    "pnsamp_jax/examples/README.md",
    "pnsamp_jax/weights/README.md",
)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)([^)\s]*)(?=\))")  # relative: the path, and the rest
LINK_TO_FOLDER = re.compile(r"\[([^\]]+)\]\((?!\w+:)[^)\s]+/\)")
MARKER = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the repository's documents as pages, and the files that any page links to."""
    for name in DOCUMENTS:
        files.append(_from_repository(name, config))
    for page in list(files.documentation_pages()):
        origin = _origin(page.src_uri)
        for target in _linked(origin, (REPOSITORY / origin).read_text("utf-8")):
            if target.startswith(DOCS) or target.endswith("/") or files.get_file_from_path(target):
                continue
            if (REPOSITORY / target).is_file():
                files.append(_from_repository(target, config))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Put in what is generated, and turn links within the repository into links within the site."""
    origin = _origin(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def on_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1])).removeprefix(DOCS)
        return posixpath.relpath(target, here or ".") + match[2]

    text = LINK_TO_FOLDER.sub(r"\1", markdown)  # a site has no listings of folders
    return MARKER.sub(lambda match: GENERATED[match[1]](), LINK.sub(on_site, text))


def _from_repository(name: str, config: Any) -> File:
    return File.generated(config, name, abs_src_path=os.fspath(REPOSITORY / name))


def _origin(src_uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return src_uri if src_uri in DOCUMENTS else DOCS + src_uri


def _linked(origin: str, text: str) -> Iterator[str]:
    """Yield the paths in the repository that a document links to."""
    for match in LINK.finditer(text):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))


def help_of(command: str) -> str:
    """Return what `pnsamp COMMAND --help` prints, as a block of code."""
    known: dict[str, click.Command] = cli.pnsamp.commands
    group = click.Context(cli.pnsamp, info_name="pnsamp", **cli.pnsamp.context_settings)
    context = click.Context(known[command], info_name=command, parent=group) if command else group
    text = context.get_help()
    return f"```text\n{re.sub(r'[ ]+$', '', text, flags=re.MULTILINE)}\n```"


def config_fields() -> str:
    """Return tables of the fields that configs/base.py sets, with its comments.

    The fields of `config.data` are set in a function `_data`, and so on.

    Raises:
      ValueError: a field has no comment on its line, so that it would be missing.
    """
    source = (REPOSITORY / "configs" / "base.py").read_text("utf-8")
    parts, found = [], set()
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        section = "" if function.name == "get_config" else function.name.lstrip("_") + "."
        rows = ["| field | default | meaning |", "|---|---|---|"]
        for statement in function.body:
            line = source.splitlines()[statement.lineno - 1]
            if (
                isinstance(statement, ast.Assign)
                and isinstance(statement.targets[0], ast.Attribute)
                and "  # " in line
            ):
                name, value = section + statement.targets[0].attr, ast.unparse(statement.value)
                rows.append(f"| `{name}` | `{value}` | {line.partition('  # ')[2]} |")
                found.add(name)
        if section:
            docstring = " ".join((ast.get_docstring(function) or "").split()).removeprefix("Return ")
            parts += [f"## `config.{section[:-1]}`", docstring[0].upper() + docstring[1:]]
        parts.append("\n".join(rows))
    if missing := _names(config_file.load("base").to_dict()) - found:
        raise ValueError(f"configs/base.py: {min(missing)} has no comment on its line")
    return "\n\n".join(parts)


def _names(fields: dict[str, Any], section: str = "") -> set[str]:
    """Return the dotted names of nested fields."""
    names: set[str] = set()
    for name, value in fields.items():
        names |= _names(value, f"{section}{name}.") if isinstance(value, dict) else {section + name}
    return names


def shipped_configs() -> str:
    """Return a table of the shipped configs, by name."""
    rows = [f"| `{name}` | {summary} |" for name, summary in config_file.summaries().items()]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


GENERATED: dict[str, Callable[[], str]] = {
    "help": lambda: help_of(""),
    **{f"help {name}": lambda name=name: help_of(name) for name in cli.pnsamp.commands},
    "config fields": config_fields,
    "shipped configs": shipped_configs,
}
