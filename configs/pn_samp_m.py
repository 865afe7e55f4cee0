"""PN-SAMP M: both windows and all three tasks, the paper's main variant.

    python -m pnsamp_jax.main --config pn_samp_m --workdir runs/m \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The paper reports a Dice of 73.89 (3.87), a malignancy off-by-one accuracy of 97.58 (1.32) and a mean of the nine
ratings of 89.33.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """Return the config unchanged: the base config is variant M, and so are the protocols that are made from it."""
    return config


def get_config() -> ConfigDict:
    """Return the config: both windows, all three tasks."""
    return apply_to(base.get_config())
