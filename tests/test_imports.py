"""Who may import whom, as one table that is held against every module's source, and what an import brings along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pnsamp_jax"

# A module imports from its own layer and from those below. A folder stands for all that is in it, but for a
# `__main__`, which is a command line and stands beside main.
LAYERS = (
    {"main"},
    {"train", "evaluate", "predict", "config"},
    {"steps", "input_pipeline", "inference", "workdir", "report", "datasets"},
    {"state", "losses", "metrics", "transforms"},
    {"models", "data"},
    {"ct"},
    {"allocator", "errors", "files", ""},  # "" is the package itself
)

# What only these modules may import ...
ONLY_IN = {
    "tensorflow": {"input_pipeline", "datasets"},
    "tensorflow_datasets": {"input_pipeline", "datasets"},
    "orbax": {"workdir/checkpoint"},
    "jax.pmap": {"steps"},
}
# ... and what these must not.
NEVER_IN = {
    "flax": {"ct", "data", "transforms"},
    "ml_collections": {"models", "losses", "ct", "data", "transforms"},
    # numpy only: no accelerator is needed to prepare, to evaluate or to show
    "jax": {"ct", "data", "report", "metrics", "main"},
}

MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def layer_of(part):
    """The place of a module or folder in `LAYERS`, 0 at the top."""
    (place,) = [place for place, parts in enumerate(LAYERS) if part in parts]
    return place


def imported_names(tree, package):
    """Dotted names that a module imports or takes off an import (`jax.pmap` of `import jax`), wherever it stands."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name
                aliases[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # relative to the folder that the module is in
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
    """What a module's source does against the rules, one line each.

    Args:
      module: path in the package without suffix, such as "data/schema".
      source: Python.
    """
    parts = module.split("/")
    part = "main" if parts[-1] == "__main__" else parts[0].replace("__init__", "")
    package = ".".join(["pnsamp_jax", *parts[:-1]])
    known = {name for layer in LAYERS for name in layer}
    if part not in known:
        return [f"{module}: stands in no layer; give it a place in LAYERS"]
    found = [f"{module}: is called utils"] if "utils" in parts else []
    for name in sorted(set(imported_names(ast.parse(source), package))):
        found += [
            f"{module}: {name} is for {sorted(ONLY_IN[rule])} only"
            for rule in ONLY_IN
            if covers(rule, name) and part not in ONLY_IN[rule]
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
    """Whether a dotted name is the rule's, or lies within it."""
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
        ("data/new", "from ..train import make_task", "is of a higher layer"),
        ("transforms", "from flax import struct", "must not import flax.struct"),
        ("losses", "import ml_collections", "must not import ml_collections"),
        ("models/new", "from ml_collections import ConfigDict", "must not import ml_collections.ConfigDict"),
        ("models/new", "import pnsamp_jax.losses", "is of a higher layer"),
        ("models/new", "import tensorflow as tf", "is for ['datasets', 'input_pipeline'] only"),
        ("train", "def f():\n    import tensorflow_datasets as tfds", "is for ['datasets', 'input_pipeline'] only"),
        ("evaluate", "from orbax import checkpoint", "is for ['checkpoint'] only"),
        ("train", "import jax\n\nstep = jax.pmap(f)", "is for ['steps'] only"),
        ("train", "import jax as j\n\nstep = j.pmap(f)", "is for ['steps'] only"),
        ("state", "from jax import pmap as parallel", "is for ['steps'] only"),
        ("checkpoint", "from pnsamp_jax.train import make_task", "is of a higher layer"),
        ("settings", "from pnsamp_jax import main", "is of a higher layer"),
        ("data/utils", "", "is called utils"),
        ("helpers", "", "stands in no layer"),
    ],
)
def test_the_rules_catch(module, source, complaint):
    (found,) = violations(module, source)
    assert found.startswith(f"{module}: ") and complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses", "from pnsamp_jax.models.pn_samp import Outputs"),
        ("models/new", "from pnsamp_jax.data import keys\nfrom pnsamp_jax.errors import UserError"),
        ("data/new", "from pnsamp_jax import __version__\nfrom . import keys\nfrom .cohort import Nodule"),
        ("models/__main__", "from ml_collections import config_flags\nfrom pnsamp_jax import models"),
        ("steps", "import jax\nfrom pnsamp_jax import losses, transforms\n\nstep = jax.pmap(f)"),
        ("input_pipeline", "def f():\n    import tensorflow as tf"),
        ("train", "from pnsamp_jax import evaluate, settings, steps\nimport ml_collections"),
    ],
)
def test_the_rules_allow(module, source):
    assert not violations(module, source)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pnsamp_jax", {"jax", "flax", "tensorflow", "numpy"}),
        ("pnsamp_jax.main", {"jax", "flax", "orbax", "tensorflow"}),
        ("pnsamp_jax.evaluate", {"jax", "flax", "orbax", "tensorflow"}),
        ("pnsamp_jax.data.prepare", {"jax", "flax", "tensorflow"}),
        ("pnsamp_jax.train", {"tensorflow", "tensorflow_datasets", "torch"}),
        ("pnsamp_jax.predict", {"tensorflow", "tensorflow_datasets", "highdicom"}),
    ],
)
def test_an_import_brings_along_no_more_than_it_needs(module, absent):
    program = f"import sys, {module}; print(*(set({sorted(absent)!r}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []
