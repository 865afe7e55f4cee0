"""Who may import whom, as one table that every module's source is checked against, and what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pnsamp_jax"

# A module imports from its own layer and from those below. A folder stands for everything in it, except for a
# `__main__`, which is a command line and belongs to the first layer.
LAYERS = (
    {"main", "cli"},
    {"train", "starting", "stepping", "journal", "testing", "refit", "evaluate", "predict", "predictor", "diagnosed"},
    {"answer"},
    {"run"},
    {"config", "config_checks"},
    {"steps", "task", "processes", "input_pipeline", "inference", "export", "workdir", "report", "datasets"},
    {"state", "losses", "metrics", "intervals", "outlines", "transforms", "appearance"},
    {"models", "data"},
    {"ct"},
    {"allocator", "config_file", "configs", "errors", "files", ""},  # "" is the package itself
)

# What only these modules or folders may import ...
ONLY_IN = {
    "apache_beam": {"data/beam", "datasets"},
    "tensorflow": {"input_pipeline", "datasets"},
    "tensorflow_datasets": {"input_pipeline", "datasets"},
    "orbax": {"workdir/checkpoint"},
    "click": {"cli"},
    "jax.pmap": {"steps"},
}
# ... and what these must not.
NEVER_IN = {
    "flax": {"ct", "data", "transforms", "appearance"},
    "ml_collections": {"models", "losses", "ct", "data", "transforms", "steps", "workdir", "inference", "report"},
    # NumPy only: preparing, evaluating and reporting need no accelerator
    "jax": {
        "ct",
        "data",
        "report",
        "metrics",
        "intervals",
        "outlines",
        "diagnosed",
        "main",
        "cli",
        "config_file",
        "errors",
        "files",
    },
    "pylidc": {""},
}

MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def part_of(module):
    """Return the top-level module or folder that a module belongs to, such as "data" for "data/schema"."""
    parts = module.split("/")
    return "main" if parts[-1] == "__main__" else parts[0].replace("__init__", "")


def layer_of(part):
    """Return the index in `LAYERS` of a top-level module or folder, 0 for the highest layer."""
    (index,) = [index for index, parts in enumerate(LAYERS) if part in parts]
    return index


def imported_names(tree, package):
    """Yield the dotted names that a module imports, or reads from an import (`jax.pmap` after `import jax`)."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name
                aliases[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # relative to the folder of the module
                source = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *source.split(".")]
                )
            for name in node.names:
                yield f"{source}.{name.name}".strip(".")
                aliases[name.asname or name.name] = f"{source}.{name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield f"{aliases[node.value.id]}.{node.attr}"


def violations(module, source):
    """Return what a module's source does against the rules, one line each.

    Args:
      module: path in the package without suffix, such as "data/schema".
      source: Python.
    """
    part, owners = part_of(module), {part_of(module), module}
    package = ".".join(["pnsamp_jax", *module.split("/")[:-1]])
    known = {name for layer in LAYERS for name in layer}
    if part not in known:
        return [f"{module}: belongs to no layer; add it to LAYERS"]
    found = [f"{module}: is called utils"] if "utils" in module.split("/") else []
    for name in sorted(set(imported_names(ast.parse(source), package))):
        found += [
            f"{module}: {name} is for {sorted(ONLY_IN[rule])} only"
            for rule in ONLY_IN
            if covers(rule, name) and not owners & ONLY_IN[rule]
        ]
        found += [
            f"{module}: must not import {name}" for rule in NEVER_IN if covers(rule, name) and part in NEVER_IN[rule]
        ]
        if covers("pnsamp_jax", name):
            target = name.split(".")[1] if "." in name else ""
            target = target if target in known else ""  # a name of the package itself, such as __version__
            if layer_of(target) < layer_of(part):
                found.append(f"{module}: {name} is of a higher layer")
    return found


def covers(rule, name):
    """Return whether a dotted name is the rule's name or lies within it."""
    return name == rule or name.startswith(rule + ".")


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_the_rules(module):
    assert not violations(module, (PACKAGE / f"{module}.py").read_text())


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("data/new", "import flax.linen as nn", "must not import flax.linen"),
        ("data/new", "def f():\n    from jax import numpy", "must not import jax.numpy"),
        ("data/new", "from pnsamp_jax import transforms", "is of a higher layer"),
        ("data/new", "from ..train import train_fold", "is of a higher layer"),
        ("ct/new", "from pnsamp_jax.data import schema", "is of a higher layer"),
        ("transforms", "from flax import struct", "must not import flax.struct"),
        ("losses", "import ml_collections", "must not import ml_collections"),
        ("models/new", "from ml_collections import ConfigDict", "must not import ml_collections.ConfigDict"),
        ("workdir/new", "from ml_collections import ConfigDict", "must not import ml_collections.ConfigDict"),
        ("models/new", "import pnsamp_jax.losses", "is of a higher layer"),
        ("models/new", "import tensorflow as tf", "is for ['datasets', 'input_pipeline'] only"),
        ("train", "def f():\n    import tensorflow_datasets as tfds", "is for ['datasets', 'input_pipeline'] only"),
        ("workdir/tables", "from orbax import checkpoint", "is for ['workdir/checkpoint'] only"),
        ("train", "import jax\n\nstep = jax.pmap(f)", "is for ['steps'] only"),
        ("train", "import jax as j\n\nstep = j.pmap(f)", "is for ['steps'] only"),
        ("state", "from jax import pmap as parallel", "is for ['steps'] only"),
        ("workdir/checkpoint", "from pnsamp_jax.train import train_fold", "is of a higher layer"),
        ("inference/new", "from pnsamp_jax.config import Settings", "is of a higher layer"),
        ("config", "from pnsamp_jax import main", "is of a higher layer"),
        ("data/utils", "", "is called utils"),
        ("helpers", "", "belongs to no layer"),
    ],
)
def test_the_rules_catch(module, source, complaint):
    (found,) = violations(module, source)
    assert found.startswith(f"{module}: ") and complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses", "from pnsamp_jax.models.pn_samp import Outputs"),
        ("models/new", "from pnsamp_jax.data import schema\nfrom pnsamp_jax.errors import UserError"),
        ("data/new", "from pnsamp_jax import __version__\nfrom . import schema\nfrom .cohort import Nodule"),
        ("data/new", "from pnsamp_jax.ct.volume import Volume"),
        ("models/__main__", "from ml_collections import config_flags\nfrom pnsamp_jax import models"),
        ("steps", "import jax\nfrom pnsamp_jax import losses, transforms\n\nstep = jax.pmap(f)"),
        ("workdir/checkpoint", "import orbax.checkpoint as ocp"),
        ("input_pipeline", "def f():\n    import tensorflow as tf"),
        ("train", "from pnsamp_jax import evaluate, run, steps\nimport ml_collections"),
    ],
)
def test_the_rules_allow(module, source):
    assert not violations(module, source)


def test_no_modules_import_each_other_in_a_circle():
    edges = {}
    for module in MODULES:
        name = ".".join(["pnsamp_jax", *module.removesuffix("/__init__").split("/")]).removesuffix(".__init__")
        package = name if module.endswith("__init__") else name.rpartition(".")[0]
        edges[name] = set(imported_names(ast.parse((PACKAGE / f"{module}.py").read_text()), package))
    # Both `from pnsamp_jax.ct import dicom` and `from pnsamp_jax.ct.dicom import f` import the module dicom.
    edges = {
        name: {other for other in edges if other != name and any(covers(other, used) for used in names)}
        - {name.rpartition(".")[0]}  # a package's own __init__ is loaded before its modules
        for name, names in edges.items()
    }
    edges = {
        name: {o for o in others if not any(covers(o, p) and o != p for p in others)} for name, others in edges.items()
    }
    while leaves := {name for name, others in edges.items() if not others & edges.keys()}:
        edges = {name: others for name, others in edges.items() if name not in leaves}
    assert not edges


def functions(tree):
    """Yield every function of a module with its number of lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("folder", ["pnsamp_jax", "experiments", "configs"])
def test_modules_have_at_most_300_lines_and_functions_60(folder):
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        source = path.read_text()
        assert source.count("\n") <= 300, path
        assert not [(name, lines) for name, lines in functions(ast.parse(source)) if lines > 60], path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pnsamp_jax", {"jax", "flax", "tensorflow", "numpy"}),
        ("pnsamp_jax.main", {"jax", "flax", "orbax", "tensorflow"}),
        ("pnsamp_jax.cli", {"jax", "flax", "orbax", "tensorflow"}),
        ("pnsamp_jax.evaluate", {"jax", "flax", "orbax", "tensorflow"}),
        ("pnsamp_jax.data.prepare", {"jax", "flax", "tensorflow"}),
        ("pnsamp_jax.train", {"tensorflow", "tensorflow_datasets", "torch"}),
        ("pnsamp_jax.predict", {"tensorflow", "tensorflow_datasets", "highdicom"}),
        ("pnsamp_jax.predictor", {"tensorflow", "tensorflow_datasets", "highdicom", "nibabel", "SimpleITK"}),
    ],
)
def test_an_import_loads_no_more_than_it_needs(module, absent):
    program = f"import sys, {module}; print(*(set({sorted(absent)!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == []
