"""pnsamp_jax.config_file and pnsamp_jax.main: configs by name or path, overrides, and mistakes in one line."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from pnsamp_jax import config_file, main
from pnsamp_jax.errors import UsageError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OWN = """
from pnsamp_jax.configs import demo

def get_config(epochs="3"):
    config = demo.get_config()
    config.num_epochs = int(epochs)
    config.sizes, config.nothing = [1, 2], None
    return config
"""


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """A current folder that holds nothing but what a test writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(name: str, *overrides: str) -> str:
    """Return the message of the UsageError that loading raises; it must be one plain line."""
    with pytest.raises(UsageError) as caught:
        config_file.load(name, overrides)
    message = str(caught.value)
    assert message.isprintable() and "\\" not in message and "Traceback" not in message
    return message


def in_empty_folder(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)


# Where a config comes from


def test_every_file_is_shipped_under_its_name(empty_folder):
    assert {name: path.resolve() for name, path in config_file.shipped().items()} == {
        path.stem: path for path in CONFIGS.glob("*.py") if path.stem != "__init__"
    }
    assert config_file.resolve("demo").resolve() == CONFIGS / "demo.py"


def test_a_config_of_a_checkout_is_found_by_its_path(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    assert config_file.load("configs/demo.py").to_dict() == config_file.load("demo").to_dict()


def test_a_shipped_name_goes_before_a_file_of_the_same_name(empty_folder):
    (empty_folder / "demo").write_text("not a config")
    assert config_file.load("demo").data.phantom_nodules == 75
    assert "not a config" not in refusal("./demo")


def test_a_config_of_ones_own_may_import_shipped_ones_and_take_an_argument(empty_folder):
    (empty_folder / "own.py").write_text(OWN)
    assert config_file.load("own.py").num_epochs == 3
    assert config_file.load(f"{empty_folder}/own.py:7").num_epochs == 7


def test_a_config_may_hold_dataclasses(empty_folder):
    lines = ["from __future__ import annotations", "import dataclasses", "from pnsamp_jax.configs import base"]
    lines += ["@dataclasses.dataclass", "class Size:", "    value: int = 32"]
    lines += ["def get_config():", "    config = base.get_config()", "    config.patch_size = Size().value"]
    (empty_folder / "own.py").write_text("\n".join([*lines, "    return config"]))
    assert config_file.load("own.py").patch_size == 32


@pytest.mark.parametrize("name", ["nonesuch", "configs/nonesuch.py", "/", ""])
def test_a_config_that_does_not_exist_gets_the_list_of_shipped_ones(name, empty_folder):
    message = refusal(name)
    assert message.startswith(name or "--config: is empty")
    assert message.endswith(f"the shipped configs are {', '.join(config_file.shipped())}")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1\ndef get_config(:", "line 2: invalid syntax"),
        ("\nimport nonesuch", "line 2: ModuleNotFoundError: No module named 'nonesuch'"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    raise KeyError('two\\nlines')", "line 2: KeyError: two lines"),
        ("x = 1", "has no function get_config()"),
        ("def get_config(size):\n    pass", "TypeError: get_config() missing 1 required positional argument: 'size'"),
        ("def get_config():\n    pass", "get_config() returned NoneType; it must return a ConfigDict"),
        ("def get_config():\n    return {}", "get_config() returned dict; it must return a ConfigDict"),
        (OWN.replace("[1, 2], None", "config.bach_size, 2"), "line 7: AttributeError: 'bach_size'"),
    ],
)
def test_a_config_that_cannot_be_loaded_gets_the_line_and_the_reason(source, complaint, empty_folder):
    (empty_folder / "own.py").write_text(source)
    message = refusal("own.py")
    assert message.startswith("own.py: ") and complaint in message


def test_bytes_that_are_no_text_are_refused(empty_folder):
    (empty_folder / "own.py").write_bytes(b"\xff\n")
    assert refusal("own.py").startswith("own.py: line 1: ")
    (empty_folder / "own.py").write_bytes(b"\0\n")
    assert refusal("own.py").startswith("own.py: ")


# Overrides


def test_overrides_are_written_as_with_absl():
    overrides = ["--config.batch_size=4", "--config.learning_rate", "1e-2", "-config.seed=0x10"]
    overrides += ["--noconfig.augment.flip", "--config.augment.permute", "--config.data.root", "-a=b"]
    overrides += ["--config.model.windows=((1500, -500.0),)"]
    config = config_file.load("demo", overrides)
    assert (config.batch_size, config.learning_rate, config.seed) == (4, 0.01, 16)
    assert (config.augment.flip, config.augment.permute, config.augment.turn) == (False, True, True)
    assert config.data.root == "-a=b" and config.model.windows == ((1500, -500.0),)
    assert config_file.load("demo").batch_size == 8  # nothing is left of the overrides of another config
    assert config_file.load("predict", ["--config.predict.points=-1,2,3"]).predict.points == "-1,2,3"


def test_a_loaded_config_takes_no_new_field():
    with pytest.raises(AttributeError, match="locked"):
        config_file.load("demo").bach_size = 3


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("--config.bach_size=4", "config.bach_size: there is no such field; the closest is config.batch_size"),
        ("--config.flip=True", "config.flip: there is no such field; the closest is config.augment.flip"),
        ("--config.predict.flip=True", "the closest is config.predict.flips"),
        ("--config.data.batch_size=1", "the closest is config.batch_size"),
        ("--config.items=1", "config.items: there is no such field"),  # the name of a method
        ("--config.model.name.x=1", "the closest is config.model.name"),
        ("--config.=1", "config.: there is no such field"),
        ("--config.batch_size=abc", "config.batch_size: must be a whole number such as 8, not 'abc'"),
        ("--config.batch_size=", "config.batch_size: must be a whole number such as 8, not ''"),
        ("--config.num_epochs=1.5", "config.num_epochs: must be a whole number such as 3, not '1.5'"),
        ("--config.learning_rate=fast", "config.learning_rate: must be a number such as 0.001, not 'fast'"),
        ("--config.augment.flip=maybe", "config.augment.flip: must be True or False, not 'maybe'"),
        ("--config.augment=3", "config.augment: is a group of fields; set one of them, as in --config.augment.flip"),
        (
            "--config.model.windows=(1600,-600",
            "config.model.windows: must be a tuple such as ((1600.0, -600.0), (700.0, -600.0)), not '(1600,-600'",
        ),
        ("--config.model.windows[0]=(1,2)", "set the whole of config.model.windows"),
        ("--config.batch_size", "Missing value for flag --config.batch_size"),
        ("--noconfig.batch_size", "unexpected argument '--noconfig.batch_size'"),
        ("--config.sizes=3", "config.sizes: is of type list, which can only be set in a config file"),
        ("--config.nothing=3", "config.nothing: is of type NoneType, which can only be set in a config file"),
        ("--workdir=x", "unexpected argument '--workdir=x'; give fields as --config.field=value"),
    ],
)
def test_a_wrong_override_gets_the_field_and_what_it_must_be(override, complaint, empty_folder):
    (empty_folder / "own.py").write_text(OWN)
    assert complaint in refusal("own.py", "--config.seed=1", override)


def test_a_value_of_two_lines_is_reported_in_one():
    assert "not 'a b'" in refusal("demo", "--config.seed=a\nb")


# On the command line of main


def parse(*arguments: str) -> tuple[ConfigDict, str, list[str]]:
    """Return the config, the workdir and the remaining arguments of a command line."""
    with flagsaver.flagsaver():
        rest = main.parse_flags(["main", *arguments])
        return main.CONFIG.value, main.WORKDIR.value, rest


def test_config_and_overrides_stand_anywhere_on_the_command_line(empty_folder):
    arguments = ["--config.batch_size", "4", "--workdir", "runs", "--config=demo", "rest", "--noconfig.augment.turn"]
    config, workdir, rest = parse(*arguments)
    assert (config.batch_size, config.augment.turn, config.num_epochs) == (4, False, 3)
    assert (workdir, rest) == ("runs", ["main", "rest"])
    assert parse("--config", "base", "--config", "demo")[0].num_epochs == 3  # the last one counts, as for any flag


def test_a_file_of_flags_may_hold_the_config(empty_folder):
    (empty_folder / "flags").write_text("--config=demo\n--config.batch_size=2\n--workdir=w\n")
    config, workdir, _ = parse("--flagfile=flags")
    assert (config.batch_size, workdir) == (2, "w")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", "demo", "--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (["--config", "demo", "--mode=fly"], "flag --mode=fly: value should be one of"),
        (["--config", "nonesuch"], "nonesuch: no such file or shipped config"),
        (["--config", "demo", "--config.seed=x"], "config.seed: must be a whole number"),
        (["--config.seed=3"], "Unknown command line flag 'config.seed'"),
        (["--config"], "--config: is empty"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line_and_status_2(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pnsamp_jax: ") and complaint in line


def test_every_mode_is_a_function():
    for module, function in main.MODES.values():
        assert callable(getattr(import_module(f"pnsamp_jax.{module}"), function))


def test_main_runs_the_mode_with_the_config(monkeypatch):
    calls = []
    monkeypatch.setattr(main, "run", lambda *arguments: calls.append(arguments))
    for arguments in (["--config=demo", "--workdir=w"], ["--config=predict"], ["--config=predict", "--mode=evaluate"]):
        with flagsaver.flagsaver():
            main.main(main.parse_flags(["main", *arguments]))
    assert [(mode, workdir) for mode, _, workdir in calls] == [
        ("train", Path("w")),
        ("predict", Path("runs/predict")),
        ("evaluate", Path("runs/predict")),
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workdir=x"], "--config is missing; usage: python -m pnsamp_jax.main --config NAME --workdir DIR"),
        (["--config=demo"], "--workdir is missing; usage: "),
        (["--config=demo", "--workdir="], "--workdir is missing; usage: "),
        (["--config=demo", "--workdir=x", "more"], "unexpected argument 'more'; usage: "),
        (["--config=predict", "--workdir=x", "--config.mode=fly"], "config.mode: 'fly' is none of train, evaluate"),
    ],
)
def test_a_command_line_that_lacks_something_ends_with_status_2(arguments, complaint, capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
        main.main(main.parse_flags(["main", *arguments]))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_help_names_the_shipped_configs():
    assert "pn_samp_m_32" in flags.FLAGS["config"].help


# In a process of its own, from a folder that holds nothing


def test_a_config_that_imports_the_configs_of_a_checkout_is_told_where_they_are(tmp_path):
    (tmp_path / "own.py").write_text("from configs import base")
    done = in_empty_folder(tmp_path, "-m", "pnsamp_jax.main", "--config", "own.py", "--workdir", "x")
    assert done.returncode == 2
    expected = "own.py: import the shipped configs from pnsamp_jax, as in: from pnsamp_jax.configs import base"
    assert done.stderr.splitlines() == [f"pnsamp_jax: {expected}"]
    assert not (tmp_path / "x").exists()


def test_the_table_of_layers_is_printed_from_any_folder(tmp_path):
    done = in_empty_folder(tmp_path, "-m", "pnsamp_jax.models", "--config", "pn_samp_m", "--config.patch_size=16")
    assert done.returncode == 0, done.stderr
    assert "1,51" in done.stdout or "1.51" in done.stdout
    done = in_empty_folder(tmp_path, "-m", "pnsamp_jax.models", "--config", "pn_samp")
    assert done.returncode == 2 and done.stderr.startswith("pnsamp_jax: pn_samp: no such file or shipped config")
