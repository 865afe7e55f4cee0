"""The rating heads of a fold that were fitted again after its training: `fold_<k>/heads/`, read and written.

They belong to one step of the training. A checkpoint keeps the heads that were trained with it.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pnsamp_jax.errors import UserError
from pnsamp_jax.workdir.checkpoint import load_weights, save_weights


def are_refitted(fields: dict[str, Any]) -> bool:
    """Return whether new heads are fitted after the training of a config; those that it starts from are kept.

    Args:
      fields: of the config, as JSON; a config of earlier lacks some.
    """
    return fields.get("refit_copies", 0) > 0 and not fields.get("init")


def save_heads(fold: Path, step: int, heads: dict) -> None:
    """Write the parameters of the heads in the folder of a fold, in place of earlier ones.

    Args:
      fold: its folder.
      step: of the training, at which the rest of the network stands.
      heads: parameters, as in `variables["params"]["heads"]`.
    """
    folder = fold / "heads"
    shutil.rmtree(folder, ignore_errors=True)
    save_weights(folder, {"step": np.int32(step), "heads": jax.tree.map(np.asarray, heads)})


def with_heads(fold: Path, step: int, variables: dict) -> dict:
    """Return the variables of a network with the heads that were fitted again.

    Args:
      fold: its folder.
      step: of the training, at which the variables were saved.
      variables: `params` and `batch_stats`.

    Raises:
      UserError: there are no such heads, they are damaged, or they belong to another step.
    """
    params: dict[str, Any] = variables["params"]
    like = {"step": np.zeros((), np.int32), "heads": params["heads"]}
    try:
        loaded = load_weights(fold / "heads", like)
    except UserError as error:
        raise UserError(
            f"{fold / 'heads'}: missing or damaged; run --mode evaluate on this workdir, which fits the heads anew"
        ) from error
    if int(loaded["step"]) != step:
        raise UserError(
            f"{fold / 'heads'}: belong to step {int(loaded['step'])} and not to {step}; run --mode evaluate on this "
            "workdir, which fits the heads anew"
        )
    return variables | {"params": params | {"heads": loaded["heads"]}}
