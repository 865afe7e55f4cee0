"""Prediction of the nodules of a CT: `--mode predict`, with the shipped networks or those of a training.

    python -m pnsamp_jax.main --config predict --workdir runs/predict --config.predict.checkpoint=runs/m \\
        --config.predict.image=/path/to/ct.nii.gz --config.predict.points="-61.5,40.2,-120.0"

Points are in mm, in the LPS system of DICOM and ITK. The other fields are described in configs/base.py.
"""

from ml_collections import ConfigDict

from pnsamp_jax.configs import base


def get_config() -> ConfigDict:
    """Return the config, with a mode and a workdir so that the command line may omit them."""
    config = base.get_config()
    config.mode = "predict"
    config.workdir = "runs/predict"
    return config
