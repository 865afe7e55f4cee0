"""What is installed: the packages and files of setup.cfg are those on disk, and configs work in every layout."""

import configparser
import importlib
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import pnsamp_jax
from pnsamp_jax import config_file

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pnsamp_jax"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def test_the_packages_are_those_on_disk(setup_cfg):
    found = {path.parent.relative_to(REPOSITORY) for path in PACKAGE.rglob("__init__.py")}
    assert sorted(setup_cfg["options"]["packages"].split()) == sorted(".".join(path.parts) for path in found)


def test_every_file_that_is_not_python_is_package_data(setup_cfg):
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, value in setup_cfg["options.package_data"].items()
        for pattern in value.split()
    ]
    hidden = {path for path in PACKAGE.rglob("*") if any(part.startswith(".") for part in path.parts)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file()} - hidden
    names = {path.relative_to(REPOSITORY).as_posix() for path in files if path.suffix not in (".py", ".pyc")}
    assert {"pnsamp_jax/py.typed", "pnsamp_jax/report/html_page.html", "pnsamp_jax/weights/README.md"} <= names
    assert not [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


def test_the_console_command_exists(setup_cfg):
    name, target = (part.strip() for part in setup_cfg["options.entry_points"]["console_scripts"].split("="))
    module, function = target.split(":")
    assert name == "pnsamp" and callable(getattr(importlib.import_module(module), function))


def test_the_citation_is_of_this_version():
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == pnsamp_jax.__version__


@pytest.mark.parametrize("name", config_file.shipped())
def test_a_shipped_config_loads_by_its_name_and_says_what_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_file.load(name)
    assert config.is_locked and config.model.name
    module = importlib.import_module(f"pnsamp_jax.configs.{name}")
    assert config.to_json() == module.get_config().to_json()
    assert config_file.summaries()[name].endswith(".") and module.get_config.__doc__


def test_a_checkout_runs_without_the_finder_of_an_editable_install():
    program = "import sys\n"
    program += "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in finder.__module__]\n"
    program += "from pnsamp_jax import config_file, configs\n"
    program += "print(configs.__file__, config_file.load('mcnn').patch_size)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(PACKAGE / "configs" / "__init__.py"), "96"]
