"""The command line of the experiments: configs by name, and errors as one line."""

import subprocess
import sys

import pytest


def run(module, *arguments):
    """Run an experiment from the command line, and return its exit status and stderr."""
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_mistake_of_the_user_is_one_line_with_the_name_of_the_experiment(tmp_path):
    status, message = run("reliability", f"--workdir={tmp_path}")
    assert status == 1
    assert message == f"reliability: {tmp_path}/predictions.csv: no such file; run --mode train first\n"


def test_a_config_is_found_by_name_and_can_be_overridden(tmp_path):
    arguments = ("--config", "mcnn", "--config.model.name=tumornet", f"--workdir={tmp_path}")
    status, message = run("baselines.mcnn", *arguments)
    assert (status, message) == (1, "mcnn: config.model.name: 'tumornet' is not 'mcnn'; use the method's config\n")


@pytest.mark.parametrize("arguments", [(), ("--config=demo",), ("--workdir=.",), ("--nonsense",)])
def test_a_usage_error_is_one_line(arguments):
    status, message = run("slabs_to_cubes", *arguments)
    assert status == 2 and message.startswith("slabs_to_cubes: ") and message.count("\n") == 1
