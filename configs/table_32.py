"""The protocol of the tables on two CPU cores: 32 voxels of 1.2 mm, the same number of epochs for every system.

    python -m experiments.table2 --config configs/table_32.py --workdir runs/tables \\
        --config.data.source=folder --config.data.root=/path/to/nodules

Its results stand in experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import pn_samp_m_32


def get_config() -> ConfigDict:
    """As `pn_samp_m_32`, in fewer epochs of smaller batches: more steps for the same work."""
    config = pn_samp_m_32.get_config()
    config.batch_size = 8
    config.num_epochs = 12
    config.checkpoint_every_epochs = 2
    return config
