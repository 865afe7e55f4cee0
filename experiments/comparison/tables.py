"""What the three tables share: their figures, how they are written, and their command line.

    python -m experiments.table2 --config configs/table_32.py --workdir runs/tables \\
        --config.data.source=folder --config.data.root=/path/to/nodules [--systems=pn_samp_m,mcnn]

The config is the protocol; each system's run lies in the workdir under its key (see experiments/systems.py) and is
trained as far as it is not. `--systems` limits the training to some (`--systems=` to none); of the others, those that
are there are shown, the rest stand as "not run". All rows rest on the same test nodules, and on the same folds. Each
context (whole CT, cube, slab, simulated voxels) has a table of its own: <table>_<context>.md, .csv and .png.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.comparison.runs import is_complete, only, read_run, require_same
from experiments.comparison.scores import Figure
from experiments.comparison.systems import PN_SAMP, SYSTEMS, run_system
from pnsamp_jax import config as settings
from pnsamp_jax.allocator import keep_freed_memory
from pnsamp_jax.errors import UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import atomic_path
from pnsamp_jax.report.figures import Dots, draw_dots
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.tables import Table

RESAMPLES = 2000  # of the patients
TOLD = "†"  # marks systems that are told what readers said of the test nodules
NOT_RUN = "not run"


Cell = Figure | str | int
Row = dict[str, Cell]


class Page(NamedTuple):
    """A table of one context.

    Attributes:
      title: of the table.
      blocks: rows by the title of their block; all rows of a block have the same columns.
      notes: what a reader has to know, one line each.
      names: of the systems drawn, from the top.
      panels: their dots.
    """

    title: str
    blocks: dict[str, list[Row]]
    notes: list[str]
    names: list[str]
    panels: list[Dots]


Build = Callable[[dict[str, Table], int], Page]  # (runs of one context by key, resamples) -> page

# Rows


def name_of(key: str) -> str:
    """A system's name with its marks."""
    return SYSTEMS[key].name + (f" {TOLD}" if SYSTEMS[key].told else "")


def drawn_name(key: str, runs: dict[str, Table]) -> str:
    """A system's name in the picture."""
    return name_of(key) + ("" if key in runs else f" ({NOT_RUN})")


def published(key: str, figure: str) -> str:
    """What was published of a system, in per cent as it stands there."""
    value = SYSTEMS[key].published.get(figure)
    return "-" if value is None else f"{value:.2f}"


def fill(rows: list[Row], columns: list[str]) -> list[Row]:
    """Rows with every column, "-" where they have none."""
    return [{column: row.get(column, "-") for column in columns} for row in rows]


def told_note(shown: list[str]) -> list[str]:
    """The line that explains the mark, if it is among the systems shown."""
    line = f"{TOLD} is told what the readers drew or rated of the very nodules that it is tested on."
    return [line] if any(SYSTEMS[key].told for key in shown) else []


def dots(title: str, figures: list[Cell], paper: list[str], lines: dict[str, Cell]) -> Dots:
    """A panel of the picture; `paper` is what was published of each figure, or "-"."""
    values = [cell if isinstance(cell, Figure) else Figure() for cell in figures]
    return Dots(
        title,
        100 * np.array([figure.value for figure in values]),
        100 * np.array([figure.interval for figure in values]),
        np.array([np.nan if value == "-" else float(value) for value in paper]),
        {name: 100 * cell.value for name, cell in lines.items() if isinstance(cell, Figure)},
    )


# Writing


def markdown(page: Page, heading: str) -> str:
    """The page as Markdown, all in per cent."""
    lines = [f"## {page.title}", "", heading, ""]
    for title, rows in page.blocks.items():
        lines += [f"### {title}", ""] if title else []
        cells = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        cells.insert(1, ["-" * width for width in widths])
        for row in cells:
            lines.append("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in page.notes)]) + "\n"


def write_csv(page: Page, path: Path) -> None:
    """The page as CSV, in per cent: a figure takes the columns `x`, `x low` and `x high`, blank where undefined."""
    flat = []
    for title, rows in page.blocks.items():
        for row in rows:
            flat.append({"block": title} if title else {})
            for column, cell in row.items():
                if isinstance(cell, Figure):
                    values = (cell.value, *cell.interval)
                    cells = ["" if np.isnan(value) else f"{100 * value:.6g}" for value in values]
                    flat[-1] |= dict(zip((column, f"{column} low", f"{column} high"), cells, strict=True))
                else:
                    flat[-1][column] = "" if cell == "-" else cell
    columns = sorted(set().union(*flat), key=_order(page.blocks).get)
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def _order(blocks: dict[str, list[Row]]) -> dict[str, int]:
    """Where each column of the CSV stands: as in the blocks, an interval after its value."""
    columns = dict.fromkeys(column for rows in blocks.values() for column in rows[0])
    order = ["block"] + [name for column in columns for name in (column, f"{column} low", f"{column} high")]
    return {name: place for place, name in enumerate(order)}


def write_pages(name: str, build: Build, runs: dict[str, Table], root: Path, resamples: int = RESAMPLES) -> None:
    """Builds, writes and prints the table of each context.

    Args:
      name: of the table; the files are named so.
      build: makes the page of a context.
      runs: by key, over the same nodules.
      root: where the files go.
      resamples: of the patients.
    """
    contexts = next(iter(runs.values()))["context"]
    for context in sorted(set(contexts)):
        part = {key: only(table, table["context"] == context) for key, table in runs.items()}
        page, table = build(part, resamples), next(iter(part.values()))
        patients = len(set(table["patient_id"]))
        heading = f"{len(table['nodule_id'])} nodules of {patients} patients ({CONTEXT_NOTES[context]}). "
        heading += "Per cent, with 95 % intervals by patients."
        paths = [root / f"{name}_{context}{suffix}" for suffix in (".md", ".csv", ".png")]
        text = markdown(page, heading) + f"\n![{page.title}]({paths[2].name})\n"
        with atomic_path(paths[0]) as temporary:
            temporary.write_text(text)
        write_csv(page, paths[1])
        draw_dots(page.names, page.panels, f"{page.title}\n{heading}", paths[2])
        print(f"\n{text}\n" + ", ".join(map(str, paths)))


def read_runs(root: Path, systems: list[str], folds: list[int]) -> dict[str, Table]:
    """The runs of those systems that were run on all these folds, checked to be over the same nodules.

    Raises:
      UserError: none was run, or two runs cannot be compared.
    """
    there = [key for key in systems if (root / key / "predictions.csv").is_file()]
    finished = [key for key in there if is_complete(root / key, folds)]
    for key in there:
        if key not in finished:
            print(f"{root / key}: is not finished, and stands as '{NOT_RUN}'")
    runs = {key: read_run(root / key, folds) for key in finished}
    if not runs:
        raise UserError(f"{root}: none of the table's systems was run; leave out --systems, or name one of them")
    require_same({root / key: table for key, table in runs.items()})
    return runs


def make_table(
    name: str, shown: list[str], build: Build, protocol: ConfigDict, root: Path, chosen: list[str] | None = None
) -> None:
    """Runs the systems of a table as far as they are not, and writes it.

    Args:
      name: of the table.
      shown: keys of its systems.
      build: makes the page of a context.
      protocol: the common config.
      root: holds a folder for each system.
      chosen: keys of the systems to run; all that are shown by default.

    Raises:
      UserError: the workdir belongs to another protocol, or a run fails.
    """
    for key in chosen or ():
        if key not in shown:
            raise UserError(f"--systems: '{key}' is not in {name}, which shows {', '.join(shown)}")
    settings.check(protocol)
    layout.check(protocol, root)
    layout.claim(protocol, root)
    for key in shown if chosen is None else chosen:
        run_system(key, protocol, root)
    runs = read_runs(root, [*dict.fromkeys([PN_SAMP, *shown])], layout.chosen_folds(protocol))
    write_pages(name, build, runs, root)


def launch(name: str, shown: list[str], build: Build) -> None:
    """The command line of a table; a user's mistake becomes one line."""
    config = config_flags.DEFINE_config_file("config", None, "The protocol, which all systems share.")
    workdir = flags.DEFINE_string("workdir", None, "Holds a folder for each system; the table is written there.")
    chosen = flags.DEFINE_list("systems", None, f"Which to run; all by default: {', '.join(shown)}.")

    def main(argv: list[str]) -> None:
        del argv
        keep_freed_memory()
        logging.set_verbosity(logging.WARNING)
        try:
            make_table(name, shown, build, config.value, Path(workdir.value), chosen.value)
        except UserError as error:
            sys.exit(f"{name}: {error}")

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
