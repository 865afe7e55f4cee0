"""The notebooks as they are stored: valid, whole, without errors, and of names that exist. `.ci/run` runs them."""

import ast
import builtins
import importlib
import re
import symtable

import nbformat
import pytest

from experiments.notebooks import refresh
from pnsamp_jax.errors import UserError

MOST_BYTES = 1_500_000
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)  # of IPython: a line that begins with % or !
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(tmp|work|root|home|Users|usr|content)/\S*")
PROJECT = ("pnsamp_jax", "experiments")


@pytest.fixture(params=refresh.NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def notebook(name):
    return nbformat.read(refresh.FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook) -> str:
    """Return the code of all cells, with `pass` in place of IPython's own lines."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(MAGIC.sub(r"\1pass", source) for source in cells)


def test_every_notebook_is_listed():
    assert sorted(path.stem for path in refresh.FOLDER.glob("*.ipynb")) == sorted(refresh.NAMES)
    listed = (refresh.FOLDER / "README.md").read_text()
    assert all(f"({name}.ipynb)" in listed for name in refresh.NAMES)


def test_it_is_valid_and_small(name, notebook):
    nbformat.validate(notebook)
    assert (refresh.FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES


def test_it_begins_with_its_badge_and_ends_with_where_to_go_next(name, notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    place = f"github/{refresh.repository()}/blob/main/experiments/notebooks/{name}.ipynb"
    assert f"(https://colab.research.google.com/{place})" in first.splitlines()[0]
    assert last.startswith("## Where to go next\n")


def test_it_names_the_repository_of_setup_cfg_and_no_other(notebook):
    for cell in notebook.cells:
        assert {found[0] for found in refresh.ADDRESS.finditer(cell.source)} <= {
            f"github.com/{refresh.repository()}",
            f"google.com/github/{refresh.repository()}",
        }


def test_it_was_run_from_top_to_bottom_without_an_error(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error"
        assert "Traceback" not in output.get("text", "") and "Warning" not in output.get("text", "")


def test_it_holds_no_path_of_a_machine(notebook):
    texts = [cell.source for cell in notebook.cells]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        texts += [
            output.get("text", ""),
            *(text for kind, text in output.get("data", {}).items() if "image" not in kind),
        ]
    assert not [found[0] for text in texts for found in MACHINE_PATH.finditer(text)]


def test_links_between_notebooks_and_to_files_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    for path in re.findall(r"github\.com/[\w-]+/[\w-]+/blob/main/([^)#\s]+)", text):
        assert (refresh.FOLDER.parents[1] / path).is_file(), path


def test_it_uses_only_names_that_exist(notebook):
    code = code_of(notebook)
    compile(code, "notebook", "exec")
    assert not undefined(code)
    assert not missing(ast.parse(code))


def undefined(code: str) -> set[str]:
    """Return the global names that a notebook reads but nowhere assigns or imports."""
    top = symtable.symtable(code, "notebook", "exec")
    known = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    scopes, used = [top], {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    while scopes:
        scopes += (scope := scopes.pop()).get_children()
        used |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
    return used - known - set(dir(builtins))


def missing(tree: ast.Module) -> list[str]:
    """Return the names of the project that a module imports, or reads from a module that it imports, in vain."""
    modules, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PROJECT:
                    modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PROJECT:
            for alias in node.names:
                value = imported(node.module, alias.name)
                if value is None:
                    found.append(f"{node.module}.{alias.name}")
                elif type(value) is type(ast):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            if not hasattr(modules[node.value.id], node.attr):
                found.append(f"{node.value.id}.{node.attr}")
    return found


def imported(module: str, name: str):
    """Return what `from module import name` gives; None if there is no such thing."""
    try:
        parent = importlib.import_module(module)
        return getattr(parent, name) if hasattr(parent, name) else importlib.import_module(f"{module}.{name}")
    except ImportError:
        return None


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import pnsamp_jax\npnsamp_jax.lode()", "pnsamp_jax.lode"),
        ("from pnsamp_jax.data import scheme", "pnsamp_jax.data.scheme"),
        ("from pnsamp_jax.data import schema as s\ns.RATING", "s.RATING"),
        ("from experiments.speed import report\nreport.stepz", "report.stepz"),
        ("from pnsamp_jax.nowhere import load", "pnsamp_jax.nowhere.load"),
    ],
)
def test_a_name_that_the_project_lacks_is_found(code, name):
    assert missing(ast.parse(code)) == [name]


def test_a_name_that_is_never_assigned_is_found():
    assert undefined("import a\nx = a.b\ndef f(y):\n    return [x + y + z + t for z in len(y)]\n") == {"t"}


def test_the_address_is_written_into_badge_links_and_install_cell():
    sources = [
        "[![](https://colab.research.google.com/assets/b.svg)](https://colab.research.google.com/github/a/b/blob/main/x)",
        "see [README](https://github.com/a/b#readme)",
        '%pip install "git+https://github.com/a/b"',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source) for source in sources])
    refresh.write_address(notebook, "c-d/e_f")
    assert [cell.source for cell in notebook.cells] == [source.replace("a/b", "c-d/e_f") for source in sources]


def test_a_notebook_whose_cell_fails_stays_as_it_is(tmp_path, monkeypatch):
    def fail(notebook):
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="half")]
        raise UserError("ZeroDivisionError: division by zero")

    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    monkeypatch.setattr(refresh, "execute", fail)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        refresh.refresh(path)
    assert path.read_bytes() == before


def test_widgets_progress_bars_and_the_version_of_python_are_not_stored(tmp_path, monkeypatch):
    def run(notebook):
        notebook.metadata.update(widgets={"state": {}}, language_info={"name": "python", "version": "3.11.7"})
        notebook.cells[0].outputs = [
            nbformat.v4.new_output("display_data", {refresh.WIDGET: {}, "text/plain": "slider"}),
            nbformat.v4.new_output("stream", name="stderr", text="Fold 0: 100%|####| 36/36 [02:01<00:00]\n"),
            nbformat.v4.new_output("stream", name="stderr", text="told\nFold 1:  50%|##  | 18/36\n"),
            nbformat.v4.new_output("stream", text="kept"),
        ]

    path = tmp_path / "slider.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("slider")]), path)
    monkeypatch.setattr(refresh, "execute", run)
    refresh.refresh(path)
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata == {"language_info": {"name": "python"}}
    assert [output.text for output in stored.cells[0].outputs] == ["told\n", "kept"]
