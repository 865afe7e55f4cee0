"""The rating heads of a fold that were fitted again after its training: `fold_<k>/heads/`, read and written.

They belong to one step of the training, and to the number of copies of each nodule that they were fitted to. A
checkpoint keeps the heads that were trained with it.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.checkpoint import load_weights, save_weights


def copies_to_refit(fields: dict[str, Any]) -> int:
    """Return to how many copies of each nodule new heads are fitted after the training of a config; 0 for none.

    A network that starts from another one keeps the heads of that one.

    Args:
      fields: of the config, as JSON; a config of earlier lacks some.
    """
    return 0 if fields.get("init") else fields.get("refit_copies", 0)


def save_heads(fold: Path, step: int, copies: int, heads: dict) -> None:
    """Write the parameters of the heads in the folder of a fold, in place of earlier ones.

    Args:
      fold: its folder.
      step: of the training, at which the rest of the network stands.
      copies: of each nodule, to which they were fitted.
      heads: parameters, as in `variables["params"]["heads"]`.
    """
    folder = fold / "heads"
    shutil.rmtree(folder, ignore_errors=True)
    save_weights(
        folder, {"step": np.int32(step), "copies": np.int32(copies), "heads": jax.tree.map(np.asarray, heads)}
    )


def with_heads(fold: Path, step: int, copies: int, variables: dict) -> dict:
    """Return the variables of a network with the heads that were fitted again.

    Args:
      fold: its folder.
      step: of the training, at which the variables were saved.
      copies: of each nodule, to which the heads have to be fitted.
      variables: `params` and `batch_stats`.

    Raises:
      UserError: there are no such heads, they are damaged, or they belong to another step or number of copies.
    """
    params: dict[str, Any] = variables["params"]
    number = np.zeros((), np.int32)
    like = {"step": number, "copies": number, "heads": params["heads"]}
    try:
        loaded = load_weights(fold / "heads", like)
    except UserError as error:
        raise UserError(
            f"{fold / 'heads'}: missing or damaged; run --mode evaluate on this workdir, which fits the heads anew"
        ) from error
    found, expected = (int(loaded["step"]), int(loaded["copies"])), (step, copies)
    if found != expected:
        raise UserError(
            f"{fold / 'heads'}: belong to step {found[0]} and {found[1]} copies of each nodule, not to step "
            f"{expected[0]} and {expected[1]}; run --mode evaluate on this workdir, which fits the heads anew"
        )
    return variables | {"params": params | {"heads": loaded["heads"]}}
