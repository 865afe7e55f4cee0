"""Training on slabs and testing on cubes: no patient with a cube is trained on."""

import numpy as np
import pytest

from experiments.slabs_to_cubes import split_by_context
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError


def records(contexts):
    """Return a record for each (patient, context)."""
    patients, kinds = zip(*contexts, strict=True)
    ids = [f"n{index}" for index in range(len(patients))]
    arrays = {schema.NODULE_ID: ids, schema.PATIENT_ID: patients, schema.CONTEXT: kinds}
    return {name: np.array(values) for name, values in arrays.items()}


def test_patients_with_cubes_are_only_tested():
    contexts = [(f"p{index % 10}", "cube" if index < 3 else "slab") for index in range(40)]
    split = split_by_context(records(contexts), validation_fraction=0.3, seed=0)
    assert split["test"] == ["n0", "n1", "n2"]
    patients = {subset: {f"p{int(nodule[1:]) % 10}" for nodule in ids} for subset, ids in split.items()}
    assert len(patients["validation"]) == 2  # three tenths of the seven patients without a cube
    assert patients["train"] | patients["validation"] == {f"p{index}" for index in range(3, 10)}
    assert not patients["train"] & patients["validation"]
    assert split == split_by_context(records(contexts), validation_fraction=0.3, seed=0)


@pytest.mark.parametrize("context", ["cube", "slab"])
def test_both_contexts_are_needed(context):
    with pytest.raises(UserError, match="cubes"):
        split_by_context(records([("a", context), ("b", context)]), validation_fraction=0.1, seed=0)
