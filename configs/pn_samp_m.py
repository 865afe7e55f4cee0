"""PN-SAMP M: both windows, all three tasks; the paper's main form.

    python -m pnsamp_jax.main --config configs/pn_samp_m.py --workdir runs/m \\
        --config.data.source=folder --config.data.root=/path/to/nodules

The paper: Dice 73.89 (3.87), malignancy off-by-one 97.58 (1.32), mean of the nine ratings 89.33.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def apply_to(config: ConfigDict) -> ConfigDict:
    """The base config is this form, and so is every protocol that is made of it."""
    return config


def get_config() -> ConfigDict:
    """Both windows, all three tasks."""
    return apply_to(base.get_config())
