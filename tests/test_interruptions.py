"""What a run leaves when it is stopped, when another is at work, when files are damaged, and when the disk is full."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from experiments.comparison import systems
from experiments.comparison.runs import is_complete
from pnsamp_jax import train
from pnsamp_jax.config import read_settings
from pnsamp_jax.errors import Interrupted, UserError
from pnsamp_jax.state import state_shapes
from pnsamp_jax.workdir import layout
from pnsamp_jax.workdir.checkpoint import Checkpoints
from pnsamp_jax.workdir.metrics_log import MetricsLog

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

CONFIG = {"fold": 0, "num_epochs": 3}
EPOCH, STOPPED_AT = 5, 7  # no epoch ends there
WRITTEN = ("predictions.csv", "readers.csv", "results.json", "folds.json", "fold_0/metrics.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation):
    """A run of one fold that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished")
    train.train_and_evaluate(tiny_config(**CONFIG), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def state_of(workdir, which="last"):
    task = read_settings(tiny_config()).task
    like = state_shapes(task.model, task.patch_size, len(task.windows))
    with Checkpoints(workdir / "fold_0" / "checkpoints") as checkpoints:
        return checkpoints.restore(like, which)


def assert_same(workdir, finished):
    """Both checkpoints and all that was written, to the bit."""
    for which in ("best", "last"):
        ours, theirs = (jax.tree.leaves(state_of(folder, which)) for folder in (workdir, finished))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for name in WRITTEN:
        assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name


def files_of(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def steps_of(workdir):
    """The steps of the checkpoints, ascending."""
    return sorted(int(path.name) for path in (workdir / "fold_0" / "checkpoints").iterdir() if path.name.isdigit())


def test_a_terminated_run_saves_the_step_it_is_at_and_goes_on_to_the_same_end(finished, tmp_path, monkeypatch):
    class Terminates(MetricsLog):
        def write(self, part, step, *values):
            super().write(part, step, *values)
            if step == STOPPED_AT:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "MetricsLog", Terminates)
    with pytest.raises(Interrupted, match=f"fold 0: told to stop .* the checkpoint of step {STOPPED_AT} is saved"):
        train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert state_of(tmp_path).step == STOPPED_AT
    assert state_of(tmp_path, "best").step < STOPPED_AT  # it was not validated
    monkeypatch.setattr(train, "MetricsLog", MetricsLog)
    train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert_same(tmp_path, finished)


@pytest.mark.parametrize(("steps_per_call", "stops_at"), [(3, 8), (100, 10)])
def test_several_steps_in_one_call_are_stopped_after_it_and_go_on_to_the_same_end(
    finished, tmp_path, monkeypatch, steps_per_call, stops_at
):
    class Terminates(MetricsLog):
        def write(self, part, step, *values):
            super().write(part, step, *values)
            if step == STOPPED_AT:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "MetricsLog", Terminates)
    with pytest.raises(Interrupted, match=f"the checkpoint of step {stops_at} is saved"):
        train.train_and_evaluate(tiny_config(**CONFIG, steps_per_call=steps_per_call), tmp_path)
    monkeypatch.setattr(train, "MetricsLog", MetricsLog)
    train.train_and_evaluate(tiny_config(**CONFIG, steps_per_call=2), tmp_path)
    assert_same(tmp_path, finished)


def test_the_command_line_ends_with_the_status_of_sigterm(tmp_path):
    program = "import sys; from pnsamp_jax import errors, main, train\n"
    program += "def stop(config, workdir): raise errors.Interrupted('fold 0: told to stop')\n"
    program += "train.train_and_evaluate = stop\n"
    program += "main.app.run(main.main, ['main', '--config', 'configs/demo.py', '--workdir', sys.argv[1]])"
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stderr) == (143, "pnsamp_jax: fold 0: told to stop\n")


def test_a_second_run_on_a_fold_is_refused_and_changes_nothing(copy):
    program = "import sys; from pathlib import Path; from pnsamp_jax.workdir import layout\n"
    program += "with layout.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(copy / "fold_0")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        before = files_of(copy / "fold_0")
        with pytest.raises(UserError, match="fold_0: another run is at work on it"):
            train.train_and_evaluate(tiny_config(**CONFIG), copy)
        with layout.locked(copy / "fold_1"):  # another fold is free
            pass
        assert files_of(copy / "fold_0") == before
        other.kill()
        other.wait()
    with layout.locked(copy / "fold_0"), layout.locked(copy / "fold_0"):  # the lock went with the process
        pass


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("state/manifest.ocdbt", flip_a_bit), ("metrics/metrics", cut), ("config/metadata", Path.unlink)],
)
def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_last_good_one(
    finished, copy, capsys, name, damage
):
    steps = steps_of(copy)
    path = copy / "fold_0" / "checkpoints" / str(steps[-1]) / name
    damage(path)
    before = files_of(copy)
    with pytest.raises(UserError, match=rf"checkpoints/{steps[-1]}: damaged or missing; run --mode train"):
        state_of(copy)
    assert files_of(copy) == before
    train.train_and_evaluate(tiny_config(**CONFIG), copy)
    assert f"{steps[-1]}: damaged; set aside as {steps[-1]}.damaged_1; fold 0 goes on" in capsys.readouterr().out
    assert_same(copy, finished)
    assert (copy / "fold_0" / "checkpoints" / f"{steps[-1]}.damaged_1").is_dir()  # to find out what happened


def test_a_missing_last_checkpoint_is_noticed(finished, copy, capsys):
    steps = steps_of(copy)
    shutil.rmtree(copy / "fold_0" / "checkpoints" / str(steps[-1]))
    with pytest.raises(UserError, match=rf"checkpoints/{steps[-1]}: damaged or missing"):
        state_of(copy)
    train.train_and_evaluate(tiny_config(**CONFIG), copy)
    assert f"{steps[-1]}: missing; fold 0 goes on" in capsys.readouterr().out
    assert_same(copy, finished)


def test_without_a_good_checkpoint_the_fold_starts_anew(finished, copy, capsys):
    for step in steps_of(copy):
        cut(copy / "fold_0" / "checkpoints" / str(step) / "state" / "manifest.ocdbt")
    train.train_and_evaluate(tiny_config(**CONFIG), copy)
    assert capsys.readouterr().out.count("or anew where there is none") == 2
    assert_same(copy, finished)


def test_a_checkpoint_of_another_config_is_refused_by_the_first_difference(copy, tmp_path):
    other = {**CONFIG, "learning_rate": 0.01}
    shutil.rmtree(copy / "fold_0" / "checkpoints")
    train.train_and_evaluate(tiny_config(**other), tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "fold_0" / "checkpoints", copy / "fold_0" / "checkpoints")
    with pytest.raises(
        UserError, match=r"there config\.learning_rate is 0\.01, here 0\.001; choose another --workdir"
    ):
        train.train_and_evaluate(tiny_config(**CONFIG), copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folds.json", '{"cohort": "rounded_ne_3", "fo', r"folds\.json: damaged .*; restore it"),
        ("folds.json", "[]", r"folds\.json: damaged"),
        ("config.json", '{"seed', r"config\.json: damaged .*; delete it"),
        ("fold_0/checkpoints/digests.json", "{", r"digests\.json: damaged .*; delete it"),
        ("fold_1/predictions.csv", "nodule_id,patient_id,fold,di", r"predictions\.csv: does not hold .*; remove it"),
    ],
)
def test_a_half_written_file_gets_a_line(copy, name, content, message):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text(content)
    before = files_of(copy / "fold_0" / "checkpoints")
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(tiny_config(**CONFIG), copy)
    assert (copy / name).read_text() == content
    assert files_of(copy / "fold_0" / "checkpoints") == before


@pytest.mark.parametrize(("field", "value"), [("seed", 7), ("cohort", "all"), ("split", "nodule")])
def test_folds_of_other_settings_are_refused(copy, field, value):
    path = copy / "folds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(
        UserError, match=rf"folds\.json: was made for {field} '?{value}'?, not .*; choose another --workdir"
    ):
        train.train_and_evaluate(tiny_config(**CONFIG), copy)


def test_a_full_disk_gets_one_line_and_what_was_saved_stays(finished, tmp_path, monkeypatch):
    class Full(Checkpoints):
        def save(self, *arguments):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            if self.last_step is not None:  # the second save; the system refuses it as it does on a full disk
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                super().save(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(train, "Checkpoints", Full)
    with pytest.raises(OSError, match=r"fold_0/checkpoints: step \d+ was not saved"):
        train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert state_of(tmp_path).step == steps_of(tmp_path)[0] == EPOCH
    monkeypatch.setattr(train, "Checkpoints", Checkpoints)
    train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert_same(tmp_path, finished)


SLEEPING_SOURCE = """
import os, sys, time
from pathlib import Path
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.prepare import prepare

class Sleeps:
    name = "sleeps"
    def series(self): return ["a", "b"]
    def description(self): return {}
    def inputs(self, series): return None
    def load(self, series):
        print("loading", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    prepare(Sleeps(), Geometry(16, 0, 1.0), Path(sys.argv[1]), workers=2)
"""


def test_the_workers_of_a_killed_preparation_end_with_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SLEEPING_SOURCE)
    command = [sys.executable, str(program), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout.readline() == process.stdout.readline() == b"loading\n"
        process.kill()
        process.communicate(timeout=60)  # until the last one that holds the pipe is gone; they would sleep for longer


def test_a_training_at_a_constant_rate_goes_on_for_more_epochs_to_the_same_end(finished, tmp_path, capsys):
    train.train_and_evaluate(tiny_config(**{**CONFIG, "num_epochs": 2}), tmp_path)
    short = {name: (tmp_path / name).read_bytes() for name in WRITTEN}
    with pytest.raises(UserError, match="config.num_epochs is 2, here 3; train on with --mode train"):
        train.test_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert short == {name: (tmp_path / name).read_bytes() for name in WRITTEN}
    train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert_same(tmp_path, finished)
    for name in ("predictions.csv", "results.json"):
        assert (tmp_path / "num_epochs_2" / name).read_bytes() == short[name]
    assert "goes on after epoch 2" in capsys.readouterr().out
    with pytest.raises(UserError, match="config.num_epochs is 3, here 2; choose another --workdir"):
        train.train_and_evaluate(tiny_config(**{**CONFIG, "num_epochs": 2}), tmp_path)


def test_a_longer_training_that_is_stopped_is_not_finished_and_goes_on_to_the_same_end(
    finished, tmp_path, monkeypatch
):
    def stop(*arguments):
        raise KeyboardInterrupt

    train.train_and_evaluate(tiny_config(**{**CONFIG, "num_epochs": 2}), tmp_path)
    assert is_complete(tmp_path, [0])
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_fold", stop)  # after the workdir was claimed
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert not is_complete(tmp_path, [0])
    with pytest.raises(UserError, match="checkpoints: saved by another config: .* is 2, here 3; train on with --mode"):
        train.test_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert not is_complete(tmp_path, [0])
    train.train_and_evaluate(tiny_config(**CONFIG), tmp_path)
    assert is_complete(tmp_path, [0])
    assert_same(tmp_path, finished)


def test_a_comparison_does_not_take_a_shorter_run_for_a_finished_one(tmp_path, monkeypatch):
    run = systems.System("PN-SAMP M", "pn_samp_m", run=train.train_and_evaluate)
    monkeypatch.setattr(systems, "SYSTEMS", {systems.PN_SAMP: run})
    one, two = (tiny_config(fold=0, num_epochs=epochs, checkpoint="last") for epochs in (1, 2))
    workdir = tmp_path / systems.PN_SAMP
    systems.run_system(systems.PN_SAMP, one, tmp_path)
    assert is_complete(workdir, [0])
    before = (workdir / "predictions.csv").read_bytes()
    with pytest.raises(UserError, match="there config.num_epochs is 1, here 2; train on with --mode train"):
        systems.run_system(systems.PN_SAMP, two, tmp_path)
    assert (workdir / "predictions.csv").read_bytes() == before
    train.train_and_evaluate(systems.config_of(systems.PN_SAMP, two), workdir)  # as the line says
    assert (workdir / "predictions.csv").read_bytes() != before  # tested again
    systems.run_system(systems.PN_SAMP, two, tmp_path)
    with pytest.raises(UserError, match="there config.num_epochs is 2, here 1"):
        systems.run_system(systems.PN_SAMP, one, tmp_path)
