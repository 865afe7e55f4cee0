"""pnsamp_jax.workdir.checkpoint: what is saved comes back to the bit, and only the best and the last are kept."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pnsamp_jax.errors import UserError
from pnsamp_jax.state import ADAM, TrainState
from pnsamp_jax.workdir.checkpoint import Checkpoints

CONFIG = {"seed": 3, "model": {"name": "pn_samp", "windows": [[1600.0, -600.0]]}}


def make_state(step):
    """A state whose every number is particular to its step."""
    rng = np.random.default_rng(step)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"down_0": {"kernel": draw(3, 3, 3, 2, 4), "bias": draw(4)}, "mask": {"kernel": draw(4, 1)}}
    gradients = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
    _, opt_state = ADAM.update(gradients, ADAM.init(params))
    return TrainState(jnp.int32(step), params, {"down_0": {"mean": draw(4), "var": draw(4)}}, opt_state)


def assert_same(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def save_all(folder, loss_of_step):
    """Saves a state for each step -> loss."""
    with Checkpoints(folder) as checkpoints:
        for step, loss in loss_of_step.items():
            checkpoints.save(make_state(step), CONFIG, loss)


def test_a_state_comes_back_to_the_bit(tmp_path):
    save_all(tmp_path, {5: 0.5})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step == 5
        restored = checkpoints.restore(make_state(0))
    assert_same(restored, make_state(5))
    assert restored.opt_state.count == 1 and restored.step == 5


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({2: 0.9, 4: 0.3, 6: 0.5, 8: 0.7}, 4),
        ({2: 0.1, 4: 0.3, 6: 0.2}, 2),
        ({2: 0.9, 4: 0.7, 6: 0.5}, 6),
        ({2: -0.5, 4: -2.0, 6: 1.0}, 4),
    ],
)
def test_only_the_best_and_the_last_are_kept(tmp_path, losses, best):
    save_all(tmp_path, losses)
    assert {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()} == {best, max(losses)}
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state(0), "best"), make_state(best))
        assert_same(checkpoints.restore(make_state(0), "last"), make_state(max(losses)))
        assert_same(checkpoints.restore(make_state(0)), make_state(max(losses)))


def test_a_resumed_run_remembers_which_was_the_best(tmp_path):
    save_all(tmp_path, {2: 0.4, 4: 0.2})
    save_all(tmp_path, {6: 0.3, 8: 0.6})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step == 8
        assert_same(checkpoints.restore(make_state(0), "best"), make_state(4))


@pytest.mark.parametrize("which", ["best", "last"])
def test_no_checkpoint_is_the_users_error(tmp_path, which):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.last_step is None
        with pytest.raises(UserError, match=r"checkpoints: holds no checkpoint; run --mode train first"):
            checkpoints.restore(make_state(0), which)


def test_a_relative_folder_with_spaces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs, é" / "fold 0"
    save_all(folder.relative_to(tmp_path), {2: 0.5})
    with Checkpoints(folder) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(2))


def test_the_config_is_saved_as_json(tmp_path):
    save_all(tmp_path, {2: 0.5})
    assert json.loads((tmp_path / "2" / "config" / "metadata").read_text()) == CONFIG


@pytest.fixture
def held(monkeypatch):
    """An event that every save of Orbax waits for."""
    go, save = threading.Event(), ocp.CheckpointManager.save

    def save_later(*arguments, **options):
        assert go.wait(60)
        return save(*arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_later)
    return go


def test_a_save_goes_on_while_the_state_is_changed(tmp_path, held):
    state = jax.tree.map(np.array, make_state(5))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, CONFIG, 0.5)
        for leaf in jax.tree.leaves(state):
            leaf *= 0
        assert not (tmp_path / "5").exists() and not (tmp_path / "digests.json").exists()
        held.set()
        assert checkpoints.last_step == 5  # which waits
        assert list(json.loads((tmp_path / "digests.json").read_text())) == ["5"]
        assert_same(checkpoints.restore(make_state(0)), make_state(5))


def test_leaving_waits_for_what_is_being_saved(tmp_path, held):
    def stop():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(make_state(5), CONFIG, 0.5)
            threading.Timer(0.2, held.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(5))


@pytest.mark.parametrize("call", ["save", "wait", "last_step", "leave"])
def test_the_next_call_tells_that_a_state_was_not_saved(tmp_path, monkeypatch, call):
    def fail(*arguments, **options):
        raise OSError("No space left on device")

    save_all(tmp_path, {3: 0.5})
    calls = {
        "save": lambda checkpoints: checkpoints.save(make_state(7), CONFIG, 0.5),
        "wait": lambda checkpoints: checkpoints.wait(),
        "last_step": lambda checkpoints: checkpoints.last_step,
        "leave": lambda checkpoints: None,
    }
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(OSError, match=r"step 5 was not saved \(No space left on device\)"):
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(make_state(5), CONFIG, 0.5)
                calls[call](checkpoints)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(3))
