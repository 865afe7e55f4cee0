"""Run the notebooks from top to bottom, and store their outputs in them.

    python -m experiments.notebooks.refresh [--name=predict] [--norun]

The repository's address, from which the notebooks are opened in Colab and the package is installed there, is that of
setup.cfg. `--norun` only writes it into the notebooks, after it has changed.
"""

import configparser
import re
from pathlib import Path

import nbformat
from absl import flags
from nbformat import NotebookNode

from experiments.launch import launch
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import atomic_path

FOLDER = Path(__file__).parent
NAMES = ("predict", "step_by_step", "own_data", "how_fast")
TIMEOUT_S = 1800  # of a cell
PROGRESS_BAR = re.compile(r"^.*\d%\|.*\n?", re.MULTILINE)
WIDGET = "application/vnd.jupyter.widget-view+json"

# Owner and name, on GitHub itself and where Colab opens GitHub's notebooks.
ADDRESS = re.compile(r"(github\.com/|google\.com/github/)[\w-]+/[\w-]+")


def repository() -> str:
    """Return owner and name of the repository on GitHub, as setup.cfg has them."""
    parser = configparser.ConfigParser()
    parser.read(FOLDER.parents[1] / "setup.cfg")
    urls = dict(line.split(" = ") for line in parser["metadata"]["project_urls"].strip().splitlines())
    return urls["Source"].removeprefix("https://github.com/")


def write_address(notebook: NotebookNode, address: str) -> None:
    """Make all cells of a notebook link to, and install from, the repository with this owner and name."""
    for cell in notebook.cells:
        cell.source = ADDRESS.sub(rf"\1{address}", cell.source)


def execute(notebook: NotebookNode) -> None:
    """Run the cells in a new process, and replace their outputs.

    Raises:
      UserError: a cell failed.
    """
    from nbclient import NotebookClient  # of the extra `notebooks`
    from nbclient.exceptions import CellExecutionError

    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
        coalesce_streams=True,  # a progress bar leaves its last line
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise UserError(f"{error.ename}: {error.evalue}; run the notebook in Jupyter to see more") from error


def tidy(notebook: NotebookNode) -> None:
    """Remove the version of Python, progress bars, and widgets, which show nothing once their process has ended."""
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    output.text = PROGRESS_BAR.sub("", output.text)
            cell.outputs = [output for output in cell.outputs if output.get("text", True) and not _is_widget(output)]


def _is_widget(output: NotebookNode) -> bool:
    return WIDGET in output.get("data", {})


def refresh(path: Path, execution: bool = True) -> None:
    """Write the address into a notebook, and run it.

    Args:
      path: of the notebook, which stays as it is if a cell fails.
      execution: whether to run it.

    Raises:
      UserError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    write_address(notebook, repository())
    if execution:
        print(f"{path.name} ...", flush=True)
        execute(notebook)
        tidy(notebook)
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


def run(names: list[str], execution: bool) -> None:
    """Refresh the notebooks with the given names, all if there are none."""
    for name in names or NAMES:
        refresh(FOLDER / f"{name}.ipynb", execution)


if __name__ == "__main__":
    launch(
        run,
        names=flags.DEFINE_multi_enum("name", [], NAMES, "A notebook to refresh; may be repeated. All by default."),
        execution=flags.DEFINE_bool("run", True, "Run them; otherwise only the address is written."),
    )
