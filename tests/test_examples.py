"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import pnsamp_jax

PACKAGE = Path(pnsamp_jax.__file__).parent
MODULES = sorted(
    ".".join(["pnsamp_jax", *path.relative_to(PACKAGE).with_suffix("").parts])
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


def test_the_interface_has_examples():
    assert {"pnsamp_jax.predictor", "pnsamp_jax.data.lidc"} <= set(MODULES)


@pytest.mark.slow  # the networks that come with the package are compiled
@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed
