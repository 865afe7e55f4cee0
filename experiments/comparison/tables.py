"""The three tables: their cells, their files, and their command line.

    python -m experiments.table2 --config table_32 --workdir runs/tables \\
        --config.data.source=folder --config.data.root=/path/to/nodules [--systems=pn_samp_m,mcnn]

The config is the protocol. The run of each system lies in the workdir under its key (see `systems.py`) and is trained
unless it is complete. `--systems` restricts the training to some systems (`--systems=` to none); of the others, those
that are complete are shown, and the rest appear as "not run". All rows rest on the same test nodules and the same
folds. Each context (whole CT, cube, slab, simulated voxels) has its own table: <table>_<context>.md, .csv and .png.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.comparison.runs import is_complete, read_run, require_same, select
from experiments.comparison.scores import Estimate
from experiments.comparison.systems import PN_SAMP, SYSTEMS, check_system, check_workdir, run_system
from experiments.launch import launch
from pnsamp_jax.config import read_settings
from pnsamp_jax.errors import UserError
from pnsamp_jax.evaluate import CONTEXT_NOTES
from pnsamp_jax.files import atomic_path, write_text
from pnsamp_jax.report.evaluation_figures import Dots, draw_dots
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.tables import Table

flags.disclaim_key_flags()  # the flags defined here belong to the table, so that its --help lists them

RESAMPLES = 2000  # of the patients
READERS_MARK = "†"  # behind systems that use the readers' outlines or ratings of the test nodules
NOT_RUN = "not run"

Cell = Estimate | str | int
Row = dict[str, Cell]


class Page(NamedTuple):
    """The table of one context.

    Attributes:
      title: of the table.
      blocks: rows by the title of their block; all rows of a block have the same columns.
      notes: explanations, one line each.
      names: of the systems in the figure, from the top.
      panels: of the figure.
    """

    title: str
    blocks: dict[str, list[Row]]
    notes: list[str]
    names: list[str]
    panels: list[Dots]


Build = Callable[[dict[str, Table], int], Page]  # (runs of one context by key, resamples) -> page

# Cells and rows


def name_of(key: str) -> str:
    """Return a system's name, marked if it uses the readers."""
    return SYSTEMS[key].name + (f" {READERS_MARK}" if SYSTEMS[key].uses_readers else "")


def name_in_figure(key: str, runs: dict[str, Table]) -> str:
    """Return a system's name, with a note if it was not run."""
    return name_of(key) + ("" if key in runs else f" ({NOT_RUN})")


def published(key: str, metric: str) -> str:
    """Return a system's published result in per cent, with the digits of the paper; "-" if there is none."""
    value = SYSTEMS[key].published.get(metric)
    return "-" if value is None else f"{value:.2f}"


def fill(rows: list[Row], columns: list[str]) -> list[Row]:
    """Return the rows with all columns in order, "-" where a row lacks one."""
    return [{column: row.get(column, "-") for column in columns} for row in rows]


def readers_note(shown: list[str]) -> list[str]:
    """Return the line that explains the mark, if one of the systems shown has it."""
    line = f"{READERS_MARK} is given the readers' outlines or ratings of the very nodules that it is tested on."
    return [line] if any(SYSTEMS[key].uses_readers for key in shown) else []


def dots(title: str, cells: Sequence[Cell], paper: Sequence[Cell], lines: dict[str, Cell]) -> Dots:
    """Return a panel of the figure.

    Args:
      title: of the panel.
      cells: one for each system; only estimates are drawn.
      paper: the published result of each system as text, or "-".
      lines: cells drawn as vertical lines, by name.
    """
    estimates = [cell if isinstance(cell, Estimate) else Estimate() for cell in cells]
    return Dots(
        title,
        100 * np.array([estimate.value for estimate in estimates]),
        100 * np.array([estimate.interval for estimate in estimates]),
        np.array([np.nan if value == "-" else float(str(value)) for value in paper]),
        {name: 100 * cell.value for name, cell in lines.items() if isinstance(cell, Estimate)},
    )


# Files


def markdown(page: Page, heading: str) -> str:
    """Format the page as Markdown, in per cent."""
    lines = [f"## {page.title}", "", heading, ""]
    for title, rows in page.blocks.items():
        lines += [f"### {title}", ""] if title else []
        cells = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        cells.insert(1, ["-" * width for width in widths])
        for texts in cells:
            lines.append("| " + " | ".join(c.ljust(w) for c, w in zip(texts, widths, strict=True)) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in page.notes)]) + "\n"


def write_csv(page: Page, path: Path) -> None:
    """Write the page as CSV, in per cent.

    An estimate x has the columns `x`, `x low` and `x high`, which are blank if it is undefined.
    """
    flat: list[dict[str, str | int]] = []
    for title, rows in page.blocks.items():
        for row in rows:
            flat.append({"block": title} if title else {})
            for column, cell in row.items():
                if isinstance(cell, Estimate):
                    values = (cell.value, *cell.interval)
                    cells = ["" if np.isnan(value) else f"{cell.factor * value:.6g}" for value in values]
                    flat[-1] |= dict(zip((column, f"{column} low", f"{column} high"), cells, strict=True))
                else:
                    flat[-1][column] = "" if cell == "-" else cell
    order = _column_order(page.blocks)
    columns = sorted({column for row in flat for column in row}, key=order.index)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def _column_order(blocks: dict[str, list[Row]]) -> list[str]:
    """Return the possible columns of the CSV file in the order of the blocks, an interval after its value."""
    columns = dict.fromkeys(column for rows in blocks.values() for column in rows[0])
    return ["block"] + [name for column in columns for name in (column, f"{column} low", f"{column} high")]


def write_pages(name: str, build: Build, runs: dict[str, Table], root: Path, resamples: int) -> None:
    """Build, write and print the table of each context.

    Args:
      name: of the table, with which its file names begin.
      build: makes the page of a context.
      runs: by key, over the same nodules.
      root: folder of the files.
      resamples: of the patients.
    """
    contexts = next(iter(runs.values()))["context"]
    for context in sorted(set(contexts)):
        of_context = {key: select(table, table["context"] == context) for key, table in runs.items()}
        page, table = build(of_context, resamples), next(iter(of_context.values()))
        patients = len(set(table["patient_id"]))
        heading = f"{len(table['nodule_id'])} nodules of {patients} patients ({CONTEXT_NOTES[context]}). "
        heading += "Per cent unless a unit is given, with 95 % intervals by patients."
        paths = [root / f"{name}_{context}{suffix}" for suffix in (".md", ".csv", ".png")]
        text = markdown(page, heading) + f"\n![{page.title}]({paths[2].name})\n"
        write_text(paths[0], text)
        write_csv(page, paths[1])
        draw_dots(page.names, page.panels, f"{page.title}\n{heading}", paths[2])
        print(f"\n{text}\n" + ", ".join(map(str, paths)))


# Runs


def read_runs(root: Path, systems: list[str], folds: Sequence[int]) -> dict[str, Table]:
    """Read the runs of the systems that were run on all these folds, and check that they can be compared.

    Raises:
      UserError: no system was run, or two runs cannot be compared.
    """
    started = [key for key in systems if (root / key / "predictions.csv").is_file()]
    finished = [key for key in started if is_complete(root / key, folds)]
    for key in started:
        if key not in finished:
            print(f"{root / key}: is not finished, and appears as '{NOT_RUN}'")
    runs = {key: read_run(root / key, folds) for key in finished}
    if not runs:
        raise UserError(f"{root}: none of the table's systems was run; leave out --systems, or name one of them")
    require_same({root / key: table for key, table in runs.items()})
    return runs


def make_table(
    name: str, shown: list[str], build: Build, protocol: ConfigDict, root: Path, chosen: list[str] | None = None
) -> None:
    """Run the systems of a table that are not complete, and write the table.

    Args:
      name: of the table.
      shown: keys of its systems.
      build: makes the page of a context.
      protocol: the common config.
      root: holds a folder for each system.
      chosen: keys of the systems to run; all those shown by default.

    Raises:
      UserError: the workdir belongs to another protocol, or a run fails.
    """
    for key in chosen or ():
        if key not in shown:
            raise UserError(f"--systems: '{key}' is not in {name}, which shows {', '.join(shown)}")
    folds = read_settings(protocol).folds
    layout.write_config(root, check_workdir(root, protocol))
    for key in shown if chosen is None else chosen:
        if protocol.data.source == "folder" or not SYSTEMS[key].slabs_only:
            run_system(key, protocol, root)
    for key in (PN_SAMP, *shown):
        check_system(key, protocol, root)  # also of those that were not to run now
    runs = read_runs(root, [*dict.fromkeys([PN_SAMP, *shown])], folds)
    write_pages(name, build, runs, root, RESAMPLES)


def launch_table(name: str, shown: list[str], build: Build) -> None:
    """Make a table from the command line; see `make_table`."""

    def run(config: ConfigDict, workdir: Path, systems: list[str] | None) -> None:
        make_table(name, shown, build, config, workdir, systems)

    launch(
        run,
        config="The protocol, which all systems share.",
        workdir="Folder of the systems' runs, and of the table.",
        systems=flags.DEFINE_list("systems", None, f"Which systems to run; all by default: {', '.join(shown)}."),
    )
