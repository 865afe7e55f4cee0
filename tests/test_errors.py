"""pnsamp_jax.errors: what a user reads can be written anywhere, and each kind of error has an exit status."""

import pickle

import pytest

from pnsamp_jax.errors import Interrupted, UsageError, UserError, reported
from pnsamp_jax.files import readable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/ct.nii", "a/ct.nii"),
        ("é 中 🫁", "é 中 🫁"),
        (b"ct\xff.nii".decode("utf-8", "surrogateescape"), r"ct\udcff.nii"),
    ],
)
def test_only_what_is_not_utf8_is_escaped(text, expected):
    assert readable(text) == readable(readable(text)) == expected
    error = pickle.loads(pickle.dumps(UserError(text)))  # as it comes from a process that prepares
    assert str(error) == expected and str(error).encode()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a.csv: is empty"), 1, "a.csv: is empty"),
        (UsageError("config.seed: must be a number"), 2, "config.seed: must be a number"),
        (Interrupted("fold 0: asked to stop"), 143, "fold 0: asked to stop"),
        (KeyboardInterrupt(), 130, "interrupted; the same command starts again, a training from what was saved"),
        (UserError("a\nb.nii: \x1b[31m missing\u2028"), 1, r"a\nb.nii: \x1b[31m missing\u2028"),
        (
            PermissionError(13, "Permission denied", "x\udcff"),
            1,
            "[Errno 13] Permission denied: 'x\\udcff'; check that the path exists, is writable and that the disk is "
            "not full",
        ),
    ],
)
def test_what_a_user_can_act_on_becomes_a_line_and_a_status(error, status, line, capsys):
    with pytest.raises(SystemExit) as caught, reported("program"):
        raise error
    assert caught.value.code == status
    assert capsys.readouterr().err == f"program: {line}\n"


def test_success_is_silent_and_a_bug_keeps_its_traceback(capsys):
    with reported():
        pass
    with pytest.raises(ZeroDivisionError), reported():
        _ = 1 / 0
    assert capsys.readouterr().err == ""
