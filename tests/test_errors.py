"""pnsamp_jax.errors: what a user reads can be written anywhere."""

import pickle

import pytest

from pnsamp_jax.errors import UserError
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
