"""The trial that changes the code: a change that a test misses is found, and nothing but the copy is touched."""

import pytest

from experiments.trials import mutants
from pnsamp_jax.errors import UserError

pytest.importorskip("cosmic_ray", reason="the trial needs cosmic-ray, which only it needs")

CODE = """
def share(part: int | None, whole: int) -> float | None:
    return None if part is None else part / whole
"""
# 0 / 1 = 0, 4 / 2 = 2: neither notices that a division has become a division without a remainder.
TESTS = """
from package.module import share

def test_share():
    assert share(None, 1) is None and share(0, 1) == 0 and share(4, 2) == 2
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    for name, text in {"package/module.py": CODE, "tests/test_module.py": TESTS, "setup.cfg": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "COPIED", ("package", "tests"))
    monkeypatch.setattr(mutants, "MODULES", {"package/module.py": ["tests/test_module.py"]})
    return root


def test_the_code_is_changed_and_its_annotations_are_not():
    changed = [mutant.splitlines() for mutant in mutants.mutants(CODE)]
    assert "    return None if part is None else part // whole" in [lines[2] for lines in changed]
    assert "    return None if part is not None else part / whole" in [lines[2] for lines in changed]
    # A change of `int | None` would only stop the import.
    assert all(lines[1] == CODE.splitlines()[1] and lines[2] != CODE.splitlines()[2] for lines in changed)


def test_a_change_that_the_tests_miss_is_found(project, tmp_path, monkeypatch):
    made = [CODE.replace("part / whole", f"part {operator} whole") for operator in ("//", "*", "-")]
    monkeypatch.setattr(mutants, "mutants", lambda code: made)
    (result,) = mutants.measure(tmp_path / "trial", only="", sample=9, seed=0)["modules"].values()
    assert (result["mutants"], result["sample"], result["noticed"]) == (3, 3, 2)
    assert [change[-1] for change in result["unnoticed"]] == ["+    return None if part is None else part // whole"]
    # Clopper and Pearson for 2 of 3, from their tables.
    assert result["interval"] == pytest.approx((0.094, 0.992), abs=1e-3)
    assert (project / "package" / "module.py").read_text() == CODE


def test_tests_that_fail_anyway_tell_nothing(project, tmp_path):
    (project / "tests" / "test_module.py").write_text("def test_nothing(): assert False")
    with pytest.raises(UserError, match=r"package/module\.py: its tests fail without a change"):
        mutants.measure(tmp_path / "trial", only="", sample=1, seed=0)
