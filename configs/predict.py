"""Predicts nodules of a CT with the networks of a training.

    python -m pnsamp_jax.main --config configs/predict.py --config.predict.checkpoint=runs/m \\
        --config.predict.image=/path/to/ct.nii.gz --config.predict.points="-61.5,40.2,-120.0"

The points are in mm, LPS, as DICOM and ITK have them; the other fields stand in configs/base.py.
"""

from ml_collections import ConfigDict
from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Mode and workdir of its own, so that neither has to be given."""
    config = base.get_config()
    config.mode = "predict"
    config.workdir = "runs/predict"
    return config
