"""Change the code in small ways, one at a time, and count the changes that the tests notice.

    pip install cosmic-ray
    python -m experiments.trials.mutants --workdir runs/mutants [--only=folds] [--sample=30] [--seed=0]

The changes are those of Cosmic Ray: another operator, another number, a condition turned round, a loop left out. From
each module a sample is drawn at random, without changes of type annotations, which do nothing or stop the import. Each
change is made in a copy of the checkout, where the module's tests run until the first failure, or for five times as
long as without a change. Writes mutants.json: by module how many of the sample were noticed, with a 95 % interval
(Clopper and Pearson), and the changes that were not, some of which change nothing that could be seen. Unnoticed
changes are no failures.
"""

import ast
import difflib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import flags
from scipy.stats import binomtest
from tqdm import tqdm

from experiments.trials import small_run
from pnsamp_jax.errors import UserError

ROOT = Path(__file__).parents[2]
COPIED = ("pnsamp_jax", "configs", "experiments", "tests")
# Every program that a change leaves as it was is compiled once.
COMPILED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
# The modules, and the tests that are theirs.
MODULES = {
    "pnsamp_jax/losses.py": ["tests/test_losses.py"],
    "pnsamp_jax/transforms.py": ["tests/test_transforms.py"],
    "pnsamp_jax/metrics.py": ["tests/test_metrics*.py"],
    "pnsamp_jax/intervals.py": ["tests/test_intervals.py"],
    "pnsamp_jax/outlines.py": ["tests/test_outlines.py"],
    "pnsamp_jax/data/cohort.py": ["tests/data/test_cohort.py"],
    "pnsamp_jax/data/folds.py": ["tests/data/test_folds.py"],
    "pnsamp_jax/data/patches.py": ["tests/data/test_patches.py"],
    "pnsamp_jax/data/lidc_masks.py": ["tests/data/test_lidc_masks.py"],
    "pnsamp_jax/inference/masks.py": ["tests/inference/test_masks.py", "tests/inference/test_onto_grid.py"],
}


def annotations(code: str) -> set[int]:
    """Return the lines on which a type annotation stands."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if part is not None:
                found.update(range(part.lineno, part.end_lineno + 1))
    return found


def mutants(code: str) -> list[str]:
    """Return the code with each of Cosmic Ray's changes, without those that touch nothing but annotations."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    typed, found = annotations(code), set()
    for name in operator_names():
        operator, occurrence = get_operator(name), 0
        if operator.arguments():  # which exchanges variables that the user names
            continue
        while (mutant := mutate_code(code, operator(), occurrence)) is not None:
            occurrence += 1
            if "BitOr" not in name or not changed_lines(code, mutant) <= typed:  # `Array | None`
                found.add(mutant)
    return sorted(found)


def changed_lines(code: str, mutant: str) -> set[int]:
    """Return the numbers of the lines of the code that a mutant has otherwise."""
    matcher = difflib.SequenceMatcher(None, code.splitlines(), mutant.splitlines(), autojunk=False)
    return {
        line + 1 for kind, a, b, _, _ in matcher.get_opcodes() if kind != "equal" for line in range(a, max(b, a + 1))
    }


def passes(folder: Path, tests: list[str], seconds: float) -> bool:
    """Return whether the tests pass in a copy of the checkout, in so many seconds."""
    paths = [str(path) for pattern in tests for path in sorted(folder.glob(pattern))]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **COMPILED}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder.parent / "compiled")
    try:
        return not subprocess.run(
            command, cwd=folder, env=environment, timeout=seconds, capture_output=True
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def measure(workdir: Path, only: str, sample: int, seed: int) -> dict:
    """Run the trial; see the module's docstring.

    Args:
      workdir: an empty folder.
      only: part of the path of a module; other modules are left out.
      sample: number of changes that are drawn from each module.
      seed: of the draw.

    Returns:
      `modules`: by path `mutants`, `sample`, `noticed`, `interval` and `unnoticed`, as diffs; and `failures`, empty.

    Raises:
      UserError: the workdir is not empty, or the tests of an unchanged module fail.
    """
    copy = small_run.make_empty(workdir) / "checkout"
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.cfg"), *ROOT.glob("*.toml")):
        shutil.copy(path, copy)
    (workdir / "shared").symlink_to(ROOT.parent / "shared")  # the sample data, if there are any
    results = {}
    for module, tests in MODULES.items():
        if only not in module:
            continue
        code, start = (copy / module).read_text(), time.monotonic()
        if not passes(copy, tests, 3600):
            raise UserError(f"{module}: its tests fail without a change; mend them first")
        seconds = 5 * (time.monotonic() - start)
        everything = mutants(code)
        drawn = random.Random(seed).sample(everything, min(sample, len(everything)))
        unnoticed = []
        for mutant in tqdm(drawn, desc=module, unit="mutant"):
            (copy / module).write_text(mutant)
            if passes(copy, tests, seconds):
                lines = difflib.unified_diff(code.splitlines(), mutant.splitlines(), lineterm="", n=0)
                unnoticed.append([line for line in lines if not line.startswith(("---", "+++"))])
        (copy / module).write_text(code)
        noticed = len(drawn) - len(unnoticed)
        low, high = binomtest(noticed, len(drawn)).proportion_ci()
        results[module] = {
            "mutants": len(everything),
            "sample": len(drawn),
            "noticed": noticed,
            "interval": (low, high),
            "unnoticed": unnoticed,
        }
    return {"modules": results, "failures": []}


if __name__ == "__main__":
    small_run.launch_trial(
        "mutants",
        measure,
        only=flags.DEFINE_string("only", "", "Part of a module's path; all modules by default."),
        sample=flags.DEFINE_integer("sample", 30, "Number of changes drawn from each module."),
        seed=flags.DEFINE_integer("seed", 0, "Seed of the draw."),
    )
